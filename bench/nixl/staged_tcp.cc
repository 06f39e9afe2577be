// 64 MiB in scattered pieces of 4 KiB between two processes, through staging slots and straight, over
// whatever transports the environment leaves UCX. Prints `staged_gb_per_s direct_gb_per_s`, medians of rounds
// in turns.
#include <poll.h>

#include <atomic>

#include "nixl/rig.h"
#include "paths/nixl_path.h"
#include "test/geometries.h"

namespace kvt::bench {
namespace {

constexpr uint32_t kPiece = 4096;
constexpr uint32_t kBlocks = static_cast<uint32_t>(2 * kMoved / kPiece);
constexpr int kRounds = 9;
// Slots of 8 MiB, two a side, as max_tokens_in_buffer 2048 gives a model of 4 KiB a token.
constexpr uint64_t kSlotTokens = 2048;
constexpr BootNanos kStall = 20'000 * kNanosPerMilli;

Ticket TicketOf(uint8_t number) {
  Ticket ticket{};
  ticket[0] = number;
  return ticket;
}

struct Side {
  explicit Side(const std::string& name) {
    pool = Must(HostPool::Create(geometry.BlockBytes() * kBlocks, stop));
    for (size_t at = 0; at < pool->bytes(); at += 4096) pool->data()[at] = std::byte{1};
    const StagingOptions slots{2, kSlotTokens, kStall};
    staged = Must(NixlPath::Open({LibraryFile(), "UCX", name + "-staged", geometry, kBlocks, pool, wake,
                                  false, slots, &CopyCrew::OfProcess()}));
    direct = Must(NixlPath::Open({LibraryFile(), "UCX", name + "-direct", geometry, kBlocks, pool, wake, true,
                                  std::nullopt, &CopyCrew::OfProcess()}));
  }

  PathEvent Next(Path* path) {
    for (;;) {
      wake->Look();
      path->Poll(&events);
      if (!events.empty()) {
        const PathEvent event = events.front();
        events.erase(events.begin());
        return event;
      }
      pollfd polled{wake->fd(), POLLIN, 0};
      if (wake->MaySleep() && poll(&polled, 1, 1'000) > 0) wake->Clear();
    }
  }

  void Reach(Path* path, const std::vector<uint8_t>& descriptor) {
    path->Reach(1, descriptor, Later(BootNow(), kLimit));
    if (Next(path).reached != ReachStatus::kOk) std::exit(1);
  }

  double Move(Path* path, const std::vector<uint32_t>& from, const std::vector<uint32_t>& to, int round) {
    auto transfer = std::make_unique<Transfer>();
    transfer->job = static_cast<JobKey>(round);
    transfer->peer = 1;
    transfer->ticket = TicketOf(static_cast<uint8_t>(round));
    transfer->source_blocks = from;
    transfer->target_blocks = to;
    transfer->tokens = {0, from.size(), from.size()};
    transfer->posted = BootNow();
    if (path->Post(std::move(transfer)) != Path::Posted::kTaken) std::exit(1);
    const PathEvent end = Next(path);
    if (!end.complete) std::exit(1);
    return GbPerS(end.moving);
  }

  std::atomic<bool> stop{false};
  const Geometry geometry = kvt::test::Hnd(1, 1, 1, 1, kPiece);
  std::shared_ptr<Sleeper> wake = std::make_shared<Sleeper>();
  std::shared_ptr<HostPool> pool;
  std::unique_ptr<NixlPath> staged;
  std::unique_ptr<NixlPath> direct;
  std::vector<PathEvent> events;
};

}  // namespace

int HoldStaged() {
  const int out = TakeOutput();
  Side side("holder");
  const auto from = Scattered(kBlocks, kMoved / kPiece, 1);
  for (int round = 1; round <= kRounds; ++round) {
    side.staged->Grant(static_cast<LeaseKey>(round), {TicketOf(static_cast<uint8_t>(round)), from});
  }
  side.staged->Serve(true);
  side.direct->Serve(true);
  if (!WriteBlob(out, side.staged->Descriptor()) || !WriteBlob(out, side.direct->Descriptor())) return 1;
  while (!InputEnded(1'000)) {
  }
  return 0;
}

void MeasureStaged() {
  SelfProcess holder("staged");
  std::vector<uint8_t> staged;
  std::vector<uint8_t> direct;
  if (!holder.ReadBlob(&staged) || !holder.ReadBlob(&direct)) std::exit(1);
  Side side("reader");
  side.Reach(side.staged.get(), staged);
  side.Reach(side.direct.get(), direct);
  const auto from = Scattered(kBlocks, kMoved / kPiece, 1);
  const auto to = Scattered(kBlocks, kMoved / kPiece, 2);
  std::vector<double> rates[2];
  for (int round = 1; round <= kRounds; ++round) {
    rates[0].push_back(side.Move(side.staged.get(), from, to, round));
    rates[1].push_back(side.Move(side.direct.get(), from, to, round));
  }
  std::printf("%.3f %.3f\n", Median(rates[0]), Median(rates[1]));
}

}  // namespace kvt::bench
