#include "paths/cuda_peer.h"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "check.h"
#include "cuda_rig.h"
#include "geometries.h"
#include "layout/run_cursor.h"

using namespace kvt;

namespace {

constexpr BootNanos kSecond = 1'000 * kNanosPerMilli;
constexpr uint32_t kBlocks = 48;
constexpr unsigned kMultiprocessors = 64;

// A pool on the first GPU and its path, with an owner that waits.
struct Node {
  Node(const std::string& directory, const Geometry& geometry, unsigned seed) {
    const uint64_t bytes = geometry.BlockBytes() * kBlocks;
    pool = test::Needed(cuda::DevicePool::Create(0, bytes));
    content = test::Pattern(bytes, seed);
    CHECK(!pool->Write(0, content));
    own.boot_id = ReadBootId();
    own.epoch = seed;
    own.nonce[0] = static_cast<uint8_t>(seed);
    own.nonce[1] = static_cast<uint8_t>(getpid());
    own.geometry = geometry;
    own.blocks = kBlocks;
    own.bytes = bytes;
    own.regions = {{0, 0, bytes}};
    own.directory = directory;
    own.socket = "kvt-pool-" + std::to_string(getpid()) + "-" + std::to_string(seed) + ".sock";
    auto kernels = test::Needed(cuda::Kernels::Load(pool->context()));
    path = test::Needed(CudaPeerPath::Open({own, pool, std::move(kernels), kMultiprocessors, wake}));
  }

  std::vector<uint8_t> Descriptor() const {
    return *EncodeCudaDescriptor({own, pool->context()->facts().uuid, pool->memory().bytes()});
  }
  PathEvent Next() {
    const BootNanos until = BootNow() + 20 * kSecond;
    while (BootNow() < until) {
      wake->Look();
      std::vector<PathEvent> events;
      path->Poll(&events);
      if (!events.empty()) {
        CHECK_EQ(events.size(), 1u);
        return events[0];
      }
      if (!wake->MaySleep()) continue;
      pollfd polled{wake->fd(), POLLIN, 0};
      poll(&polled, 1, 1'000);
      wake->Clear();
    }
    CHECK(false);
    return {};
  }
  ReachStatus Reach(PeerKey peer, std::vector<uint8_t> descriptor) {
    path->Reach(peer, std::move(descriptor), BootNow() + 10 * kSecond);
    const PathEvent event = Next();
    CHECK(event.kind == PathEvent::Kind::kReached && event.path == PathKind::kCudaPeer);
    return event.reached;
  }
  Path::Posted Post(JobKey job, PeerKey peer, std::vector<uint32_t> source, std::vector<uint32_t> target,
                    const Tokens& tokens) {
    auto transfer = std::make_unique<Transfer>();
    transfer->job = job;
    transfer->peer = peer;
    transfer->source_blocks = std::move(source);
    transfer->target_blocks = std::move(target);
    transfer->tokens = tokens;
    transfer->posted = BootNow();
    return path->Post(std::move(transfer));
  }
  std::vector<std::byte> Read() const {
    std::vector<std::byte> bytes(content.size());
    const cuda::ByteRange all{0, bytes.size()};
    CHECK(
        !pool->Read({&all, 1}, [&](const std::byte* copied) { memcpy(bytes.data(), copied, bytes.size()); }));
    return bytes;
  }

  std::shared_ptr<Sleeper> wake = std::make_shared<Sleeper>();
  std::shared_ptr<cuda::DevicePool> pool;
  std::vector<std::byte> content;  // written at the start
  PoolDescriptor own;
  std::unique_ptr<CudaPeerPath> path;
};

// What a pull must leave, by the runs that the host path copies.
std::vector<std::byte> Expected(const Geometry& from, const Geometry& to,
                                const std::vector<std::byte>& source, std::vector<std::byte> target,
                                const Tokens& tokens, const BlockTables& tables) {
  std::string why;
  const Plan plan = *Plan::Compile({from}, {to}, &why);
  RunCursor cursor(plan, tokens, tables, {0, plan.Units(tokens)});
  Run run;
  while (cursor.Next(&run)) {
    for (uint64_t piece = 0; piece < run.count; ++piece) {
      memcpy(target.data() + run.target_offset + piece * run.target_stride,
             source.data() + run.source_offset + piece * run.source_stride, run.bytes);
    }
  }
  return target;
}

struct Directory {
  Directory() {
    char name[] = "/tmp/kvt-cuda-XXXXXX";
    path = mkdtemp(name);
  }
  ~Directory() { std::filesystem::remove_all(path); }
  std::string path;
};

// A process with a pool, from before this one has touched CUDA.
struct Exporter {
  Exporter(const std::string& directory, const Geometry& geometry, unsigned seed) {
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    pid = fork();
    if (pid == 0) {
      close(ends[0]);
      const Node node(directory, geometry, seed);
      const auto own = node.Descriptor();
      const auto count = static_cast<uint32_t>(own.size());
      if (write(ends[1], &count, sizeof count) != sizeof count) _exit(1);
      if (write(ends[1], own.data(), count) != static_cast<ssize_t>(count)) _exit(1);
      for (;;) pause();
    }
    close(ends[1]);
    uint32_t size = 0;
    CHECK_EQ(read(ends[0], &size, sizeof size), static_cast<ssize_t>(sizeof size));
    descriptor.resize(size);
    CHECK_EQ(read(ends[0], descriptor.data(), size), static_cast<ssize_t>(size));
    close(ends[0]);
  }
  void Kill() {
    if (pid <= 0) return;
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    pid = -1;
  }
  ~Exporter() { Kill(); }

  pid_t pid = -1;
  std::vector<uint8_t> descriptor;
};

const std::vector<uint32_t> kSource{5, 3, 40, 41, 42, 0};
const std::vector<uint32_t> kTarget{1, 2, 3, 44, 10, 11};

}  // namespace

TEST("blocks cross from another process's GPU pool, which may be killed once it is mapped") {
  std::printf("  %s\n", test::OnRealGpu() ? "on a GPU" : "on a fake of CUDA");
  const Directory directory;
  const Geometry geometry = test::Hnd(4, 2, 2, 32, 128);
  Exporter exporter(directory.path, geometry, 7);
  Node target(directory.path, geometry, 8);
  std::printf("  kernels: %s\n", target.path->form().c_str());
  CHECK(target.Reach(1, exporter.descriptor) == ReachStatus::kOk);
  const auto source = test::Pattern(geometry.BlockBytes() * kBlocks, 7);
  const Tokens some{0, 96, 170};
  CHECK(target.Post(1, 1, kSource, kTarget, some) == Path::Posted::kTaken);
  PathEvent event = target.Next();
  CHECK(event.kind == PathEvent::Kind::kQuiet && event.complete);
  CHECK_EQ(event.bytes, 3 * geometry.BlockBytes());
  const BlockTables tables{kSource, kTarget};
  auto expected = Expected(geometry, geometry, source, target.content, some, tables);
  CHECK(target.Read() == expected);

  exporter.Kill();
  event = target.Next();
  CHECK(event.kind == PathEvent::Kind::kPeerDead && event.key == 1);
  const Tokens rest{96, 170, 170};
  CHECK(target.Post(2, 1, kSource, kTarget, rest) == Path::Posted::kTaken);
  event = target.Next();
  CHECK(event.complete);
  expected = Expected(geometry, geometry, source, expected, rest, tables);
  CHECK(target.Read() == expected);
  target.path->Release(1);
  CHECK(target.Post(3, 1, kSource, kTarget, rest) == Path::Posted::kNoPeer);
}

TEST(
    "a pool of this process is read where it lies, in another order of heads and tokens and of other "
    "blocks") {
  test::OnRealGpu();
  const Directory directory;
  const Geometry from = test::Nhd(4, 2, 8, 16, 12);
  const Geometry to = test::Hnd(4, 2, 4, 32, 12, 0, 2);
  Node source(directory.path, from, 9);
  Node target(directory.path, to, 10);
  CHECK(target.Reach(1, source.Descriptor()) == ReachStatus::kOk);
  const Tokens tokens{5, 91, 91};
  CHECK(target.Post(1, 1, kSource, kTarget, tokens) == Path::Posted::kTaken);
  CHECK(target.Next().complete);
  const BlockTables tables{kSource, kTarget};
  CHECK(target.Read() == Expected(from, to, source.content, target.content, tokens, tables));
  CHECK(source.Read() == source.content);
}

TEST("a peer of another kind, a garbled descriptor and blocks that don't exist are refused") {
  test::OnRealGpu();
  const Directory directory;
  const Geometry geometry = test::Hnd(4, 2, 2, 32, 128);
  Node source(directory.path, geometry, 12);
  Node target(directory.path, geometry, 13);
  CHECK(target.Reach(1, {1, 2, 3}) == ReachStatus::kBadDescriptor);
  CudaDescriptor small{source.own, source.pool->context()->facts().uuid, source.own.bytes - 1};
  CHECK(!DecodeCudaDescriptor(*EncodeCudaDescriptor(small)));
  auto cut = source.Descriptor();
  cut.pop_back();
  CHECK(target.Reach(2, cut) == ReachStatus::kBadDescriptor);
  CHECK(target.Reach(3, source.Descriptor()) == ReachStatus::kOk);
  CHECK(target.Post(1, 3, {kBlocks}, {0}, {0, 32, 32}) == Path::Posted::kBadRange);
  CHECK(target.Post(2, 3, {0}, {kBlocks}, {0, 32, 32}) == Path::Posted::kBadRange);
}

TEST("a kernel that can't be launched ends its transfer, and no byte is called moved") {
  if (test::OnRealGpu()) SKIP("a real GPU does not fail on demand");
  const Directory directory;
  const Geometry geometry = test::Hnd(4, 2, 2, 32, 128);
  Node source(directory.path, geometry, 14);
  Node target(directory.path, geometry, 15);
  CHECK(target.Reach(1, source.Descriptor()) == ReachStatus::kOk);
  for (const char* failing : {"cuLaunchKernel", "cuEventSynchronize", "cuEventRecord"}) {
    setenv("KVT_FAKE_CUDA_FAILS", failing, 1);
    CHECK(target.Post(1, 1, {0}, {0}, {0, 32, 32}) == Path::Posted::kTaken);
    const PathEvent event = target.Next();
    unsetenv("KVT_FAKE_CUDA_FAILS");
    CHECK(event.kind == PathEvent::Kind::kQuiet && !event.complete);
    CHECK_EQ(event.bytes, 0u);
  }
  CHECK(target.Post(2, 1, {0}, {0}, {0, 32, 32}) == Path::Posted::kTaken);
  CHECK(target.Next().complete);
}

KVT_TEST_MAIN
