// Agents that stand still, come back, and have had their time: with agents that do what the test says, and
// its clock.
#include "paths/nixl_agents.h"

#include <sys/socket.h>

#include <algorithm>
#include <map>
#include <set>

#include "test/check.h"

namespace {

using namespace kvt;  // NOLINT: a test
using Kind = PathEvent::Kind;

// What all agents of a test have in common.
struct World {
  BootNanos now = 1'000 * kNanosPerMilli;
  std::vector<std::string> ended;
};

class FakeAgent;
// A wedged agent is left alone for good, with all that it holds: here it can still be found, so that no leak
// is reported for it.
std::set<const FakeAgent*>& Standing() {
  static auto* const standing = new std::set<const FakeAgent*>;
  return *standing;
}

// Reaches and moves everything at once unless it is told to stand still.
class FakeAgent final : public NixlAgentPath {
 public:
  FakeAgent(World* world, uint32_t number) : world_(world), number_(number) { Standing().insert(this); }
  ~FakeAgent() override {
    Standing().erase(this);
    world_->ended.push_back(name());
  }

  Phase phase() const override { return opening ? Phase::kOpening : Phase::kOpen; }
  uint64_t beats() const override { return stands ? beats_ : ++beats_; }
  uint64_t remotes_loaded() const override { return loaded; }
  std::string name() const override { return "agent-" + std::to_string(number_); }
  std::vector<uint8_t> Descriptor() const override { return {static_cast<uint8_t>(number_)}; }

  void Reach(PeerKey peer, std::vector<uint8_t>, BootNanos) override { reaches.push_back(peer); }
  std::optional<double> CostMicros(PeerKey, uint64_t, uint64_t) const override { return 1; }
  Posted Post(std::unique_ptr<Transfer> transfer) override {
    posted.push_back(transfer->job);
    return Posted::kTaken;
  }
  void Cancel(JobKey job) override { cancelled.push_back(job); }
  void Release(PeerKey peer) override { released.push_back(peer); }
  void EndBy(BootNanos) override { told_to_end = true; }
  SlotBytes slots() const override { return held; }
  bool Abandon() override {
    abandoned = true;
    return !copies;
  }
  void Poll(std::vector<PathEvent>* events) override {
    if (stands || opening) return;
    for (const PeerKey peer : reaches) Say(events, Kind::kReached, peer, reach_status);
    reaches.clear();
    const bool ends = !holds || told_to_end;
    if (!ends) return;
    for (const JobKey job : posted) Say(events, Kind::kQuiet, job, ReachStatus::kOk);
    posted.clear();
  }

  bool stands = false;
  bool opening = false;
  bool holds = false;  // jobs go on until it is told to end
  bool told_to_end = false;
  uint64_t loaded = 0;
  SlotBytes held;
  PathKind kind = PathKind::kNixlDirect;
  bool copies = false;  // out of slots run
  bool abandoned = false;
  ReachStatus reach_status = ReachStatus::kOk;
  std::vector<PeerKey> reaches;
  std::vector<JobKey> posted;
  std::vector<JobKey> cancelled;
  std::vector<PeerKey> released;

 private:
  void Say(std::vector<PathEvent>* events, Kind what, uint64_t key, ReachStatus status) const {
    PathEvent event;
    event.kind = what;
    event.path = kind;
    event.key = key;
    event.reached = status;
    event.complete = true;
    events->push_back(event);
  }

  World* const world_;
  const uint32_t number_;
  mutable uint64_t beats_ = 0;
};

constexpr uint64_t kBlockBytes = 4096;

struct Fixture {
  explicit Fixture(NixlAgentLimits limits = {}) {
    auto first = std::make_unique<FakeAgent>(&world, 1);
    made.push_back(first.get());
    const auto open = [this](uint32_t number) {
      auto agent = std::make_unique<FakeAgent>(&world, number);
      agent->opening = slow_openings;
      made.push_back(agent.get());
      return agent;
    };
    agents = std::make_unique<NixlAgents>(std::move(first), open, kBlockBytes, report, limits,
                                          [this] { return world.now; });
  }

  void Poll() { agents->Poll(&events); }
  // As the owner would: at each time that Next() names.
  void Pass(BootNanos nanos) {
    const BootNanos end = world.now + nanos;
    for (;;) {
      Poll();
      const BootNanos next = std::max(agents->Next(), world.now + 1);
      if (next > end) break;
      world.now = next;
    }
    world.now = end;
    Poll();
  }
  Path::Posted Post(JobKey job, PeerKey peer, std::vector<uint32_t> blocks = {0}) const {
    auto transfer = std::make_unique<Transfer>();
    transfer->job = job;
    transfer->peer = peer;
    transfer->target_blocks = std::move(blocks);
    return agents->Post(std::move(transfer));
  }
  void Reach(PeerKey peer) {
    agents->Reach(peer, {7}, kNever);
    Poll();
    CHECK(Took(Kind::kReached, peer).has_value());
  }
  std::optional<PathEvent> Took(Kind kind, uint64_t key) {
    const auto found = std::find_if(events.begin(), events.end(), [&](const PathEvent& event) {
      return event.kind == kind && event.key == key;
    });
    if (found == events.end()) return std::nullopt;
    const PathEvent event = *found;
    events.erase(found);
    return event;
  }

  World world;
  bool slow_openings = false;
  std::vector<FakeAgent*> made;
  std::shared_ptr<NixlAgentsReport> report = std::make_shared<NixlAgentsReport>();
  std::vector<PathEvent> events;
  std::unique_ptr<NixlAgents> agents;
};

constexpr BootNanos kSecond = 1'000 * kNanosPerMilli;

}  // namespace

TEST("an agent that stands still fails its jobs, keeps their blocks, and another takes the work within 2 s") {
  Fixture fixture;
  fixture.Reach(1);
  fixture.made[0]->stands = true;
  CHECK(fixture.Post(10, 1, {3, 4}) == Path::Posted::kTaken);
  CHECK(fixture.Post(11, 1, {4, 5}) == Path::Posted::kTaken);
  fixture.agents->Reach(2, {8}, kNever);
  fixture.Pass(kSecond / 2);
  CHECK(fixture.made.size() == 1);
  fixture.Pass(kSecond);
  CHECK(fixture.Took(Kind::kFailed, 10) && fixture.Took(Kind::kFailed, 11));
  CHECK(!fixture.Took(Kind::kQuiet, 10));
  CHECK(fixture.made[0]->cancelled == std::vector<JobKey>({10, 11}) ||
        fixture.made[0]->cancelled == std::vector<JobKey>({11, 10}));
  const auto state = fixture.report->Get();
  CHECK(state.wedged.size() == 1 && state.wedged[0].agent == "agent-1");
  // Blocks 3, 4 and 5: a block of two jobs counts once.
  CHECK(state.wedged[0].bytes == 3 * kBlockBytes);
  CHECK(state.replaced == 1 && !state.exhausted);
  // The reach that it had begun is the new one's, and peers that it had reached are asked for again.
  CHECK(fixture.Took(Kind::kReached, 2)->reached == ReachStatus::kOk);
  CHECK(fixture.Took(Kind::kRenewed, 0) && fixture.agents->Descriptor() == std::vector<uint8_t>({2}));
  CHECK(fixture.Post(12, 1) == Path::Posted::kTaken);
  fixture.Poll();
  fixture.Poll();
  CHECK(fixture.Took(Kind::kQuiet, 12)->complete);
  CHECK(!fixture.Took(Kind::kReached, 1));
}

TEST("an agent that stands still and reads into slots keeps those, and gives blocks back when no copy runs") {
  Fixture fixture;
  FakeAgent& agent = *fixture.made[0];
  agent.kind = PathKind::kNixlStaged;
  agent.held = {1'000, 0, false};
  fixture.Reach(1);
  agent.stands = true;
  agent.copies = true;
  CHECK(fixture.Post(10, 1, {3, 4}) == Path::Posted::kTaken);
  fixture.Pass(2 * kSecond);
  CHECK(agent.abandoned && fixture.made.size() == 2);
  // A copy may still write them.
  CHECK(!fixture.Took(Kind::kQuiet, 10) && fixture.report->Get().wedged[0].bytes == 2 * kBlockBytes);
  agent.copies = false;
  fixture.Pass(kSecond / 4);
  const auto end = fixture.Took(Kind::kQuiet, 10);
  CHECK(end && !end->complete);
  const auto state = fixture.report->Get();
  CHECK(state.wedged.size() == 1 && state.wedged[0].bytes == 0 && state.wedged[0].slot_bytes == 1'000);
  CHECK(state.replaced == 1);
  // It comes back, and says that its job is quiet: that is known.
  agent.stands = false;
  fixture.Pass(kSecond);
  CHECK(!fixture.Took(Kind::kQuiet, 10) && fixture.report->Get().wedged.empty());
}

TEST("a slot under a read that never ends is told of, and retires its agent although no job waits for it") {
  Fixture fixture;
  fixture.Reach(1);
  FakeAgent& agent = *fixture.made[0];
  agent.held = {1'000, 250, false};
  fixture.Poll();
  CHECK(fixture.report->Get().quarantined_slot_bytes == 250);
  fixture.Pass(100 * kSecond);
  CHECK(fixture.made.size() == 1);
  agent.held.stuck = true;
  fixture.Pass(2 * kSecond);
  CHECK(fixture.made.size() == 2);
  const auto state = fixture.report->Get();
  CHECK(state.retired == 1 && state.replaced == 0 && state.wedged.empty());
  CHECK(state.quarantined_slot_bytes == 0);
  CHECK(fixture.Post(11, 1) == Path::Posted::kTaken);
  fixture.Pass(kSecond);
  CHECK(fixture.Took(Kind::kQuiet, 11)->complete);
  fixture.agents.reset();
  CHECK(fixture.world.ended.size() == 2);
}

TEST("after two replacements there is no further one, and everybody is refused") {
  Fixture fixture;
  fixture.Reach(1);
  for (uint32_t round = 0; round < 3; ++round) {
    CHECK(!fixture.report->Get().exhausted);
    CHECK(fixture.Post(10 + round, 1, {round}) == Path::Posted::kTaken);
    fixture.made.back()->stands = true;
    fixture.Pass(2 * kSecond);
    if (round > 0) fixture.Poll();
  }
  CHECK(fixture.made.size() == 3);
  const auto state = fixture.report->Get();
  CHECK(state.exhausted && state.replaced == 2 && state.wedged.size() == 3);
  CHECK(fixture.Post(20, 1) == Path::Posted::kNoPeer);
  fixture.agents->Reach(2, {8}, kNever);
  fixture.Poll();
  CHECK(fixture.Took(Kind::kReached, 2)->reached == ReachStatus::kNixlFailed);
}

TEST("one that comes back after all lets its jobs go, ends, and counts for nothing") {
  Fixture fixture;
  fixture.Reach(1);
  fixture.made[0]->stands = true;
  CHECK(fixture.Post(10, 1) == Path::Posted::kTaken);
  fixture.Pass(2 * kSecond);
  CHECK(fixture.Took(Kind::kFailed, 10).has_value());
  fixture.made[0]->stands = false;
  fixture.Pass(2 * kSecond);
  CHECK(fixture.Took(Kind::kQuiet, 10).has_value());
  const auto state = fixture.report->Get();
  CHECK(state.wedged.empty() && state.retired == 1 && state.replaced == 0);
  fixture.agents.reset();
  CHECK(fixture.world.ended.size() == 2);
}

TEST("an idle agent is not looked at, and a process that stood still itself accuses nobody") {
  Fixture fixture;
  fixture.made[0]->stands = true;
  CHECK(fixture.agents->Next() == kNever);
  fixture.Pass(100 * kSecond);
  CHECK(fixture.made.size() == 1);
  fixture.made[0]->stands = false;
  fixture.Reach(1);
  fixture.made[0]->holds = true;
  CHECK(fixture.Post(10, 1) == Path::Posted::kTaken);
  fixture.made[0]->stands = true;
  for (int stop = 0; stop < 20; ++stop) {
    fixture.world.now += 5 * kSecond;
    fixture.Poll();
  }
  CHECK(fixture.made.size() == 1);
  fixture.Pass(2 * kSecond);
  CHECK(fixture.made.size() == 2);
}

TEST("a new agent that opens slowly is waited for, with what was asked of it meanwhile") {
  Fixture fixture;
  fixture.Reach(1);
  fixture.slow_openings = true;
  fixture.made[0]->stands = true;
  CHECK(fixture.Post(10, 1) == Path::Posted::kTaken);
  fixture.Pass(2 * kSecond);
  CHECK(fixture.Post(11, 1) == Path::Posted::kTaken);
  CHECK(fixture.Post(12, 1) == Path::Posted::kTaken);
  fixture.agents->Cancel(12);
  fixture.Poll();
  CHECK(!fixture.Took(Kind::kQuiet, 12)->complete);
  fixture.Pass(5 * kSecond);
  CHECK(fixture.made.size() == 2 && !fixture.Took(Kind::kRenewed, 0));
  fixture.made[1]->opening = false;
  fixture.Pass(kSecond);
  CHECK(fixture.Took(Kind::kRenewed, 0) && fixture.Took(Kind::kQuiet, 11)->complete);
  // A peer that the new one can't reach fails what waits for it, and may be tried again.
  fixture.made[1]->stands = true;
  CHECK(fixture.Post(13, 1) == Path::Posted::kTaken);
  fixture.Pass(2 * kSecond);
  fixture.made[2]->opening = false;
  fixture.made[2]->reach_status = ReachStatus::kNixlFailed;
  CHECK(fixture.Post(14, 1) == Path::Posted::kTaken);
  fixture.Poll();
  CHECK(!fixture.Took(Kind::kQuiet, 14)->complete);
  fixture.made[2]->reach_status = ReachStatus::kOk;
  CHECK(fixture.Post(15, 1) == Path::Posted::kTaken);
  fixture.Poll();
  fixture.Poll();
  CHECK(fixture.Took(Kind::kQuiet, 15)->complete);
}

TEST("a cancelled read that never ends retires its agent, which ends it, sooner the less its peer lives") {
  int ends[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  for (const bool cut : {true, false}) {
    Fixture fixture;
    auto life = std::make_shared<PeerLife>();
    life->Connected(ends[0]);
    fixture.agents->Know(1, life);
    fixture.Reach(1);
    fixture.made[0]->holds = true;
    CHECK(fixture.Post(10, 1) == Path::Posted::kTaken);
    CHECK(fixture.Post(11, 1) == Path::Posted::kTaken);
    fixture.agents->Cancel(10);
    if (cut) life->Disconnected();
    fixture.Pass(cut ? 9 * kSecond : 59 * kSecond);
    CHECK(fixture.made.size() == 1);
    fixture.Pass(2 * kSecond);
    CHECK(fixture.made.size() == 2);
    // Job 11 is not cancelled, and has the grace's time.
    CHECK(!fixture.made[0]->told_to_end);
    fixture.Pass(11 * kSecond);
    CHECK(fixture.Took(Kind::kQuiet, 10) && fixture.Took(Kind::kQuiet, 11));
    const auto state = fixture.report->Get();
    CHECK(state.wedged.empty() && state.retired == 1 && state.replaced == 0);
    fixture.agents.reset();
    CHECK(fixture.world.ended.size() == 2);
  }
  for (const int end : ends) close(end);
}

TEST("an agent with too many peers behind it is retired, and serves while leases are out") {
  NixlAgentLimits limits;
  limits.remotes = 3;
  Fixture fixture(limits);
  fixture.Reach(1);
  fixture.made[0]->holds = true;
  CHECK(fixture.Post(10, 1) == Path::Posted::kTaken);
  fixture.made[0]->loaded = 3;
  fixture.agents->Serve(true);
  fixture.Reach(2);
  CHECK(fixture.made.size() == 2);
  CHECK(fixture.Took(Kind::kRenewed, 0).has_value());
  CHECK(fixture.Post(11, 2) == Path::Posted::kTaken);
  CHECK(fixture.made[1]->posted == std::vector<JobKey>({11}));
  // Its job goes on; then it stays for those that read from here, for as long as they may.
  fixture.Pass(5 * kSecond);
  CHECK(!fixture.Took(Kind::kQuiet, 10));
  fixture.made[0]->holds = false;
  fixture.Pass(kSecond);
  CHECK(fixture.Took(Kind::kQuiet, 10)->complete);
  fixture.Pass(20 * kSecond);
  const auto* first = fixture.made[0];
  CHECK(!first->told_to_end && first->released.empty());
  fixture.Pass(10 * kSecond);
  fixture.agents.reset();
  CHECK(fixture.world.ended == std::vector<std::string>({"agent-1", "agent-2"}));
}

TEST("a plane that closes doesn't wait for a wedged agent, and leaves it what it holds") {
  Fixture fixture;
  fixture.Reach(1);
  fixture.made[0]->stands = true;
  CHECK(fixture.Post(10, 1) == Path::Posted::kTaken);
  fixture.agents->Reach(2, {8}, kNever);
  fixture.agents->EndBy(fixture.world.now + kSecond);
  fixture.Pass(10 * kSecond);
  CHECK(fixture.made.size() == 1);
  CHECK(!fixture.Took(Kind::kQuiet, 10)->complete);
  CHECK(fixture.Took(Kind::kReached, 2)->reached != ReachStatus::kOk);
  CHECK(!fixture.Took(Kind::kQuiet, 10) && !fixture.Took(Kind::kReached, 2));
  fixture.agents.reset();
  CHECK(fixture.world.ended.empty());
  // The test's own: no thread uses it.
  delete fixture.made[0];
}

int main(int argc, char** argv) { return kvt::test::RunAll(argc, argv); }
