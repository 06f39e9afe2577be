// Reads by indices of lists that are prepared once a peer (paths/nixl_grid.h, paths/nixl_remotes.h).
#include "paths/nixl_grid.h"

#include <cstring>

#include "paths/nixl_remotes.h"
#include "test/geometries.h"
#include "test/nixl_rig.h"

namespace {

using namespace kvt;              // NOLINT: a test
using namespace kvt::nixl::test;  // NOLINT
using nixl::Piece;

std::optional<NixlGrid> GridOf(const Geometry& source, const Geometry& target, uint64_t bytes) {
  std::string why;
  const auto plan = Plan::Compile({source}, {target}, &why);
  return NixlGrid::Of(*plan, source, target, {1 << 20, bytes, 0}, {1 << 30, bytes, 0});
}

constexpr uint64_t kCell = 4096;
constexpr uint64_t kBytes = 64 * kCell;
constexpr NixlGrid kGrid{kCell, 1 << 20, 1 << 30, kBytes, kBytes};

}  // namespace

TEST("a cell is a block where blocks move whole, and what of a block moves where it moves in part") {
  const Geometry whole = kvt::test::Hnd(2, 2, 4, 8, 16);
  CHECK_EQ(GridOf(whole, whole, 64 * whole.BlockBytes())->cell, whole.BlockBytes());
  const Geometry half = kvt::test::Hnd(2, 2, 2, 8, 16, 0, 2);
  CHECK_EQ(GridOf(whole, half, 64 * whole.BlockBytes())->cell, uint64_t{2 * 8 * 16});
  // Too many to prepare.
  CHECK(!GridOf(whole, whole, 40'000 * whole.BlockBytes()));
}

TEST("pieces are named by their cells, and such as are not made of a few cells are not") {
  std::vector<int32_t> own;
  std::vector<int32_t> far;
  const auto cells = [&](const Piece& own_piece, const Piece& far_piece, const NixlGrid& grid = kGrid) {
    return grid.Cells({own_piece}, {far_piece}, &own, &far);
  };
  CHECK(cells({kGrid.own + 3 * kCell, 2 * kCell, 0}, {kGrid.far + 9 * kCell, 2 * kCell, 0}));
  CHECK(own == (std::vector<int32_t>{3, 4}) && far == (std::vector<int32_t>{9, 10}));
  CHECK(!cells({kGrid.own + 8, kCell, 0}, {kGrid.far, kCell, 0}));
  CHECK(!cells({kGrid.own, kCell, 0}, {kGrid.far + 8, kCell, 0}));
  CHECK(!cells({kGrid.own, kCell + 8, 0}, {kGrid.far, kCell + 8, 0}));
  CHECK(!cells({kGrid.own - kCell, kCell, 0}, {kGrid.far, kCell, 0}));
  CHECK(!cells({kGrid.own, kCell, 0}, {kGrid.far + kBytes, kCell, 0}));
  const NixlGrid wide{kCell, kGrid.own, kGrid.far, 4096 * kCell, 4096 * kCell};
  CHECK(cells({wide.own, 500 * kCell, 0}, {wide.far, 500 * kCell, 0}, wide));
  CHECK(!cells({wide.own, 600 * kCell, 0}, {wide.far, 600 * kCell, 0}, wide));
}

TEST("reads use a peer's prepared lists where they can, also after its connection was made anew") {
  WITH_NIXL();
  const auto library = LoadLibrary();
  nixl::test::Side reader(library, "grid-reader", kBytes);
  nixl::test::Side holder(library, "grid-holder", kBytes);
  if (!reader.memory || !holder.memory) return;
  const auto idle = [](const std::string&) { return false; };
  NixlRemotes remotes({library->version(), PluginName(), {}, idle}, reader.agent.get());
  NixlDescriptor descriptor;
  descriptor.version = library->version();
  descriptor.plugin = PluginName();
  descriptor.agent = holder.agent->name();
  descriptor.metadata = holder.agent->LocalMetadata().value();
  CHECK(remotes.Load(descriptor) == ReachStatus::kOk);
  remotes.SetGrid(descriptor.agent, {kCell, PieceOf(reader.buffer, 0, 0).address,
                                     PieceOf(holder.buffer, 0, 0).address, kBytes, kBytes});
  // `list`: how long the list is that it was made of, of all cells or of its own piece.
  const auto read = [&](size_t own, size_t far, size_t bytes, size_t list) {
    holder.Fill(static_cast<unsigned>(own + far));
    const auto flight = remotes.Fly(descriptor.agent, {PieceOf(reader.buffer, own, bytes)},
                                    {PieceOf(holder.buffer, far, bytes)}, std::nullopt);
    CHECK(flight.has_value());
    if (!flight) return;
    CHECK_EQ(flight->far->count(), list);
    CHECK(flight->landed || Finish(flight->request.get(), holder.agent.get()) == nixl::Status::kSuccess);
    CHECK(memcmp(reader.buffer.data() + own, holder.buffer.data() + far, bytes) == 0);
    CHECK_EQ(flight->request->Telemetry()->descriptors, 1u);
  };
  constexpr size_t kAll = kBytes / kCell;
  read(3 * kCell, 7 * kCell, kCell, kAll);
  read(0, 5 * kCell, 4 * kCell, kAll);
  read(100, 300, 1000, 1);
  remotes.Break(descriptor.agent);
  read(9 * kCell, 2 * kCell, kCell, kAll);
  remotes.AgentEnded();
  CHECK(!remotes.Fly(descriptor.agent, {PieceOf(reader.buffer, 0, kCell)}, {PieceOf(holder.buffer, 0, kCell)},
                     std::nullopt));
}

KVT_TEST_MAIN
