#include "engine/kv_memory.h"

#include <cstring>
#include <string>
#include <utility>

namespace kvt::engine {
namespace {

Failure Argument(std::string why) { return Failure{Fault::kArgument, std::move(why)}; }

bool Holds(const KvShard& shard, uint32_t layer, uint32_t head) {
  return layer >= shard.first_layer && layer - shard.first_layer < shard.layers && head >= shard.first_head &&
         head - shard.first_head < shard.heads;
}

bool IsPartOf(const KvShard& shard, const KvLayout& layout) {
  return shard.layers > 0 && shard.heads > 0 && uint64_t{shard.first_layer} + shard.layers <= layout.layers &&
         uint64_t{shard.first_head} + shard.heads <= layout.heads;
}

MaybeFailure CheckPool(const KvLayout& layout, const RankPool& pool, uint32_t blocks, size_t rank) {
  const auto& [span, shard] = pool;
  const std::string name = "pool " + std::to_string(rank);
  if (!IsPartOf(shard, layout)) {
    return Argument(name + " holds layers or heads that the model does not have: its " +
                    std::to_string(layout.layers) + " layers have " + std::to_string(layout.heads) +
                    " KV heads");
  }
  if (span.block_bytes != shard.BlockBytes(layout)) {
    return Argument(name + " has blocks of " + std::to_string(span.block_bytes) +
                    " bytes, this model's have " + std::to_string(shard.BlockBytes(layout)));
  }
  if (span.data == nullptr || blocks == 0 || blocks > span.blocks || span.bytes / span.block_bytes < blocks) {
    return Argument(name + " does not hold " + std::to_string(blocks) + " blocks");
  }
  if (reinterpret_cast<uintptr_t>(span.data) % 64 != 0) {
    return Argument(name + " does not start on a 64-byte line");
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
      for (const RankPool& pool : pools) held = held || Holds(pool.shard, layer, head);
      if (held) continue;
      return Argument("no pool holds KV head " + std::to_string(head) + " of layer " + std::to_string(layer));
    }
  }
  return std::nullopt;
}

KvMemory::KvMemory(const KvLayout& layout, std::vector<RankPool> pools, uint32_t blocks)
    : pools_(std::move(pools)), heads_(layout.heads), blocks_(blocks) {
  for (uint32_t layer = 0; layer < layout.layers; ++layer) {
    for (uint32_t head = 0; head < layout.heads; ++head) {
      starts_.push_back(places_.size());
      for (const auto& [span, shard] : pools_) {
        if (!Holds(shard, layer, head)) continue;
        const size_t plane = shard.heads * layout.RowBytes();
        const size_t key =
            (layer - shard.first_layer) * 2 * plane + (head - shard.first_head) * layout.RowBytes();
        places_.push_back({reinterpret_cast<uint8_t*>(span.data), span.block_bytes, key, key + plane});
      }
    }
  }
  starts_.push_back(places_.size());
}

void KvMemory::CopyHeads(uint32_t from, uint32_t to, size_t bytes) const {
  for (const HeadPlace& place : places_) {
    const uint8_t* source = place.pool + from * place.block_bytes;
    uint8_t* target = place.pool + to * place.block_bytes;
    for (const size_t offset : {place.key_offset, place.value_offset}) {
      std::memcpy(target + offset, source + offset, bytes);
    }
  }
}

}  // namespace kvt::engine
