#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvt {

constexpr uint32_t kGroupsMax = 16;
constexpr uint32_t kLayersMax = 4096;

// Layers first, first + step, … of the model, whose places in the pool lie at one stride.
struct LayerRun {
  uint32_t first = 0;
  uint32_t step = 1;
  uint32_t count = 0;
  uint64_t base = 0;  // of the first layer in block 0
  uint64_t stride = 0;

  bool operator==(const LayerRun&) const = default;
};

// Goes on with the last run where layer and base do. Layers must rise.
void AddLayer(std::vector<LayerRun>* runs, uint32_t layer, uint64_t base);

// One kind of bytes that a pool holds: an element of `element_bytes` for each of its layers, planes, heads
// and tokens (or blocks), each dimension at a stride of its own. All offsets are from the pool's start:
//   base of the layer + block * block_stride + plane * plane_stride + head * head_stride + token *
//   token_stride
// So HND and NHD, one tensor or one a layer, blocks first or planes first are all the same thing here.
struct Group {
  uint32_t planes = 0;  // 2 for K and V
  uint32_t heads = 0;
  uint32_t first_head = 0;  // of the model
  uint32_t element_bytes = 0;
  bool per_block = false;   // one element a block, whatever its tokens
  bool replicated = false;  // no head axis: every rank of a stage holds the same
  uint32_t window = 0;      // only so many last tokens of a sequence count; 0: all
  uint64_t block_stride = 0;
  uint64_t plane_stride = 0;
  uint64_t head_stride = 0;
  uint64_t token_stride = 0;
  std::vector<LayerRun> layers;  // rising

  uint64_t Layers() const;

  bool operator==(const Group&) const = default;
};

// How one rank's pool lies in memory, and which part of the model's KV it holds.
struct Geometry {
  uint32_t tokens_per_block = 0;
  uint64_t block_bytes = 0;   // of a pool whose blocks lie one after another; 0: they don't
  std::vector<Group> groups;  // both sides of a plan count them in the same order

  uint64_t BlockBytes() const { return block_bytes; }
  // Of all layers, planes and heads. Groups of one element a block don't count.
  uint64_t TokenBytes() const;
  // What keeps `blocks` blocks from lying in `pool_bytes`; empty: nothing. Safe for any numbers: a peer's are
  // checked here before anything is read from it.
  std::string OutOfBounds(uint32_t blocks, uint64_t pool_bytes) const;
  // Two elements at one place, or too entangled to tell; empty: none. For the own pool, which is written.
  std::string Overlap(uint32_t blocks) const;
  // The first token of a sequence that any group's window leaves.
  uint64_t LiveFrom(uint64_t sequence) const;

  bool operator==(const Geometry&) const = default;
};

// Layers and heads of the model, some of those that a pool holds, and whether groups without heads count.
struct Part {
  uint32_t first_layer = 0;
  uint32_t layers = 0;
  uint32_t first_head = 0;
  uint32_t heads = 0;
  bool replicated = true;
};

// The first token of a sequence of `sequence` tokens that a window leaves.
inline uint64_t WindowStart(uint32_t window, uint64_t sequence) {
  return window == 0 || sequence <= window ? 0 : sequence - window;
}

// Entries that a table of `entries` blocks lacks at its beginning.
inline uint64_t Lacking(uint64_t entries, uint64_t sequence, uint64_t tokens_per_block) {
  const uint64_t all = (sequence + tokens_per_block - 1) / tokens_per_block;
  return all > entries ? all - entries : 0;
}

// Two types, so that a plan between unequal layouts can't take one side for the other.
struct SourceGeometry {
  Geometry geometry;
};
struct TargetGeometry {
  Geometry geometry;
};

}  // namespace kvt
