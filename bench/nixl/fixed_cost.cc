// What a transfer over nixl_direct costs beside NIXL's own work: one READ of 4 KiB, from giving the job to
// the data plane until its completion lies in the ring, against the same READ by somebody who has NIXL and
// nothing else. Prints `job_us plain_us`, medians of rounds that take turns.
#include "dataplane/data_plane.h"
#include "memory/byte_stream.h"
#include "nixl/rig.h"
#include "test/geometries.h"

namespace kvt::bench {
namespace {

constexpr uint32_t kBlocks = 64;
constexpr uint32_t kPiece = 4096;
constexpr int kRounds = 1'000;
constexpr int kWarmUp = 100;
constexpr BootNanos kHour = 3'600'000 * kNanosPerMilli;

std::unique_ptr<DataPlane> Open(uint64_t epoch) {
  DataPlane::Options options;
  options.geometry = kvt::test::Hnd(1, 1, 1, 1, kPiece);
  options.blocks = kBlocks;
  options.shared_memory = false;
  options.nixl = DataPlane::Nixl{LibraryFile(), "UCX", true, std::nullopt};
  options.epoch = epoch;
  options.crew = &CopyCrew::OfProcess();
  auto plane = Must(DataPlane::Start(std::move(options), [] {}));
  while (plane->phase() == DataPlane::Phase::kOpening) std::this_thread::yield();
  if (plane->phase() == DataPlane::Phase::kOpen) return plane;
  std::fprintf(stderr, "%s\n", plane->error().why.c_str());
  std::exit(1);
}

// The next completion of that kind; spins, as whoever measures the ring must not wait for a wake-up.
Record Await(DataPlane* plane, CompletionKind kind) {
  for (;;) {
    Record record;
    while (plane->Take({&record, 1}) == 0) {
    }
    if (record[0] == static_cast<double>(kind)) return record;
  }
}

// Of the one path that the plane has (paths/path_set.cc).
NixlDescriptor SectionOf(const std::vector<uint8_t>& descriptor) {
  ByteReader in(descriptor);
  (void)in.Number<uint32_t>();
  (void)in.Number<uint8_t>();
  (void)in.Number<uint8_t>();
  const auto section = DecodeNixlDescriptor(in.Blob());
  if (!section) std::exit(1);
  return *section;
}

BootNanos RunJob(DataPlane* plane, uint64_t id, uint32_t block) {
  Command command;
  command.kind = Command::Kind::kPost;
  command.id = id;
  command.peer = 1;
  command.when = kNever;
  command.transfer = std::make_unique<Transfer>();
  command.transfer->source_blocks = {block};
  command.transfer->target_blocks = {kBlocks - 1 - block};
  command.transfer->tokens = {0, 1, 1};
  const BootNanos before = BootNow();
  command.transfer->posted = before;
  plane->Submit(std::move(command));
  const Record end = Await(plane, CompletionKind::kJob);
  const BootNanos nanos = BootNow() - before;
  if (end[2] != 0) std::exit(1);
  return nanos;
}

}  // namespace

int HoldFixedCost() {
  const int out = TakeOutput();
  const auto plane = Open(1);
  memset(plane->pool()->data(), 1, plane->pool()->bytes());
  // Awake, as a side is whose blocks are granted.
  Command lease;
  lease.kind = Command::Kind::kGrant;
  lease.id = 1;
  lease.when = Later(BootNow(), kHour);
  lease.duration = kHour;
  plane->Submit(std::move(lease));
  if (!WriteBlob(out, plane->descriptor())) return 1;
  while (!InputEnded(1'000)) {
  }
  return 0;
}

void MeasureFixedCost() {
  SelfProcess holder("fixed");
  std::vector<uint8_t> descriptor;
  if (!holder.ReadBlob(&descriptor)) std::exit(1);
  const auto plane = Open(2);
  Command reach;
  reach.kind = Command::Kind::kReach;
  reach.id = 1;
  reach.descriptor = descriptor;
  reach.when = Later(BootNow(), kLimit);
  plane->Submit(std::move(reach));
  if (Await(plane.get(), CompletionKind::kReached)[2] != 0) std::exit(1);
  Plain plain(SectionOf(descriptor), kBlocks, plane->options().geometry.BlockBytes(), kPiece);
  std::vector<double> ours;
  std::vector<double> theirs;
  for (int round = 0; round < kWarmUp + kRounds; ++round) {
    const uint32_t block = static_cast<uint32_t>(round) % kBlocks;
    const BootNanos job = RunJob(plane.get(), 10 + static_cast<uint64_t>(round), block);
    const BootNanos alone = plain.Read({block}, {kBlocks - 1 - block});
    if (round < kWarmUp) continue;
    ours.push_back(static_cast<double>(job) / 1e3);
    theirs.push_back(static_cast<double>(alone) / 1e3);
  }
  std::printf("%.2f %.2f\n", Median(ours), Median(theirs));
}

}  // namespace kvt::bench
