#include "layout/geometry.h"

#include "check.h"
#include "geometries.h"

using namespace kvt;
using kvt::test::Hnd;

TEST("places outside a pool are refused, however large the numbers of a hostile peer are") {
  const Geometry good = Hnd(2, 2, 2, 4, 16);
  CHECK_EQ(good.OutOfBounds(3, 3 * good.BlockBytes()), "");
  CHECK(!good.OutOfBounds(3, 3 * good.BlockBytes() - 1).empty());
  CHECK(!good.OutOfBounds(0, 4096).empty());
  const auto refused = [&good](auto change) {
    Geometry geometry = good;
    change(&geometry, &geometry.groups[0]);
    CHECK(!geometry.OutOfBounds(3, 3 * good.BlockBytes()).empty());
  };
  constexpr uint64_t kHuge = UINT64_MAX;
  refused([](Geometry* geometry, Group*) { geometry->tokens_per_block = 0; });
  refused([](Geometry* geometry, Group*) { geometry->tokens_per_block = UINT32_MAX; });
  refused([](Geometry* geometry, Group*) { geometry->groups.clear(); });
  refused([](Geometry* geometry, Group* group) { geometry->groups.assign(kGroupsMax + 1, *group); });
  refused([](Geometry*, Group* group) { group->heads = 0; });
  refused([](Geometry*, Group* group) { group->layers.clear(); });
  refused([](Geometry*, Group* group) { group->layers[0].count = 0; });
  refused([](Geometry*, Group* group) { group->layers[0].count = kLayersMax + 1; });
  refused([](Geometry*, Group* group) { group->layers.push_back(group->layers[0]); });
  refused([](Geometry*, Group* group) { group->layers[0].first = kLayersMax - 1; });
  for (const uint64_t stride : {kHuge, kHuge / 2 + 1, kHuge / 3, uint64_t{1} << 32}) {
    refused([&](Geometry*, Group* group) { group->block_stride = stride; });
    refused([&](Geometry*, Group* group) { group->plane_stride = stride; });
    refused([&](Geometry*, Group* group) { group->head_stride = stride; });
    refused([&](Geometry*, Group* group) { group->token_stride = stride; });
    refused([&](Geometry*, Group* group) { group->layers[0].stride = stride; });
    refused([&](Geometry*, Group* group) { group->layers[0].base = stride; });
  }
  refused([](Geometry*, Group* group) { group->element_bytes = UINT32_MAX; });
}

TEST("a pool of our own in which two elements share a byte is refused, one that interleaves layers is not") {
  const Geometry good = Hnd(2, 2, 2, 4, 16);
  CHECK_EQ(good.Overlap(3), "");
  const auto overlaps = [&good](auto change) {
    Geometry geometry = good;
    change(&geometry.groups[0]);
    return !geometry.Overlap(3).empty();
  };
  CHECK(overlaps([](Group* group) { group->token_stride = 15; }));
  CHECK(overlaps([](Group* group) { group->head_stride = 63; }));
  CHECK(overlaps([](Group* group) { group->plane_stride = 0; }));
  CHECK(overlaps([](Group* group) { group->block_stride = 255; }));
  CHECK(overlaps([](Group* group) { group->layers[0].stride -= 1; }));
  CHECK(overlaps([](Group* group) { group->layers.push_back({2, 1, 1, 100, 0}); }));
  // Layers far apart, blocks close together.
  CHECK(!overlaps([](Group* group) {
    group->block_stride = 256;
    group->layers = {{0, 1, 2, 0, 3 * 256}};
  }));
  Geometry twice = good;
  twice.groups.push_back(good.groups[0]);
  CHECK(!twice.Overlap(3).empty());
}

KVT_TEST_MAIN
