#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "layout/pair_plans.h"
#include "nixl/agent.h"

namespace kvt {

// Two pools cut into cells of one size, so that what is read can be named by indices of lists that were
// prepared once. Measured with NIXL 1.5.1: a request of fresh lists costs 1.7 µs and 55 ns a piece, one by
// indices 0.5 µs and 25 ns a piece, and 2.4 ns for each further cell that NIXL merges into a piece.
struct NixlGrid {
  uint64_t cell = 0;
  uint64_t own = 0;  // addresses
  uint64_t far = 0;
  uint64_t own_bytes = 0;
  uint64_t far_bytes = 0;

  // Of pools whose plan moves whole cells of a size that blocks of both are made of; nothing when there is
  // none, or lists of so many would take too much memory and time.
  static std::optional<NixlGrid> Of(const Plan& plan, const Geometry& source, const Geometry& target,
                                    const nixl::Piece& own, const nixl::Piece& far);

  std::vector<nixl::Piece> OwnCells() const { return CellsOf(own, own_bytes); }
  std::vector<nixl::Piece> FarCells() const { return CellsOf(far, far_bytes); }
  // Of the pieces; false when they aren't made of cells, or of so many that fresh lists cost less.
  bool Cells(const std::vector<nixl::Piece>& own_pieces, const std::vector<nixl::Piece>& far_pieces,
             std::vector<int32_t>* own_cells, std::vector<int32_t>* far_cells) const;

  bool operator==(const NixlGrid&) const = default;

 private:
  std::vector<nixl::Piece> CellsOf(uint64_t address, uint64_t bytes) const;
};

}  // namespace kvt
