#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace kvt::engine {

// Threads that sleep between pieces of work: several workers share a machine's cores, and a spinning one
// would take them from the others (reference-engine.md section 8). One owner calls; the caller computes too.
class ThreadPool {
 public:
  explicit ThreadPool(uint32_t threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  uint32_t threads() const { return static_cast<uint32_t>(workers_.size()) + 1; }

  // Calls work(thread, begin, end) so that the ranges, one a thread, cover [0, count); returns when all have
  // ended. A count below `worth` runs on the caller alone: waking a thread costs tens of microseconds.
  void Split(size_t count, size_t worth, const std::function<void(uint32_t, size_t, size_t)>& work);

 private:
  void Serve(uint32_t index);
  void RunPart(uint32_t index) const;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  const std::function<void(uint32_t, size_t, size_t)>* work_ = nullptr;
  size_t count_ = 0;
  uint64_t round_ = 0;
  uint32_t running_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> workers_;  // last: they use everything above
};

}  // namespace kvt::engine
