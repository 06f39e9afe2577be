#include "cuda/gather_plan.h"

#include <algorithm>
#include <array>
#include <numeric>

namespace kvt::cuda {
namespace {

constexpr uint64_t kVectorsMax = (uint64_t{1} << 31) - 1;
constexpr uint64_t kWidthMax = 16;
constexpr uint64_t kVectorsOfTurn = 512;

struct Dimension {
  uint64_t extent = 1;
  uint64_t source = 0;
  uint64_t target = 0;
};

// What lies in one grain: a contiguous piece, and the dimensions in which it repeats.
struct Shape {
  uint64_t piece_bytes = 0;
  std::array<Dimension, kGatherDimensions> dimensions;
  size_t count = 0;

  void Add(uint64_t extent, uint64_t source, uint64_t target) {
    if (extent > 1) dimensions[count++] = {extent, source, target};
  }
  void Remove(size_t index) {
    std::copy(dimensions.begin() + static_cast<std::ptrdiff_t>(index) + 1,
              dimensions.begin() + static_cast<std::ptrdiff_t>(count),
              dimensions.begin() + static_cast<std::ptrdiff_t>(index));
    --count;
  }
};

// Dimensions that are contiguous on both sides become part of the piece; those that go on where another ends
// are one with it.
void Simplify(Shape* shape) {
  for (size_t index = 0; index < shape->count;) {
    const Dimension& dimension = shape->dimensions[index];
    if (dimension.source != shape->piece_bytes || dimension.target != shape->piece_bytes) {
      ++index;
      continue;
    }
    shape->piece_bytes *= dimension.extent;
    shape->Remove(index);
    index = 0;
  }
  for (size_t inner = 0; inner < shape->count; ++inner) {
    for (size_t outer = inner + 1; outer < shape->count;) {
      Dimension& into = shape->dimensions[inner];
      const Dimension& dimension = shape->dimensions[outer];
      if (dimension.source != into.source * into.extent || dimension.target != into.target * into.extent) {
        ++outer;
        continue;
      }
      into.extent *= dimension.extent;
      shape->Remove(outer);
      outer = inner + 1;
    }
  }
}

// Some tokens of each of some grains.
struct Part {
  uint64_t first_grain = 0;
  uint64_t grains = 0;
  uint64_t token = 0;  // in the grain
  uint64_t tokens = 0;
};

struct Grid {
  uint64_t grain_tokens = 0;
  uint32_t blocks = 0;
  uint32_t next_block = 0;
};

GatherSide SideOf(const BandSide& side, const Part& part, uint64_t grain_tokens, uint64_t block_tokens,
                  uint64_t lacks) {
  GatherSide out;
  out.offset = side.base + part.token * side.token_stride;
  out.block_stride = side.block_stride;
  out.grain_stride = grain_tokens * side.token_stride;
  out.grains = DivisionBy(static_cast<uint32_t>(block_tokens / grain_tokens));
  out.lacks = static_cast<uint32_t>(lacks);
  return out;
}

// The widest vector that all places of a segment are a multiple of.
uint32_t WidthOf(const GatherSegment& segment, const Shape& shape, const PoolAlignment& pools) {
  uint64_t common = kWidthMax;
  const auto take = [&common](uint64_t number) { common = std::gcd(common, number); };
  take(shape.piece_bytes);
  take(segment.source.offset + pools.source);
  take(segment.target.offset + pools.target);
  for (const GatherSide* side : {&segment.source, &segment.target}) {
    take(side->block_stride);
    if (side->grains.divisor > 1) take(side->grain_stride);
  }
  for (size_t index = 0; index < shape.count; ++index) {
    take(shape.dimensions[index].source);
    take(shape.dimensions[index].target);
  }
  return static_cast<uint32_t>(common);
}

void AddPart(const Plan& plan, const Band& band, const Part& part, const Tokens& tokens,
             const BlockTables& tables, const PoolAlignment& pools, Grid* grid,
             std::vector<GatherSegment>* out) {
  Shape shape;
  shape.piece_bytes = band.element_bytes;
  if (!band.per_block) shape.Add(part.tokens, band.source.token_stride, band.target.token_stride);
  shape.Add(band.heads, band.source.head_stride, band.target.head_stride);
  shape.Add(band.planes, band.source.plane_stride, band.target.plane_stride);
  shape.Add(band.layers, band.source.layer_stride, band.target.layer_stride);
  Simplify(&shape);
  const uint64_t source_tokens = plan.source_tokens_per_block();
  const uint64_t target_tokens = plan.target_tokens_per_block();
  GatherSegment segment;
  segment.source = SideOf(band.source, part, grid->grain_tokens, source_tokens,
                          Lacking(tables.source.size(), tokens.sequence, source_tokens));
  segment.target = SideOf(band.target, part, grid->grain_tokens, target_tokens,
                          Lacking(tables.target.size(), tokens.sequence, target_tokens));
  segment.width = WidthOf(segment, shape, pools);
  uint64_t per_grain = shape.piece_bytes / segment.width;
  segment.vectors_per_piece = DivisionBy(static_cast<uint32_t>(per_grain));
  for (size_t index = 0; index < shape.count; ++index) {
    const Dimension& dimension = shape.dimensions[index];
    segment.dimensions[index].extent = DivisionBy(static_cast<uint32_t>(dimension.extent));
    segment.dimensions[index].source_stride = dimension.source;
    segment.dimensions[index].target_stride = dimension.target;
    per_grain *= dimension.extent;
  }
  segment.dimension_count = static_cast<uint32_t>(shape.count);
  segment.vectors_per_grain = DivisionBy(static_cast<uint32_t>(per_grain));
  const uint64_t most = std::max<uint64_t>(1, kVectorsMax / per_grain);
  for (uint64_t done = 0; done < part.grains; done += most) {
    const uint64_t grains = std::min(most, part.grains - done);
    segment.first_grain = static_cast<uint32_t>(part.first_grain + done);
    segment.vectors = static_cast<uint32_t>(grains * per_grain);
    // In whole turns of a block of threads, so that each load of a warp is one line.
    const uint64_t turns = (segment.vectors + kVectorsOfTurn - 1) / kVectorsOfTurn;
    segment.share = static_cast<uint32_t>((turns + grid->blocks - 1) / grid->blocks * kVectorsOfTurn);
    segment.first_block = grid->next_block;
    const uint64_t used = (segment.vectors + uint64_t{segment.share} - 1) / segment.share;
    grid->next_block = static_cast<uint32_t>((grid->next_block + used) % grid->blocks);
    out->push_back(segment);
  }
}

}  // namespace

Division DivisionBy(uint32_t divisor) {
  uint32_t log = 0;
  while ((uint64_t{1} << log) < divisor) ++log;
  const uint32_t shift = 31 + log;
  // Below 2^32: the divisor is more than half of 2^log.
  const uint64_t multiplier = ((uint64_t{1} << shift) + divisor - 1) / divisor;
  return {divisor, static_cast<uint32_t>(multiplier), shift};
}

std::vector<GatherSegment> SegmentsOf(const Plan& plan, const Tokens& tokens, const BlockTables& tables,
                                      const PoolAlignment& pools, uint32_t blocks) {
  std::vector<GatherSegment> segments;
  Grid grid{std::gcd(plan.source_tokens_per_block(), plan.target_tokens_per_block()), blocks, 0};
  const uint64_t grain = grid.grain_tokens;
  for (const Band& band : plan.bands()) {
    const uint64_t from = std::max(tokens.from, WindowStart(band.window, tokens.sequence));
    const uint64_t to = tokens.to;
    if (to <= from) continue;
    const auto add = [&](const Part& part) {
      if (part.grains > 0) AddPart(plan, band, part, tokens, tables, pools, &grid, &segments);
    };
    if (band.per_block) {
      // Blocks are equal on both sides then, and each counts that holds some of the tokens.
      add({from / grain, (to + grain - 1) / grain - from / grain, 0, grain});
      continue;
    }
    const uint64_t first_whole = (from + grain - 1) / grain;
    const uint64_t end_whole = to / grain;
    if (from % grain != 0) {
      const uint64_t end = std::min(to, first_whole * grain);
      add({from / grain, 1, from % grain, end - from});
    }
    if (end_whole > first_whole) add({first_whole, end_whole - first_whole, 0, grain});
    if (to % grain != 0 && end_whole >= first_whole) add({end_whole, 1, 0, to % grain});
  }
  return segments;
}

}  // namespace kvt::cuda
