#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "layout/plan.h"
#include "memory/boot_clock.h"
#include "memory/fd_exchange.h"
#include "memory/peer_life.h"

namespace kvt {

// Ids that the owner gives; never used twice in one data plane.
using PeerKey = uint64_t;
using JobKey = uint64_t;
using LeaseKey = uint64_t;

// A transfer's id with its attempt: who names it may have what was granted to it.
using Ticket = std::array<uint8_t, 20>;

// What a lease opens for a path whose sender works too: blocks in token order.
struct StagedGrant {
  Ticket ticket{};
  std::vector<uint32_t> blocks;
};

struct Transfer {
  JobKey job = 0;
  PeerKey peer = 0;
  std::vector<uint32_t> source_blocks;
  std::vector<uint32_t> target_blocks;
  Tokens tokens;
  bool replicated = true;  // groups without heads too
  LayerRange layers;       // others than all: only the path of one host takes them
  Ticket ticket{};         // of its grant
  BootNanos posted = 0;
};

// src/native/plane_binding.ts nativePath.
enum class PathKind { kSharedMemory = 1, kCudaPeer = 2, kNixlDirect = 3, kNixlStaged = 4 };

// What the transport itself says of a job, summed over its posts; NIXL's telemetry.
struct WireTelemetry {
  uint64_t posts = 0;        // 0: a path without a transport of its own
  uint64_t post_us = 0;      // in calls that post, where shared memory and tcp copy
  uint64_t transfer_us = 0;  // from each post to its end; posts overlap
  uint64_t descriptors = 0;  // after neighbours were merged
  uint64_t bytes = 0;

  void Add(const WireTelemetry& other) {
    posts += other.posts;
    post_us += other.post_us;
    transfer_us += other.transfer_us;
    descriptors += other.descriptors;
    bytes += other.bytes;
  }
};

struct PathEvent {
  enum class Kind {
    kReached,   // of a peer, once a Reach
    kPeerDead,  // of a peer: its process is known dead; transfers still work
    kQuiet,     // of a job, once a Post: no thread touches its blocks any more
    kStalled,   // of a lease: its reader keeps a staging slot too long
    kFailed,    // of a job, at most once, before its kQuiet, which may never come
    kRenewed,   // this side's Descriptor() is another one now
  };
  Kind kind = Kind::kQuiet;
  uint64_t key = 0;
  PathKind path = PathKind::kSharedMemory;
  ReachStatus reached = ReachStatus::kOk;
  int64_t pid = 0;
  bool complete = false;  // every byte was moved
  uint64_t bytes = 0;
  BootNanos queued = 0;  // from the post to the first byte
  BootNanos moving = 0;
  uint64_t runs = 0;    // copied, as the plan has them
  uint64_t pieces = 0;  // contiguous copies in them
  WireTelemetry wire;
};

// One way of moving a plan (design.md section 7). Called by one owner thread only; nothing here blocks it.
// What ends elsewhere comes back through Poll(), after the wake-up given at construction. Before its
// destruction the owner cancels all jobs and waits for their kQuiet.
class Path {
 public:
  enum class Posted { kTaken, kNoPeer, kBadRange };

  virtual ~Path() = default;

  // Comes before the peer's Reach, from paths that have to know whether it lives; forgotten with its Release,
  // or when it is not reached.
  virtual void Know(PeerKey peer, std::shared_ptr<const PeerLife> life) {
    (void)peer;
    (void)life;
  }
  virtual void Reach(PeerKey peer, std::vector<uint8_t> descriptor, BootNanos deadline) = 0;
  // Expected microseconds of moving that much in pieces of that size; nothing when the peer is not reached.
  virtual std::optional<double> CostMicros(PeerKey peer, uint64_t bytes, uint64_t piece_bytes) const = 0;
  // kQuiet follows exactly when it answers kTaken.
  virtual Posted Post(std::unique_ptr<Transfer> transfer) = 0;
  // Asks to stop early; kQuiet says when it has.
  virtual void Cancel(JobKey job) = 0;
  virtual void Poll(std::vector<PathEvent>* events) = 0;
  // The peer is forgotten, its memory unmapped, when the last of its jobs is quiet. Ends a reach that runs.
  virtual void Release(PeerKey peer) = 0;
  // A lease begins and ends, for paths whose sender works too. What was not granted is never given.
  virtual void Grant(LeaseKey lease, const StagedGrant& grant) {
    (void)lease;
    (void)grant;
  }
  virtual void EndLease(LeaseKey lease) { (void)lease; }
  // Whether leases are out, so that peers may read from here: a path whose transport needs this side's work
  // stays awake.
  virtual void Serve(bool leases_out) { (void)leases_out; }
  // After all jobs were cancelled, for good: a transport that has not let go of them by then is torn down, so
  // that kQuiet comes for each.
  virtual void EndBy(BootNanos deadline) { (void)deadline; }
  // What peers need to reach this side; of paths that have one.
  virtual std::vector<uint8_t> Descriptor() const { return {}; }
  // Until when an end is so near that polling for it costs less than sleeping.
  virtual BootNanos Soon() const { return 0; }
  // When Poll() wants to be called although nobody wakes the owner.
  virtual BootNanos Next() const { return kNever; }
};

}  // namespace kvt
