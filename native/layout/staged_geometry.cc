#include "layout/staged_geometry.h"

#include <algorithm>
#include <limits>

namespace kvt {
namespace {

// Slots and blocks in them begin where any element may be read with one instruction.
constexpr uint64_t kAlignment = 64;

uint64_t Aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::vector<uint32_t> LayersOf(const Group& group) {
  std::vector<uint32_t> layers;
  for (const LayerRun& run : group.layers) {
    for (uint32_t index = 0; index < run.count; ++index) layers.push_back(run.first + index * run.step);
  }
  return layers;
}

// Its layers are placed one after another from `base` on; returns where they end.
uint64_t PlaceGroup(const Group& source, const Group& target, uint32_t tokens, uint64_t base, Group* staged) {
  *staged = target;
  staged->layers.clear();
  staged->first_head = std::max(source.first_head, target.first_head);
  const uint64_t end =
      std::min(uint64_t{source.first_head} + source.heads, uint64_t{target.first_head} + target.heads);
  staged->heads = end > staged->first_head ? static_cast<uint32_t>(end - staged->first_head) : 0;
  if (staged->heads == 0) return base;
  const std::vector<uint32_t> far = LayersOf(source);
  staged->token_stride = target.element_bytes;
  staged->head_stride = uint64_t{target.per_block ? 1 : tokens} * target.element_bytes;
  staged->plane_stride = staged->head_stride * staged->heads;
  for (const uint32_t layer : LayersOf(target)) {
    if (!std::binary_search(far.begin(), far.end(), layer)) continue;
    AddLayer(&staged->layers, layer, base);
    base += staged->plane_stride * target.planes;
  }
  return base;
}

Geometry Placed(const Geometry& source, const Geometry& target, uint32_t tokens) {
  Geometry staged;
  staged.tokens_per_block = tokens;
  staged.groups.resize(std::min(source.groups.size(), target.groups.size()));
  uint64_t end = 0;
  for (size_t index = 0; index < staged.groups.size(); ++index) {
    end = PlaceGroup(source.groups[index], target.groups[index], tokens, end, &staged.groups[index]);
  }
  staged.block_bytes = Aligned(end);
  for (Group& group : staged.groups) group.block_stride = staged.block_bytes;
  return staged;
}

}  // namespace

std::optional<Geometry> StagedGeometry(const SourceGeometry& source, const TargetGeometry& target,
                                       uint64_t slot_bytes) {
  const Geometry& to = target.geometry;
  const bool whole =
      std::any_of(to.groups.begin(), to.groups.end(), [](const Group& group) { return group.per_block; });
  for (uint32_t tokens = to.tokens_per_block; tokens > 0; tokens /= 2) {
    Geometry staged = Placed(source.geometry, to, tokens);
    if (staged.block_bytes <= slot_bytes) return staged;
    if (whole) break;
  }
  return std::nullopt;
}

uint64_t StagingSlotBytes(const Geometry& geometry, uint64_t tokens) {
  const Geometry block = Placed(geometry, geometry, geometry.tokens_per_block);
  const uint64_t blocks = (tokens + geometry.tokens_per_block - 1) / geometry.tokens_per_block;
  uint64_t bytes = 0;
  const bool over = __builtin_mul_overflow(block.block_bytes, std::max<uint64_t>(1, blocks), &bytes);
  return over ? std::numeric_limits<uint64_t>::max() : bytes;
}

}  // namespace kvt
