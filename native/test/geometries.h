#pragma once

#include <cstdint>
#include <limits>

#include "layout/geometry.h"

namespace kvt::test {

// One group of K and V (or whatever `planes` says), blocks one after another, each
// [layer][plane][head][token] and rounded up to 64 bytes.
inline Geometry Hnd(uint32_t layers, uint32_t planes, uint32_t heads, uint32_t tokens, uint32_t element_bytes,
                    uint32_t first_layer = 0, uint32_t first_head = 0) {
  Geometry geometry;
  geometry.tokens_per_block = tokens;
  const uint64_t row = uint64_t{tokens} * element_bytes;
  geometry.block_bytes = (row * layers * planes * heads + 63) / 64 * 64;
  Group group;
  group.planes = planes;
  group.heads = heads;
  group.first_head = first_head;
  group.element_bytes = element_bytes;
  group.block_stride = geometry.block_bytes;
  group.plane_stride = heads * row;
  group.head_stride = row;
  group.token_stride = element_bytes;
  group.layers = {{first_layer, 1, layers, 0, planes * heads * row}};
  geometry.groups = {group};
  return geometry;
}

// The same, tokens before heads: [layer][plane][token][head].
inline Geometry Nhd(uint32_t layers, uint32_t planes, uint32_t heads, uint32_t tokens, uint32_t element_bytes,
                    uint32_t first_layer = 0, uint32_t first_head = 0) {
  Geometry geometry = Hnd(layers, planes, heads, tokens, element_bytes, first_layer, first_head);
  geometry.groups[0].head_stride = element_bytes;
  geometry.groups[0].token_stride = uint64_t{heads} * element_bytes;
  return geometry;
}

inline Part All() { return {0, kLayersMax, 0, std::numeric_limits<uint32_t>::max(), true}; }

}  // namespace kvt::test
