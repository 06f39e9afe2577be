#include "layout/plan.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include "check.h"

using namespace kvt;

namespace {

struct Sample {
  Geometry geometry;
  uint32_t pool_blocks = 0;
  std::vector<uint32_t> source;
  std::vector<uint32_t> target;
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

Sample RandomSample(std::mt19937& random) {
  const auto upto = [&](uint32_t most) { return 1 + static_cast<uint32_t>(random() % most); };
  Sample sample;
  sample.geometry = {upto(3), upto(2), upto(3), upto(5), upto(24)};
  sample.pool_blocks = 8 + upto(8);
  const size_t count = upto(8);
  sample.source = SomeBlocks(random, sample.pool_blocks, count, random() % 2 == 0);
  sample.target = SomeBlocks(random, sample.pool_blocks, count, random() % 2 == 0);
  const uint64_t tokens = count * sample.geometry.tokens_per_block;
  sample.tokens.from = random() % (tokens + 1);
  sample.tokens.to = sample.tokens.from + random() % (tokens - sample.tokens.from + 1);
  return sample;
}

// Element by element, straight from the definition of a block's bytes.
std::vector<uint8_t> Oracle(const Sample& sample, const std::vector<uint8_t>& source,
                            std::vector<uint8_t> target) {
  const Geometry& g = sample.geometry;
  const auto at = [&](const std::vector<uint32_t>& table, uint64_t token, uint64_t layer, uint64_t plane,
                      uint64_t head, uint64_t byte) {
    const uint64_t row = (layer * g.planes + plane) * g.heads + head;
    const uint64_t in_block = token % g.tokens_per_block;
    return table[token / g.tokens_per_block] * g.BlockBytes() +
           (row * g.tokens_per_block + in_block) * g.head_bytes + byte;
  };
  for (uint64_t token = sample.tokens.from; token < sample.tokens.to; ++token) {
    for (uint64_t layer = 0; layer < g.layers; ++layer) {
      for (uint64_t plane = 0; plane < g.planes; ++plane) {
        for (uint64_t head = 0; head < g.heads; ++head) {
          for (uint64_t byte = 0; byte < g.head_bytes; ++byte) {
            target[at(sample.target, token, layer, plane, head, byte)] =
                source[at(sample.source, token, layer, plane, head, byte)];
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
  RunCursor cursor(plan, sample.tokens, {sample.source, sample.target}, units);
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
  for (unsigned seed = 0; seed < 4000 && test::Failures() == 0; ++seed) {
    std::mt19937 random(seed);
    const Sample sample = RandomSample(random);
    const Plan plan = PlanFor(sample.geometry);
    const uint64_t pool_bytes = sample.geometry.BlockBytes() * sample.pool_blocks;
    std::vector<uint8_t> source(pool_bytes);
    for (uint8_t& byte : source) byte = static_cast<uint8_t>(random());
    std::vector<uint8_t> target(pool_bytes, 0xee);
    const std::vector<uint8_t> expected = Oracle(sample, source, target);
    std::vector<int> writes(pool_bytes, 0);
    const uint64_t units = plan.Units(sample.tokens);
    for (uint64_t first = 0; first < units;) {
      const uint64_t last = std::min(units, first + 1 + random() % 20);
      Execute(plan, sample, {first, last}, source, &target, &writes);
      first = last;
    }
    CHECK(target == expected);
    CHECK(*std::max_element(writes.begin(), writes.end()) <= 1);
    const auto written = static_cast<uint64_t>(std::accumulate(writes.begin(), writes.end(), 0));
    CHECK_EQ(written, plan.Bytes(sample.tokens));
    if (test::Failures() > 0) std::printf("seed %u\n", seed);
  }
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

TEST("layouts that differ are refused with every differing field named") {
  std::string why;
  CHECK(!Plan::Compile({{2, 2, 1, 4, 16}}, {{3, 2, 1, 4, 32}}, &why));
  CHECK(why.find("layers 2 at the source, 3 at the target") != std::string::npos);
  CHECK(why.find("bytes of a head 16 at the source, 32 at the target") != std::string::npos);
  CHECK(why.find("planes") == std::string::npos);
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
