#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace kvt::engine {

// One thread that runs tasks in the order posted. Tasks own their answers: one that is dropped by Stop is
// destroyed unrun.
class EngineThread {
 public:
  EngineThread();
  ~EngineThread();  // Stop
  EngineThread(const EngineThread&) = delete;
  EngineThread& operator=(const EngineThread&) = delete;

  // False after Stop has begun: the task was not taken.
  bool Post(std::function<void()> task);

  // Drops what waits, waits for the running task, joins. The caller makes a long task end (cancellation).
  // Idempotent; not from the thread itself.
  void Stop();

 private:
  void Serve();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace kvt::engine
