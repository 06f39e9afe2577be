#include "paths/nixl_grid.h"

#include <algorithm>
#include <numeric>

namespace kvt {
namespace {

// 0.6 ms to prepare.
constexpr uint64_t kCellsMax = uint64_t{1} << 15;
// Cells that are merged and cost more than two fresh lists.
constexpr uint64_t kMergedMax = 512;

uint64_t CommonStride(const Geometry& geometry, uint64_t cell) {
  for (const Group& group : geometry.groups) cell = std::gcd(cell, group.block_stride);
  return cell;
}

}  // namespace

std::optional<NixlGrid> NixlGrid::Of(const Plan& plan, const Geometry& source, const Geometry& target,
                                     const nixl::Piece& own, const nixl::Piece& far) {
  const uint64_t cell = CommonStride(target, CommonStride(source, plan.PieceBytes()));
  if (cell == 0 || std::max(own.bytes, far.bytes) / cell > kCellsMax) return std::nullopt;
  return NixlGrid{cell, own.address, far.address, own.bytes, far.bytes};
}

std::vector<nixl::Piece> NixlGrid::CellsOf(uint64_t address, uint64_t bytes) const {
  std::vector<nixl::Piece> cells;
  cells.reserve(bytes / cell);
  for (uint64_t at = 0; at + cell <= bytes; at += cell) cells.push_back({address + at, cell, 0});
  return cells;
}

bool NixlGrid::Cells(const std::vector<nixl::Piece>& own_pieces, const std::vector<nixl::Piece>& far_pieces,
                     std::vector<int32_t>* own_cells, std::vector<int32_t>* far_cells) const {
  own_cells->clear();
  far_cells->clear();
  uint64_t merged = 0;
  for (size_t at = 0; at < own_pieces.size(); ++at) {
    const uint64_t own_at = own_pieces[at].address - own;
    const uint64_t far_at = far_pieces[at].address - far;
    const uint64_t bytes = own_pieces[at].bytes;
    if (own_at >= own_bytes || far_at >= far_bytes) return false;
    if (own_at % cell != 0 || far_at % cell != 0 || bytes % cell != 0) return false;
    const uint64_t count = bytes / cell;
    merged += count - 1;
    if (merged > kMergedMax) return false;
    for (uint64_t next = 0; next < count; ++next) {
      own_cells->push_back(static_cast<int32_t>(own_at / cell + next));
      far_cells->push_back(static_cast<int32_t>(far_at / cell + next));
    }
  }
  return true;
}

}  // namespace kvt
