#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "cuda/device_pool.h"
#include "cuda/gather_queue.h"
#include "layout/pair_plans.h"
#include "memory/fd_exchange.h"
#include "memory/sleeper.h"
#include "paths/cuda_descriptor.h"
#include "paths/event_inbox.h"
#include "paths/path.h"
#include "paths/reach_threads.h"

namespace kvt {

// Pools on GPUs of one host, the same GPU or two that reach each other: the peer's memory is mapped once, and
// one kernel a transfer reads the scattered pieces from there into our pool, whatever their size. A pool of
// this process is read where it lies. The peer's process has no part in it, and its end does not end a read.
class CudaPeerPath final : public Path {
 public:
  struct Options {
    PoolDescriptor own;  // how peers reach us; an empty directory means they can't
    std::shared_ptr<cuda::DevicePool> pool;
    std::shared_ptr<const cuda::Kernels> kernels;
    unsigned multiprocessors = 0;         // that a transfer may fill (KVT_CUDA_SMS)
    std::shared_ptr<const Sleeper> wake;  // the owner's
  };

  static Result<std::unique_ptr<CudaPeerPath>> Open(Options options);
  ~CudaPeerPath() override;

  // Of the kernels: "cubin sm_90", "PTX".
  const std::string& form() const { return queue_->form(); }

  void Reach(PeerKey peer, std::vector<uint8_t> descriptor, BootNanos deadline) override;
  std::optional<double> CostMicros(PeerKey peer, uint64_t bytes, uint64_t piece_bytes) const override;
  Posted Post(std::unique_ptr<Transfer> transfer) override;
  void Cancel(JobKey job) override;
  void Poll(std::vector<PathEvent>* events) override;
  void Release(PeerKey peer) override;

 private:
  // A peer's pool as this GPU sees it; `owner` keeps it mapped.
  struct Mapped {
    cuda::CUdeviceptr address = 0;
    std::shared_ptr<const void> owner;
  };
  struct ReachedGpu {
    ReachStatus status = ReachStatus::kMapFailed;
    PoolDescriptor descriptor;
    Mapped memory;
    PeerIdentity process;
  };
  struct Peer {
    uint32_t blocks = 0;
    Mapped memory;
    PairPlans plans;
  };

  explicit CudaPeerPath(Options options);
  ReachedGpu ReachGpu(const std::vector<uint8_t>& descriptor, const std::atomic<bool>& stop,
                      BootNanos deadline) const;
  PathEvent EndReach(PeerKey peer, ReachedGpu reached);

  const Options options_;
  const std::shared_ptr<EventInbox> inbox_;
  std::unordered_map<PeerKey, Peer> peers_;
  std::unordered_map<JobKey, std::shared_ptr<cuda::GatherJob>> jobs_;
  std::unique_ptr<FdExchange> exchange_;
  std::unique_ptr<cuda::GatherQueue> queue_;
  ReachThreads<ReachedGpu> reaches_;
};

}  // namespace kvt
