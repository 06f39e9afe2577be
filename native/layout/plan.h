#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "layout/geometry.h"

namespace kvt {

// Tokens [from, to) of a sequence.
struct TokenRange {
  uint64_t from = 0;
  uint64_t to = 0;
};

// Tokens of a sequence that has `sequence` of them in the end: windows reach back from there.
struct Tokens {
  uint64_t from = 0;
  uint64_t to = 0;
  uint64_t sequence = 0;
};

// Layers [from, to) of the model.
struct LayerRange {
  uint32_t from = 0;
  uint32_t to = std::numeric_limits<uint32_t>::max();

  bool operator==(const LayerRange&) const = default;
  bool Whole() const { return *this == LayerRange(); }
};

// Block ids of a sequence in token order, one for each block of all its tokens; those of blocks that no
// window reaches may be anything. A table that has fewer lacks the first ones: an engine whose windows have
// moved on has given those back.
struct BlockTables {
  std::span<const uint32_t> source;
  std::span<const uint32_t> target;
};

// A range of a plan's units; the way to cut one transfer into pieces that can be shared and cancelled.
struct UnitRange {
  uint64_t first = 0;
  uint64_t last = 0;  // one past
};

// Where the layers of a band lie on one side, from the first element that both sides have.
struct BandSide {
  uint64_t base = 0;
  uint64_t layer_stride = 0;
  uint64_t plane_stride = 0;
  uint64_t head_stride = 0;
  uint64_t token_stride = 0;
  uint64_t block_stride = 0;
};

// Layers of one group whose places have one stride on each side: all in it is affine but the blocks.
struct Band {
  uint32_t layers = 0;
  uint32_t planes = 0;
  uint32_t heads = 0;
  uint32_t element_bytes = 0;
  bool per_block = false;
  uint32_t window = 0;
  BandSide source;
  BandSide target;

  uint64_t Rows() const { return uint64_t{layers} * planes * heads; }
};

// What one pair of ranks needs, computed once and then applied to block tables: the layers and heads that
// both hold, whatever else either holds, however it lies there and however many tokens its blocks have. A
// unit is what one head of one plane of one layer has in one target block.
class Plan {
 public:
  // Geometries that can't be paired, or have nothing in common, give nothing, and `why` says so. Without
  // `replicated` the groups that have no heads are left out, and of all groups all but `layers`, which may
  // leave an empty plan. Trusts that both lie in their pools (Geometry::OutOfBounds).
  static std::optional<Plan> Compile(const SourceGeometry& source, const TargetGeometry& target,
                                     std::string* why, bool replicated = true, LayerRange layers = {});

  std::span<const Band> bands() const { return bands_; }
  uint32_t source_tokens_per_block() const { return source_tokens_; }
  uint32_t target_tokens_per_block() const { return target_tokens_; }

  uint64_t Units(const Tokens& tokens) const;
  uint64_t Bytes(const Tokens& tokens) const;
  // Of one target block, most of all bands; units of whole blocks are a multiple of it.
  uint64_t Rows() const { return rows_; }
  // Of a unit, at most.
  uint64_t UnitBytes() const { return unit_bytes_; }
  // Of the contiguous copies that a long sequence is made of, on average.
  uint64_t PieceBytes() const { return piece_bytes_; }
  // Empty when the tables cover the tokens and name only blocks that exist, else what is wrong.
  std::string Check(const Tokens& tokens, const BlockTables& tables, uint64_t source_pool_blocks,
                    uint64_t target_pool_blocks) const;

  // Target blocks of a band that hold some of the tokens: [first, end) of the table.
  struct Blocks {
    uint64_t first = 0;
    uint64_t end = 0;
  };
  Blocks BlocksOf(const Band& band, const Tokens& tokens) const;

 private:
  Plan(uint32_t source_tokens, uint32_t target_tokens)
      : source_tokens_(source_tokens), target_tokens_(target_tokens) {}
  void AddGroup(const Group& source, const Group& target, const LayerRange& layers);
  void Measure();

  uint32_t source_tokens_;
  uint32_t target_tokens_;
  std::vector<Band> bands_;
  uint64_t rows_ = 0;
  uint64_t unit_bytes_ = 0;
  uint64_t piece_bytes_ = 0;
};

}  // namespace kvt
