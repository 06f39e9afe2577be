#pragma once

#include <cstdint>

#include "cuda/on_device.h"

namespace kvt::cuda {

// Quotients of numbers below 2^31 by one multiplication: n / d = n * multiplier >> shift, with
// multiplier = ceil(2^shift / d) and shift = 31 + ceil(log2 d).
struct Division {
  uint32_t divisor = 1;
  uint32_t multiplier = 0;
  uint32_t shift = 0;
};

struct GatherDimension {
  Division extent;
  uint32_t unused = 0;
  uint64_t source_stride = 0;
  uint64_t target_stride = 0;
};

// Blocks are divided into grains: the tokens of a grain lie in one block on each side. Offsets are from the
// pools' starts.
struct GatherSide {
  uint64_t offset = 0;  // of the first element in block 0
  uint64_t block_stride = 0;
  uint64_t grain_stride = 0;  // between the grains of a block
  Division grains;            // of a block
  uint32_t lacks = 0;         // blocks that the table lacks at its beginning
};

constexpr uint32_t kGatherDimensions = 4;

// Equal pieces of some grains: `grains` times the extents of all dimensions, each of `vectors_per_piece`
// vectors of `width` bytes.
struct GatherSegment {
  GatherSide source;
  GatherSide target;
  GatherDimension dimensions[kGatherDimensions];  // inner first; [0, dimension_count) count
  Division vectors_per_piece;
  uint32_t dimension_count = 0;
  uint32_t vectors = 0;      // in all, below 2^31
  uint32_t width = 16;       // 16, 8, 4, 2 or 1
  uint32_t first_grain = 0;  // of the sequence
  Division vectors_per_grain;
  // Each block of threads moves so many vectors in a row, and one of the segment's first ones starts in this
  // block of the grid, so that a plan of many small segments uses all of it.
  uint32_t share = 0;
  uint32_t first_block = 0;
};

// Entries of a table that a block of threads keeps at hand. Tables lie in host memory, a microsecond or two
// away.
constexpr uint32_t kGatherEntries = 4096;

// What one block of threads does next: vectors [first, last), whose grains lie in these entries of the
// tables.
struct GatherTile {
  uint32_t first = 0;
  uint32_t last = 0;
  uint32_t source_entry = 0;
  uint32_t source_entries = 0;
  uint32_t target_entry = 0;
  uint32_t target_entries = 0;
};

struct GatherPlaces {
  uint64_t source = 0;
  uint64_t target = 0;
};

KVT_ON_DEVICE uint32_t Divide(uint32_t number, const Division& by) {
  return static_cast<uint32_t>(static_cast<uint64_t>(number) * by.multiplier >> by.shift);
}

// As many vectors from `first` on as one tile may hold, at most to `last`.
KVT_ON_DEVICE GatherTile TileFrom(const GatherSegment& segment, uint32_t first, uint32_t last) {
  GatherTile tile;
  tile.first = first;
  // A grain lies in one entry of each table: these are never more than kGatherEntries.
  const uint64_t most = static_cast<uint64_t>(kGatherEntries - 1) * segment.vectors_per_grain.divisor;
  tile.last = last - first < most ? last : first + static_cast<uint32_t>(most);
  const uint32_t from = segment.first_grain + Divide(first, segment.vectors_per_grain);
  const uint32_t to = segment.first_grain + Divide(tile.last - 1, segment.vectors_per_grain);
  tile.source_entry = Divide(from, segment.source.grains) - segment.source.lacks;
  tile.source_entries = Divide(to, segment.source.grains) - segment.source.lacks + 1 - tile.source_entry;
  tile.target_entry = Divide(from, segment.target.grains) - segment.target.lacks;
  tile.target_entries = Divide(to, segment.target.grains) - segment.target.lacks + 1 - tile.target_entry;
  return tile;
}

// `entry` is the number of the first entry that `table` holds.
KVT_ON_DEVICE uint64_t PlaceOfGrain(const GatherSide& side, const uint32_t* table, uint32_t entry,
                                    uint32_t grain) {
  const uint32_t block = Divide(grain, side.grains);
  const uint32_t within = grain - block * side.grains.divisor;
  return side.offset + table[block - side.lacks - entry] * side.block_stride + within * side.grain_stride;
}

// The tables hold the entries of the tile only.
KVT_ON_DEVICE GatherPlaces PlacesOf(const GatherSegment& segment, const GatherTile& tile,
                                    const uint32_t* source_table, const uint32_t* target_table,
                                    uint32_t vector) {
  uint32_t rest = Divide(vector, segment.vectors_per_piece);
  const uint64_t within =
      static_cast<uint64_t>(vector - rest * segment.vectors_per_piece.divisor) * segment.width;
  uint64_t source = within;
  uint64_t target = within;
  KVT_KEEP_LOOP
  for (uint32_t index = 0; index < segment.dimension_count; ++index) {
    const GatherDimension& dimension = segment.dimensions[index];
    const uint32_t next = Divide(rest, dimension.extent);
    const uint32_t at = rest - next * dimension.extent.divisor;
    source += at * dimension.source_stride;
    target += at * dimension.target_stride;
    rest = next;
  }
  const uint32_t grain = segment.first_grain + rest;
  source += PlaceOfGrain(segment.source, source_table, tile.source_entry, grain);
  target += PlaceOfGrain(segment.target, target_table, tile.target_entry, grain);
  return {source, target};
}

}  // namespace kvt::cuda
