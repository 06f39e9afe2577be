#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "layout/plan.h"
#include "memory/boot_clock.h"
#include "paths/path.h"

namespace kvt {

// Work on host memory, cut into slices that any copy thread may take.
struct CrewTask {
  virtual ~CrewTask() = default;
  // Several threads at once, each with units of its own.
  virtual void RunUnits(const UnitRange& range) = 0;

  uint64_t units = 0;
  uint64_t units_per_slice = 1;
  uint64_t unit_bytes = 0;
  std::function<void()> on_quiet;  // once, on the thread that saw it

  std::atomic<uint64_t> next_unit{0};
  std::atomic<uint64_t> units_done{0};
  std::atomic<bool> cancelled{false};

  // Guarded by the crew's mutex.
  unsigned workers = 0;
  bool queued = false;
  BootNanos started = 0;
  BootNanos ended = 0;
};

// One transfer. The shared pointers keep both sides mapped until the last thread has let go.
struct CopyTask final : CrewTask {
  CopyTask(std::shared_ptr<const Plan> task_plan, std::unique_ptr<Transfer> task_transfer)
      : plan(std::move(task_plan)), transfer(std::move(task_transfer)) {
    units = plan->Units(transfer->tokens);
    unit_bytes = plan->UnitBytes();
  }
  void RunUnits(const UnitRange& range) override;

  const std::shared_ptr<const Plan> plan;
  const std::unique_ptr<const Transfer> transfer;
  const std::byte* source = nullptr;
  std::byte* target = nullptr;
  std::shared_ptr<const void> source_owner;
  std::shared_ptr<const void> target_owner;
  bool stream = false;

  std::atomic<uint64_t> runs{0};
  std::atomic<uint64_t> pieces{0};
};

// The copy threads of the process: min(4, max(1, cores / 2)), started with the first task and never ended, as
// they must outlive every transceiver and every static destructor.
class CopyCrew {
 public:
  static CopyCrew& OfProcess();
  static unsigned ThreadsWanted();

  explicit CopyCrew(unsigned threads) : threads_(threads) {}
  // Only for crews of tests: those of the process stay.
  ~CopyCrew();
  CopyCrew(const CopyCrew&) = delete;
  CopyCrew& operator=(const CopyCrew&) = delete;

  // Where the system gives no thread at all, the task runs on the caller's.
  void Add(const std::shared_ptr<CrewTask>& task);
  // Runs the whole task on this thread: for tasks so small that waking another one costs more.
  static void RunHere(CrewTask& task);
  // Threads in the task leave it after their current slice.
  void Cancel(const std::shared_ptr<CrewTask>& task);

  unsigned threads() const { return threads_; }

 private:
  void Run();
  std::shared_ptr<CrewTask> Take();
  // Under the mutex. Starts a thread when all are busy and the limit allows.
  void StartOne();
  bool Leave(const std::shared_ptr<CrewTask>& task);
  void Dequeue(const std::shared_ptr<CrewTask>& task);

  const unsigned threads_;
  std::mutex mutex_;
  std::condition_variable work_;
  std::deque<std::shared_ptr<CrewTask>> queue_;
  std::vector<std::thread> started_;
  unsigned waiting_ = 0;
  bool stop_ = false;
};

}  // namespace kvt
