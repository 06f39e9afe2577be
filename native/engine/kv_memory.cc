#include "engine/kv_memory.h"

#include <cstring>
#include <optional>
#include <string>
#include <utility>

namespace kvt::engine {
namespace {

Failure Argument(std::string why) { return Failure{Fault::kArgument, std::move(why)}; }

// Where the layer begins in the pool, if it lies there.
std::optional<uint64_t> BaseOf(const Group& places, uint32_t layer) {
  for (const LayerRun& run : places.layers) {
    if (layer < run.first || (layer - run.first) % run.step != 0) continue;
    const uint32_t index = (layer - run.first) / run.step;
    if (index < run.count) return run.base + index * run.stride;
  }
  return std::nullopt;
}

bool HasHead(const Group& places, uint32_t head) {
  return head >= places.first_head && head - places.first_head < places.heads;
}

bool IsPartOf(const Group& places, const KvLayout& layout) {
  for (const LayerRun& run : places.layers) {
    if (run.count == 0 || uint64_t{run.first} + uint64_t{run.count - 1} * run.step >= layout.layers)
      return false;
  }
  return !places.layers.empty() && places.heads > 0 &&
         uint64_t{places.first_head} + places.heads <= layout.heads;
}

// So that a vector can be read as what it is.
bool IsAligned(const Group& places, size_t bytes) {
  uint64_t all = places.block_stride | places.plane_stride | places.head_stride | places.token_stride;
  for (const LayerRun& run : places.layers) all |= run.base | run.stride;
  return all % bytes == 0;
}

MaybeFailure CheckPool(const KvLayout& layout, const RankPool& pool, uint32_t blocks, size_t rank) {
  const auto& [span, places] = pool;
  const std::string name = "pool " + std::to_string(rank);
  if (!IsPartOf(places, layout)) {
    return Argument(name + " holds layers or heads that the model does not have: its " +
                    std::to_string(layout.layers) + " layers have " + std::to_string(layout.heads) +
                    " KV heads");
  }
  if (places.planes != 2 || places.per_block || places.element_bytes != layout.VectorBytes()) {
    return Argument(name + " has vectors of " + std::to_string(places.element_bytes) + " bytes in " +
                    std::to_string(places.planes) + " planes, this model has keys and values of " +
                    std::to_string(layout.VectorBytes()));
  }
  if (span.block_bytes != 0 && span.block_bytes != places.block_stride) {
    return Argument(name + " has blocks of " + std::to_string(span.block_bytes) +
                    " bytes, this model's have " + std::to_string(places.block_stride));
  }
  if (span.data == nullptr || blocks == 0 || blocks > span.blocks) {
    return Argument(name + " does not hold " + std::to_string(blocks) + " blocks");
  }
  const Geometry geometry{layout.tokens_per_block, 0, {places}};
  std::string wrong = geometry.OutOfBounds(blocks, span.bytes);
  if (wrong.empty()) wrong = geometry.Overlap(blocks);
  if (!wrong.empty()) {
    return Argument(name + " does not hold " + std::to_string(blocks) + " blocks: " + wrong);
  }
  if (reinterpret_cast<uintptr_t>(span.data) % 64 != 0) {
    return Argument(name + " does not start on a 64-byte line");
  }
  if (!IsAligned(places, BytesOf(layout.dtype))) {
    return Argument(name + " has vectors between the elements of their type");
  }
  return std::nullopt;
}

}  // namespace

MaybeFailure KvMemory::Check(const KvLayout& layout, std::span<const RankPool> pools, uint32_t blocks) {
  for (size_t rank = 0; rank < pools.size(); ++rank) {
    if (MaybeFailure failure = CheckPool(layout, pools[rank], blocks, rank)) return failure;
  }
  for (uint32_t layer = 0; layer < layout.layers; ++layer) {
    for (uint32_t head = 0; head < layout.heads; ++head) {
      bool held = false;
      for (const RankPool& pool : pools) {
        held = held || (HasHead(pool.places, head) && BaseOf(pool.places, layer).has_value());
      }
      if (held) continue;
      return Argument("no pool holds KV head " + std::to_string(head) + " of layer " + std::to_string(layer));
    }
  }
  return std::nullopt;
}

Group KvShard::Places(const KvLayout& layout) const {
  Group group;
  group.planes = 2;
  group.heads = heads;
  group.first_head = first_head;
  group.element_bytes = static_cast<uint32_t>(layout.VectorBytes());
  group.token_stride = layout.VectorBytes();
  group.head_stride = layout.RowBytes();
  group.plane_stride = heads * layout.RowBytes();
  group.block_stride = BlockBytes(layout);
  group.layers = {{first_layer, 1, layers, 0, 2 * group.plane_stride}};
  return group;
}

KvMemory::KvMemory(const KvLayout& layout, std::vector<RankPool> pools, uint32_t blocks)
    : pools_(std::move(pools)), heads_(layout.heads), blocks_(blocks), vector_bytes_(layout.VectorBytes()) {
  for (uint32_t layer = 0; layer < layout.layers; ++layer) {
    for (uint32_t head = 0; head < layout.heads; ++head) {
      starts_.push_back(places_.size());
      for (const auto& [span, places] : pools_) {
        const auto base = BaseOf(places, layer);
        if (!base || !HasHead(places, head)) continue;
        const size_t key = *base + (head - places.first_head) * places.head_stride;
        places_.push_back({reinterpret_cast<uint8_t*>(span.data), places.block_stride, places.token_stride,
                           key, key + places.plane_stride});
      }
    }
  }
  starts_.push_back(places_.size());
}

void KvMemory::CopyHeads(uint32_t from, uint32_t to, uint32_t tokens) const {
  for (const HeadPlace& place : places_) {
    const uint8_t* source = place.pool + from * place.block_stride;
    uint8_t* target = place.pool + to * place.block_stride;
    for (const size_t offset : {place.key_offset, place.value_offset}) {
      for (uint32_t token = 0; token < tokens; ++token) {
        const size_t at = offset + token * place.token_stride;
        std::memcpy(target + at, source + at, vector_bytes_);
      }
    }
  }
}

}  // namespace kvt::engine
