#pragma once

#include <cstdint>

#include "layout/nest.h"
#include "layout/plan.h"

namespace kvt {

// Walks the runs of some units of a plan. Blocks that are neighbours in both tables and pools are walked
// together, so that what is contiguous over blocks, or lies at one stride, comes as one run. Budget of a run:
// no allocation; of a block that is alone: its two table entries and its places on both sides.
class RunCursor {
 public:
  RunCursor(const Plan& plan, const Tokens& tokens, const BlockTables& tables, const UnitRange& units);

  // False at the end.
  bool Next(Run* run) {
    while (!nest_.Next(run)) {
      if (!NextStretches()) return false;
    }
    return true;
  }

 private:
  // Where tokens lie: a block of each side, and the token in it.
  struct Position {
    uint64_t source_index = 0;
    uint64_t source_token = 0;
    uint64_t target_index = 0;
    uint64_t target_token = 0;
    uint64_t left = 0;  // tokens to the end of the box

    bool operator==(const Position&) const = default;
  };

  // The next rows and blocks that are a box. False at the end.
  bool NextBox();
  // Starts the nest at the next stretches. False at the end.
  bool NextStretches();
  uint64_t StretchAt(const Position& at) const;
  void Advance(Position* at, uint64_t tokens) const;
  uint64_t SourceOffset(const Position& at) const;
  uint64_t TargetOffset(const Position& at) const;
  bool Neighbours(const Position& at, const Position& next) const;

  const Plan& plan_;
  const Tokens tokens_;
  const BlockTables tables_;
  uint64_t units_left_ = 0;
  size_t band_index_ = 0;
  const Band* band_ = nullptr;
  const uint64_t source_lacks_;
  const uint64_t target_lacks_;
  uint64_t block_ = 0;  // of the sequence, as the target counts
  uint64_t block_end_ = 0;
  uint64_t row_ = 0;
  RowBox box_;
  Position at_;
  Stretches shape_;  // what the nest was made for
  uint64_t source_start_ = 0;
  uint64_t target_start_ = 0;
  Nest nest_;
};

}  // namespace kvt
