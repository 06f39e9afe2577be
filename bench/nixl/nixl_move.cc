// 64 MiB in scattered pieces between two processes of one machine: our path for it (shared_memory), our path
// through NIXL (nixl_direct), and NIXL as one uses it, one descriptor a piece on prepared lists. Prints
// `piece_bytes shared_gb_per_s direct_gb_per_s nixl_gb_per_s`, medians of rounds that take turns.
#include <atomic>
#include <cstring>

#include "memory/pool_descriptor.h"
#include "memory/socket_directory.h"
#include "nixl/rig.h"
#include "paths/nixl_path.h"
#include "paths/shared_memory.h"
#include "test/geometries.h"

namespace kvt::bench {
namespace {

constexpr int kRounds = 9;

// A pool of twice what is moved, in blocks of one piece, with both paths.
struct Side {
  Side(uint32_t piece, const std::string& directory, const std::string& name)
      : geometry(kvt::test::Hnd(1, 1, 1, 1, piece)), blocks(static_cast<uint32_t>(2 * kMoved / piece)) {
    pool = Must(HostPool::Create(geometry.BlockBytes() * blocks, stop));
    own.boot_id = ReadBootId();
    own.epoch = 1;
    own.geometry = geometry;
    own.blocks = blocks;
    own.regions = pool->regions();
    own.bytes = pool->bytes();
    own.directory = directory;
    own.socket = kSocketPrefix + std::to_string(getpid()) + ".sock";
    shared = Must(SharedMemoryPath::Open({own, pool, &CopyCrew::OfProcess(), wake}));
    direct = Must(NixlPath::Open({LibraryFile(), "UCX", name, geometry, blocks, pool, wake}));
    for (size_t at = 0; at < pool->bytes(); at += 4096) pool->data()[at] = std::byte{1};
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

  std::atomic<bool> stop{false};
  const Geometry geometry;
  const uint32_t blocks;
  std::shared_ptr<Sleeper> wake = std::make_shared<Sleeper>();
  std::shared_ptr<HostPool> pool;
  PoolDescriptor own;
  std::unique_ptr<SharedMemoryPath> shared;
  std::unique_ptr<NixlPath> direct;
  std::vector<PathEvent> events;
};

double Move(Side* side, Path* path, const std::vector<uint32_t>& from, const std::vector<uint32_t>& to) {
  static JobKey job = 0;
  auto transfer = std::make_unique<Transfer>();
  transfer->job = ++job;
  transfer->peer = 1;
  transfer->source_blocks = from;
  transfer->target_blocks = to;
  transfer->tokens = {0, from.size(), from.size()};
  transfer->posted = BootNow();
  if (path->Post(std::move(transfer)) != Path::Posted::kTaken) std::exit(1);
  const PathEvent end = side->Next(path);
  if (!end.complete) std::exit(1);
  return GbPerS(end.moving);
}

}  // namespace

int HoldMoves(const std::string& argument) {
  const int out = TakeOutput();
  const size_t colon = argument.find(':');
  Side side(static_cast<uint32_t>(std::stoul(argument)), argument.substr(colon + 1), "holder");
  side.direct->Serve(true);
  if (!WriteBlob(out, *EncodeDescriptor(side.own)) || !WriteBlob(out, side.direct->Descriptor())) return 1;
  while (!InputEnded(1'000)) {
  }
  return 0;
}

namespace {

void Measure(uint32_t piece, const std::string& directory) {
  SelfProcess holder("move:" + std::to_string(piece) + ":" + directory);
  std::vector<uint8_t> shared;
  std::vector<uint8_t> direct;
  if (!holder.ReadBlob(&shared) || !holder.ReadBlob(&direct)) std::exit(1);
  Side side(piece, directory, "reader");
  side.shared->Reach(1, shared, Later(BootNow(), kLimit));
  if (side.Next(side.shared.get()).reached != ReachStatus::kOk) std::exit(1);
  side.direct->Reach(1, direct, Later(BootNow(), kLimit));
  if (side.Next(side.direct.get()).reached != ReachStatus::kOk) std::exit(1);
  Plain plain(*DecodeNixlDescriptor(direct), side.blocks, side.geometry.BlockBytes(), piece);
  const auto from = Scattered(side.blocks, kMoved / piece, 1);
  const auto to = Scattered(side.blocks, kMoved / piece, 2);
  std::vector<double> rates[3];
  for (int round = 0; round < kRounds; ++round) {
    rates[0].push_back(Move(&side, side.shared.get(), from, to));
    rates[1].push_back(Move(&side, side.direct.get(), from, to));
    rates[2].push_back(GbPerS(plain.Read(from, to)));
  }
  std::printf("%u %.3f %.3f %.3f\n", piece, Median(rates[0]), Median(rates[1]), Median(rates[2]));
  std::fflush(stdout);
}

}  // namespace

void MeasureMoves(const std::string& directory) {
  for (const uint32_t piece : {4096U, 65536U, 1048576U}) Measure(piece, directory);
}

}  // namespace kvt::bench
