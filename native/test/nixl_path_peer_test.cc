// Peers of the NIXL paths that are refused, die, stop or lose their connection (spec nixl.md).
#include <sys/socket.h>

#include <cstring>

#include "test/geometries.h"
#include "test/nixl_node.h"

namespace {

using namespace kvt;              // NOLINT: a test
using namespace kvt::nixl::test;  // NOLINT

const Geometry& FarGeometry() {
  static const Geometry geometry = kvt::test::Hnd(8, 2, 4, 32, 128);
  return geometry;
}
constexpr uint32_t kFarBlocks = 256;

int RunHolder() {
  const int out = TakeOutput();
  Node node(FarGeometry(), kFarBlocks, "far-" + std::to_string(getpid()));
  if (!node.path) return 1;
  node.Fill(77);
  node.path->Serve(true);
  if (!WriteBlob(out, node.path->Descriptor())) return 1;
  while (!InputEnded(1'000)) {
  }
  return 0;
}

// Whole pools, block 0 to block 255 and so on: 64 MiB that are no neighbours.
struct Far {
  Far() : process("far"), node(FarGeometry(), kFarBlocks, "near-" + std::to_string(getpid())) {
    good = process.ReadBlob(&descriptor) && node.path && node.Reach(1, descriptor) == ReachStatus::kOk;
    for (uint32_t at = 0; at < kFarBlocks; ++at) {
      from.push_back(at);
      to.push_back(kFarBlocks - 1 - at);
    }
  }
  bool Post(JobKey job) {
    return good && node.Post(job, 1, from, to, {0, kFarBlocks * 32, kFarBlocks * 32}) == Path::Posted::kTaken;
  }

  SelfProcess process;
  std::vector<uint8_t> descriptor;
  Node node;
  std::vector<uint32_t> from;
  std::vector<uint32_t> to;
  bool good = false;
};

}  // namespace

TEST("a descriptor that was changed, is of another plug-in or version, or of a gone agent is refused") {
  WITH_NIXL();
  const Geometry geometry = kvt::test::Hnd(2, 2, 2, 32, 128);
  Node target(geometry, 8, "refuse-target");
  std::vector<uint8_t> gone;
  {
    Node source(geometry, 8, "refuse-source");
    if (!source.path || !target.path) return;
    gone = source.path->Descriptor();
    std::vector<uint8_t> changed = gone;
    changed[changed.size() / 2] ^= 1;
    CHECK(target.Reach(1, changed) == ReachStatus::kBadDescriptor);
    auto other = DecodeNixlDescriptor(gone);
    // 0.10 to 1.3 go together, and 1.4 and 1.5.
    other->version = other->version >= "1.4" ? "1.3.0" : "1.5.1";
    CHECK(target.Reach(2, *EncodeNixlDescriptor(*other)) == ReachStatus::kNixlVersions);
    other = DecodeNixlDescriptor(gone);
    other->plugin = "LIBFABRIC";
    CHECK(target.Reach(3, *EncodeNixlDescriptor(*other)) == ReachStatus::kNixlVersions);
    other = DecodeNixlDescriptor(gone);
    other->agent = "somebody-else";
    CHECK(target.Reach(4, *EncodeNixlDescriptor(*other)) == ReachStatus::kNixlFailed);
    other = DecodeNixlDescriptor(gone);
    other->geometry.groups[0].element_bytes = 64;
    CHECK(target.Reach(5, *EncodeNixlDescriptor(*other)) == ReachStatus::kBadDescriptor);
    CHECK(target.Reach(6, gone) == ReachStatus::kOk);
  }
  // Its agent has ended in good order, or its deadline says so.
  const ReachStatus after = target.Reach(7, gone, 500 * kNanosPerMilli);
  CHECK(after == ReachStatus::kNixlFailed || after == ReachStatus::kTimedOut);
}

TEST("LIBFABRIC is refused for reads into blocks, and a wrong library with its reason") {
  const Geometry geometry = kvt::test::Hnd(2, 2, 2, 32, 128);
  std::atomic<bool> stop{false};
  auto pool = HostPool::Create(geometry.BlockBytes() * 4, stop);
  const auto wake = std::make_shared<Sleeper>();
  auto fabric =
      NixlPath::Open({"/absent", "LIBFABRIC", "x", geometry, 4, pool.value(), wake, true, {}, nullptr});
  CHECK(!fabric.ok() && fabric.error().why.find("must go to staging slots") != std::string::npos);
  auto absent = NixlPath::Open({"/absent", "UCX", "x", geometry, 4, pool.value(), wake, true, {}, nullptr});
  CHECK(!absent.ok() && absent.error().code == ErrorCode::kNixlUnusable);
}

TEST("a peer that is killed ends its jobs without success, and one that starts anew is read") {
  WITH_NIXL();
  Far far;
  CHECK(far.Post(1));
  CHECK(far.node.Next(PathEvent::Kind::kQuiet, 1).complete);
  far.process.Kill();
  CHECK(far.Post(2));
  CHECK(!far.node.Next(PathEvent::Kind::kQuiet, 2).complete);
  SelfProcess again("far");
  std::vector<uint8_t> descriptor;
  CHECK(again.ReadBlob(&descriptor));
  CHECK(far.node.Reach(2, descriptor) == ReachStatus::kOk);
  CHECK(far.node.Post(3, 2, {5}, {6}, {0, 32, 32}) == Path::Posted::kTaken);
  CHECK(far.node.Next(PathEvent::Kind::kQuiet, 3).complete);
}

TEST("a stopped peer's job goes on when the peer does, and a close doesn't wait for it") {
  WITH_NIXL();
  Far far;
  CHECK(far.Post(1));
  CHECK(far.node.Next(PathEvent::Kind::kQuiet, 1).complete);
  far.process.Send(SIGSTOP);
  CHECK(far.Post(2));
  far.process.Send(SIGCONT);
  CHECK(far.node.Next(PathEvent::Kind::kQuiet, 2).complete);
  far.process.Send(SIGSTOP);
  CHECK(far.Post(3));
  // Answered by the step that posts the job's first reads.
  CHECK(far.node.Reach(9, {}) == ReachStatus::kBadDescriptor);
  far.node.path->Cancel(3);
  const BootNanos before = BootNow();
  far.node.path->EndBy(Later(before, 300 * kNanosPerMilli));
  // On shared memory the reads end by themselves: the kernel copies, whatever the peer does.
  const PathEvent end = far.node.Next(PathEvent::Kind::kQuiet, 3);
  CHECK(BootNow() - before < 5'000 * kNanosPerMilli);
  const char* transport = getenv("UCX_TLS");
  if (transport != nullptr && std::string(transport) == "tcp") CHECK(!end.complete);
}

TEST(
    "nothing is posted to a peer whose connection or process has ended, and a new connection lets it go on") {
  WITH_NIXL();
  Far far;
  int ends[2];
  CHECK(far.good && socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  auto life = std::make_shared<PeerLife>();
  life->Connected(ends[0]);
  CHECK(far.node.Reach(5, far.descriptor, kLimit, life) == ReachStatus::kOk);
  const Tokens all{0, kFarBlocks * 32, kFarBlocks * 32};
  CHECK(far.node.Post(1, 5, far.from, far.to, all) == Path::Posted::kTaken);
  CHECK(far.node.Next(PathEvent::Kind::kQuiet, 1).complete);
  const std::vector<std::byte> before(far.node.pool->data(), far.node.pool->data() + far.node.pool->bytes());
  const auto untouched = [&] { return memcmp(before.data(), far.node.pool->data(), before.size()) == 0; };
  const std::vector<uint32_t> other(far.from);

  // The far end closes; what was asked for waits, and goes on over the next connection.
  close(ends[1]);
  CHECK(life->Ask() == PeerLife::State::kCut);
  CHECK(far.node.Post(2, 5, far.from, other, all) == Path::Posted::kTaken);
  CHECK(far.node.Reach(6, {}) == ReachStatus::kBadDescriptor);
  CHECK(untouched());
  life->Disconnected();
  close(ends[0]);
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  life->Connected(ends[0]);
  CHECK(far.node.Next(PathEvent::Kind::kQuiet, 2).complete);

  // Nobody connects anew: the job ends, and no new reach begins.
  CHECK(far.node.Post(3, 5, far.from, far.to, all) == Path::Posted::kTaken);
  CHECK(far.node.Next(PathEvent::Kind::kQuiet, 3).complete);
  CHECK(untouched());
  close(ends[1]);
  CHECK(far.node.Post(4, 5, far.from, other, all) == Path::Posted::kTaken);
  const PathEvent end = far.node.Next(PathEvent::Kind::kQuiet, 4);
  CHECK(!end.complete && untouched());
  CHECK(far.node.Reach(7, far.descriptor, kLimit, life) == ReachStatus::kNixlFailed);
  close(ends[0]);
}

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  if (argc == 3 && strcmp(argv[1], "--holder") == 0) return RunHolder();
  return kvt::test::RunAll(argc, argv);
}
