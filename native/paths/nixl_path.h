#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "memory/host_pool.h"
#include "memory/result.h"
#include "memory/sleeper.h"
#include "paths/nixl_agents.h"
#include "paths/nixl_worker.h"

namespace kvt {

// NIXL reads from the peer's pool straight into ours, or through staging slots on both sides: another host,
// or one whose memory can't be mapped. Which of the two is decided for each peer (nixl_worker.h). One
// thread an agent makes every NIXL call, because a post copies inline and may block; the owner only leaves
// commands there and finds events.
class NixlPath final : public NixlAgentPath {
 public:
  struct Options {
    std::string library;  // absolute path; environment and child-process trial came before (src/nixl)
    std::string plugin;
    std::string agent;  // unique among all processes that may meet
    Geometry geometry;
    uint32_t blocks = 0;
    std::shared_ptr<HostPool> pool;
    std::shared_ptr<const Sleeper> wake;  // the owner's
    bool direct = true;                   // peers may read blocks straight
    std::optional<StagingOptions> staging;
    CopyCrew* crew = nullptr;  // with staging
    BootNanos hot = 0;         // how long its thread polls after work, where a core is to spare
  };

  // Blocks while NIXL is loaded and the pool registered: some 100 ms.
  static Result<std::unique_ptr<NixlPath>> Open(Options options);
  // The same without waiting: phase() tells, after a wake-up.
  static Result<std::unique_ptr<NixlPath>> Start(Options options);
  ~NixlPath() override;

  std::vector<uint8_t> Descriptor() const override;
  Phase phase() const override { return phase_.load(std::memory_order_acquire); }
  uint64_t beats() const override { return beats_.load(std::memory_order_relaxed); }
  uint64_t remotes_loaded() const override { return remotes_loaded_.load(std::memory_order_relaxed); }
  std::string name() const override { return options_.agent; }
  SlotBytes slots() const override {
    return {slot_bytes_.load(std::memory_order_relaxed), quarantined_bytes_.load(std::memory_order_relaxed),
            stuck_.load(std::memory_order_relaxed)};
  }
  bool Abandon() override;

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
  BootNanos Soon() const override { return soon_; }

 private:
  struct Order {
    enum class Kind { kReach, kPost, kCancel, kRelease, kGrant, kEndLease };
    Kind kind = Kind::kReach;
    uint64_t key = 0;
    std::vector<uint8_t> descriptor;
    BootNanos deadline = 0;
    std::shared_ptr<const PeerLife> life;
    std::shared_ptr<const NixlPeer> peer;
    std::unique_ptr<Transfer> transfer;
    StagedGrant grant;
  };

  explicit NixlPath(Options options) : options_(std::move(options)) {}
  void Give(Order order);
  // The agent's thread.
  void Run();
  void Work(NixlWorker* worker);
  bool TakeOrders(NixlWorker* worker);
  // Between two rounds; `still`: since when nothing moved.
  void Rest(const NixlWorker& worker, BootNanos still) const;
  void Nap(BootNanos nanos) const;
  void TellSlots(const NixlWorker& worker);

  const Options options_;
  // The thread's; shared with copies that may end after this.
  const std::shared_ptr<Sleeper> sleeper_ = std::make_shared<Sleeper>();
  const std::shared_ptr<BlockGate> gate_ = std::make_shared<BlockGate>();
  std::atomic<bool> stop_{false};
  std::atomic<Phase> phase_{Phase::kOpening};
  std::atomic<uint64_t> beats_{0};
  std::atomic<uint64_t> remotes_loaded_{0};
  std::atomic<uint64_t> slot_bytes_{0};
  std::atomic<uint64_t> quarantined_bytes_{0};
  std::atomic<bool> stuck_{false};
  std::atomic<bool> leases_out_{false};
  std::atomic<BootNanos> end_by_{kNever};
  // Of the owner.
  BootNanos soon_ = 0;
  std::unordered_map<PeerKey, std::shared_ptr<const NixlPeer>> peers_;
  std::unordered_map<PeerKey, std::shared_ptr<const PeerLife>> lives_;  // of peers that are not reached yet
  // Between both threads.
  mutable std::mutex mutex_;
  std::vector<uint8_t> descriptor_;
  std::condition_variable started_;
  std::optional<Error> error_;
  std::vector<Order> orders_;
  std::vector<PathEvent> events_;
  std::vector<NixlWorker::Reached> reached_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace kvt
