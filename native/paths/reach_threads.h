#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "memory/sleeper.h"
#include "memory/thread.h"
#include "paths/path.h"

namespace kvt {

// Runs attempts to reach peers, which may block, on threads of their own, some at a time. For the owner
// thread, which is woken when one has ended.
template <typename Reached>
class ReachThreads {
 public:
  // Ends early once `stop` is set.
  using Attempt = std::function<Reached(const std::atomic<bool>& stop)>;
  struct Ended {
    PeerKey peer = 0;
    bool released = false;  // it was stopped
    Reached reached;
  };

  explicit ReachThreads(std::shared_ptr<const Sleeper> wake) : inbox_(std::make_shared<Inbox>()) {
    inbox_->wake = std::move(wake);
  }
  ~ReachThreads() {
    for (auto& [peer, running] : running_) running->stop.store(true, std::memory_order_relaxed);
    for (auto& [peer, running] : running_) running->thread.join();
  }
  ReachThreads(const ReachThreads&) = delete;
  ReachThreads& operator=(const ReachThreads&) = delete;

  // It comes out of Take() once. `failed` is what it reached when the system gives no thread.
  void Start(PeerKey peer, Attempt attempt, Reached failed) {
    pending_.push_back({peer, std::move(attempt), std::move(failed)});
    StartPending();
  }
  void Stop(PeerKey peer) {
    const auto running = running_.find(peer);
    if (running != running_.end()) running->second->stop.store(true, std::memory_order_relaxed);
    for (auto pending = pending_.begin(); pending != pending_.end(); ++pending) {
      if (pending->peer != peer) continue;
      inbox_->Put({peer, true, std::move(pending->failed)});
      pending_.erase(pending);
      return;
    }
  }
  std::vector<Ended> Take() {
    std::vector<Ended> ended;
    {
      const std::lock_guard lock(inbox_->mutex);
      ended.swap(inbox_->ended);
    }
    for (Ended& one : ended) {
      const auto running = running_.find(one.peer);
      if (running == running_.end()) continue;
      running->second->thread.join();
      one.released = running->second->stop.load(std::memory_order_relaxed);
      running_.erase(running);
    }
    if (!ended.empty()) StartPending();
    return ended;
  }

 private:
  static constexpr size_t kAtOnce = 8;

  struct Pending {
    PeerKey peer = 0;
    Attempt attempt;
    Reached failed;
  };
  struct Running {
    std::atomic<bool> stop{false};
    std::thread thread;
  };
  struct Inbox {
    void Put(Ended one) {
      {
        const std::lock_guard lock(mutex);
        ended.push_back(std::move(one));
      }
      wake->Wake();
    }

    std::shared_ptr<const Sleeper> wake;
    std::mutex mutex;
    std::vector<Ended> ended;
  };

  void StartPending() {
    while (!pending_.empty() && running_.size() < kAtOnce) {
      Pending next = std::move(pending_.front());
      pending_.pop_front();
      const PeerKey peer = next.peer;
      auto running = std::make_unique<Running>();
      auto thread = StartThread(
          "kvt-reach", [inbox = inbox_, peer, attempt = std::move(next.attempt), raw = running.get()] {
            inbox->Put({peer, false, attempt(raw->stop)});
          });
      if (thread) {
        running->thread = std::move(*thread);
        running_.emplace(peer, std::move(running));
      } else {
        inbox_->Put({peer, false, std::move(next.failed)});
      }
    }
  }

  const std::shared_ptr<Inbox> inbox_;
  std::deque<Pending> pending_;
  std::unordered_map<PeerKey, std::unique_ptr<Running>> running_;
};

}  // namespace kvt
