#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "layout/pair_plans.h"
#include "memory/boot_clock.h"
#include "memory/host_pool.h"
#include "nixl/agent.h"
#include "paths/nixl_chunks.h"
#include "paths/nixl_descriptor.h"
#include "paths/nixl_staged.h"
#include "paths/nixl_wire.h"
#include "paths/path.h"

namespace kvt {

// The staging slots of a side.
struct StagingOptions {
  uint32_t slots = 2;   // a direction
  uint64_t tokens = 0;  // in each
  BootNanos stall = 0;  // how long a slot may stay with a peer, and a job may wait for one
};

// A peer's pool that NIXL can read. Immutable, so both threads may look into it.
struct NixlPeer {
  std::string agent;
  PairPlans plans;
  uint32_t blocks = 0;
  uint64_t address = 0;
  std::shared_ptr<const PeerLife> life;
  std::shared_ptr<const StagedSource> staged;  // its slots are read, not its pool
};

// One NIXL agent and all that goes on with it. Every call comes from the agent's thread, and may take as long
// as NIXL takes: a post copies for up to 4 ms, loading a peer takes 5 to 25 ms.
class NixlWorker final : NixlWire {
 public:
  struct Options {
    std::shared_ptr<const nixl::Library> library;
    std::string plugin;
    std::string name;
    Geometry geometry;
    uint32_t blocks = 0;
    std::shared_ptr<HostPool> pool;
    bool direct = true;  // peers may read the pool
    std::optional<StagingOptions> staging;
    CopyCrew* crew = nullptr;
    std::function<void()> wake;  // of the agent's thread
  };
  struct Reached {
    PeerKey peer = 0;
    ReachStatus status = ReachStatus::kOk;
    std::shared_ptr<const NixlPeer> found;
  };

  static Result<std::unique_ptr<NixlWorker>> Open(Options options);
  ~NixlWorker() override;
  NixlWorker(const NixlWorker&) = delete;
  NixlWorker& operator=(const NixlWorker&) = delete;

  // For peers.
  const std::vector<uint8_t>& descriptor() const { return descriptor_; }

  // Loads the peer and reads a few bytes of its pool, which shows that the two agents understand each other.
  void Reach(PeerKey peer, const std::vector<uint8_t>& descriptor, BootNanos deadline,
             std::shared_ptr<const PeerLife> life);
  void Post(std::shared_ptr<const NixlPeer> peer, std::unique_ptr<Transfer> transfer);
  void Cancel(JobKey job);
  void Release(PeerKey peer);
  void Grant(LeaseKey lease, StagedGrant grant);
  void EndLease(LeaseKey lease);

  // One round: posts what may be posted, looks at what is in flight, hears notifications. True when anything
  // moved on.
  bool Step(std::vector<PathEvent>* events, std::vector<Reached>* reached);
  // Ends the agent, and with it what never ended by itself: afterwards nothing touches this pool any more.
  void TearDown(std::vector<PathEvent>* events, std::vector<Reached>* reached);
  // Something waits for its end.
  bool busy() const { return !jobs_.empty() || !reaches_.empty() || (staged_ && staged_->busy()); }
  // Counted up whenever NIXL has come back.
  void CountIn(std::atomic<uint64_t>* beats) { beats_ = beats; }
  // Ever.
  uint64_t remotes_loaded() const { return remotes_loaded_; }
  // A peer said that it is about to read from here.
  BootNanos last_heard() const { return last_heard_; }

 private:
  using Flight = NixlFlight;
  struct Job {
    Job(std::shared_ptr<const NixlPeer> of, std::shared_ptr<const Plan> plan,
        std::unique_ptr<Transfer> transfer, uint64_t own_pool)
        : peer(std::move(of)), cutter(std::move(plan), std::move(transfer), own_pool, peer->address) {}

    const std::shared_ptr<const NixlPeer> peer;
    NixlChunkCutter cutter;
    std::vector<Flight> flights;
    bool stopped = false;  // cancelled, failed, or all is posted
    bool failed = false;
    BootNanos cut_since = 0;  // 0: its peer was there when it was last asked
    BootNanos started = 0;
    uint64_t bytes = 0;
    uint64_t runs = 0;
    uint64_t pieces = 0;
    WireTelemetry wire;
  };
  struct RunningReach {
    PeerKey peer = 0;
    ReachStatus status = ReachStatus::kOk;  // of one that has failed before it began
    std::shared_ptr<const NixlPeer> found;
    Flight flight;
    BootNanos deadline = 0;
    bool released = false;
    bool introduced = false;  // the peer has loaded us, or need not
  };
  // A loaded agent of another process.
  struct Remote {
    uint32_t users = 0;
    std::vector<uint8_t> metadata;
    bool broken = false;
    bool introduced = false;               // by itself: it is to be told of chunks
    BootNanos told = 0;                    // who we are
    std::shared_ptr<const PeerLife> life;  // null: it has reached us, not we it
  };

  explicit NixlWorker(Options options) : options_(std::move(options)) {}
  std::optional<Error> Start();
  std::optional<Error> StartStaging(NixlDescriptor* own);
  ReachStatus Load(const NixlDescriptor& descriptor);
  // Which way the peer is read; not OK when there is none.
  ReachStatus Pair(const NixlDescriptor& descriptor, NixlPeer* peer) const;
  PeerLife::State Life(const std::string& agent) const override;
  bool Notify(const std::string& agent, std::span<const uint8_t> bytes) override;
  std::optional<Flight> Fly(const std::string& agent, const std::vector<nixl::Piece>& own,
                            const std::vector<nixl::Piece>& far,
                            std::optional<std::vector<uint8_t>> notification) override;
  void Hear(const nixl::Notification& heard);
  void Introduce(const std::string& agent, std::span<const uint8_t> descriptor);
  void EndIntroduction(const std::string& agent);
  bool StepReach(RunningReach* reach, std::vector<Reached>* reached);
  bool StepJob(Job* job);
  bool StepStaged(std::vector<PathEvent>* events);
  bool PostNext(Job* job);
  // Whether the peer is there; a job whose peer stays away is failed.
  bool MayPost(Job* job);
  PathEvent EndOf(const Job& job) const;
  void Recover(const std::string& agent);
  void Unuse(const std::string& agent);
  void ForgetIdle(const std::string& agent);

  const Options options_;
  std::unique_ptr<nixl::Agent> agent_;
  std::unique_ptr<nixl::Registration> pool_;
  std::shared_ptr<StagingMemory> slots_;
  std::unique_ptr<nixl::Registration> sender_slots_;
  std::unique_ptr<nixl::Registration> receiver_slots_;
  // What warm-up reads land in; never part of what peers are told.
  std::vector<uint8_t> scratch_;
  std::unique_ptr<nixl::Registration> scratch_memory_;
  std::vector<uint8_t> descriptor_;
  std::unordered_map<std::string, Remote> remotes_;
  std::deque<std::string> idle_remotes_;  // the longest idle first
  std::unordered_map<PeerKey, std::string> peers_;
  std::vector<std::unique_ptr<RunningReach>> reaches_;
  std::vector<std::unique_ptr<Job>> jobs_;
  std::deque<std::string> introduced_;                   // the longest unheard first
  std::unordered_map<JobKey, std::string> staged_jobs_;  // and their agents
  BootNanos last_heard_ = 0;
  uint64_t remotes_loaded_ = 0;
  std::atomic<uint64_t>* beats_ = nullptr;
  std::unique_ptr<NixlStaged> staged_;  // last: its reads use memory and agent
};

}  // namespace kvt
