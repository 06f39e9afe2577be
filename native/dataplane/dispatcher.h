#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "dataplane/command_stack.h"
#include "dataplane/completion.h"
#include "dataplane/deadline_set.h"
#include "paths/path.h"

namespace kvt {

// Read by the JS thread while the owner works.
struct Statistics {
  std::atomic<uint64_t> jobs_posted{0};
  std::atomic<uint64_t> jobs_running{0};
  std::atomic<uint64_t> bytes_moved{0};
  std::atomic<uint64_t> leases_held{0};
  std::atomic<uint64_t> quarantined_jobs{0};
  std::atomic<uint64_t> peers_mapped{0};
};

// Everything the owner decides, without a thread, a clock or a socket: commands, path events and time go in,
// completions come out. Jobs: a job ends exactly once (kJob), and becomes quiet exactly once (kJobQuiet)
// after or with that; in between its blocks are in quarantine (invariant I3). Leases: ended and extended only
// here, so an extension and its answer are one step (invariant I2).
class Dispatcher {
 public:
  Dispatcher(Path* path, Statistics* statistics) : path_(path), statistics_(statistics) {}

  void Apply(Command command, BootNanos now);
  // `now` is read after the poll that gave the event, never before (invariant I2).
  void Apply(const PathEvent& event, BootNanos now);
  // Ends what is due: leases, jobs, timers.
  void Expire(BootNanos now);
  // When Expire() has something to do next.
  BootNanos Next() const;

  // Completions not yet taken, oldest first.
  std::deque<Completion>& completions() { return completions_; }
  bool closing() const { return closing_; }
  // No thread touches this pool or a peer's: the path may be destroyed.
  bool quiet() const { return jobs_.empty() && reaching_ == 0; }

 private:
  struct Job {
    JobKey key = 0;
    bool ended = false;
  };
  struct Peer {
    uint64_t id = 0;
    bool mapped = false;
    bool released = false;
  };

  void Reach(Command command);
  void ReleasePeer(uint64_t id);
  void Post(Command command, BootNanos now);
  void EndEarly(uint64_t id, JobStatus status, BootNanos now);
  void Grant(const Command& command);
  void Renew(uint64_t seq, const std::vector<uint64_t>& leases, BootNanos now);
  void DropLease(uint64_t lease);
  void Close(BootNanos now);
  void OnReached(const PathEvent& event, BootNanos now);
  void OnQuiet(const PathEvent& event, BootNanos now);
  void OnFailed(const PathEvent& event, BootNanos now);
  void CompleteWire(uint64_t id, const WireTelemetry& wire, BootNanos now);
  void ExpireLeases(BootNanos now);
  void EndLease(uint64_t lease);
  void Complete(CompletionKind kind, uint64_t id, BootNanos at, double extra = 0);
  void CompleteJob(uint64_t id, JobStatus status, PathKind path, BootNanos now);
  void Count() const;

  Path* const path_;
  Statistics* const statistics_;
  std::deque<Completion> completions_;

  std::unordered_map<uint64_t, Job> jobs_;
  std::unordered_map<JobKey, uint64_t> job_ids_;
  DeadlineSet job_deadlines_;
  uint64_t quarantined_ = 0;

  std::unordered_map<uint64_t, PeerKey> peer_keys_;
  std::unordered_map<PeerKey, Peer> peers_;
  uint64_t reaching_ = 0;

  DeadlineSet leases_;
  std::unordered_map<uint64_t, BootNanos> lease_durations_;
  std::unordered_set<uint64_t> path_leases_;  // that the path was told of
  DeadlineSet timers_;
  uint64_t last_key_ = 0;
  bool closing_ = false;
};

}  // namespace kvt
