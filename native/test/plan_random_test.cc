// Random pairs of ranks against an oracle that goes element by element.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include "check.h"
#include "cuda/gather_plan.h"
#include "layout/plan.h"
#include "layout/run_cursor.h"

using namespace kvt;

namespace {

using Random = std::mt19937;

uint32_t Upto(Random& random, uint32_t most) { return 1 + static_cast<uint32_t>(random() % most); }

// What a group is on both sides of a pair, before either has placed its part of it.
struct Kind {
  std::vector<uint32_t> layers;
  uint32_t planes = 1;
  uint32_t heads = 1;  // of the model
  uint32_t element_bytes = 1;
  bool per_block = false;
  bool replicated = false;
  uint32_t window = 0;
};

// Half-open.
struct Range {
  uint32_t from = 0;
  uint32_t to = 0;
  bool Holds(uint32_t value) const { return value >= from && value < to; }
};

struct Side {
  Geometry geometry;
  Range layers;
  Range heads;
  uint32_t blocks = 0;
  uint64_t bytes = 0;
  std::vector<uint32_t> table;
};

struct Sample {
  std::vector<Kind> kinds;
  Side source;
  Side target;
  Tokens tokens;
};

std::vector<uint32_t> SomeBlocks(Random& random, uint32_t pool_blocks, size_t count, bool adjacent) {
  std::vector<uint32_t> blocks(pool_blocks);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (!adjacent) std::shuffle(blocks.begin(), blocks.end(), random);
  const size_t skip = random() % (pool_blocks - count + 1);
  return {blocks.begin() + static_cast<std::ptrdiff_t>(skip),
          blocks.begin() + static_cast<std::ptrdiff_t>(skip + count)};
}

// Strides of dimensions nested in a random order, or in that of HND, each with padding or none.
std::vector<uint64_t> Nested(Random& random, const std::vector<uint32_t>& extents, uint64_t inside,
                             uint64_t* span) {
  std::vector<size_t> order(extents.size());
  std::iota(order.begin(), order.end(), 0);
  if (random() % 3 != 0) std::shuffle(order.begin(), order.end(), random);
  const bool padded = random() % 3 == 0;
  std::vector<uint64_t> strides(extents.size());
  uint64_t covered = inside;
  for (const size_t dimension : order) {
    strides[dimension] = covered + (padded ? random() % 3 : 0);
    covered = strides[dimension] * (extents[dimension] - 1) + covered;
  }
  *span = covered;
  return strides;
}

void Place(Random& random, const Kind& kind, Side* side) {
  Group group;
  group.planes = kind.planes;
  group.heads = kind.replicated ? 1 : side->heads.to - side->heads.from;
  group.first_head = kind.replicated ? 0 : side->heads.from;
  group.element_bytes = kind.element_bytes;
  group.per_block = kind.per_block;
  group.replicated = kind.replicated;
  group.window = kind.window;
  std::vector<uint32_t> layers;
  std::copy_if(kind.layers.begin(), kind.layers.end(), std::back_inserter(layers),
               [side](uint32_t layer) { return side->layers.Holds(layer); });
  const uint32_t tokens = kind.per_block ? 1 : side->geometry.tokens_per_block;
  uint64_t span = 0;
  const bool apart = random() % 2 == 0;
  std::vector<uint32_t> extents{tokens, group.heads, group.planes, side->blocks};
  if (!apart) extents.push_back(std::max<uint32_t>(1, static_cast<uint32_t>(layers.size())));
  const auto strides = Nested(random, extents, group.element_bytes, &span);
  group.token_stride = strides[0];
  group.head_stride = strides[1];
  group.plane_stride = strides[2];
  group.block_stride = strides[3];
  std::vector<uint32_t> places(layers.size());
  std::iota(places.begin(), places.end(), 0);
  if (apart && random() % 2 == 0) std::shuffle(places.begin(), places.end(), random);
  for (size_t index = 0; index < layers.size(); ++index) {
    const uint64_t at = side->bytes + (apart ? places[index] * span : index * strides[4]);
    AddLayer(&group.layers, layers[index], at);
  }
  side->bytes += apart ? span * layers.size() : span;
  side->geometry.groups.push_back(std::move(group));
}

void Fill(Random& random, const Sample& sample, uint64_t tokens, Side* side) {
  const uint64_t count = (tokens + side->geometry.tokens_per_block - 1) / side->geometry.tokens_per_block;
  side->blocks = static_cast<uint32_t>(count + 1 + random() % 4);
  side->table = SomeBlocks(random, side->blocks, count, random() % 2 == 0);
  for (const Kind& kind : sample.kinds) Place(random, kind, side);
  uint64_t live = tokens;
  for (const Kind& kind : sample.kinds) live = std::min(live, WindowStart(kind.window, tokens));
  // Blocks that no window reaches are given back: whatever their entries say must not matter.
  const uint64_t dead = live / side->geometry.tokens_per_block;
  for (uint64_t block = 0; block < dead; ++block) side->table[block] = 0xffffffff;
  if (dead > 0)
    side->table.erase(side->table.begin(),
                      side->table.begin() + static_cast<std::ptrdiff_t>(random() % (dead + 1)));
}

// A pair of ranks of one model: parts that overlap or not, blocks of any size, bytes in any place.
Sample RandomSample(Random& random) {
  Sample sample;
  const uint32_t layers = Upto(random, 5);
  const uint32_t heads = Upto(random, 5);
  bool per_block = false;
  const bool windows = random() % 2 == 0;
  const uint32_t groups = random() % 2 == 0 ? 1 : Upto(random, 3);
  for (uint32_t index = 0; index < groups; ++index) {
    Kind kind;
    for (uint32_t layer = 0; layer < layers; ++layer) {
      if (groups == 1 || random() % 3 != 0) kind.layers.push_back(layer);
    }
    kind.replicated = random() % 4 == 0;
    kind.heads = kind.replicated ? 1 : heads;
    kind.planes = Upto(random, 2);
    kind.per_block = random() % 5 == 0;
    kind.element_bytes = Upto(random, 12);
    kind.window = windows && random() % 3 != 0 ? Upto(random, 30) : 0;
    per_block = per_block || kind.per_block;
    sample.kinds.push_back(kind);
  }
  const auto part = [&](uint32_t count) -> Range {
    if (random() % 2 == 0) return {0, count};
    const uint32_t from = static_cast<uint32_t>(random() % count);
    return {from, from + Upto(random, count - from)};
  };
  const uint64_t tokens = random() % 40;
  for (Side* side : {&sample.source, &sample.target}) {
    side->geometry.tokens_per_block = Upto(random, 8);
    side->layers = part(layers);
    side->heads = part(heads);
  }
  if (per_block || random() % 2 == 0) {
    sample.target.geometry.tokens_per_block = sample.source.geometry.tokens_per_block;
  }
  Fill(random, sample, tokens, &sample.source);
  Fill(random, sample, tokens, &sample.target);
  sample.tokens.from = random() % (tokens + 1);
  sample.tokens.to = sample.tokens.from + random() % (tokens - sample.tokens.from + 1);
  sample.tokens.sequence = tokens;
  return sample;
}

uint64_t BaseOf(const Group& group, uint32_t layer) {
  for (const LayerRun& run : group.layers) {
    const uint32_t at = (layer - run.first) / run.step;
    if (layer >= run.first && at < run.count && run.first + at * run.step == layer)
      return run.base + at * run.stride;
  }
  return 0;
}

// Element by element, straight from what the groups are. Counts the bytes that it moves.
std::vector<uint8_t> Oracle(const Sample& sample, bool replicated, const std::vector<uint8_t>& source,
                            std::vector<uint8_t> target, uint64_t* moved) {
  const auto at = [&sample](const Side& side, size_t index, uint32_t layer, uint32_t plane, uint32_t head,
                            uint64_t token) {
    const Group& group = side.geometry.groups[index];
    const uint64_t all =
        (sample.tokens.sequence + side.geometry.tokens_per_block - 1) / side.geometry.tokens_per_block;
    const uint64_t block = side.table[token / side.geometry.tokens_per_block + side.table.size() - all];
    const uint64_t in_block = group.per_block ? 0 : token % side.geometry.tokens_per_block;
    return BaseOf(group, layer) + block * group.block_stride + plane * group.plane_stride +
           (head - group.first_head) * group.head_stride + in_block * group.token_stride;
  };
  for (size_t index = 0; index < sample.kinds.size(); ++index) {
    const Kind& kind = sample.kinds[index];
    if (kind.replicated && !replicated) continue;
    uint64_t last_block = UINT64_MAX;
    for (uint64_t token = sample.tokens.from; token < sample.tokens.to; ++token) {
      if (token < WindowStart(kind.window, sample.tokens.sequence)) continue;
      const uint64_t block = token / sample.target.geometry.tokens_per_block;
      if (kind.per_block && block == last_block) continue;
      last_block = block;
      for (const uint32_t layer : kind.layers) {
        if (!sample.source.layers.Holds(layer) || !sample.target.layers.Holds(layer)) continue;
        for (uint32_t plane = 0; plane < kind.planes; ++plane) {
          for (uint32_t head = 0; head < kind.heads; ++head) {
            if (!kind.replicated && !sample.source.heads.Holds(head)) continue;
            if (!kind.replicated && !sample.target.heads.Holds(head)) continue;
            for (uint64_t byte = 0; byte < kind.element_bytes; ++byte) {
              target[at(sample.target, index, layer, plane, head, token) + byte] =
                  source[at(sample.source, index, layer, plane, head, token) + byte];
              ++*moved;
            }
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
        target->at(to) = source.at(run.source_offset + piece * run.source_stride + byte);
        ++(*writes)[to];
      }
    }
  }
}

// As kernels/gather.cu walks it, block by block of a small grid. Unaligned vectors are failures, as they
// would be on a GPU.
void ExecuteAsKernel(const Plan& plan, const Sample& sample, const std::vector<uint8_t>& source,
                     std::vector<uint8_t>* target, std::vector<int>* writes) {
  constexpr uint32_t kGrid = 3;
  const BlockTables tables{sample.source.table, sample.target.table};
  for (const auto& segment : cuda::SegmentsOf(plan, sample.tokens, tables, {}, kGrid)) {
    for (uint32_t block = 0; block < kGrid; ++block) {
      const uint64_t place = (block + kGrid - segment.first_block) % kGrid;
      const uint64_t end = std::min<uint64_t>((place + 1) * segment.share, segment.vectors);
      for (uint64_t first = place * segment.share; first < end;) {
        const auto tile = cuda::TileFrom(segment, static_cast<uint32_t>(first), static_cast<uint32_t>(end));
        CHECK(tile.source_entries <= cuda::kGatherEntries && tile.target_entries <= cuda::kGatherEntries);
        const auto from = tables.source.subspan(tile.source_entry, tile.source_entries);
        const auto to = tables.target.subspan(tile.target_entry, tile.target_entries);
        for (uint32_t vector = tile.first; vector < tile.last; ++vector) {
          const auto places = cuda::PlacesOf(segment, tile, from.data(), to.data(), vector);
          CHECK_EQ(places.source % segment.width, 0u);
          CHECK_EQ(places.target % segment.width, 0u);
          for (uint32_t byte = 0; byte < segment.width; ++byte) {
            target->at(places.target + byte) = source.at(places.source + byte);
            ++(*writes)[places.target + byte];
          }
        }
        first = tile.last;
      }
    }
  }
}

// A plan, cut into slices anywhere, against the oracle; and as a GPU executes it.
void CheckSample(const Sample& sample, bool replicated, Random& random) {
  std::string why;
  const SourceGeometry from{sample.source.geometry};
  const TargetGeometry to{sample.target.geometry};
  std::vector<uint8_t> source(sample.source.bytes);
  for (uint8_t& byte : source) byte = static_cast<uint8_t>(random());
  std::vector<uint8_t> target(sample.target.bytes, 0xee);
  uint64_t moved = 0;
  const std::vector<uint8_t> expected = Oracle(sample, replicated, source, target, &moved);
  const auto plan = Plan::Compile(from, to, &why, replicated);
  if (!plan) {
    CHECK_EQ(why, "no layer and head in common");
    CHECK_EQ(moved, 0u);
    return;
  }
  const BlockTables tables{sample.source.table, sample.target.table};
  CHECK_EQ(plan->Check(sample.tokens, tables, sample.source.blocks, sample.target.blocks), "");
  std::vector<int> writes(target.size() + 1, 0);
  std::vector<uint8_t> on_gpu = target;
  std::vector<int> writes_on_gpu = writes;
  ExecuteAsKernel(*plan, sample, source, &on_gpu, &writes_on_gpu);
  CHECK(on_gpu == expected);
  CHECK(*std::max_element(writes_on_gpu.begin(), writes_on_gpu.end()) <= 1);
  const uint64_t units = plan->Units(sample.tokens);
  for (uint64_t first = 0; first < units;) {
    const uint64_t last = std::min(units, first + 1 + random() % 40);
    Execute(*plan, sample, {first, last}, source, &target, &writes);
    first = last;
  }
  CHECK(target == expected);
  CHECK(*std::max_element(writes.begin(), writes.end()) <= 1);
  const auto written = static_cast<uint64_t>(std::accumulate(writes.begin(), writes.end(), 0));
  CHECK_EQ(written, moved);
  CHECK_EQ(plan->Bytes(sample.tokens), moved);
}

}  // namespace

TEST("any plan, cut into slices anywhere, moves exactly the bytes that the element-wise oracle moves") {
  for (unsigned seed = 0; seed < 10000 && test::Failures() == 0; ++seed) {
    Random random(seed);
    const Sample sample = RandomSample(random);
    const bool held = std::any_of(sample.source.geometry.groups.begin(), sample.source.geometry.groups.end(),
                                  [](const Group& group) { return !group.layers.empty(); });
    if (held) {
      CHECK_EQ(sample.source.geometry.OutOfBounds(sample.source.blocks, sample.source.bytes), "");
      CHECK_EQ(sample.source.geometry.Overlap(sample.source.blocks), "");
    }
    CheckSample(sample, true, random);
    CheckSample(sample, false, random);
    if (test::Failures() > 0) std::printf("seed %u\n", seed);
  }
}

KVT_TEST_MAIN
