#include "cuda/gather_plan.h"

#include <random>

#include "check.h"
#include "geometries.h"

using namespace kvt;
using namespace kvt::cuda;

namespace {

constexpr uint32_t kGrid = 64;

std::vector<GatherSegment> Segments(const Geometry& source, const Geometry& target, const Tokens& tokens,
                                    const PoolAlignment& pools = {}) {
  std::string why;
  const Plan plan = *Plan::Compile({source}, {target}, &why);
  const std::vector<uint32_t> table((tokens.sequence + 7) / 8, 0);
  return SegmentsOf(plan, tokens, {table, table}, pools, kGrid);
}

}  // namespace

TEST("a division by multiplication is exact for each number below 2^31") {
  std::mt19937 random(1);
  for (int round = 0; round < 200'000; ++round) {
    const uint32_t divisor = std::max<uint32_t>(1, static_cast<uint32_t>(random()) >> (1 + random() % 31));
    const Division by = DivisionBy(divisor);
    const uint32_t quotient = (uint32_t{1} << 31) / divisor;
    const uint32_t near = (1 + static_cast<uint32_t>(random()) % quotient) * divisor - 1;
    for (const uint32_t number : {0U, divisor - 1, divisor, near, near + 1, (1U << 31) - 1}) {
      if (number >= 1U << 31) continue;
      CHECK_EQ(Divide(number, by), number / divisor);
    }
  }
}

TEST("equal layouts are one segment of whole blocks in vectors of 16 bytes, however many blocks there are") {
  const Geometry geometry = test::Hnd(4, 2, 2, 8, 128);
  const auto segments = Segments(geometry, geometry, {0, 800, 800});
  CHECK_EQ(segments.size(), 1u);
  CHECK_EQ(segments[0].dimension_count, 0u);
  CHECK_EQ(segments[0].width, 16u);
  CHECK_EQ(segments[0].vectors, 100 * geometry.BlockBytes() / 16);
}

TEST("a range that begins and ends inside blocks is three segments") {
  const Geometry geometry = test::Hnd(4, 2, 2, 8, 128);
  const auto segments = Segments(geometry, geometry, {3, 45, 45});
  CHECK_EQ(segments.size(), 3u);
  CHECK_EQ(segments[0].vectors, 4 * 2 * 2 * 5 * 8u);
  CHECK_EQ(segments[2].vectors, 4 * 2 * 2 * 5 * 8u);
}

TEST("a pool that begins at an odd place, and elements of odd size, are moved in narrower vectors") {
  const Geometry geometry = test::Hnd(1, 1, 1, 8, 128);
  CHECK_EQ(Segments(geometry, geometry, {0, 8, 8}, {4, 0})[0].width, 4u);
  const Geometry small = test::Nhd(1, 1, 2, 8, 6);
  const Geometry other = test::Hnd(1, 1, 2, 8, 6);
  CHECK_EQ(Segments(small, other, {0, 8, 8})[0].width, 2u);
}

TEST(
    "a segment's vectors are spread over the whole grid, and what a block keeps of a table at hand is "
    "bounded") {
  const Geometry geometry = test::Hnd(1, 1, 1, 8, 4);
  const uint64_t blocks = 1'000'000;
  const auto segments = Segments(geometry, geometry, {0, blocks * 8, blocks * 8});
  CHECK_EQ(segments.size(), 1u);
  const GatherSegment& segment = segments[0];
  CHECK(uint64_t{segment.share} * kGrid >= segment.vectors);
  CHECK(uint64_t{segment.share} * kGrid < segment.vectors + 512 * kGrid);
  uint32_t tiles = 0;
  for (uint32_t first = 0; first < segment.share; ++tiles) {
    const GatherTile tile = TileFrom(segment, first, segment.share);
    CHECK_EQ(tile.source_entry, first / segment.vectors_per_grain.divisor);
    CHECK(tile.source_entries > 0 && tile.source_entries <= kGatherEntries);
    CHECK(tile.last > first);
    first = tile.last;
  }
  CHECK_EQ(tiles, 4u);
}

TEST("more vectors than a segment holds are several segments, of whole blocks each") {
  const Geometry geometry = test::Hnd(64, 2, 64, 8, 256);
  const uint64_t blocks = (uint64_t{48} << 30) / geometry.BlockBytes();
  const auto segments = Segments(geometry, geometry, {0, blocks * 8, blocks * 8});
  CHECK_EQ(segments.size(), 2u);
  CHECK_EQ(segments[1].first_grain, segments[0].vectors / (geometry.BlockBytes() / 16));
  CHECK_EQ(uint64_t{segments[0].vectors} + segments[1].vectors, (uint64_t{48} << 30) / 16);
}

KVT_TEST_MAIN
