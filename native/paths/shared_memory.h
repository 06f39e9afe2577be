#pragma once

#include <map>
#include <memory>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "layout/pair_plans.h"
#include "memory/fd_exchange.h"
#include "memory/host_pool.h"
#include "memory/sleeper.h"
#include "paths/copy_crew.h"
#include "paths/event_inbox.h"
#include "paths/path.h"
#include "paths/reach_threads.h"

namespace kvt {

// Host pools on one host: the peer's memfd is mapped once, read-only, and the copy threads of the process run
// the plan from there into our pool. One copy, no call into the peer.
class SharedMemoryPath final : public Path {
 public:
  struct Options {
    PoolDescriptor own;  // how peers reach us; an empty directory means they can't
    std::shared_ptr<HostPool> pool;
    CopyCrew* crew = nullptr;
    std::shared_ptr<const Sleeper> wake;  // the owner's
  };

  static Result<std::unique_ptr<SharedMemoryPath>> Open(Options options);

  void Reach(PeerKey peer, std::vector<uint8_t> descriptor, BootNanos deadline) override;
  std::optional<double> CostMicros(PeerKey peer, uint64_t bytes, uint64_t piece_bytes) const override;
  Posted Post(std::unique_ptr<Transfer> transfer) override;
  void Cancel(JobKey job) override;
  void Poll(std::vector<PathEvent>* events) override;
  void Release(PeerKey peer) override;

 private:
  struct Peer {
    std::shared_ptr<PeerPool> pool;
    PairPlans plans;
    // Of some layers, as prefills have announced them: [from, to), replicated.
    std::map<std::tuple<uint32_t, uint32_t, bool>, std::shared_ptr<const Plan>> of_layers;
  };

  explicit SharedMemoryPath(Options options);
  void EndReach(PeerKey peer, Reached reached, std::vector<PathEvent>* events);
  std::shared_ptr<const Plan> PlanFor(Peer* peer, const Transfer& transfer) const;
  std::shared_ptr<CopyTask> MakeTask(const Peer& peer, std::shared_ptr<const Plan> plan,
                                     std::unique_ptr<Transfer> transfer) const;

  const Options options_;
  const std::shared_ptr<EventInbox> inbox_;
  std::unordered_map<PeerKey, Peer> peers_;
  std::unordered_map<JobKey, std::shared_ptr<CopyTask>> tasks_;
  ReachThreads<Reached> reaches_;
  std::unique_ptr<FdExchange> exchange_;
};

}  // namespace kvt
