#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "layout/geometry.h"

namespace kvt {

// The plan's unit: `count` pieces of `bytes`, at a fixed stride on each side. Offsets are from the pool's
// start.
struct Run {
  uint64_t source_offset = 0;
  uint64_t target_offset = 0;
  uint64_t count = 0;
  uint64_t bytes = 0;
  uint64_t source_stride = 0;
  uint64_t target_stride = 0;

  bool operator==(const Run&) const = default;
};

// Tokens [from, to) of a sequence.
struct TokenRange {
  uint64_t from = 0;
  uint64_t to = 0;
};

// Block ids of a sequence in token order, from token 0 on: index = token / tokens_per_block of that side.
struct BlockTables {
  std::span<const uint32_t> source;
  std::span<const uint32_t> target;
};

// A range of a plan's units; the way to cut one transfer into pieces that can be shared and cancelled.
struct UnitRange {
  uint64_t first = 0;
  uint64_t last = 0;  // one past
};

// What one pair of ranks needs, computed once and then applied to block tables: the layers and heads that
// both hold, whatever else either holds and however many tokens its blocks have. A unit is one target row of
// one block: whole rows for whole blocks, a token sub-range of a row for the partial block at either end.
class Plan {
 public:
  // Geometries that can't be paired, or have nothing in common, give nothing, and `why` says so.
  static std::optional<Plan> Compile(const SourceGeometry& source, const TargetGeometry& target,
                                     std::string* why);

  // Of a target block, that are copied.
  uint64_t Rows() const { return uint64_t{planes_} * heads_; }
  uint64_t Units(const TokenRange& tokens) const;
  uint64_t UnitBytes() const { return target_.RowBytes(); }
  uint64_t Bytes(const TokenRange& tokens) const {
    return tokens.to <= tokens.from ? 0 : (tokens.to - tokens.from) * Rows() * target_.head_bytes;
  }
  // Of the contiguous copies that most of a long sequence is made of.
  uint64_t PieceBytes() const;
  // Empty when the tables cover the tokens and name only blocks that exist, else what is wrong.
  std::string Check(const TokenRange& tokens, const BlockTables& tables, uint64_t source_pool_blocks,
                    uint64_t target_pool_blocks) const;

 private:
  friend class RunCursor;
  Plan(const Geometry& source, const Geometry& target) : source_(source), target_(target) {}

  Geometry source_;
  Geometry target_;
  bool equal_ = false;  // the same rows in the same places of blocks of the same size
  // In common. A plane here is one of a layer: layers * 2 with K and V.
  uint32_t planes_ = 0;
  uint32_t heads_ = 0;
  // Where what is common begins on each side.
  uint32_t source_plane_ = 0;
  uint32_t target_plane_ = 0;
  uint32_t source_head_ = 0;
  uint32_t target_head_ = 0;
};

// Walks the runs of some units of a plan. Whole blocks that are neighbours in both pools come as one run
// where both sides hold the same.
class RunCursor {
 public:
  RunCursor(const Plan& plan, const TokenRange& tokens, const BlockTables& tables, const UnitRange& units);

  // False at the end.
  bool Next(Run* run);

 private:
  void NextPartial(uint64_t block, uint64_t first_token, uint64_t last_token, Run* run);
  void NextWhole(uint64_t block, uint64_t last_whole_block, Run* run);
  // The runs of a block between unequal sides.
  void FillBlock();
  void AddSegment(uint64_t first_token, uint64_t last_token, uint64_t rows);

  const Plan& plan_;
  const Geometry& source_;
  const Geometry& target_;
  const TokenRange tokens_;
  const BlockTables tables_;
  const uint64_t rows_;
  uint64_t units_left_ = 0;
  uint64_t block_ = 0;  // index into the target table
  uint64_t row_ = 0;
  std::vector<Run> filled_;
  size_t next_filled_ = 0;
};

}  // namespace kvt
