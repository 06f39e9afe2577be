#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "cuda/gather_segment.h"
#include "cuda/kernels.h"
#include "layout/plan.h"
#include "memory/boot_clock.h"

namespace kvt::cuda {

// One plan applied to one pair of block tables, for the GPU. The owners keep both sides mapped.
struct GatherJob {
  std::shared_ptr<const Plan> plan;
  Tokens tokens;
  std::vector<uint32_t> source_blocks;
  std::vector<uint32_t> target_blocks;
  CUdeviceptr source = 0;
  CUdeviceptr target = 0;
  std::shared_ptr<const void> source_owner;
  std::shared_ptr<const void> target_owner;
  BootNanos posted = 0;
  // Before its kernel was launched it then never is; afterwards it runs to its end, which is near.
  std::atomic<bool> cancelled{false};

  // On a thread of the queue, once, after the owners were let go: whoever hears of it may count on that
  // nothing keeps them mapped.
  std::function<void(const GatherJob&)> on_end;

  // When it has ended.
  bool complete = false;
  BootNanos queued = 0;
  BootNanos moving = 0;  // of the GPU
  uint32_t segments = 0;
};

// Launches one kernel a job on a stream of its own, in order, and tells when each has ended. Two threads: one
// launches, as a launch may block, one sleeps until the GPU has finished.
class GatherQueue {
 public:
  struct Options {
    std::shared_ptr<const Context> context;
    std::shared_ptr<const Kernels> kernels;
    unsigned blocks_max = 0;  // multiprocessors that it may fill
  };

  static Result<std::unique_ptr<GatherQueue>> Open(Options options);
  // Waits for what was launched.
  ~GatherQueue();
  GatherQueue(const GatherQueue&) = delete;
  GatherQueue& operator=(const GatherQueue&) = delete;

  void Add(std::shared_ptr<GatherJob> job);
  const std::string& form() const { return options_.kernels->form(); }

 private:
  // What one launch needs and the next may use again.
  struct Slot;
  struct Launched {
    std::shared_ptr<GatherJob> job;
    std::unique_ptr<Slot> slot;
  };

  explicit GatherQueue(Options options);
  Result<bool> Start();
  void LaunchAll();
  void AwaitAll();
  // Nothing when it was launched.
  std::optional<Error> Launch(const GatherJob& job, const std::vector<GatherSegment>& segments,
                              unsigned blocks, Slot* slot) const;
  Result<std::unique_ptr<Slot>> TakeSlot(size_t bytes);
  std::optional<Error> Await(const Slot& slot, GatherJob* job) const;
  void End(GatherJob* job, const std::optional<Error>& failed);

  const Options options_;
  std::unique_ptr<Stream> stream_;
  std::mutex mutex_;
  std::condition_variable added_;
  std::condition_variable launched_;
  bool stop_ = false;
  bool launching_ended_ = false;
  std::deque<std::shared_ptr<GatherJob>> waiting_;
  std::deque<Launched> running_;
  std::vector<std::unique_ptr<Slot>> free_;
  bool told_failure_ = false;
  std::thread launcher_;  // last two: they use all of the above
  std::thread waiter_;
};

}  // namespace kvt::cuda
