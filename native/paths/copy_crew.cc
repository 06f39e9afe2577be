#include "paths/copy_crew.h"

#include <algorithm>
#include <array>
#include <utility>

#include "layout/run_cursor.h"
#include "memory/thread.h"
#include "paths/copy_kernel.h"

namespace kvt {
namespace {

// A thread that has moved this much looks whether another task has nobody: a large task must not starve a
// small one where there is a single copy thread.
constexpr uint64_t kTurnBytes = uint64_t{2} << 20;

}  // namespace

void CopyTask::RunUnits(const UnitRange& range) {
  const BlockTables tables{transfer->source_blocks, transfer->target_blocks};
  RunCursor cursor(*plan, transfer->tokens, tables, range);
  // The run being copied, the next one, and the one after that.
  std::array<Run, 3> next;
  uint64_t copied = 0;
  uint64_t copied_pieces = 0;
  size_t known = 0;
  while (known < next.size() && cursor.Next(&next[known])) ++known;
  while (known > 0) {
    if (known == next.size()) WarmRun(next[2], source, target);
    CopyRun(next[0], known > 1 ? &next[1] : nullptr, source, target, stream);
    ++copied;
    copied_pieces += next[0].count;
    std::rotate(next.begin(), next.begin() + 1, next.end());
    if (known < next.size() || !cursor.Next(&next[2])) --known;
  }
  if (stream) FinishStream();
  runs.fetch_add(copied, std::memory_order_relaxed);
  pieces.fetch_add(copied_pieces, std::memory_order_relaxed);
}

namespace {

// False when nothing is left to take.
bool RunNextSlice(CrewTask& task) {
  if (task.cancelled.load(std::memory_order_relaxed)) return false;
  const uint64_t first = task.next_unit.fetch_add(task.units_per_slice, std::memory_order_relaxed);
  if (first >= task.units) return false;
  const uint64_t last = std::min(task.units, first + task.units_per_slice);
  task.RunUnits({first, last});
  task.units_done.fetch_add(last - first, std::memory_order_relaxed);
  return true;
}

bool Exhausted(const CrewTask& task) {
  return task.cancelled.load(std::memory_order_relaxed) ||
         task.next_unit.load(std::memory_order_relaxed) >= task.units;
}

}  // namespace

CopyCrew& CopyCrew::OfProcess() {
  static CopyCrew& crew = *new CopyCrew(ThreadsWanted());
  return crew;
}

unsigned CopyCrew::ThreadsWanted() {
  return std::min(4U, std::max(1U, std::thread::hardware_concurrency() / 2));
}

CopyCrew::~CopyCrew() {
  std::vector<std::thread> threads;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    threads.swap(started_);
  }
  work_.notify_all();
  for (std::thread& thread : threads) thread.join();
}

void CopyCrew::StartOne() {
  if (waiting_ > 0 || started_.size() >= threads_) return;
  auto thread = StartThread("kvt-copy", [this] { Run(); });
  if (thread) started_.push_back(std::move(*thread));
}

void CopyCrew::Add(const std::shared_ptr<CrewTask>& task) {
  bool queued = false;
  {
    const std::lock_guard lock(mutex_);
    StartOne();
    queued = !started_.empty();
    task->queued = queued;
    if (queued) queue_.push_back(task);
  }
  if (queued) {
    work_.notify_one();
  } else {
    RunHere(*task);
  }
}

void CopyCrew::RunHere(CrewTask& task) {
  task.started = BootNow();
  while (RunNextSlice(task)) {
  }
  task.ended = BootNow();
  task.on_quiet();
}

void CopyCrew::Cancel(const std::shared_ptr<CrewTask>& task) {
  bool quiet = false;
  {
    const std::lock_guard lock(mutex_);
    task->cancelled.store(true, std::memory_order_relaxed);
    quiet = task->queued && task->workers == 0;
    Dequeue(task);
  }
  if (quiet) task->on_quiet();
}

void CopyCrew::Run() {
  while (const std::shared_ptr<CrewTask> task = Take()) {
    const uint64_t slice_bytes = task->units_per_slice * task->unit_bytes;
    for (uint64_t moved = 0; moved < kTurnBytes && RunNextSlice(*task); moved += slice_bytes) {
    }
    if (Leave(task)) task->on_quiet();
  }
}

// The task with the fewest threads, the oldest of these first: all idle threads share one task, and a second
// task gets a thread at the next turn.
std::shared_ptr<CrewTask> CopyCrew::Take() {
  std::unique_lock lock(mutex_);
  ++waiting_;
  work_.wait(lock, [this] { return stop_ || !queue_.empty(); });
  --waiting_;
  if (stop_) return nullptr;
  const auto chosen = std::min_element(queue_.begin(), queue_.end(), [](const auto& left, const auto& right) {
    return left->workers < right->workers;
  });
  std::shared_ptr<CrewTask> task = *chosen;
  queue_.erase(chosen);
  queue_.push_back(task);
  if (task->started == 0) task->started = BootNow();
  ++task->workers;
  const bool worth_sharing = task->units > task->units_per_slice;
  if (worth_sharing) StartOne();
  lock.unlock();
  if (worth_sharing) work_.notify_one();
  return task;
}

// True when the caller was the last one in a task that has no slices left.
bool CopyCrew::Leave(const std::shared_ptr<CrewTask>& task) {
  const std::lock_guard lock(mutex_);
  --task->workers;
  if (!Exhausted(*task)) return false;
  Dequeue(task);
  if (task->workers > 0) return false;
  task->ended = BootNow();
  return true;
}

void CopyCrew::Dequeue(const std::shared_ptr<CrewTask>& task) {
  if (!task->queued) return;
  task->queued = false;
  queue_.erase(std::find(queue_.begin(), queue_.end(), task));
}

}  // namespace kvt
