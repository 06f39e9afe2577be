#include "dataplane/data_plane.h"

#include <condition_variable>
#include <cstdlib>
#include <filesystem>

#include "check.h"
#include "geometries.h"

using namespace kvt;

namespace {

constexpr BootNanos Millis(int64_t millis) { return millis * kNanosPerMilli; }

// A data plane with a consumer that waits, in JavaScript's place.
class Plane {
 public:
  explicit Plane(const std::string& directory, uint32_t blocks = 64,
                 const Geometry& geometry = test::Hnd(4, 2, 2, 32, 128),
                 BootNanos hot = DataPlane::HotNanos()) {
    DataPlane::Options options;
    options.geometry = geometry;
    options.blocks = blocks;
    options.socket_directory = directory;
    options.epoch = 7;
    options.crew = &CopyCrew::OfProcess();
    options.hot = hot;
    plane = std::move(DataPlane::Start(std::move(options), [this] { Notify(); }).value());
    WaitFor([this] { return plane->phase() != DataPlane::Phase::kOpening; });
  }
  ~Plane() { plane.reset(); }

  void Notify() {
    const std::lock_guard lock(mutex_);
    ++notified_;
    changed_.notify_all();
  }

  template <typename Condition>
  void WaitFor(Condition condition) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, condition);
  }

  // The next completion of this kind; others are kept for later calls.
  Record Next(CompletionKind kind) {
    for (;;) {
      for (auto record = seen_.begin(); record != seen_.end(); ++record) {
        if ((*record)[0] != static_cast<double>(kind)) continue;
        const Record found = *record;
        seen_.erase(record);
        return found;
      }
      uint64_t before = 0;
      {
        const std::lock_guard lock(mutex_);
        before = notified_;
      }
      std::vector<Record> batch(64);
      const size_t taken = plane->Take(batch);
      seen_.insert(seen_.end(), batch.begin(), batch.begin() + static_cast<std::ptrdiff_t>(taken));
      if (taken > 0) continue;
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return notified_ != before; });
    }
  }

  void Do(Command::Kind kind, uint64_t id, BootNanos when = 0) {
    Command command;
    command.kind = kind;
    command.id = id;
    command.when = when;
    plane->Submit(std::move(command));
  }
  void Grant(uint64_t lease, BootNanos duration) {
    Command command;
    command.kind = Command::Kind::kGrant;
    command.id = lease;
    command.when = BootNow() + duration;
    command.duration = duration;
    plane->Submit(std::move(command));
  }
  int Reach(uint64_t peer, const Plane& other) {
    Command command;
    command.kind = Command::Kind::kReach;
    command.id = peer;
    command.descriptor = other.plane->descriptor();
    command.when = BootNow() + Millis(10'000);
    plane->Submit(std::move(command));
    return static_cast<int>(Next(CompletionKind::kReached)[2]);
  }
  void Post(uint64_t job, uint64_t peer, std::vector<uint32_t> source, std::vector<uint32_t> target,
            TokenRange tokens, BootNanos deadline = kNever) {
    Command command;
    command.kind = Command::Kind::kPost;
    command.id = job;
    command.peer = peer;
    command.when = deadline;
    command.transfer = std::make_unique<Transfer>();
    command.transfer->source_blocks = std::move(source);
    command.transfer->target_blocks = std::move(target);
    command.transfer->tokens = {tokens.from, tokens.to, tokens.to};
    command.transfer->posted = BootNow();
    plane->Submit(std::move(command));
  }
  void Digest(uint64_t id, std::vector<uint32_t> table, std::vector<TokenRange> ranges) {
    Command command;
    command.kind = Command::Kind::kDigest;
    command.id = id;
    command.digest = std::make_unique<DigestRequest>(std::move(table), std::move(ranges), test::All());
    plane->Submit(std::move(command));
  }

  std::unique_ptr<DataPlane> plane;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t notified_ = 0;
  std::deque<Record> seen_;
};

BootNanos CpuOfProcess() {
  timespec used{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return BootNanos{used.tv_sec} * 1'000'000'000 + used.tv_nsec;
}

struct Directory {
  Directory() {
    char name[] = "/tmp/kvt-plane-XXXXXX";
    path = mkdtemp(name);
  }
  ~Directory() { std::filesystem::remove_all(path); }
  std::string path;
};

}  // namespace

TEST("bytes cross from pool to pool by reach and post, small jobs and large ones") {
  const Directory directory;
  Plane source(directory.path);
  Plane target(directory.path);
  std::byte* from = source.plane->pool()->data();
  std::byte* to = target.plane->pool()->data();
  for (size_t index = 0; index < source.plane->pool()->bytes(); ++index)
    from[index] = static_cast<std::byte>(index % 251);
  CHECK_EQ(target.Reach(1, source), 0);
  const uint64_t block = test::Hnd(4, 2, 2, 32, 128).BlockBytes();
  target.Post(1, 1, {5}, {9}, {0, 32});
  CHECK_EQ(target.Next(CompletionKind::kJob)[2], 0.0);
  target.Next(CompletionKind::kJobQuiet);
  CHECK_EQ(memcmp(to + 9 * block, from + 5 * block, block), 0);
  std::vector<uint32_t> all(64);
  std::vector<uint32_t> reversed(64);
  for (uint32_t index = 0; index < 64; ++index) {
    all[index] = index;
    reversed[index] = 63 - index;
  }
  target.Post(2, 1, all, reversed, {0, 2048});
  const Record job = target.Next(CompletionKind::kJob);
  CHECK_EQ(job[2], 0.0);
  CHECK_EQ(job[3], static_cast<double>(64 * block));
  for (uint32_t index = 0; index < 64; ++index) {
    CHECK_EQ(memcmp(to + (63 - index) * block, from + index * block, block), 0);
  }
}

TEST("digests of few blocks and of many are those of the bytes that lie there, and are taken once") {
  const Directory directory;
  Plane plane(directory.path, 2048);
  std::byte* pool = plane.plane->pool()->data();
  for (size_t index = 0; index < plane.plane->pool()->bytes(); ++index) {
    pool[index] = static_cast<std::byte>(index * index >> 7);
  }
  const Geometry& geometry = plane.plane->options().geometry;
  for (const uint32_t blocks : {1U, 2048U}) {
    std::vector<uint32_t> table(blocks);
    std::vector<TokenRange> ranges(blocks);
    for (uint32_t index = 0; index < blocks; ++index) {
      table[index] = blocks - 1 - index;
      ranges[index] = {index * 32ULL + index % 3, (index + 1) * 32ULL};
    }
    plane.Digest(blocks, table, ranges);
    CHECK_EQ(plane.Next(CompletionKind::kDigested)[1], static_cast<double>(blocks));
    const auto digests = plane.plane->TakeDigests(blocks);
    CHECK_EQ(digests.size(), ranges.size());
    for (size_t index = 0; index < digests.size(); ++index) {
      CHECK(digests[index] ==
            DigestOf(pool, geometry, test::All(), table, {ranges[index].from, ranges[index].to}));
    }
    CHECK(plane.plane->TakeDigests(blocks).empty());
  }
}

TEST("closing with digests under way ends the owner") {
  const Directory directory;
  Plane plane(directory.path, 2048);
  std::vector<uint32_t> table(2048);
  std::vector<TokenRange> ranges(2048);
  for (uint32_t index = 0; index < 2048; ++index) ranges[index] = {index * 32ULL, (index + 1) * 32ULL};
  for (uint64_t id = 1; id <= 20; ++id) plane.Digest(id, table, ranges);
  plane.Do(Command::Kind::kClose, 0);
  plane.WaitFor([&] { return plane.plane->phase() == DataPlane::Phase::kClosed; });
}

TEST("a deadline ends a job at once, quiet follows, and later jobs are served") {
  const Directory directory;
  Plane source(directory.path, 2048);
  Plane target(directory.path, 2048);
  CHECK_EQ(target.Reach(1, source), 0);
  std::vector<uint32_t> all(2048);
  for (uint32_t index = 0; index < 2048; ++index) all[index] = index ^ 1;
  target.Post(1, 1, all, all, {0, 2048 * 32}, BootNow());
  CHECK_EQ(target.Next(CompletionKind::kJob)[2], static_cast<double>(JobStatus::kTimedOut));
  CHECK_EQ(target.Next(CompletionKind::kJobQuiet)[1], 1.0);
  target.Post(2, 1, all, all, {0, 2048 * 32});
  CHECK_EQ(target.Next(CompletionKind::kJob)[2], 0.0);
}

TEST("leases and timers of a sleeping owner end by themselves, and none too early") {
  const Directory directory;
  Plane plane(directory.path);
  const double end = ToMillis(BootNow() + Millis(30));
  plane.Grant(1, Millis(30));
  const BootNanos at = BootNow() + Millis(10);
  plane.Do(Command::Kind::kSetTimer, 2, at);
  CHECK(plane.Next(CompletionKind::kTimer)[6] >= ToMillis(at));
  CHECK(plane.Next(CompletionKind::kLeaseOver)[6] >= end);
}

TEST("a lease that was dropped without a wake-up never ends, and is forgotten at the next one") {
  const Directory directory;
  Plane plane(directory.path);
  plane.Grant(1, Millis(30));
  plane.Do(Command::Kind::kDropLease, 1);
  plane.Do(Command::Kind::kSetTimer, 2, BootNow() + Millis(60));
  // The first word of all: no end of the lease came before it.
  plane.WaitFor([&] { return plane.plane->HasCompletions(); });
  std::vector<Record> first(1);
  CHECK_EQ(plane.plane->Take(first), 1u);
  CHECK_EQ(first[0][0], static_cast<double>(CompletionKind::kTimer));
  CHECK_EQ(plane.plane->statistics().leases_held.load(), 0u);
}

TEST("leases that need no wake-up when they are granted end in time") {
  const Directory directory;
  Plane plane(directory.path);
  plane.Do(Command::Kind::kSetTimer, 1, BootNow() + Millis(20));
  plane.Grant(1, Millis(60));
  const double end = ToMillis(BootNow() + Millis(40));
  plane.Grant(2, Millis(40));
  plane.Next(CompletionKind::kTimer);
  const Record over = plane.Next(CompletionKind::kLeaseOver);
  CHECK_EQ(over[1], 2.0);
  CHECK(over[6] >= end);
  CHECK_EQ(plane.Next(CompletionKind::kLeaseOver)[1], 1.0);
}

TEST("what is submitted under a cork is served when it is drawn, all of it") {
  const Directory directory;
  Plane plane(directory.path);
  plane.plane->Cork();
  for (uint64_t timer = 1; timer <= 3; ++timer) plane.Do(Command::Kind::kSetTimer, timer, 1);
  plane.plane->Uncork();
  for (double timer = 1; timer <= 3; ++timer) CHECK_EQ(plane.Next(CompletionKind::kTimer)[1], timer);
  // Nothing is owed a second time, and the cork is out.
  plane.plane->Uncork();
  plane.Do(Command::Kind::kSetTimer, 4, 1);
  CHECK_EQ(plane.Next(CompletionKind::kTimer)[1], 4.0);
}

TEST("an owner that has worked polls for a while, serves what comes then, and sleeps after that") {
  const Directory directory;
  Plane plane(directory.path, 64, test::Hnd(4, 2, 2, 32, 128), Millis(20));
  for (uint64_t timer = 0; timer < 100; ++timer) {
    plane.Do(Command::Kind::kSetTimer, timer, 1);
    CHECK_EQ(plane.Next(CompletionKind::kTimer)[1], static_cast<double>(timer));
  }
  plane.Do(Command::Kind::kExpect, 0);
  plane.Do(Command::Kind::kSetTimer, 100, BootNow() + Millis(50));
  plane.Next(CompletionKind::kTimer);
  const BootNanos before = CpuOfProcess();
  plane.Do(Command::Kind::kSetTimer, 101, BootNow() + Millis(200));
  plane.Next(CompletionKind::kTimer);
  // Twice 20 ms of the 200 at most, for the setting and for the firing, and what else the process does.
  CHECK(CpuOfProcess() - before < Millis(100));
}

TEST("timers that need no wake-up when they are set fire in time, and cleared ones never") {
  const Directory directory;
  Plane plane(directory.path);
  for (uint64_t round = 0; round < 4; ++round) {
    const BootNanos now = BootNow();
    const uint64_t early = 3 * round;
    plane.Do(Command::Kind::kSetTimer, early, now + Millis(60));
    plane.Do(Command::Kind::kSetTimer, early + 1, now + Millis(100));
    plane.Do(Command::Kind::kSetTimer, early + 2, now + Millis(80));
    plane.Do(Command::Kind::kClearTimer, early);
    plane.Do(Command::Kind::kClearTimer, early + 2);
    const Record fired = plane.Next(CompletionKind::kTimer);
    CHECK_EQ(fired[1], static_cast<double>(early + 1));
    CHECK(fired[6] >= ToMillis(now + Millis(100)));
  }
}

TEST("more completions than the ring holds all arrive when nobody reads for a while") {
  const Directory directory;
  Plane plane(directory.path);
  constexpr uint64_t kTimers = 3 * CompletionRing::kCapacity;
  for (uint64_t timer = 0; timer < kTimers; ++timer) plane.Do(Command::Kind::kSetTimer, timer, 1);
  std::vector<bool> seen(kTimers);
  for (uint64_t count = 0; count < kTimers; ++count) {
    seen[static_cast<size_t>(plane.Next(CompletionKind::kTimer)[1])] = true;
  }
  CHECK(std::find(seen.begin(), seen.end(), false) == seen.end());
}

TEST("closing ends a running job as cancelled, tells that it is quiet, and then ends the owner") {
  const Directory directory;
  Plane source(directory.path, 2048);
  Plane target(directory.path, 2048);
  CHECK_EQ(target.Reach(1, source), 0);
  std::vector<uint32_t> all(2048);
  for (uint32_t index = 0; index < 2048; ++index) all[index] = index ^ 1;
  target.Post(1, 1, all, all, {0, 2048 * 32});
  target.Do(Command::Kind::kClose, 0);
  target.Next(CompletionKind::kJob);
  target.Next(CompletionKind::kJobQuiet);
  target.WaitFor([&] { return target.plane->phase() == DataPlane::Phase::kClosed; });
}

TEST("a plane destroyed at any moment of its life joins its threads") {
  const Directory directory;
  Plane source(directory.path, 512);
  for (int round = 0; round < 20; ++round) {
    Plane target(directory.path, 512);
    Command command;
    command.kind = Command::Kind::kReach;
    command.id = 1;
    command.descriptor = source.plane->descriptor();
    command.when = BootNow() + Millis(10'000);
    target.plane->Submit(std::move(command));
    if (round % 2 == 0) target.Next(CompletionKind::kReached);
    std::vector<uint32_t> all(512);
    for (uint32_t index = 0; index < 512; ++index) all[index] = index ^ 1;
    target.Post(1, 1, all, all, {0, 512 * 32});
  }
}

TEST("a socket directory of another kind fails the opening with its reason") {
  DataPlane::Options options;
  options.geometry = test::Hnd(1, 1, 1, 1, 64);
  options.blocks = 1;
  options.socket_directory = "/dev/null";
  options.crew = &CopyCrew::OfProcess();
  std::atomic<bool> told{false};
  auto plane = std::move(DataPlane::Start(std::move(options), [&] {
                           told.store(true);
                           told.notify_all();
                         }).value());
  told.wait(false);
  CHECK(plane->phase() == DataPlane::Phase::kFailed);
  CHECK(plane->error().code == ErrorCode::kSocketDirRefused);
}

KVT_TEST_MAIN
