#pragma once

#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "memory/sleeper.h"
#include "paths/path.h"

namespace kvt {

// What other threads leave for the owner. Held by shared_ptr, as they may still be waking the owner when that
// has already seen the event and closes.
class EventInbox {
 public:
  explicit EventInbox(std::shared_ptr<const Sleeper> wake) : wake_(std::move(wake)) {}

  void Put(const PathEvent& event) {
    {
      const std::lock_guard lock(mutex_);
      events_.push_back(event);
    }
    wake_->Wake();
  }

  void PutDead(PeerKey peer) {
    PathEvent event;
    event.kind = PathEvent::Kind::kPeerDead;
    event.key = peer;
    Put(event);
  }

  // Appends what has come; the jobs that are quiet are forgotten.
  template <typename Job>
  void Take(std::vector<PathEvent>* events, std::unordered_map<JobKey, Job>* jobs) {
    const size_t before = events->size();
    {
      const std::lock_guard lock(mutex_);
      events->insert(events->end(), events_.begin(), events_.end());
      events_.clear();
    }
    for (size_t index = before; index < events->size(); ++index) {
      const PathEvent& event = (*events)[index];
      if (event.kind == PathEvent::Kind::kQuiet) jobs->erase(event.key);
    }
  }

 private:
  const std::shared_ptr<const Sleeper> wake_;
  std::mutex mutex_;
  std::vector<PathEvent> events_;
};

}  // namespace kvt
