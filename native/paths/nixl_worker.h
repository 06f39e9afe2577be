#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "memory/boot_clock.h"
#include "memory/host_pool.h"
#include "nixl/agent.h"
#include "paths/nixl_descriptor.h"
#include "paths/nixl_direct.h"
#include "paths/nixl_memory.h"
#include "paths/nixl_peer.h"
#include "paths/nixl_remotes.h"
#include "paths/nixl_staged.h"
#include "paths/path.h"

namespace kvt {

// One NIXL agent and all that goes on with it. Every call comes from the agent's thread, and may take as long
// as NIXL takes: a post copies for up to 4 ms, loading a peer takes 5 to 25 ms.
class NixlWorker {
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
    std::shared_ptr<BlockGate> gate;  // the owner's, with staging
    std::function<void()> wake;       // of the agent's thread
  };
  struct Reached {
    PeerKey peer = 0;
    ReachStatus status = ReachStatus::kOk;
    std::shared_ptr<const NixlPeer> found;
  };

  static Result<std::unique_ptr<NixlWorker>> Open(Options options);
  ~NixlWorker() = default;
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
  bool busy() const { return direct_->busy() || !reaches_.empty() || (staged_ && staged_->busy()); }
  // Counted up whenever NIXL has come back.
  void CountIn(std::atomic<uint64_t>* beats) { remotes_->CountIn(beats); }
  // Ever.
  uint64_t remotes_loaded() const { return remotes_->loaded(); }
  SlotBytes slots() const { return staged_ ? staged_->slots() : SlotBytes{}; }
  // A peer said that it is about to read from here.
  BootNanos last_heard() const { return last_heard_; }

 private:
  struct RunningReach {
    PeerKey peer = 0;
    ReachStatus status = ReachStatus::kOk;  // of one that has failed before it began
    std::shared_ptr<const NixlPeer> found;
    NixlFlight flight;
    BootNanos deadline = 0;
    bool released = false;
    bool introduced = false;  // the peer has loaded us, or need not
  };

  explicit NixlWorker(Options options) : options_(std::move(options)) {}
  std::optional<Error> Start();
  std::optional<Error> Describe(NixlDescriptor own);
  void StartTransfers();
  ReachStatus BeginReach(RunningReach* reach, const std::vector<uint8_t>& descriptor,
                         std::shared_ptr<const PeerLife> life);
  void SetGrid(const NixlDescriptor& descriptor, const NixlPeer& peer);
  // Which way the peer is read; not OK when there is none.
  ReachStatus Pair(const NixlDescriptor& descriptor, NixlPeer* peer) const;
  bool HearAll();
  void Hear(const nixl::Notification& heard);
  void Introduce(const std::string& agent, std::span<const uint8_t> descriptor);
  void EndIntroduction(const std::string& agent);
  bool StepReach(RunningReach* reach, std::vector<Reached>* reached);
  bool StepTransfers(std::vector<PathEvent>* events);

  const Options options_;
  std::unique_ptr<nixl::Agent> agent_;
  std::unique_ptr<NixlMemory> memory_;
  std::vector<uint8_t> descriptor_;
  std::unique_ptr<NixlRemotes> remotes_;
  std::unordered_map<PeerKey, std::string> peers_;
  std::unordered_map<JobKey, std::string> jobs_;  // and their agents
  std::deque<std::string> introduced_;            // agents, the longest unheard first
  BootNanos last_heard_ = 0;
  // Last: their reads use the above.
  std::vector<std::unique_ptr<RunningReach>> reaches_;
  std::unique_ptr<NixlDirect> direct_;
  std::unique_ptr<NixlStaged> staged_;
};

}  // namespace kvt
