#pragma once

#include <atomic>

#include "memory/event_fd.h"

namespace kvt {

// Lets one thread sleep until another has something for it. Waking costs a system call only while it sleeps:
// a thread that works, or polls before it lies down, is told through one atomic word.
class Sleeper {
 public:
  bool ok() const { return event_.ok(); }
  // Readable for a sleeper that was woken.
  int fd() const { return event_.get(); }

  // Any thread, after what it tells of can be found.
  void Wake() const {
    if (state_.exchange(State::kTold) == State::kAsleep) event_.Signal();
  }

  // The rest is for the sleeper itself. Look() comes before it looks for what others have left: what they
  // leave later is told again.
  void Look() { state_.exchange(State::kAwake); }
  bool told() const { return state_.load(std::memory_order_relaxed) == State::kTold; }
  // False when it was told something since Look(); else it may wait for fd(), and every Wake() signals it.
  bool MaySleep() {
    State expected = State::kAwake;
    return state_.compare_exchange_strong(expected, State::kAsleep);
  }
  void Clear() const { event_.Clear(); }

 private:
  enum class State { kAwake, kTold, kAsleep };

  EventFd event_;
  mutable std::atomic<State> state_{State::kAwake};
};

}  // namespace kvt
