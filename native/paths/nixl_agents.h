#pragma once

#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "paths/nixl_wire.h"
#include "paths/path.h"

namespace kvt {

// One NIXL agent, as whoever replaces it sees it. Called by the owner, like every path.
class NixlAgentPath : public Path {
 public:
  enum class Phase { kOpening, kOpen, kFailed };

  virtual Phase phase() const = 0;
  // Counts up whenever its thread has come back from NIXL.
  virtual uint64_t beats() const = 0;
  // Of other agents, ever: LIBFABRIC never gives back what one takes.
  virtual uint64_t remotes_loaded() const = 0;
  virtual std::string name() const = 0;
  virtual SlotBytes slots() const { return {}; }
  // It does not come back: what goes through its slots touches no block any more, not even should it come
  // back. True once that is so, and then for good.
  virtual bool Abandon() { return false; }
};

// What other threads may know of NixlAgents.
class NixlAgentsReport {
 public:
  struct Wedged {
    std::string agent;
    uint64_t bytes = 0;       // of blocks that it may still write
    uint64_t slot_bytes = 0;  // of the staging slots that are left to it
  };
  struct State {
    std::vector<Wedged> wedged;
    uint32_t replaced = 0;  // in the place of wedged ones
    uint32_t retired = 0;   // and those that ended in good order
    bool exhausted = false;
    uint64_t quarantined_slot_bytes = 0;  // of the others
  };

  void Set(State state) {
    const std::lock_guard lock(mutex_);
    state_ = std::move(state);
  }
  State Get() const {
    const std::lock_guard lock(mutex_);
    return state_;
  }

 private:
  mutable std::mutex mutex_;
  State state_;
};

struct NixlAgentLimits : StuckReadLimits {
  // A call of NIXL that takes longer never comes back: a post copies for 4 ms, loading a peer takes 25 ms.
  BootNanos call = 1'000 * kNanosPerMilli;
  // What an agent that is retired gets for the jobs that are not cancelled, and while leases are out.
  BootNanos grace = 10'000 * kNanosPerMilli;
  BootNanos serve = 30'000 * kNanosPerMilli;
  uint64_t remotes = std::numeric_limits<uint64_t>::max();
  uint32_t replacements = 2;
};

// The NIXL paths' agents, one after another. Work goes to the newest. An agent whose thread does not come
// back is wedged: its jobs fail, and those that it reads straight keep their blocks in quarantine; thread,
// slots and memory are left to it for good, and a new one takes its place, so often and no more. One with a
// read that never ends, or with too many peers behind it, is retired: it ends what it has begun, and then
// ends. A peer that is asked for again is reached by the new one.
class NixlAgents final : public Path {
 public:
  // The n-th agent, n from 1. It may still be opening; null: the system gives no more threads.
  using Open = std::function<std::unique_ptr<NixlAgentPath>(uint32_t number)>;
  using Clock = std::function<BootNanos()>;

  NixlAgents(std::unique_ptr<NixlAgentPath> first, Open open, uint64_t block_bytes,
             std::shared_ptr<NixlAgentsReport> report, NixlAgentLimits limits = {}, Clock clock = BootNow);
  ~NixlAgents() override;

  void Know(PeerKey peer, std::shared_ptr<const PeerLife> life) override;
  void Reach(PeerKey peer, std::vector<uint8_t> descriptor, BootNanos deadline) override;
  std::optional<double> CostMicros(PeerKey peer, uint64_t bytes, uint64_t piece_bytes) const override;
  Posted Post(std::unique_ptr<Transfer> transfer) override;
  void Cancel(JobKey job) override;
  void Poll(std::vector<PathEvent>* events) override;
  void Release(PeerKey peer) override;
  void Grant(LeaseKey lease, const StagedGrant& grant) override;
  void EndLease(LeaseKey lease) override;
  void Serve(bool leases_out) override;
  void EndBy(BootNanos deadline) override;
  std::vector<uint8_t> Descriptor() const override { return descriptor_; }
  BootNanos Next() const override;
  BootNanos Soon() const override { return current_ == nullptr ? 0 : current_->path->Soon(); }

 private:
  enum class State { kServing, kRetiring, kWedged };
  struct Agent {
    std::unique_ptr<NixlAgentPath> path;
    State state = State::kServing;
    bool open = false;
    bool ending = false;
    BootNanos retired = 0;
    uint64_t beats = 0;
    uint32_t still = 0;  // looks since it moved
  };
  struct Peer {
    std::vector<uint8_t> descriptor;
    BootNanos deadline = 0;
    std::shared_ptr<const PeerLife> life;
    Agent* agent = nullptr;  // that reaches or has reached it; null: it has gone
    bool reached = false;    // by that agent
    bool told = false;       // the owner knows that it was reached
    bool staged = false;     // what it is read into is slots
    std::vector<JobKey> waiting;
  };
  struct Job {
    PeerKey peer = 0;
    Agent* agent = nullptr;  // null: it waits for its peer
    std::unique_ptr<Transfer> waiting;
    std::vector<uint32_t> blocks;
    std::shared_ptr<const PeerLife> life;
    BootNanos cancelled = 0;
    bool failed = false;  // told so
    bool staged = false;
  };

  BootNanos Tick() const { return limits_.call / kLooks; }
  void Assign(PeerKey key, Peer* peer);
  void Take(Agent* agent, const PathEvent& event);
  void OnReached(Agent* agent, const PathEvent& event);
  void EndWaiting(Peer* peer);
  void EndJob(JobKey key, bool complete);
  void Look(BootNanos now);
  void LookAt(Agent* agent, bool trusted);
  void EndStuck(BootNanos now);
  void EndRetired(BootNanos now);
  void Wedge(Agent* agent);
  void EndAbandoned(Agent* agent);
  void TellSlots();
  void Retire(Agent* agent);
  void OpenNext();
  // Peers of an agent that takes no more work; reaches that it has begun begin anew.
  void Leave(Agent* agent);
  void GiveUp();
  bool Watched(const Agent& agent) const;
  size_t JobsOf(const Agent* agent) const;
  void Tell();

  static constexpr BootNanos kLooks = 6;

  const Open open_;
  const uint64_t block_bytes_;
  const std::shared_ptr<NixlAgentsReport> report_;
  const NixlAgentLimits limits_;
  const Clock clock_;
  std::vector<std::unique_ptr<Agent>> agents_;
  Agent* current_ = nullptr;
  uint32_t opened_ = 1;
  uint32_t wedged_ = 0;
  uint32_t retired_ = 0;
  bool exhausted_ = false;
  bool leases_out_ = false;
  BootNanos end_by_ = kNever;
  BootNanos looked_ = 0;
  uint64_t told_slot_bytes_ = 0;
  std::vector<uint8_t> descriptor_;
  std::unordered_map<PeerKey, std::shared_ptr<const PeerLife>> lives_;  // of the next Reach
  std::unordered_map<PeerKey, Peer> peers_;
  std::unordered_map<JobKey, Job> jobs_;
  std::unordered_map<LeaseKey, StagedGrant> grants_;  // that run, for the next agent
  std::vector<PathEvent> events_;
  std::vector<std::thread> ending_;
};

}  // namespace kvt
