#include "dataplane/dispatcher.h"

#include <sstream>

#include "check.h"

using namespace kvt;

namespace {

// Says yes to everything and ends nothing by itself: the test decides when copies are quiet.
class FakePath final : public Path {
 public:
  void Reach(PeerKey peer, std::vector<uint8_t>, BootNanos) override { last_peer = peer; }
  std::optional<double> CostMicros(PeerKey, uint64_t, uint64_t) const override { return 1; }
  Posted Post(std::unique_ptr<Transfer> transfer) override {
    if (answer == Posted::kTaken) last_job = transfer->job;
    return answer;
  }
  void Cancel(JobKey job) override { cancelled.push_back(job); }
  void Poll(std::vector<PathEvent>*) override {}
  void Release(PeerKey peer) override { released.push_back(peer); }

  Posted answer = Posted::kTaken;
  PeerKey last_peer = 0;
  JobKey last_job = 0;
  std::vector<JobKey> cancelled;
  std::vector<PeerKey> released;
};

constexpr BootNanos Millis(int64_t millis) { return millis * kNanosPerMilli; }

struct Fixture {
  FakePath path;
  Statistics statistics;
  Dispatcher dispatcher{&path, &statistics};

  void Do(Command::Kind kind, uint64_t id, BootNanos when, BootNanos now) {
    Command command;
    command.kind = kind;
    command.id = id;
    command.when = when;
    if (kind == Command::Kind::kPost) {
      command.peer = 1;
      command.transfer = std::make_unique<Transfer>();
    }
    dispatcher.Apply(std::move(command), now);
  }
  void Renew(uint64_t seq, std::vector<uint64_t> leases, BootNanos now) {
    Command command;
    command.kind = Command::Kind::kRenew;
    command.id = seq;
    command.leases = std::move(leases);
    dispatcher.Apply(std::move(command), now);
  }
  void ReachPeer() {
    Do(Command::Kind::kReach, 1, kNever, 0);
    PathEvent event;
    event.kind = PathEvent::Kind::kReached;
    event.key = path.last_peer;
    dispatcher.Apply(event, 0);
    dispatcher.completions().clear();
  }
  void Grant(uint64_t lease, BootNanos duration, BootNanos now) {
    Command command;
    command.kind = Command::Kind::kGrant;
    command.id = lease;
    command.when = Later(now, duration);
    command.duration = duration;
    dispatcher.Apply(std::move(command), now);
  }
  void Quiet(JobKey key, bool complete, BootNanos now) {
    PathEvent event;
    event.kind = PathEvent::Kind::kQuiet;
    event.key = key;
    event.complete = complete;
    event.bytes = complete ? 100 : 0;
    dispatcher.Apply(event, now);
  }
  // "kind:id[:status]" of everything since the last call.
  std::string Seen() {
    std::ostringstream text;
    const char* space = "";
    for (const Completion& completion : dispatcher.completions()) {
      text << space << static_cast<int>(completion.kind) << ':' << completion.id;
      if (completion.status != 0) text << ':' << completion.status;
      space = " ";
    }
    dispatcher.completions().clear();
    return text.str();
  }
};

}  // namespace

TEST("a lease ends when its time has come, and not a nanosecond earlier") {
  Fixture f;
  f.Grant(7, Millis(10), Millis(100));
  CHECK_EQ(f.Seen(), "");
  CHECK_EQ(f.dispatcher.Next(), Millis(110));
  f.dispatcher.Expire(Millis(110) - 1);
  CHECK_EQ(f.Seen(), "");
  f.dispatcher.Expire(Millis(110));
  CHECK_EQ(f.Seen(), "6:7");
  CHECK_EQ(f.dispatcher.Next(), kNever);
}

TEST("a lease that the owner hears of late ends when it would have ended anyway") {
  Fixture f;
  Command command;
  command.kind = Command::Kind::kGrant;
  command.id = 7;
  command.when = Millis(10);
  command.duration = Millis(10);
  f.dispatcher.Apply(std::move(command), Millis(8));
  CHECK_EQ(f.dispatcher.Next(), Millis(10));
  f.Renew(50, {7}, Millis(9));
  CHECK_EQ(f.Seen(), "4:7 5:50");
  CHECK_EQ(f.dispatcher.Next(), Millis(19));
}

TEST("a renewal extends to the full duration from now and names exactly the leases still held") {
  Fixture f;
  f.Grant(1, Millis(10), Millis(0));
  f.Grant(2, Millis(30), Millis(0));
  f.Seen();
  // Lease 1 has ended by now, although nobody has looked yet: it must not come back.
  f.Renew(50, {1, 2, 3}, Millis(10));
  const auto& renewed = f.dispatcher.completions()[1];
  CHECK_EQ(renewed.at_ms, 40.0);
  CHECK_EQ(renewed.extra, 50.0);
  CHECK_EQ(f.Seen(), "6:1 4:2 5:50");
  f.dispatcher.Expire(Millis(39));
  CHECK_EQ(f.Seen(), "");
  f.dispatcher.Expire(Millis(40));
  CHECK_EQ(f.Seen(), "6:2");
}

TEST("a dropped lease has no end, also one whose end has come and was not told") {
  Fixture f;
  f.Grant(1, Millis(10), 0);
  f.Do(Command::Kind::kDropLease, 1, 0, Millis(5));
  f.Grant(2, Millis(10), 0);
  f.Do(Command::Kind::kDropLease, 2, 0, Millis(10));
  f.dispatcher.Expire(Millis(100));
  CHECK_EQ(f.Seen(), "");
  CHECK_EQ(f.statistics.leases_held.load(), 0u);
}

TEST("a timer fires once; set again it moves, cleared it is silent") {
  Fixture f;
  f.Do(Command::Kind::kSetTimer, 1, Millis(10), 0);
  f.Do(Command::Kind::kSetTimer, 1, Millis(20), 0);
  f.Do(Command::Kind::kSetTimer, 2, Millis(15), 0);
  f.Do(Command::Kind::kClearTimer, 2, 0, 0);
  f.dispatcher.Expire(Millis(19));
  CHECK_EQ(f.Seen(), "");
  f.dispatcher.Expire(Millis(20));
  f.dispatcher.Expire(Millis(30));
  CHECK_EQ(f.Seen(), "8:1");
}

TEST("a job that completes ends once and is quiet with its end") {
  Fixture f;
  f.ReachPeer();
  f.Do(Command::Kind::kPost, 9, Millis(50), 0);
  CHECK_EQ(f.statistics.jobs_running.load(), 1u);
  f.Quiet(f.path.last_job, true, Millis(3));
  CHECK_EQ(f.dispatcher.completions().front().at_ms, 3.0);
  CHECK_EQ(f.Seen(), "1:9 2:9");
  f.dispatcher.Expire(Millis(60));
  f.Do(Command::Kind::kCancel, 9, 0, Millis(60));
  CHECK_EQ(f.Seen(), "");
  CHECK_EQ(f.statistics.bytes_moved.load(), 100u);
}

TEST("a job past its deadline ends at once and stays in quarantine until its copy is quiet") {
  Fixture f;
  f.ReachPeer();
  f.Do(Command::Kind::kPost, 9, Millis(50), 0);
  f.dispatcher.Expire(Millis(50));
  CHECK_EQ(f.Seen(), "1:9:2");
  CHECK_EQ(f.path.cancelled.size(), 1u);
  CHECK_EQ(f.statistics.quarantined_jobs.load(), 1u);
  CHECK_EQ(f.statistics.jobs_running.load(), 0u);
  f.Do(Command::Kind::kCancel, 9, 0, Millis(51));
  CHECK_EQ(f.Seen(), "");
  // The copy had finished after all: the caller was told otherwise, and stays told so.
  f.Quiet(f.path.last_job, true, Millis(60));
  CHECK_EQ(f.Seen(), "2:9");
  CHECK_EQ(f.statistics.quarantined_jobs.load(), 0u);
  CHECK_EQ(f.statistics.bytes_moved.load(), 0u);
}

TEST("a job without a peer or with a bad range ends at once and is quiet") {
  Fixture f;
  f.Do(Command::Kind::kPost, 1, kNever, 0);
  CHECK_EQ(f.Seen(), "1:1:5 2:1");
  f.ReachPeer();
  f.path.answer = Path::Posted::kBadRange;
  f.Do(Command::Kind::kPost, 2, kNever, 0);
  CHECK_EQ(f.Seen(), "1:2:4 2:2");
  CHECK(f.dispatcher.quiet());
}

TEST("a peer released during its reach is answered once, and its id serves another reach meanwhile") {
  Fixture f;
  f.Do(Command::Kind::kReach, 1, kNever, 0);
  const PeerKey first = f.path.last_peer;
  f.Do(Command::Kind::kReleasePeer, 1, 0, 0);
  f.Do(Command::Kind::kReach, 1, kNever, 0);
  const PeerKey second = f.path.last_peer;
  CHECK(first != second);
  PathEvent event;
  event.kind = PathEvent::Kind::kReached;
  event.key = first;
  f.dispatcher.Apply(event, 0);
  CHECK_EQ(f.Seen(), "9:1:8");
  // The path had mapped it before it heard of the release: it is told again.
  CHECK_EQ(f.path.released.size(), 2u);
  event.key = second;
  f.dispatcher.Apply(event, 0);
  CHECK_EQ(f.Seen(), "9:1");
  CHECK_EQ(f.statistics.peers_mapped.load(), 1u);
}

TEST("the death of a peer is told once and only while it is held") {
  Fixture f;
  f.ReachPeer();
  PathEvent event;
  event.kind = PathEvent::Kind::kPeerDead;
  event.key = f.path.last_peer;
  f.dispatcher.Apply(event, 0);
  CHECK_EQ(f.Seen(), "10:1");
  // What it had granted may still be read.
  f.Do(Command::Kind::kPost, 3, kNever, 0);
  f.Quiet(f.path.last_job, true, 1);
  CHECK_EQ(f.Seen(), "1:3 2:3");
  f.Do(Command::Kind::kReleasePeer, 1, 0, 0);
  f.dispatcher.Apply(event, 0);
  CHECK_EQ(f.Seen(), "");
}

TEST("closing cancels jobs, drops leases and timers in silence, and waits for the last copy") {
  Fixture f;
  f.ReachPeer();
  f.Do(Command::Kind::kPost, 9, Millis(50), 0);
  f.Grant(1, Millis(10), 0);
  f.Do(Command::Kind::kSetTimer, 1, Millis(10), 0);
  f.Seen();
  f.Do(Command::Kind::kClose, 0, 0, Millis(1));
  CHECK_EQ(f.Seen(), "1:9:1");
  CHECK(f.dispatcher.closing());
  CHECK(!f.dispatcher.quiet());
  f.dispatcher.Expire(Millis(100));
  f.Grant(2, Millis(10), Millis(100));
  CHECK_EQ(f.Seen(), "");
  f.Quiet(f.path.last_job, false, Millis(100));
  CHECK_EQ(f.Seen(), "2:9");
  CHECK(f.dispatcher.quiet());
}

KVT_TEST_MAIN
