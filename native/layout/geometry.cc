#include "layout/geometry.h"

#include <algorithm>
#include <array>
#include <optional>

namespace kvt {
namespace {

// Products of a 32-bit count and a 64-bit stride, and sums of a few of them, fit.
using Wide = unsigned __int128;

struct Dimension {
  uint32_t extent = 0;
  uint64_t stride = 0;

  Wide Last() const { return extent == 0 ? Wide{0} : Wide{extent - 1} * stride; }
};

std::array<Dimension, 4> DimensionsOf(const Group& group, uint32_t tokens_per_block, uint32_t blocks) {
  return {{{group.per_block ? 1U : tokens_per_block, group.token_stride},
           {group.heads, group.head_stride},
           {group.planes, group.plane_stride},
           {blocks, group.block_stride}}};
}

// From the first byte of one layer to its last, over all blocks.
Wide SpanOf(const Group& group, uint32_t tokens_per_block, uint32_t blocks) {
  Wide span = group.element_bytes;
  for (const Dimension& dimension : DimensionsOf(group, tokens_per_block, blocks)) span += dimension.Last();
  return span;
}

std::string NameOf(size_t group) { return "group " + std::to_string(group); }

std::string Malformed(const Group& group, size_t index) {
  if (group.planes == 0 || group.heads == 0 || group.element_bytes == 0) return NameOf(index) + " is empty";
  int64_t last = -1;
  for (const LayerRun& run : group.layers) {
    const uint64_t end = uint64_t{run.first} + (uint64_t{run.count} - 1) * run.step;
    if (run.count == 0 || run.count > kLayersMax || run.step == 0 || run.first >= kLayersMax ||
        end >= kLayersMax || int64_t{run.first} <= last) {
      return NameOf(index) + " has layers that don't rise";
    }
    last = static_cast<int64_t>(end);
  }
  return "";
}

// Layers of one group at one stride: where they begin, how far they reach, and how much of it is in one
// block.
struct Place {
  Wide base = 0;
  Wide span = 0;
  uint64_t block_stride = 0;
  uint64_t in_block = 0;  // 0: blocks are not the outermost dimension
};

struct BaseRun {
  uint64_t base = 0;
  Dimension layers;
};

// The places of a group's layers, whichever layers they are of.
std::vector<BaseRun> BaseRunsOf(const Group& group) {
  std::vector<uint64_t> bases;
  for (const LayerRun& run : group.layers) {
    for (uint32_t layer = 0; layer < run.count; ++layer) bases.push_back(run.base + layer * run.stride);
  }
  std::sort(bases.begin(), bases.end());
  std::vector<BaseRun> runs;
  for (const uint64_t base : bases) {
    if (!runs.empty()) {
      auto& [first, layers] = runs.back();
      const uint64_t stride = base - first - (layers.extent - 1) * layers.stride;
      if (layers.extent == 1) layers.stride = stride;
      if (stride == layers.stride) {
        ++layers.extent;
        continue;
      }
    }
    runs.push_back({base, {1, 0}});
  }
  return runs;
}

// Nothing when two elements may share a byte: else each dimension strides over all that is inside it.
std::optional<Place> PlaceOf(const Group& group, const BaseRun& run, uint32_t tokens_per_block,
                             uint32_t blocks) {
  const auto inner = DimensionsOf(group, tokens_per_block, blocks);
  std::vector<Dimension> dimensions(inner.begin(), inner.end());
  dimensions.push_back(run.layers);
  std::sort(dimensions.begin(), dimensions.end(),
            [](const Dimension& left, const Dimension& right) { return left.stride < right.stride; });
  Wide covered = group.element_bytes;
  for (const Dimension& dimension : dimensions) {
    if (dimension.extent == 1) continue;
    if (dimension.stride < covered) return std::nullopt;
    covered += dimension.Last();
  }
  Place place{run.base, covered, group.block_stride, 0};
  const Wide inside = covered - Dimension{blocks, group.block_stride}.Last();
  if (inside <= group.block_stride) place.in_block = static_cast<uint64_t>(inside);
  return place;
}

bool Meet(const Place& left, const Place& right) {
  if (left.base + left.span <= right.base || right.base + right.span <= left.base) return false;
  if (left.in_block == 0 || right.in_block == 0 || left.block_stride != right.block_stride) return true;
  // The same blocks, interleaved: each holds a place for both.
  const Wide stride = left.block_stride;
  const Wide here = left.base % stride;
  const Wide there = right.base % stride;
  const auto within = [stride](Wide from, Wide bytes, Wide other) {
    return (other + stride - from) % stride < bytes;
  };
  return within(here, left.in_block, there) || within(there, right.in_block, here);
}

}  // namespace

void AddLayer(std::vector<LayerRun>* runs, uint32_t layer, uint64_t base) {
  if (!runs->empty()) {
    LayerRun& run = runs->back();
    const uint32_t last = run.first + (run.count - 1) * run.step;
    const uint64_t last_base = run.base + (run.count - 1) * run.stride;
    const bool rises = layer > last && base > last_base;
    if (rises && run.count == 1) {
      run.step = layer - last;
      run.stride = base - last_base;
    }
    if (rises && layer - last == run.step && base - last_base == run.stride) {
      ++run.count;
      return;
    }
  }
  runs->push_back({layer, 1, 1, base, 0});
}

uint64_t Group::Layers() const {
  uint64_t count = 0;
  for (const LayerRun& run : layers) count += run.count;
  return count;
}

uint64_t Geometry::TokenBytes() const {
  uint64_t bytes = 0;
  for (const Group& group : groups) {
    if (!group.per_block) bytes += group.Layers() * group.planes * group.heads * group.element_bytes;
  }
  return bytes;
}

uint64_t Geometry::LiveFrom(uint64_t sequence) const {
  uint64_t live = sequence;
  for (const Group& group : groups) live = std::min(live, WindowStart(group.window, sequence));
  return live;
}

std::string Geometry::OutOfBounds(uint32_t blocks, uint64_t pool_bytes) const {
  if (tokens_per_block == 0 || blocks == 0) return "blocks or their tokens are none";
  if (groups.empty() || groups.size() > kGroupsMax) return "there must be 1 to 16 groups";
  uint64_t layers = 0;
  for (size_t index = 0; index < groups.size(); ++index) {
    const Group& group = groups[index];
    std::string wrong = Malformed(group, index);
    if (!wrong.empty()) return wrong;
    const Wide span = SpanOf(group, tokens_per_block, blocks);
    for (const LayerRun& run : group.layers) {
      const Wide end = run.base + Wide{run.count - 1} * run.stride + span;
      if (end > pool_bytes) {
        return NameOf(index) + " ends outside the pool of " + std::to_string(pool_bytes) + " bytes";
      }
    }
    layers += group.Layers();
  }
  return layers == 0 ? "no group has a layer" : "";
}

std::string Geometry::Overlap(uint32_t blocks) const {
  std::vector<Place> places;
  for (size_t index = 0; index < groups.size(); ++index) {
    const Group& group = groups[index];
    for (const BaseRun& run : BaseRunsOf(group)) {
      const auto place = PlaceOf(group, run, tokens_per_block, blocks);
      if (!place)
        return NameOf(index) + " has elements that overlap: a stride is smaller than what it steps over";
      for (const Place& other : places) {
        if (Meet(*place, other)) return "layers of " + NameOf(index) + " overlap others";
      }
      places.push_back(*place);
    }
  }
  return "";
}

}  // namespace kvt
