// Scattered pieces from the pool of another process on the same GPU, or on a second one, through path
// cuda_peer; and as many contiguous bytes through the copy engine, in turns. Prints a row a case:
//   piece total multiprocessors microseconds-of-the-gpu copy-engine post-to-quiet
// Usage: gpu_move [source device] [target device] [rounds]
#include <dlfcn.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "paths/cuda_peer.h"

using namespace kvt;

namespace {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;
constexpr uint64_t kPoolBytes = 2048 * kMiB;
constexpr BootNanos kSecond = 1'000 * kNanosPerMilli;

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  std::exit(1);
}

template <typename Value>
Value Need(Result<Value> result) {
  if (!result.ok()) Fail(result.error().why);
  return std::move(result.value());
}

// One token a block, and a piece a token.
Geometry PiecesOf(uint64_t piece) {
  Geometry geometry;
  geometry.tokens_per_block = 1;
  geometry.block_bytes = piece;
  Group group;
  group.planes = 1;
  group.heads = 1;
  group.element_bytes = static_cast<uint32_t>(piece);
  group.block_stride = piece;
  group.layers = {{0, 1, 1, 0, 0}};
  geometry.groups = {group};
  return geometry;
}

PoolDescriptor DescriptorOf(const std::string& directory, uint64_t piece, uint8_t side) {
  PoolDescriptor own;
  own.boot_id = ReadBootId();
  own.epoch = 1;
  own.nonce[0] = side;
  own.nonce[1] = static_cast<uint8_t>(getpid());
  own.geometry = PiecesOf(piece);
  own.blocks = static_cast<uint32_t>(kPoolBytes / piece);
  own.bytes = kPoolBytes;
  own.regions = {{0, 0, own.bytes}};
  own.directory = directory;
  own.socket = "kvt-pool-" + std::to_string(getpid()) + "-" + std::to_string(piece) + ".sock";
  return own;
}

struct Side {
  Side(std::shared_ptr<cuda::DevicePool> memory, const std::string& directory, uint64_t piece, uint8_t number,
       unsigned multiprocessors)
      : pool(std::move(memory)), own(DescriptorOf(directory, piece, number)) {
    auto kernels = Need(cuda::Kernels::Load(pool->context()));
    path = Need(CudaPeerPath::Open({own, pool, std::move(kernels), multiprocessors, wake}));
  }
  std::vector<uint8_t> Descriptor() const {
    return *EncodeCudaDescriptor({own, pool->context()->facts().uuid, pool->memory().bytes()});
  }
  PathEvent Next() {
    std::vector<PathEvent> events;
    const BootNanos until = BootNow() + 20 * kSecond;
    while (BootNow() < until) {
      wake->Look();
      path->Poll(&events);
      if (!events.empty()) return events[0];
      if (!wake->MaySleep()) continue;
      pollfd polled{wake->fd(), POLLIN, 0};
      poll(&polled, 1, 1'000);
      wake->Clear();
    }
    Fail("no end of a transfer within 20 s");
  }

  std::shared_ptr<Sleeper> wake = std::make_shared<Sleeper>();
  std::shared_ptr<cuda::DevicePool> pool;
  PoolDescriptor own;
  std::unique_ptr<CudaPeerPath> path;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::vector<uint32_t> Shuffled(uint64_t count, unsigned seed) {
  std::vector<uint32_t> table(count);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(seed));
  return table;
}

// The copy engine between two places of this process, as the GPU's own clock sees it.
class CopyEngine {
 public:
  explicit CopyEngine(const std::shared_ptr<const cuda::Context>& context)
      : cuda_(context->cuda()), stream_(Need(cuda::Stream::Create(context))) {
    cuda_->cuEventCreate(&started_, 0);
    cuda_->cuEventCreate(&ended_, 0);
  }
  double Micros(cuda::CUdeviceptr from, cuda::CUdeviceptr to, uint64_t bytes) {
    cuda_->cuEventRecord(started_, stream_->get());
    const cuda::CUresult result = cuda_->cuMemcpyDtoDAsync(to, from, bytes, stream_->get());
    if (result != cuda::kSuccess) Fail(cuda_.Failed("cuMemcpyDtoDAsync", result).why);
    cuda_->cuEventRecord(ended_, stream_->get());
    cuda_->cuEventSynchronize(ended_);
    float millis = 0;
    cuda_->cuEventElapsedTime(&millis, started_, ended_);
    return millis * 1e3;
  }

 private:
  const cuda::Driver& cuda_;
  std::unique_ptr<cuda::Stream> stream_;
  cuda::CUevent started_ = nullptr;
  cuda::CUevent ended_ = nullptr;
};

// The exporter's part: a path for each piece size over one pool; descriptors go through the pipe, all at
// once.
void Export(int device, const std::string& directory, const std::vector<uint64_t>& pieces, int out) {
  auto pool = Need(cuda::DevicePool::Create(device, kPoolBytes));
  std::vector<std::byte> bytes(16 * kMiB);
  for (size_t at = 0; at < bytes.size(); ++at) bytes[at] = static_cast<std::byte>(at % 251);
  for (uint64_t at = 0; at < kPoolBytes; at += bytes.size()) {
    if (const auto failed = pool->Write(at, bytes)) Fail(failed->why);
  }
  std::vector<std::unique_ptr<Side>> sides;
  for (const uint64_t piece : pieces) {
    sides.push_back(std::make_unique<Side>(pool, directory, piece, 1, 1));
    const auto descriptor = sides.back()->Descriptor();
    const auto size = static_cast<uint32_t>(descriptor.size());
    if (write(out, &size, sizeof size) != sizeof size) std::exit(1);
    if (write(out, descriptor.data(), size) != static_cast<ssize_t>(size)) std::exit(1);
  }
  for (;;) pause();
}

std::vector<uint8_t> TakeDescriptor(int in) {
  uint32_t size = 0;
  if (read(in, &size, sizeof size) != sizeof size) Fail("the exporter has ended");
  std::vector<uint8_t> descriptor(size);
  if (read(in, descriptor.data(), size) != static_cast<ssize_t>(size)) Fail("the exporter has ended");
  return descriptor;
}

// Every piece of the last transfer, against what the exporter wrote there.
void Check(const cuda::DevicePool& pool, uint64_t piece, const std::vector<uint32_t>& source,
           const std::vector<uint32_t>& target, uint64_t count) {
  for (uint64_t index = 0; index < count; index += std::max<uint64_t>(1, count / 64)) {
    const cuda::ByteRange range{target[index] * piece, piece};
    const uint64_t from = source[index] * piece;
    bool right = true;
    const auto failed = pool.Read({&range, 1}, [&](const std::byte* copied) {
      for (uint64_t at = 0; at < piece; ++at) {
        right = right && copied[at] == static_cast<std::byte>((from + at) % (16 * kMiB) % 251);
      }
    });
    if (failed) Fail(failed->why);
    if (!right) Fail("piece " + std::to_string(index) + " of " + std::to_string(piece) + " bytes is wrong");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int source_device = argc > 1 ? std::atoi(argv[1]) : 0;
  const int target_device = argc > 2 ? std::atoi(argv[2]) : 0;
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 11;
  const std::vector<uint64_t> pieces{4 * kKiB, 8 * kKiB, 16 * kKiB, 64 * kKiB, 1024 * kKiB};
  char name[] = "/tmp/kvt-gpu-move-XXXXXX";
  const std::string directory = mkdtemp(name);
  int ends[2];
  if (pipe(ends) != 0) Fail("no pipe");
  // Before CUDA is initialised here: a process that uses it can't fork.
  const pid_t exporter = fork();
  if (exporter == 0) {
    close(ends[0]);
    Export(source_device, directory, pieces, ends[1]);
  }
  close(ends[1]);
  auto pool = Need(cuda::DevicePool::Create(target_device, kPoolBytes));
  CopyEngine engine(pool->context());
  cuda::CUdeviceptr theirs = 0;
  JobKey job = 0;
  for (const uint64_t piece : pieces) {
    const auto descriptor = TakeDescriptor(ends[0]);
    const auto source = Shuffled(kPoolBytes / piece, 1);
    const auto target = Shuffled(kPoolBytes / piece, 2);
    const bool sweep = piece == 8 * kKiB;
    for (const unsigned multiprocessors :
         sweep ? std::vector<unsigned>{64, 16, 32, 132, 264} : std::vector<unsigned>{64}) {
      Side side(pool, directory, piece, 2, multiprocessors);
      side.path->Reach(1, descriptor, BootNow() + 10 * kSecond);
      if (side.Next().reached != ReachStatus::kOk) Fail("the exporter's pool was not reached");
      if (theirs == 0) {
        // What the engine reads: the same memory, mapped a second time.
        std::atomic<bool> stop{false};
        const auto decoded = *DecodeCudaDescriptor(descriptor);
        const AskedPool asked = AskForPool(decoded.pool, directory, stop, BootNow() + 10 * kSecond);
        auto* mapped =
            Need(cuda::DeviceMemory::Import(pool->context(), asked.files[0].get(), decoded.mapped_bytes))
                .release();
        theirs = mapped->address();
        std::fprintf(
            stderr, "kernels: %s, peer memory mapped %s\n", side.path->form().c_str(),
            mapped->access() == cuda::DeviceMemory::Access::kRead ? "read-only" : "for reading and writing");
      }
      for (const uint64_t total : {kMiB, 16 * kMiB, 256 * kMiB, 1024 * kMiB}) {
        if (total < piece) continue;
        const uint64_t count = total / piece;
        std::vector<double> ours;
        std::vector<double> copies;
        std::vector<double> calls;
        for (int round = -2; round < rounds; ++round) {
          auto transfer = std::make_unique<Transfer>();
          transfer->job = ++job;
          transfer->peer = 1;
          transfer->source_blocks.assign(source.begin(), source.begin() + static_cast<std::ptrdiff_t>(count));
          transfer->target_blocks.assign(target.begin(), target.begin() + static_cast<std::ptrdiff_t>(count));
          transfer->tokens = {0, count, count};
          const BootNanos before = BootNow();
          transfer->posted = before;
          if (side.path->Post(std::move(transfer)) != Path::Posted::kTaken) Fail("the transfer was refused");
          const PathEvent event = side.Next();
          const double call = static_cast<double>(BootNow() - before) / 1e3;
          if (!event.complete) Fail("the transfer failed");
          const double copy = engine.Micros(theirs, pool->address(), total);
          if (round < 0) continue;
          ours.push_back(static_cast<double>(event.moving) / 1e3);
          calls.push_back(call);
          copies.push_back(copy);
        }
        if (total <= 256 * kMiB) {
          // The engine has written over some of it.
          auto transfer = std::make_unique<Transfer>();
          transfer->job = ++job;
          transfer->peer = 1;
          transfer->source_blocks.assign(source.begin(), source.begin() + static_cast<std::ptrdiff_t>(count));
          transfer->target_blocks.assign(target.begin(), target.begin() + static_cast<std::ptrdiff_t>(count));
          transfer->tokens = {0, count, count};
          transfer->posted = BootNow();
          side.path->Post(std::move(transfer));
          if (!side.Next().complete) Fail("the transfer failed");
          Check(*pool, piece, source, target, count);
        }
        std::printf("%llu %llu %u %.1f %.1f %.1f\n", static_cast<unsigned long long>(piece),
                    static_cast<unsigned long long>(total), multiprocessors, Median(ours), Median(copies),
                    Median(calls));
        std::fflush(stdout);
      }
    }
  }
  kill(exporter, SIGKILL);
  waitpid(exporter, nullptr, 0);
  std::filesystem::remove_all(directory);
  return 0;
}
