// 64 MiB in scattered pieces between two processes of one machine: our path for it (shared_memory), our path
// through NIXL (nixl_direct), and NIXL as one uses it, one descriptor a piece on prepared lists. Prints
// `piece_bytes shared_gb_per_s direct_gb_per_s nixl_gb_per_s`, medians of rounds that take turns.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <numeric>

#include "memory/pool_descriptor.h"
#include "memory/socket_directory.h"
#include "paths/nixl_direct.h"
#include "paths/shared_memory.h"
#include "test/geometries.h"
#include "test/nixl_process.h"

namespace {

using namespace kvt;              // NOLINT: a program
using namespace kvt::nixl::test;  // NOLINT

constexpr uint64_t kMoved = uint64_t{64} << 20;
constexpr int kRounds = 9;

template <typename T>
T Must(Result<T> result) {
  if (result.ok()) return std::move(result.value());
  std::fprintf(stderr, "%s\n", result.error().why.c_str());
  std::exit(1);
}

// A pool of twice what is moved, in blocks of one piece, with both paths.
struct Side {
  Side(uint32_t piece, const std::string& directory, const std::string& name)
      : geometry(kvt::test::Hnd(1, 1, 1, 1, piece)), blocks(static_cast<uint32_t>(2 * kMoved / piece)) {
    pool = Must(HostPool::Create(geometry.BlockBytes() * blocks, stop));
    own.boot_id = ReadBootId();
    own.epoch = 1;
    own.geometry = geometry;
    own.blocks = blocks;
    own.offset = pool->offset();
    own.bytes = pool->bytes();
    own.directory = directory;
    own.socket = kSocketPrefix + std::to_string(getpid()) + ".sock";
    shared = Must(SharedMemoryPath::Open({own, pool, &CopyCrew::OfProcess(), wake}));
    direct = Must(NixlDirectPath::Open({LibraryFile(), "UCX", name, geometry, blocks, pool, wake}));
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
  std::unique_ptr<NixlDirectPath> direct;
  std::vector<PathEvent> events;
};

std::vector<uint32_t> Scattered(uint32_t blocks, size_t count, unsigned seed) {
  std::vector<uint32_t> table(blocks);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(seed));
  table.resize(count);
  return table;
}

double GbPerS(BootNanos nanos) { return static_cast<double>(kMoved) / static_cast<double>(nanos); }

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

// What somebody does who has NIXL and nothing else.
class Plain {
 public:
  Plain(const NixlDescriptor& far, const Side& side, uint64_t piece)
      : buffer_(side.pool->bytes()),
        agent_(Must(nixl::Agent::Open(Must(nixl::Library::Load(LibraryFile())), Options()))) {
    memset(buffer_.data(), 1, buffer_.size());
    memory_ = Must(agent_->Register(nixl::MemoryKind::kDram, {PieceOf(buffer_, 0, buffer_.size())}));
    const std::string name = Must(agent_->LoadRemote(far.metadata));
    std::vector<nixl::Piece> own;
    std::vector<nixl::Piece> others;
    for (uint32_t block = 0; block < side.blocks; ++block) {
      own.push_back(PieceOf(buffer_, block * piece, piece));
      others.push_back({far.address + block * side.geometry.BlockBytes(), piece, 0});
    }
    own_ = Must(agent_->Prepare("", nixl::MemoryKind::kDram, own));
    far_ = Must(agent_->Prepare(name, nixl::MemoryKind::kDram, others));
  }

  double Read(const std::vector<uint32_t>& from, const std::vector<uint32_t>& to) {
    const std::vector<int32_t> far(from.begin(), from.end());
    const std::vector<int32_t> own(to.begin(), to.end());
    const BootNanos before = BootNow();
    auto request = Must(agent_->Make(nixl::Operation::kRead, *own_, own, *far_, far, {}));
    if (kvt::nixl::test::Run(request.get()) != nixl::Status::kSuccess) std::exit(1);
    return GbPerS(BootNow() - before);
  }

 private:
  static nixl::AgentOptions Options() {
    nixl::AgentOptions options;
    options.name = "plain";
    return options;
  }

  std::vector<uint8_t> buffer_;
  std::unique_ptr<nixl::Agent> agent_;
  std::unique_ptr<nixl::Registration> memory_;
  std::unique_ptr<nixl::PreparedList> own_;
  std::unique_ptr<nixl::PreparedList> far_;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int RunHolder(const std::string& argument) {
  const int out = TakeOutput();
  const size_t colon = argument.find(':');
  Side side(static_cast<uint32_t>(std::stoul(argument)), argument.substr(colon + 1), "holder");
  side.direct->Serve(true);
  if (!WriteBlob(out, *EncodeDescriptor(side.own)) || !WriteBlob(out, side.direct->descriptor())) return 1;
  while (!InputEnded(1'000)) {
  }
  return 0;
}

void Measure(uint32_t piece, const std::string& directory) {
  SelfProcess holder(std::to_string(piece) + ":" + directory);
  std::vector<uint8_t> shared;
  std::vector<uint8_t> direct;
  if (!holder.ReadBlob(&shared) || !holder.ReadBlob(&direct)) std::exit(1);
  Side side(piece, directory, "reader");
  side.shared->Reach(1, shared, Later(BootNow(), kLimit));
  if (side.Next(side.shared.get()).reached != ReachStatus::kOk) std::exit(1);
  side.direct->Reach(1, direct, Later(BootNow(), kLimit));
  if (side.Next(side.direct.get()).reached != ReachStatus::kOk) std::exit(1);
  Plain plain(*DecodeNixlDescriptor(direct), side, piece);
  const auto from = Scattered(side.blocks, kMoved / piece, 1);
  const auto to = Scattered(side.blocks, kMoved / piece, 2);
  std::vector<double> rates[3];
  for (int round = 0; round < kRounds; ++round) {
    rates[0].push_back(Move(&side, side.shared.get(), from, to));
    rates[1].push_back(Move(&side, side.direct.get(), from, to));
    rates[2].push_back(plain.Read(from, to));
  }
  std::printf("%u %.3f %.3f %.3f\n", piece, Median(rates[0]), Median(rates[1]), Median(rates[2]));
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && strcmp(argv[1], "--holder") == 0) return RunHolder(argv[2]);
  char directory[] = "/tmp/kvt-bench-XXXXXX";
  if (mkdtemp(directory) == nullptr) return 1;
  for (const uint32_t piece : {4096U, 65536U, 1048576U}) Measure(piece, directory);
  std::filesystem::remove_all(directory);
  return 0;
}
