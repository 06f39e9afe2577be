#pragma once

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "paths/digests.h"
#include "paths/path.h"

namespace kvt {

// What the JS thread asks of the owner.
struct Command {
  enum class Kind {
    kReach,
    kReleasePeer,
    kPost,
    kDigest,
    kCancel,
    kGrant,
    kRenew,
    kDropLease,
    kSetTimer,
    kClearTimer,
    kExpect,  // a post comes soon
    kClose,
  };
  Kind kind = Kind::kClose;
  uint64_t id = 0;
  uint64_t peer = 0;
  BootNanos when = 0;      // a deadline (post, reach, timer), or the end of a lease (grant)
  BootNanos duration = 0;  // of a lease, each time it is renewed
  std::vector<uint8_t> descriptor;
  std::shared_ptr<const PeerLife> life;  // of a peer to reach
  std::vector<uint64_t> leases;
  std::unique_ptr<Transfer> transfer;
  std::unique_ptr<StagedGrant> grant;  // null: the lease opens nothing to paths
  std::unique_ptr<DigestRequest> digest;
};

// Lock-free, any number of producers, one consumer that takes everything at once: a producer never waits for
// the owner, and the owner sees commands in the order in which they were pushed.
class CommandStack {
 public:
  CommandStack() = default;
  ~CommandStack() { TakeAll(); }
  CommandStack(const CommandStack&) = delete;
  CommandStack& operator=(const CommandStack&) = delete;

  void Push(Command command) {
    Node* node = new Node{std::move(command), nullptr};
    Node* below = top_.load(std::memory_order_relaxed);
    do {
      node->below = below;
    } while (!top_.compare_exchange_weak(below, node, std::memory_order_seq_cst, std::memory_order_relaxed));
  }

  bool empty() const { return top_.load(std::memory_order_seq_cst) == nullptr; }

  std::vector<Command> TakeAll() {
    Node* node = top_.exchange(nullptr, std::memory_order_acquire);
    Node* oldest = nullptr;
    size_t count = 0;
    while (node != nullptr) {
      Node* below = std::exchange(node->below, oldest);
      oldest = std::exchange(node, below);
      ++count;
    }
    std::vector<Command> commands;
    commands.reserve(count);
    while (oldest != nullptr) {
      const std::unique_ptr<Node> taken(oldest);
      oldest = taken->below;
      commands.push_back(std::move(taken->command));
    }
    return commands;
  }

 private:
  struct Node {
    Command command;
    Node* below;
  };

  std::atomic<Node*> top_{nullptr};
};

}  // namespace kvt
