#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cuda/digest_input.h"
#include "cuda/gather_segment.h"
#include "layout/plan.h"

namespace kvt::cuda {

// Digests that are wanted of a pool, one for each range of tokens (layout/digest.h says of what).
struct DigestRanges {
  std::span<const uint32_t> table;
  std::span<const TokenRange> ranges;
  Part part;
  uint64_t sequence = 0;  // tokens
};

// Where the bytes that are hashed are packed in canonical order.
struct DigestRoom {
  uint64_t bytes = 0;
  uint32_t inputs = 0;          // of one turn, at most
  uint64_t pool_alignment = 0;  // the pool's start, modulo 16
};

// Some of the ranges, the next ones: what the gather kernel packs, and what is made of it.
struct DigestTurn {
  std::vector<GatherSegment> segments;
  std::vector<uint32_t> source_table;
  std::vector<uint32_t> target_table;
  std::vector<DigestInput> inputs;
  uint32_t sums = 0;   // of all inputs
  uint64_t bytes = 0;  // to be packed
};

// As many bytes as room for the largest range takes.
uint64_t DigestRoomFor(const Geometry& geometry, const DigestRanges& wanted);
// The ranges in order, cut into turns that the room holds; it must hold each range. `grid`: blocks of
// threads.
std::vector<DigestTurn> DigestTurnsOf(const Geometry& geometry, const DigestRanges& wanted,
                                      const DigestRoom& room, uint32_t grid);

}  // namespace kvt::cuda
