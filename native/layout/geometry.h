#pragma once

#include <cstdint>

namespace kvt {

// How one rank's pool lies in memory, and which part of the model's KV it holds. Bytes of a block:
// [layer][k|v][head][token][headDim] ("HND"), layers and heads counted from the part's first.
// A row is what one head of one plane of one layer holds for the tokens of a block: contiguous.
struct Geometry {
  uint32_t layers = 0;
  uint32_t planes = 0;  // 2 for K and V, 1 for one latent (MLA)
  uint32_t heads = 0;
  uint32_t tokens_per_block = 0;
  uint32_t head_bytes = 0;  // one head's vector of one token
  uint32_t first_layer = 0;
  uint32_t first_head = 0;

  uint64_t Rows() const { return uint64_t{layers} * planes * heads; }
  uint64_t RowBytes() const { return uint64_t{tokens_per_block} * head_bytes; }
  uint64_t PayloadBytes() const { return Rows() * RowBytes(); }
  // Blocks start on cache lines, so a block may end in padding that no plan touches.
  uint64_t BlockBytes() const { return (PayloadBytes() + 63) / 64 * 64; }
  uint64_t TokenBytes() const { return Rows() * head_bytes; }

  bool operator==(const Geometry&) const = default;
};

// Layers and heads of the model, some of those that a pool holds.
struct Part {
  uint32_t first_layer = 0;
  uint32_t layers = 0;
  uint32_t first_head = 0;
  uint32_t heads = 0;

  bool IsIn(const Geometry& geometry) const {
    return first_layer >= geometry.first_layer && first_head >= geometry.first_head &&
           uint64_t{first_layer} + layers <= uint64_t{geometry.first_layer} + geometry.layers &&
           uint64_t{first_head} + heads <= uint64_t{geometry.first_head} + geometry.heads;
  }
};

inline Part WholeOf(const Geometry& geometry) {
  return {geometry.first_layer, geometry.layers, geometry.first_head, geometry.heads};
}

// Two types, so that a plan between unequal layouts can't take one side for the other.
struct SourceGeometry {
  Geometry geometry;
};
struct TargetGeometry {
  Geometry geometry;
};

}  // namespace kvt
