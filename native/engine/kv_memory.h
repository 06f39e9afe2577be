#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/packed_matrix.h"
#include "engine/result.h"
#include "layout/geometry.h"
#include "memory/pool_span.h"

namespace kvt::engine {

// The model's whole KV, however many pools it is spread over.
struct KvLayout {
  uint32_t layers;
  uint32_t heads;
  uint32_t tokens_per_block;
  uint32_t head_dim;
  Dtype dtype;
  // By layer: how many last tokens a token attends to, itself included; 0: all. Empty: all in every layer.
  std::vector<uint32_t> windows = {};

  size_t VectorBytes() const { return head_dim * BytesOf(dtype); }
  uint32_t WindowOf(uint32_t layer) const { return windows.empty() ? 0 : windows[layer]; }
  // What one head of one plane of one layer holds for the tokens of a block.
  size_t RowBytes() const { return tokens_per_block * VectorBytes(); }
  // Of a pool that holds everything.
  size_t BlockBytes() const;
};

// A part of a KvLayout whose blocks lie one after another, each as [layer][k|v][head][token][headDim], layers
// and heads counted from the shard's first, rounded up to 64 bytes (design.md section 8).
struct KvShard {
  uint32_t first_layer;
  uint32_t layers;
  uint32_t first_head;
  uint32_t heads;

  size_t BlockBytes(const KvLayout& layout) const {
    return (size_t{layers} * 2 * heads * layout.RowBytes() + 63) / 64 * 64;
  }
  Group Places(const KvLayout& layout) const;
};

inline KvShard WholeOf(const KvLayout& layout) { return {0, layout.layers, 0, layout.heads}; }
inline size_t KvLayout::BlockBytes() const { return WholeOf(*this).BlockBytes(*this); }

// Memory of one rank that somebody else owns, the layers and heads that lie there, and where: two planes,
// keys and values, at any strides.
struct RankPool {
  PoolSpan span;
  Group places;
};

// Where one head of one layer lies in one rank pool.
struct HeadPlace {
  uint8_t* pool;
  size_t block_stride;
  size_t token_stride;
  size_t key_offset;  // of the first token's vector in block 0
  size_t value_offset;
};

// The blocks of all rank pools. A block id names a block in each of them.
class KvMemory {
 public:
  KvMemory() = default;
  // Trusts `pools`: Check has passed. Keeps their owners, and so their mappings.
  KvMemory(const KvLayout& layout, std::vector<RankPool> pools, uint32_t blocks);

  // Why these pools can't hold `blocks` blocks of the layout's KV, if they can't.
  static MaybeFailure Check(const KvLayout& layout, std::span<const RankPool> pools, uint32_t blocks);

  uint32_t blocks() const { return blocks_; }
  // Replicas of one head: all are written, the first is read. Never empty.
  std::span<const HeadPlace> Places(uint32_t layer, uint32_t head) const {
    const size_t at = size_t{layer} * heads_ + head;
    return {places_.data() + starts_[at], starts_[at + 1] - starts_[at]};
  }

  // Copies the beginning of block `from` into block `to`, in every pool: the first `tokens` of each head's
  // keys and values, and nothing behind them, as a transfer may be writing there.
  void CopyHeads(uint32_t from, uint32_t to, uint32_t tokens) const;

 private:
  std::vector<RankPool> pools_;
  uint32_t heads_ = 0;
  uint32_t blocks_ = 0;
  size_t vector_bytes_ = 0;
  std::vector<HeadPlace> places_;  // by layer, then head
  std::vector<size_t> starts_;     // where those of (layer, head) begin; one more at the end
};

}  // namespace kvt::engine
