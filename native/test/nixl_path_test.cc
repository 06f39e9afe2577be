// Paths nixl_direct and nixl_staged between two pools of this process, and of another (spec nixl.md).
#include "paths/nixl_path.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "test/geometries.h"
#include "test/nixl_process.h"

namespace {

using namespace kvt;              // NOLINT: a test
using namespace kvt::nixl::test;  // NOLINT

// What a test needs: any plug-in for staged transfers, UCX for direct ones.
#define WITH_STAGED() \
  if (LibraryFile().empty()) SKIP(kNoNixl)
#define WITH_NIXL() \
  if (LibraryFile().empty() || PluginName() != "UCX") SKIP(kNoNixl)

struct Mode {
  const char* name;
  bool direct;
  std::optional<StagingOptions> staging;

  PathKind kind() const { return direct ? PathKind::kNixlDirect : PathKind::kNixlStaged; }
  bool works() const { return !direct || PluginName() == "UCX"; }
};
constexpr BootNanos kStall = 10'000 * kNanosPerMilli;
const Mode kDirect{"direct", true, std::nullopt};
const Mode kStaged{"staged", false, StagingOptions{2, 64, kStall}};
// One slot of one block, and many.
const Mode kNarrow{"narrow", false, StagingOptions{1, 32, kStall}};
const Mode kWide{"wide", false, StagingOptions{5, 2048, kStall}};
const std::vector<Mode> kModes{kDirect, kStaged, kNarrow, kWide};

Ticket TicketOf(uint8_t number) {
  Ticket ticket{};
  ticket[0] = number;
  return ticket;
}

// A pool with its path, polled in the owner's place.
struct Node {
  Node(const Geometry& of, uint32_t count, const std::string& name, const Mode& mode = kDirect)
      : geometry(of), blocks(count) {
    auto created = HostPool::Create(geometry.BlockBytes() * blocks, stop);
    pool = created.value();
    auto opened = NixlPath::Open({LibraryFile(), PluginName(), name, geometry, blocks, pool, wake,
                                  mode.direct, mode.staging, &CopyCrew::OfProcess()});
    if (opened.ok()) {
      path = std::move(opened.value());
    } else {
      ++kvt::test::Failures();
      std::printf("%s\n", opened.error().why.c_str());
    }
  }

  void Fill(uint32_t seed) const {
    std::mt19937 random(seed);
    for (size_t at = 0; at < pool->bytes(); at += 4) {
      const uint32_t word = random();
      memcpy(pool->data() + at, &word, 4);
    }
  }

  // The next event of that kind and key; the other side is served by its own thread.
  PathEvent Next(PathEvent::Kind kind, uint64_t key) {
    const BootNanos until = Later(BootNow(), kLimit);
    for (;;) {
      for (auto seen = events.begin(); seen != events.end(); ++seen) {
        if (seen->kind != kind || seen->key != key) continue;
        const PathEvent found = *seen;
        events.erase(seen);
        return found;
      }
      if (BootNow() > until) {
        ++kvt::test::Failures();
        std::printf("no event of kind %d for %d within the limit\n", static_cast<int>(kind),
                    static_cast<int>(key));
        return {};
      }
      wake->Look();
      path->Poll(&events);
      pollfd polled{wake->fd(), POLLIN, 0};
      if (events.empty() && wake->MaySleep() && poll(&polled, 1, 1'000) > 0) wake->Clear();
    }
  }

  ReachStatus Reach(PeerKey key, const std::vector<uint8_t>& descriptor, BootNanos limit = kLimit,
                    std::shared_ptr<const PeerLife> life = nullptr) {
    path->Know(key, std::move(life));
    path->Reach(key, descriptor, Later(BootNow(), limit));
    return Next(PathEvent::Kind::kReached, key).reached;
  }

  Path::Posted Post(JobKey job, PeerKey peer, std::vector<uint32_t> source, std::vector<uint32_t> target,
                    Tokens tokens, uint8_t ticket = 1) {
    auto transfer = std::make_unique<Transfer>();
    transfer->ticket = TicketOf(ticket);
    transfer->job = job;
    transfer->peer = peer;
    transfer->source_blocks = std::move(source);
    transfer->target_blocks = std::move(target);
    transfer->tokens = tokens;
    transfer->posted = BootNow();
    return path->Post(std::move(transfer));
  }

  const Geometry geometry;
  const uint32_t blocks;
  std::atomic<bool> stop{false};
  std::shared_ptr<Sleeper> wake = std::make_shared<Sleeper>();
  std::shared_ptr<HostPool> pool;
  std::unique_ptr<NixlPath> path;
  std::vector<PathEvent> events;
};

std::vector<uint32_t> Shuffled(uint32_t count, std::mt19937* random) {
  std::vector<uint32_t> ids(count);
  for (uint32_t at = 0; at < count; ++at) ids[at] = at;
  std::shuffle(ids.begin(), ids.end(), *random);
  return ids;
}

// What the plan says should lie in the target pool.
std::vector<uint8_t> Expected(const Node& source, const Node& target, const std::vector<uint32_t>& from,
                              const std::vector<uint32_t>& to, Tokens tokens) {
  std::string why;
  const auto plan = Plan::Compile({source.geometry}, {target.geometry}, &why);
  const auto* begin = reinterpret_cast<const uint8_t*>(target.pool->data());
  std::vector<uint8_t> bytes(begin, begin + target.pool->bytes());
  const BlockTables tables{from, to};
  RunCursor cursor(*plan, tokens, tables, {0, plan->Units(tokens)});
  for (kvt::Run run; cursor.Next(&run);) {
    for (uint64_t piece = 0; piece < run.count; ++piece) {
      memcpy(bytes.data() + run.target_offset + piece * run.target_stride,
             source.pool->data() + run.source_offset + piece * run.source_stride, run.bytes);
    }
  }
  return bytes;
}

bool Holds(const Node& node, const std::vector<uint8_t>& bytes) {
  return memcmp(node.pool->data(), bytes.data(), bytes.size()) == 0;
}

}  // namespace

TEST("tokens cross between pools of any two shapes, whole and in part, and nothing else changes") {
  WITH_STAGED();
  const Geometry whole = kvt::test::Hnd(4, 2, 4, 32, 128);
  struct Shape {
    Geometry source;
    Geometry target;
  };
  const Geometry half = kvt::test::Nhd(4, 2, 2, 32, 128, 0, 2);
  const Geometry small_blocks = kvt::test::Hnd(4, 2, 4, 16, 128);
  std::mt19937 random(3);
  int number = 0;
  for (const Mode& mode : kModes) {
    if (!mode.works()) continue;
    for (const Shape& shape : {Shape{whole, whole}, Shape{whole, half}, Shape{small_blocks, whole}}) {
      ++number;
      const std::string name = std::string(mode.name) + std::to_string(number);
      Node source(shape.source, 128, "source-" + name, mode);
      Node target(shape.target, 64, "target-" + name, mode);
      if (!source.path || !target.path) return;
      CHECK(target.Reach(1, source.path->Descriptor()) == ReachStatus::kOk);
      const uint64_t tokens = 64 * 32;
      JobKey job = 10;
      for (const Tokens range :
           {Tokens{0, tokens, tokens}, Tokens{13, 1000, tokens}, Tokens{40, 41, tokens}}) {
        source.Fill(number * 100 + job);
        target.Fill(number * 100 + job + 50);
        const auto from = Shuffled(128, &random);
        const auto to = Shuffled(64, &random);
        const auto expected = Expected(source, target, from, to, range);
        source.path->Grant(job, {TicketOf(job), from});
        const auto ticket = static_cast<uint8_t>(job++);
        CHECK(target.Post(job, 1, from, to, range, ticket) == Path::Posted::kTaken);
        const PathEvent end = target.Next(PathEvent::Kind::kQuiet, job);
        CHECK(end.complete);
        CHECK(end.path == mode.kind());
        CHECK(end.bytes > 0 && end.pieces > 0 && end.moving > 0);
        // NIXL's own count: every byte (of whole blocks, staged), and no more descriptors than there were
        // pieces.
        CHECK(mode.kind() == PathKind::kNixlStaged ? end.wire.bytes >= end.bytes
                                                   : end.wire.bytes == end.bytes);
        CHECK(end.wire.posts > 0 && end.wire.descriptors >= end.wire.posts);
        CHECK(end.wire.descriptors <= end.pieces);
        CHECK(end.wire.transfer_us >= end.wire.post_us && end.wire.post_us > 0);
        CHECK(Holds(target, expected));
        source.path->EndLease(job - 1);
      }
    }
  }
}

TEST("many jobs at once all end complete, with the bytes of each") {
  WITH_STAGED();
  const Geometry geometry = kvt::test::Hnd(8, 2, 4, 32, 128);
  for (const Mode& mode : kModes) {
    if (!mode.works()) continue;
    Node source(geometry, 64, std::string("many-source-") + mode.name, mode);
    Node target(geometry, 64, std::string("many-target-") + mode.name, mode);
    if (!source.path || !target.path) return;
    source.Fill(1);
    CHECK(target.Reach(1, source.path->Descriptor()) == ReachStatus::kOk);
    for (uint32_t job = 0; job < 64; ++job) {
      // Every other grant comes after what asks for it.
      if (job % 2 == 0) source.path->Grant(job, {TicketOf(job), {63 - job}});
      CHECK(target.Post(100 + job, 1, {63 - job}, {job}, {0, 32, 32}, job) == Path::Posted::kTaken);
      if (job % 2 != 0) source.path->Grant(job, {TicketOf(job), {63 - job}});
    }
    for (uint32_t job = 0; job < 64; ++job) CHECK(target.Next(PathEvent::Kind::kQuiet, 100 + job).complete);
    for (uint32_t job = 0; job < 64; ++job) {
      const size_t bytes = geometry.BlockBytes();
      CHECK(memcmp(target.pool->data() + job * bytes, source.pool->data() + (63 - job) * bytes, bytes) == 0);
    }
  }
}

TEST("a cancelled job becomes quiet, and jobs of a released peer are refused") {
  WITH_STAGED();
  const Geometry geometry = kvt::test::Hnd(8, 2, 4, 32, 128);
  for (const Mode& mode : kModes) {
    if (!mode.works()) continue;
    Node source(geometry, 512, std::string("cancel-source-") + mode.name, mode);
    Node target(geometry, 512, std::string("cancel-target-") + mode.name, mode);
    if (!source.path || !target.path) return;
    CHECK(target.Reach(1, source.path->Descriptor()) == ReachStatus::kOk);
    std::mt19937 random(4);
    const auto ids = Shuffled(512, &random);
    source.path->Grant(1, {TicketOf(1), ids});
    CHECK(target.Post(1, 1, ids, ids, {0, 512 * 32, 512 * 32}) == Path::Posted::kTaken);
    target.path->Cancel(1);
    target.Next(PathEvent::Kind::kQuiet, 1);
    CHECK(target.Post(2, 1, {0}, {600}, {0, 32, 32}) == Path::Posted::kBadRange);
    CHECK(target.Post(2, 1, {600}, {0}, {0, 32, 32}) == Path::Posted::kBadRange);
    target.path->Release(1);
    CHECK(target.Post(3, 1, {0}, {0}, {0, 32, 32}) == Path::Posted::kNoPeer);
    CHECK(target.Reach(2, source.path->Descriptor()) == ReachStatus::kOk);
    // Every slot that the cancelled job had is free again.
    for (JobKey job = 4; job < 12; ++job) {
      CHECK(target.Post(job, 2, ids, ids, {0, 512 * 32, 512 * 32}) == Path::Posted::kTaken);
      CHECK(target.Next(PathEvent::Kind::kQuiet, job).complete);
    }
  }
}

TEST("what was not granted, or is granted no more, is refused") {
  WITH_STAGED();
  const Geometry geometry = kvt::test::Hnd(2, 2, 2, 32, 128);
  Node source(geometry, 8, "grant-source", kStaged);
  Node target(geometry, 8, "grant-target", kStaged);
  if (!source.path || !target.path) return;
  CHECK(target.Reach(1, source.path->Descriptor()) == ReachStatus::kOk);
  source.path->Grant(1, {TicketOf(1), {3, 4}});
  CHECK(target.Post(1, 1, {3, 4}, {0, 1}, {0, 64, 64}) == Path::Posted::kTaken);
  CHECK(target.Next(PathEvent::Kind::kQuiet, 1).complete);
  // Another ticket, more than it has blocks, and after its end.
  CHECK(target.Post(2, 1, {3, 4}, {0, 1}, {0, 64, 64}, 2) == Path::Posted::kTaken);
  CHECK(!target.Next(PathEvent::Kind::kQuiet, 2).complete);
  CHECK(target.Post(3, 1, {3, 4, 5}, {0, 1, 2}, {0, 96, 96}) == Path::Posted::kTaken);
  CHECK(!target.Next(PathEvent::Kind::kQuiet, 3).complete);
  source.path->EndLease(1);
  CHECK(target.Post(4, 1, {3, 4}, {0, 1}, {0, 64, 64}) == Path::Posted::kTaken);
  CHECK(!target.Next(PathEvent::Kind::kQuiet, 4).complete);
}

TEST(
    "a side reads straight where pieces are large, through slots where they are small, and never both sides "
    "differently") {
  WITH_NIXL();
  const Geometry small = kvt::test::Hnd(2, 2, 2, 32, 128);
  const Geometry large = kvt::test::Hnd(1, 1, 1, 1024, 512);
  const Mode both{"both", true, StagingOptions{2, 1024, kStall}};
  for (const bool big : {false, true}) {
    const std::string name = big ? "-big" : "-small";
    Node source(big ? large : small, 4, "both-source" + name, both);
    Node target(big ? large : small, 4, "both-target" + name, both);
    Node staged(big ? large : small, 4, "staged-target" + name, kStaged);
    Node direct(big ? large : small, 4, "direct-target" + name, kDirect);
    if (!source.path || !target.path || !staged.path || !direct.path) return;
    source.path->Grant(1, {TicketOf(1), {0}});
    JobKey job = 0;
    for (const auto& [node, kind] :
         {std::pair{&target, big ? PathKind::kNixlDirect : PathKind::kNixlStaged},
          std::pair{&staged, PathKind::kNixlStaged}, std::pair{&direct, PathKind::kNixlDirect}}) {
      CHECK(node->Reach(1, source.path->Descriptor()) == ReachStatus::kOk);
      CHECK(node->Post(++job, 1, {0}, {0}, {0, 32, 32}) == Path::Posted::kTaken);
      const PathEvent end = node->Next(PathEvent::Kind::kQuiet, job);
      CHECK(end.complete && end.path == kind);
    }
    CHECK(direct.Reach(2, staged.path->Descriptor()) == ReachStatus::kNoCommonPath);
  }
}

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
    other->version = "1.3.0";
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

TEST("an idle path costs less than 2 % of a core") {
  WITH_NIXL();
  const Geometry geometry = kvt::test::Hnd(2, 2, 2, 32, 128);
  Node node(geometry, 8, "idle", Mode{"idle", true, StagingOptions{2, 64, kStall}});
  if (!node.path) return;
  const auto used = [] {
    timespec time{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return BootNanos{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
  };
  const BootNanos span = 500 * kNanosPerMilli;
  const BootNanos before = used();
  const BootNanos end = Later(BootNow(), span);
  // The time that is measured, not a wait for something.
  pollfd nothing{node.wake->fd(), POLLIN, 0};
  while (BootNow() < end) poll(&nothing, 1, static_cast<int>((end - BootNow()) / kNanosPerMilli) + 1);
  const double share = static_cast<double>(used() - before) / static_cast<double>(span);
  std::printf("  %.2f %%\n", share * 100);
  CHECK(share < 0.02);
}

namespace {

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
