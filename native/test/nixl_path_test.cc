// Paths nixl_direct and nixl_staged between pools of this process (spec nixl.md).
#include "test/geometries.h"
#include "test/nixl_node.h"

namespace {

using namespace kvt;              // NOLINT: a test
using namespace kvt::nixl::test;  // NOLINT

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

KVT_TEST_MAIN
