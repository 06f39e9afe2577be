#include "layout/plan.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include "check.h"

using namespace kvt;

namespace {

struct Side {
  Geometry geometry;
  uint32_t pool_blocks = 0;
  std::vector<uint32_t> table;

  uint64_t PoolBytes() const { return geometry.BlockBytes() * pool_blocks; }
};

struct Sample {
  Side source;
  Side target;
  TokenRange tokens;
};

Plan PlanFor(const Geometry& geometry) {
  std::string why;
  return *Plan::Compile({geometry}, {geometry}, &why);
}

std::vector<uint32_t> SomeBlocks(std::mt19937& random, uint32_t pool_blocks, size_t count, bool adjacent) {
  std::vector<uint32_t> blocks(pool_blocks);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (!adjacent) std::shuffle(blocks.begin(), blocks.end(), random);
  const size_t skip = random() % (pool_blocks - count + 1);
  return {blocks.begin() + static_cast<std::ptrdiff_t>(skip),
          blocks.begin() + static_cast<std::ptrdiff_t>(skip + count)};
}

Side RandomSide(std::mt19937& random, const Geometry& geometry, uint64_t tokens) {
  Side side;
  side.geometry = geometry;
  const uint64_t count = (tokens + geometry.tokens_per_block - 1) / geometry.tokens_per_block;
  side.pool_blocks = static_cast<uint32_t>(count + 1 + random() % 8);
  side.table = SomeBlocks(random, side.pool_blocks, count, random() % 2 == 0);
  return side;
}

// Equal sides, or a pair of ranks of one model: parts that overlap, blocks of any size.
Sample RandomSample(std::mt19937& random) {
  const auto upto = [&](uint32_t most) { return 1 + static_cast<uint32_t>(random() % most); };
  Geometry source = {upto(4), upto(2), upto(4), upto(6), upto(24)};
  source.first_layer = upto(3) - 1;
  source.first_head = upto(3) - 1;
  Geometry target = source;
  const unsigned kind = random() % 4;
  if (kind > 0) {
    // What the other side holds begins before or after, and has at least one layer and head in common.
    const auto part = [&](uint32_t first, uint32_t count, uint32_t* other_first, uint32_t* other_count) {
      const uint32_t shared = first + static_cast<uint32_t>(random() % count);
      *other_first = static_cast<uint32_t>(random() % (shared + 1));
      *other_count = shared - *other_first + upto(4);
    };
    if (kind != 1) part(source.first_layer, source.layers, &target.first_layer, &target.layers);
    if (kind != 2) part(source.first_head, source.heads, &target.first_head, &target.heads);
    if (random() % 2 == 0) target.tokens_per_block = upto(8);
  }
  Sample sample;
  const uint64_t tokens = random() % 40;
  sample.source = RandomSide(random, source, tokens);
  sample.target = RandomSide(random, target, tokens);
  sample.tokens.from = random() % (tokens + 1);
  sample.tokens.to = sample.tokens.from + random() % (tokens - sample.tokens.from + 1);
  return sample;
}

// Element by element, straight from the definition of a block's bytes. Counts the bytes that it moves.
std::vector<uint8_t> Oracle(const Sample& sample, const std::vector<uint8_t>& source,
                            std::vector<uint8_t> target, uint64_t* moved) {
  const auto at = [&](const Side& side, uint64_t token, uint64_t layer, uint64_t plane, uint64_t head,
                      uint64_t byte) {
    const Geometry& g = side.geometry;
    const uint64_t row = ((layer - g.first_layer) * g.planes + plane) * g.heads + head - g.first_head;
    const uint64_t in_block = token % g.tokens_per_block;
    return side.table[token / g.tokens_per_block] * g.BlockBytes() +
           (row * g.tokens_per_block + in_block) * g.head_bytes + byte;
  };
  const auto holds = [](const Geometry& g, uint64_t layer, uint64_t head) {
    return layer >= g.first_layer && layer < g.first_layer + g.layers && head >= g.first_head &&
           head < g.first_head + g.heads;
  };
  const Geometry& g = sample.target.geometry;
  for (uint64_t token = sample.tokens.from; token < sample.tokens.to; ++token) {
    for (uint64_t layer = g.first_layer; layer < g.first_layer + g.layers; ++layer) {
      for (uint64_t plane = 0; plane < g.planes; ++plane) {
        for (uint64_t head = g.first_head; head < g.first_head + g.heads; ++head) {
          if (!holds(sample.source.geometry, layer, head)) continue;
          for (uint64_t byte = 0; byte < g.head_bytes; ++byte) {
            target[at(sample.target, token, layer, plane, head, byte)] =
                source[at(sample.source, token, layer, plane, head, byte)];
            ++*moved;
          }
        }
      }
    }
  }
  return target;
}

// Also counts how often each target byte is written.
void Execute(const Plan& plan, const Sample& sample, const UnitRange& units,
             const std::vector<uint8_t>& source, std::vector<uint8_t>* target, std::vector<int>* writes) {
  RunCursor cursor(plan, sample.tokens, {sample.source.table, sample.target.table}, units);
  Run run;
  while (cursor.Next(&run)) {
    for (uint64_t piece = 0; piece < run.count; ++piece) {
      for (uint64_t byte = 0; byte < run.bytes; ++byte) {
        const uint64_t to = run.target_offset + piece * run.target_stride + byte;
        (*target)[to] = source[run.source_offset + piece * run.source_stride + byte];
        ++(*writes)[to];
      }
    }
  }
}

std::vector<Run> RunsOf(const Plan& plan, const TokenRange& tokens, const BlockTables& tables) {
  std::vector<Run> runs;
  RunCursor cursor(plan, tokens, tables, {0, plan.Units(tokens)});
  Run run;
  while (cursor.Next(&run)) runs.push_back(run);
  return runs;
}

}  // namespace

TEST("any plan, cut into slices anywhere, moves exactly the bytes that the element-wise oracle moves") {
  for (unsigned seed = 0; seed < 10000 && test::Failures() == 0; ++seed) {
    std::mt19937 random(seed);
    const Sample sample = RandomSample(random);
    std::string why;
    const auto compiled = Plan::Compile({sample.source.geometry}, {sample.target.geometry}, &why);
    CHECK(compiled.has_value());
    if (!compiled) continue;
    const Plan& plan = *compiled;
    const BlockTables tables{sample.source.table, sample.target.table};
    CHECK_EQ(plan.Check(sample.tokens, tables, sample.source.pool_blocks, sample.target.pool_blocks), "");
    std::vector<uint8_t> source(sample.source.PoolBytes());
    for (uint8_t& byte : source) byte = static_cast<uint8_t>(random());
    std::vector<uint8_t> target(sample.target.PoolBytes(), 0xee);
    uint64_t moved = 0;
    const std::vector<uint8_t> expected = Oracle(sample, source, target, &moved);
    std::vector<int> writes(target.size(), 0);
    const uint64_t units = plan.Units(sample.tokens);
    for (uint64_t first = 0; first < units;) {
      const uint64_t last = std::min(units, first + 1 + random() % 20);
      Execute(plan, sample, {first, last}, source, &target, &writes);
      first = last;
    }
    CHECK(target == expected);
    CHECK(*std::max_element(writes.begin(), writes.end()) <= 1);
    const auto written = static_cast<uint64_t>(std::accumulate(writes.begin(), writes.end(), 0));
    CHECK_EQ(written, moved);
    CHECK_EQ(plan.Bytes(sample.tokens), moved);
    if (test::Failures() > 0) std::printf("seed %u\n", seed);
  }
}

TEST("heads of one rank from a pool that holds more of them are one strided run a block") {
  Geometry whole{3, 2, 4, 8, 16};
  Geometry half = whole;
  half.heads = 2;
  half.first_head = 2;
  std::string why;
  const Plan plan = *Plan::Compile({whole}, {half}, &why);
  const std::vector<uint32_t> table{1, 2};
  const auto runs = RunsOf(plan, {0, 16}, {table, table});
  CHECK_EQ(runs.size(), 2u);
  const uint64_t row = 8 * 16;
  CHECK_EQ(runs[0], (Run{whole.BlockBytes() + 2 * row, half.BlockBytes(), 6, 2 * row, 4 * row, 2 * row}));
  CHECK_EQ(plan.PieceBytes(), 2 * row);
}

TEST("layers of one stage from a pool that holds more of them are one piece a block") {
  Geometry whole{5, 2, 2, 8, 16};
  Geometry stage = whole;
  stage.layers = 2;
  stage.first_layer = 3;
  std::string why;
  const Plan plan = *Plan::Compile({whole}, {stage}, &why);
  const std::vector<uint32_t> table{1};
  const auto runs = RunsOf(plan, {0, 8}, {table, table});
  CHECK_EQ(runs.size(), 1u);
  CHECK_EQ(runs[0].count, 1u);
  CHECK_EQ(runs[0].bytes, stage.PayloadBytes());
}

TEST("blocks that are neighbours in both tables become one run, others one run each") {
  const Geometry geometry{2, 2, 1, 4, 16};
  const Plan plan = PlanFor(geometry);
  const std::vector<uint32_t> source{4, 5, 6, 1, 2};
  const std::vector<uint32_t> target{0, 1, 3, 4, 5};
  const auto runs = RunsOf(plan, {0, 20}, {source, target});
  const uint64_t block = geometry.BlockBytes();
  CHECK_EQ(block, 256u);
  CHECK_EQ(runs.size(), 3u);
  CHECK_EQ(runs[0].bytes, 2 * block);
  CHECK_EQ(runs[1].bytes, block);
  CHECK_EQ(runs[2].bytes, 2 * block);
}

TEST("padded neighbours become one strided run that leaves the padding alone") {
  const Geometry geometry{1, 1, 1, 3, 8};
  CHECK_EQ(geometry.BlockBytes(), 64u);
  const Plan plan = PlanFor(geometry);
  const std::vector<uint32_t> table{2, 3, 4};
  const auto runs = RunsOf(plan, {0, 9}, {table, table});
  CHECK_EQ(runs.size(), 1u);
  CHECK_EQ(runs[0], (Run{128, 128, 3, 24, 64, 64}));
}

TEST("a token range inside a block is one strided run over its rows") {
  const Geometry geometry{2, 2, 2, 4, 16};
  const Plan plan = PlanFor(geometry);
  const std::vector<uint32_t> table{7};
  const auto runs = RunsOf(plan, {1, 3}, {table, table});
  CHECK_EQ(runs.size(), 1u);
  const uint64_t offset = 7 * geometry.BlockBytes() + 16;
  CHECK_EQ(runs[0], (Run{offset, offset, 8, 32, 64, 64}));
}

TEST("ranks that can't be paired are refused with every differing field named") {
  std::string why;
  CHECK(!Plan::Compile({{2, 2, 1, 4, 16}}, {{3, 1, 1, 8, 32}}, &why));
  CHECK(why.find("planes 2 at the source, 1 at the target") != std::string::npos);
  CHECK(why.find("bytes of a head 16 at the source, 32 at the target") != std::string::npos);
  CHECK(!Plan::Compile({{2, 2, 1, 4, 16, 0, 0}}, {{2, 2, 1, 4, 16, 2, 0}}, &why));
  CHECK_EQ(why, "no layer in common");
  CHECK(!Plan::Compile({{2, 2, 1, 4, 16, 0, 4294967295u}}, {{2, 2, 1, 4, 16, 0, 0}}, &why));
  CHECK_EQ(why, "no head in common");
}

TEST("tables that are short or name blocks outside a pool are refused") {
  const Plan plan = PlanFor({1, 1, 1, 4, 16});
  const std::vector<uint32_t> two{0, 1};
  const std::vector<uint32_t> outside{0, 9};
  CHECK(plan.Check({0, 8}, {two, two}, 2, 2).empty());
  CHECK(!plan.Check({0, 9}, {two, two}, 2, 2).empty());
  CHECK(!plan.Check({0, 8}, {two, outside}, 9, 9).empty());
  CHECK(plan.Check({0, 4}, {two, outside}, 9, 9).empty());
  CHECK(!plan.Check({5, 4}, {two, two}, 2, 2).empty());
  CHECK(plan.Check({5, 5}, {two, two}, 2, 2).empty());
}

KVT_TEST_MAIN
