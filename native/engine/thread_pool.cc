#include "engine/thread_pool.h"

namespace kvt::engine {

ThreadPool::ThreadPool(uint32_t threads) {
  for (uint32_t i = 1; i < threads; ++i) workers_.emplace_back([this, i] { Serve(i); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Split(size_t count, size_t worth,
                       const std::function<void(uint32_t, size_t, size_t)>& work) {
  if (workers_.empty() || count < worth || count < 2) {
    work(0, 0, count);
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    work_ = &work;
    count_ = count;
    running_ = static_cast<uint32_t>(workers_.size());
    ++round_;
  }
  wake_.notify_all();
  RunPart(0);
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return running_ == 0; });
}

void ThreadPool::RunPart(uint32_t index) const {
  const size_t parts = threads();
  const size_t begin = count_ * index / parts;
  const size_t end = count_ * (index + 1) / parts;
  if (begin < end) (*work_)(index, begin, end);
}

void ThreadPool::Serve(uint32_t index) {
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stopping_ || round_ != seen; });
    if (stopping_) return;
    seen = round_;
    lock.unlock();
    RunPart(index);
    lock.lock();
    if (--running_ == 0) done_.notify_one();
  }
}

}  // namespace kvt::engine
