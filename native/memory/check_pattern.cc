#include "memory/check_pattern.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace kvt {
namespace {

// Repeated over a piece, whatever the piece's length.
std::array<uint8_t, 64> PatternOf(uint32_t block) {
  const uint64_t word = 0xdeadb10c00000000ULL | block;
  std::array<uint8_t, 64> pattern{};
  for (size_t at = 0; at < pattern.size(); at += sizeof word) memcpy(&pattern[at], &word, sizeof word);
  return pattern;
}

struct Dimension {
  uint64_t extent;
  uint64_t stride;
};

// Calls visit(offset, bytes) for the pieces of one layer in a block; dimensions that lie close together are
// one piece.
template <typename Visit>
bool EachPieceOfLayer(const Group& group, uint32_t tokens_per_block, uint64_t start, const Visit& visit) {
  std::array<Dimension, 3> walked = {{{group.per_block ? 1U : tokens_per_block, group.token_stride},
                                      {group.heads, group.head_stride},
                                      {group.planes, group.plane_stride}}};
  std::sort(walked.begin(), walked.end(),
            [](const Dimension& left, const Dimension& right) { return left.stride < right.stride; });
  uint64_t piece = group.element_bytes;
  for (Dimension& dimension : walked) {
    if (dimension.extent > 1 && dimension.stride != piece) break;
    piece *= dimension.extent;
    dimension.extent = 1;
  }
  const auto& [inner, middle, outer] = walked;
  for (uint64_t i = 0; i < outer.extent; ++i) {
    for (uint64_t j = 0; j < middle.extent; ++j) {
      for (uint64_t k = 0; k < inner.extent; ++k) {
        if (!visit(start + i * outer.stride + j * middle.stride + k * inner.stride, piece)) return false;
      }
    }
  }
  return true;
}

// Until `visit` answers false.
template <typename Visit>
bool EachPiece(const Geometry& geometry, uint32_t block, const Visit& visit) {
  if (geometry.block_bytes != 0) return visit(block * geometry.block_bytes, geometry.block_bytes);
  for (const Group& group : geometry.groups) {
    for (const LayerRun& run : group.layers) {
      for (uint32_t layer = 0; layer < run.count; ++layer) {
        const uint64_t start = run.base + layer * run.stride + block * group.block_stride;
        if (!EachPieceOfLayer(group, geometry.tokens_per_block, start, visit)) return false;
      }
    }
  }
  return true;
}

}  // namespace

void FillPattern(std::byte* pool, const Geometry& geometry, std::span<const uint32_t> blocks) {
  for (const uint32_t block : blocks) {
    const auto pattern = PatternOf(block);
    EachPiece(geometry, block, [&](uint64_t offset, uint64_t bytes) {
      for (uint64_t at = 0; at < bytes; at += pattern.size()) {
        memcpy(pool + offset + at, pattern.data(), std::min<uint64_t>(pattern.size(), bytes - at));
      }
      return true;
    });
  }
}

int64_t FindTouched(const std::byte* pool, const Geometry& geometry, std::span<const uint32_t> blocks) {
  for (const uint32_t block : blocks) {
    const auto pattern = PatternOf(block);
    const bool intact = EachPiece(geometry, block, [&](uint64_t offset, uint64_t bytes) {
      for (uint64_t at = 0; at < bytes; at += pattern.size()) {
        const auto length = std::min<uint64_t>(pattern.size(), bytes - at);
        if (memcmp(pool + offset + at, pattern.data(), length) != 0) return false;
      }
      return true;
    });
    if (!intact) return block;
  }
  return -1;
}

}  // namespace kvt
