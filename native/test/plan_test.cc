#include "layout/plan.h"

#include <algorithm>
#include <numeric>

#include "check.h"
#include "geometries.h"
#include "layout/run_cursor.h"

using namespace kvt;
using kvt::test::Hnd;
using kvt::test::Nhd;

namespace {

Plan PlanFor(const Geometry& source, const Geometry& target) {
  std::string why;
  return *Plan::Compile({source}, {target}, &why);
}
Plan PlanFor(const Geometry& geometry) { return PlanFor(geometry, geometry); }

std::vector<Run> RunsOf(const Plan& plan, uint64_t from, uint64_t to, const std::vector<uint32_t>& source,
                        const std::vector<uint32_t>& target) {
  std::vector<Run> runs;
  const Tokens tokens{from, to, to};
  const BlockTables tables{source, target};
  RunCursor cursor(plan, tokens, tables, {0, plan.Units(tokens)});
  Run run;
  while (cursor.Next(&run)) runs.push_back(run);
  return runs;
}

std::vector<uint32_t> Adjacent(uint32_t first, uint32_t count) {
  std::vector<uint32_t> blocks(count);
  std::iota(blocks.begin(), blocks.end(), first);
  return blocks;
}

}  // namespace

TEST("heads of one rank from a pool that holds more of them are one strided run a block") {
  const Geometry whole = Hnd(3, 2, 4, 8, 16);
  const Geometry half = Hnd(3, 2, 2, 8, 16, 0, 2);
  const Plan plan = PlanFor(whole, half);
  const auto runs = RunsOf(plan, 0, 16, {1, 2}, {1, 3});
  CHECK_EQ(runs.size(), 2u);
  const uint64_t row = 8 * 16;
  CHECK_EQ(runs[0], (Run{whole.BlockBytes() + 2 * row, half.BlockBytes(), 6, 2 * row, 4 * row, 2 * row}));
  CHECK_EQ(plan.PieceBytes(), 2 * row);
}

TEST(
    "neighbouring blocks of such a pair are one run altogether, as planes go on where the block before "
    "ends") {
  const Plan plan = PlanFor(Hnd(3, 2, 4, 8, 16), Hnd(3, 2, 2, 8, 16, 0, 2));
  const auto runs = RunsOf(plan, 0, 24, {4, 5, 6}, {1, 2, 3});
  CHECK_EQ(runs.size(), 1u);
  CHECK_EQ(runs[0].count, 18u);
}

TEST("layers of one stage from a pool that holds more of them are one piece a block") {
  const Geometry stage = Hnd(2, 2, 2, 8, 16, 3);
  const auto runs = RunsOf(PlanFor(Hnd(5, 2, 2, 8, 16), stage), 0, 8, {1}, {1});
  CHECK_EQ(runs.size(), 1u);
  CHECK_EQ(runs[0].count, 1u);
  CHECK_EQ(runs[0].bytes, stage.BlockBytes());
}

TEST("plans of a model's layers in turn move what the plan of all moves, each element once") {
  const Geometry whole = Hnd(5, 2, 4, 8, 16);
  const Geometry stage = Hnd(3, 2, 2, 8, 16, 1, 2);
  const Tokens tokens{3, 30, 30};
  for (const Geometry& target : {whole, stage}) {
    const uint64_t all = PlanFor(whole, target).Bytes(tokens);
    uint64_t sum = 0;
    for (const LayerRange layers : {LayerRange{0, 1}, LayerRange{1, 3}, LayerRange{3, 5}}) {
      std::string why;
      const auto plan = Plan::Compile({whole}, {target}, &why, true, layers);
      CHECK(plan.has_value());
      sum += plan->Bytes(tokens);
      const uint64_t layer = target.BlockBytes() / target.groups[0].Layers();
      for (const Run& run : RunsOf(*plan, 0, 8, {0}, {0})) {
        const uint64_t first = target.groups[0].layers[0].first;
        CHECK(run.target_offset >= (std::max<uint64_t>(layers.from, first) - first) * layer);
        CHECK(run.target_offset + (run.count - 1) * run.target_stride + run.bytes <=
              (layers.to - first) * layer);
      }
    }
    CHECK_EQ(sum, all);
  }
  std::string why;
  const auto none = Plan::Compile({whole}, {stage}, &why, true, {4, 5});
  CHECK(none.has_value());
  CHECK_EQ(none->Units(tokens), 0u);
}

TEST("blocks that are neighbours in both tables become one run, others one run each") {
  const Geometry geometry = Hnd(2, 2, 1, 4, 16);
  const auto runs = RunsOf(PlanFor(geometry), 0, 20, {4, 5, 6, 1, 2}, {0, 1, 3, 4, 5});
  const uint64_t block = geometry.BlockBytes();
  CHECK_EQ(block, 256u);
  CHECK_EQ(runs.size(), 3u);
  CHECK_EQ(runs[0].bytes, 2 * block);
  CHECK_EQ(runs[1].bytes, block);
  CHECK_EQ(runs[2].bytes, 2 * block);
}

TEST("padded neighbours become one strided run that leaves the padding alone") {
  const Geometry geometry = Hnd(1, 1, 1, 3, 8);
  CHECK_EQ(geometry.BlockBytes(), 64u);
  const auto runs = RunsOf(PlanFor(geometry), 0, 9, {2, 3, 4}, {2, 3, 4});
  CHECK_EQ(runs.size(), 1u);
  CHECK_EQ(runs[0], (Run{128, 128, 3, 24, 64, 64}));
}

TEST("a token range inside a block is one strided run over its rows") {
  const Geometry geometry = Hnd(2, 2, 2, 4, 16);
  const auto runs = RunsOf(PlanFor(geometry), 1, 3, std::vector<uint32_t>(1, 7), std::vector<uint32_t>(1, 7));
  CHECK_EQ(runs.size(), 1u);
  const uint64_t offset = 7 * geometry.BlockBytes() + 16;
  CHECK_EQ(runs[0], (Run{offset, offset, 8, 32, 64, 64}));
}

TEST("between HND and NHD a piece is one head of one token, between equal NHD pools a whole block") {
  const Geometry nhd = Nhd(2, 2, 4, 8, 16);
  CHECK_EQ(PlanFor(Hnd(2, 2, 4, 8, 16), nhd).PieceBytes(), 16u);
  CHECK_EQ(PlanFor(nhd).PieceBytes(), nhd.BlockBytes());
  // Some of the heads: all of them of one token.
  CHECK_EQ(PlanFor(nhd, Nhd(2, 2, 2, 8, 16, 0, 1)).PieceBytes(), 32u);
  const auto runs = RunsOf(PlanFor(Hnd(2, 2, 4, 8, 16), nhd), 0, 8, {0}, {0});
  uint64_t pieces = 0;
  for (const Run& run : runs) pieces += run.count;
  CHECK_EQ(pieces, uint64_t{2 * 2 * 4 * 8});
  // Of heads, tokens and the planes that go on, the longest makes the run.
  CHECK_EQ(runs.size(), 16u);
}

TEST(
    "tensors of one layer whose blocks follow each other are one piece a plane, whatever their block sizes") {
  // [plane][block][token][head], as engines with one tensor a layer have it.
  const auto tensor = [](uint32_t tokens, uint32_t blocks) {
    Geometry geometry = Nhd(1, 2, 4, tokens, 16);
    geometry.groups[0].block_stride = uint64_t{tokens} * 4 * 16;
    geometry.groups[0].plane_stride = blocks * geometry.groups[0].block_stride;
    return geometry;
  };
  const auto runs = RunsOf(PlanFor(tensor(16, 64), tensor(8, 64)), 0, 64, Adjacent(3, 4), Adjacent(9, 8));
  CHECK_EQ(runs.size(), 1u);
  CHECK_EQ(runs[0].count, 2u);
  CHECK_EQ(runs[0].bytes, uint64_t{64 * 4 * 16});
}

TEST("ranks that can't be paired are refused with every differing field named") {
  std::string why;
  CHECK(!Plan::Compile({Hnd(2, 2, 1, 4, 16)}, {Hnd(3, 1, 1, 8, 32)}, &why));
  CHECK(why.find("planes 2 at the source, 1 at the target") != std::string::npos);
  CHECK(why.find("bytes of a head 16 at the source, 32 at the target") != std::string::npos);
  CHECK(!Plan::Compile({Hnd(2, 2, 1, 4, 16)}, {Hnd(2, 2, 1, 4, 16, 2)}, &why));
  CHECK_EQ(why, "no layer and head in common");
  CHECK(!Plan::Compile({Hnd(2, 2, 1, 4, 16, 0, 4294967295u)}, {Hnd(2, 2, 1, 4, 16)}, &why));
  CHECK_EQ(why, "no layer and head in common");
  Geometry state = Hnd(2, 1, 1, 4, 16);
  state.groups[0].per_block = true;
  Geometry other = state;
  other.tokens_per_block = 8;
  other.groups.push_back(other.groups[0]);
  other.groups[0].window = 5;
  CHECK(!Plan::Compile({state}, {other}, &why));
  CHECK_EQ(
      why,
      "groups 1 at the source, 2 at the target, group 0 window 0 at the source, 5 at the target, tokens of "
      "a block 4 at the source, 8 at the target");
}

TEST("tables that are short or name blocks outside a pool are refused") {
  const Plan plan = PlanFor(Hnd(1, 1, 1, 4, 16));
  const std::vector<uint32_t> two{0, 1};
  const std::vector<uint32_t> outside{0, 9};
  CHECK(plan.Check({0, 8, 8}, {two, two}, 2, 2).empty());
  CHECK(!plan.Check({0, 9, 9}, {two, two}, 2, 2).empty());
  CHECK(!plan.Check({0, 8, 8}, {two, outside}, 9, 9).empty());
  CHECK(plan.Check({0, 4, 8}, {two, outside}, 9, 9).empty());
  CHECK(!plan.Check({5, 4, 8}, {two, two}, 2, 2).empty());
  CHECK(plan.Check({5, 5, 8}, {two, two}, 2, 2).empty());
  CHECK(!plan.Check({0, 8, 7}, {two, two}, 2, 2).empty());
  // Of three blocks, the last two.
  CHECK(plan.Check({4, 12, 12}, {two, two}, 2, 2).empty());
  CHECK(!plan.Check({3, 12, 12}, {two, two}, 2, 2).empty());
}

KVT_TEST_MAIN
