#pragma once

#include <array>
#include <cstdint>

#include "layout/plan.h"

namespace kvt {

// `count` pieces of `bytes`, at a fixed stride on each side. Offsets are from the pool's start.
struct Run {
  uint64_t source_offset = 0;
  uint64_t target_offset = 0;
  uint64_t count = 0;
  uint64_t bytes = 0;
  uint64_t source_stride = 0;
  uint64_t target_stride = 0;

  bool operator==(const Run&) const = default;
};

// Rows of a band that are a box: `layers` from `first_layer` on, and so on.
struct RowBox {
  uint32_t first_layer = 0;
  uint32_t layers = 0;
  uint32_t first_plane = 0;
  uint32_t planes = 0;
  uint32_t first_head = 0;
  uint32_t heads = 0;
};

// Stretches of `tokens` tokens, each in one block on either side, that lie at one stride on each side.
struct Stretches {
  uint64_t tokens = 0;
  uint64_t count = 0;
  uint64_t source_stride = 0;
  uint64_t target_stride = 0;

  bool operator==(const Stretches&) const = default;
};

// The loops over layers, planes, heads, tokens and stretches as the fewest runs: dimensions that are
// contiguous on both sides become part of the piece, those that go on where another ends on both sides are
// one with it, the longest of what is left becomes the run's count, and the others are walked.
class Nest {
 public:
  Nest() = default;
  Nest(const Band& band, const RowBox& box, const Stretches& stretches);

  uint64_t piece_bytes() const { return piece_bytes_; }
  // Begins at the first element's offsets.
  void Start(uint64_t source_offset, uint64_t target_offset);
  // False at the end.
  bool Next(Run* run);

 private:
  struct Dimension {
    uint64_t extent = 1;
    uint64_t source = 0;
    uint64_t target = 0;
  };

  void Absorb();
  void Fuse();
  void ChooseRun();

  uint64_t piece_bytes_ = 0;
  std::array<Dimension, 5> walked_;  // inner first
  size_t dimensions_ = 0;
  Dimension run_;
  std::array<uint64_t, 5> at_{};
  uint64_t source_ = 0;
  uint64_t target_ = 0;
  bool more_ = false;
};

}  // namespace kvt
