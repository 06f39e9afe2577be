#include "dataplane/dispatcher.h"

#include <algorithm>
#include <utility>

namespace kvt {

void Dispatcher::Apply(Command command, BootNanos now) {
  if (closing_) return;
  switch (command.kind) {
    case Command::Kind::kReach:
      Reach(std::move(command));
      break;
    case Command::Kind::kReleasePeer:
      ReleasePeer(command.id);
      break;
    case Command::Kind::kPost:
      Post(std::move(command), now);
      break;
    case Command::Kind::kDigest:
    case Command::Kind::kExpect:
      break;  // the data plane's own
    case Command::Kind::kCancel:
      EndEarly(command.id, JobStatus::kCancelled, now);
      break;
    case Command::Kind::kGrant:
      Grant(command);
      break;
    case Command::Kind::kRenew:
      Renew(command.id, command.leases, now);
      break;
    case Command::Kind::kDropLease:
      DropLease(command.id);
      break;
    case Command::Kind::kSetTimer:
      timers_.Set(command.id, command.when);
      break;
    case Command::Kind::kClearTimer:
      timers_.Clear(command.id);
      break;
    case Command::Kind::kClose:
      Close(now);
      break;
  }
  Count();
}

void Dispatcher::Apply(const PathEvent& event, BootNanos now) {
  switch (event.kind) {
    case PathEvent::Kind::kReached:
      OnReached(event, now);
      break;
    case PathEvent::Kind::kPeerDead: {
      const auto peer = peers_.find(event.key);
      const bool known = peer != peers_.end() && !peer->second.released;
      if (known) Complete(CompletionKind::kPeerDead, peer->second.id, now);
      break;
    }
    case PathEvent::Kind::kQuiet:
      OnQuiet(event, now);
      break;
    case PathEvent::Kind::kStalled:
      if (leases_.Find(event.key)) Complete(CompletionKind::kSlotStalled, event.key, now);
      break;
    case PathEvent::Kind::kFailed:
      OnFailed(event, now);
      break;
    case PathEvent::Kind::kRenewed:
      Complete(CompletionKind::kPathsRenewed, 0, now);
      break;
  }
  Count();
}

void Dispatcher::Expire(BootNanos now) {
  ExpireLeases(now);
  while (const auto job = job_deadlines_.PopDue(now)) EndEarly(*job, JobStatus::kTimedOut, now);
  while (const auto timer = timers_.PopDue(now)) Complete(CompletionKind::kTimer, *timer, now);
  Count();
}

BootNanos Dispatcher::Next() const {
  return std::min({leases_.Next(), job_deadlines_.Next(), timers_.Next()});
}

void Dispatcher::Reach(Command command) {
  const PeerKey key = ++last_key_;
  peers_[key] = {command.id, false, false};
  peer_keys_[command.id] = key;
  ++reaching_;
  path_->Know(key, std::move(command.life));
  path_->Reach(key, std::move(command.descriptor), command.when);
}

// The id is free for another reach at once; the path answers the reach that it interrupts, if there is one.
void Dispatcher::ReleasePeer(uint64_t id) {
  const auto found = peer_keys_.find(id);
  if (found == peer_keys_.end()) return;
  const PeerKey key = found->second;
  peer_keys_.erase(found);
  Peer& peer = peers_[key];
  const bool mapped = peer.mapped;
  peer.released = true;
  path_->Release(key);
  if (mapped) peers_.erase(key);
}

void Dispatcher::OnReached(const PathEvent& event, BootNanos now) {
  const auto found = peers_.find(event.key);
  Peer& peer = found->second;
  --reaching_;
  // A release may cross the path's success.
  const bool late = peer.released && event.reached == ReachStatus::kOk;
  if (late) path_->Release(event.key);
  const ReachStatus status = peer.released ? ReachStatus::kReleased : event.reached;
  Completion completion;
  completion.kind = CompletionKind::kReached;
  completion.id = peer.id;
  completion.status = static_cast<int>(status);
  completion.at_ms = ToMillis(now);
  completion.extra = static_cast<double>(event.pid);
  completion.bytes = static_cast<uint64_t>(event.path);
  completions_.push_back(completion);
  peer.mapped = status == ReachStatus::kOk;
  if (peer.mapped) return;
  if (!peer.released) peer_keys_.erase(peer.id);
  peers_.erase(found);
}

void Dispatcher::Post(Command command, BootNanos now) {
  const uint64_t id = command.id;
  statistics_->jobs_posted.fetch_add(1, std::memory_order_relaxed);
  const auto peer = peer_keys_.find(command.peer);
  const JobKey key = ++last_key_;
  Path::Posted posted = Path::Posted::kNoPeer;
  if (peer != peer_keys_.end()) {
    command.transfer->job = key;
    command.transfer->peer = peer->second;
    posted = path_->Post(std::move(command.transfer));
  }
  if (posted != Path::Posted::kTaken) {
    const JobStatus status = posted == Path::Posted::kNoPeer ? JobStatus::kNoPeer : JobStatus::kBadRange;
    CompleteJob(id, status, PathKind::kSharedMemory, now);
    Complete(CompletionKind::kJobQuiet, id, now);
    return;
  }
  jobs_[id] = {key, false};
  job_ids_[key] = id;
  job_deadlines_.Set(id, command.when);
}

// The caller has its answer at once; the blocks are in quarantine until the path is quiet.
void Dispatcher::EndEarly(uint64_t id, JobStatus status, BootNanos now) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end() || found->second.ended) return;
  found->second.ended = true;
  ++quarantined_;
  job_deadlines_.Clear(id);
  CompleteJob(id, status, PathKind::kSharedMemory, now);
  path_->Cancel(found->second.key);
}

void Dispatcher::OnQuiet(const PathEvent& event, BootNanos now) {
  const auto named = job_ids_.find(event.key);
  const uint64_t id = named->second;
  const bool ended = jobs_[id].ended;
  job_ids_.erase(named);
  jobs_.erase(id);
  job_deadlines_.Clear(id);
  if (ended) {
    --quarantined_;
  } else {
    if (event.wire.posts > 0) CompleteWire(id, event.wire, now);
    Completion completion;
    completion.id = id;
    completion.status = static_cast<int>(event.complete ? JobStatus::kOk : JobStatus::kFailed);
    completion.bytes = event.bytes;
    completion.queued_us = static_cast<double>(event.queued) / 1e3;
    completion.moving_us = static_cast<double>(event.moving) / 1e3;
    completion.at_ms = ToMillis(now);
    completion.extra = static_cast<double>(event.path);
    completion.runs = event.runs;
    completion.pieces = event.pieces;
    completions_.push_back(completion);
    statistics_->bytes_moved.fetch_add(event.bytes, std::memory_order_relaxed);
  }
  Complete(CompletionKind::kJobQuiet, id, now);
}

// Its blocks are in quarantine, perhaps for good: who touches them is not known to have stopped.
void Dispatcher::OnFailed(const PathEvent& event, BootNanos now) {
  const auto named = job_ids_.find(event.key);
  if (named == job_ids_.end()) return;
  Job& job = jobs_[named->second];
  if (std::exchange(job.ended, true)) return;
  ++quarantined_;
  job_deadlines_.Clear(named->second);
  CompleteJob(named->second, JobStatus::kFailed, event.path, now);
}

// Before its job's own, which takes it along.
void Dispatcher::CompleteWire(uint64_t id, const WireTelemetry& wire, BootNanos now) {
  Completion completion;
  completion.kind = CompletionKind::kWire;
  completion.id = id;
  completion.status = static_cast<int>(wire.posts);
  completion.bytes = wire.bytes;
  completion.queued_us = static_cast<double>(wire.post_us);
  completion.moving_us = static_cast<double>(wire.transfer_us);
  completion.at_ms = ToMillis(now);
  completion.extra = static_cast<double>(wire.descriptors);
  completions_.push_back(completion);
}

// Its end was set when it was asked for: an owner that slept meanwhile neither lengthens nor shortens it.
void Dispatcher::Grant(const Command& command) {
  leases_.Set(command.id, command.when);
  lease_durations_[command.id] = command.duration;
  if (!command.grant) return;
  path_leases_.insert(command.id);
  path_->Grant(command.id, *command.grant);
}

void Dispatcher::EndLease(uint64_t lease) {
  lease_durations_.erase(lease);
  if (path_leases_.erase(lease) > 0) path_->EndLease(lease);
}

void Dispatcher::Renew(uint64_t seq, const std::vector<uint64_t>& leases, BootNanos now) {
  // A lease whose end has come is over, also when its LEASE_OVER was not written yet.
  ExpireLeases(now);
  for (const uint64_t lease : leases) {
    if (!leases_.Find(lease)) continue;
    const BootNanos end = Later(now, lease_durations_[lease]);
    leases_.Set(lease, end);
    Complete(CompletionKind::kRenewed, lease, end, static_cast<double>(seq));
  }
  Complete(CompletionKind::kRenewEnd, seq, now);
}

// Also when its end has come but was not told yet: nobody wants to hear of it any more, and an owner that
// slept must not tell more than one that was awake.
void Dispatcher::DropLease(uint64_t lease) {
  if (leases_.Clear(lease)) EndLease(lease);
}

void Dispatcher::ExpireLeases(BootNanos now) {
  while (const auto lease = leases_.PopDue(now)) {
    EndLease(*lease);
    Complete(CompletionKind::kLeaseOver, *lease, now);
  }
}

void Dispatcher::Close(BootNanos now) {
  closing_ = true;
  std::vector<uint64_t> ids;
  for (const auto& [id, job] : jobs_) ids.push_back(id);
  for (const uint64_t id : ids) EndEarly(id, JobStatus::kCancelled, now);
  ids.clear();
  for (const auto& [id, key] : peer_keys_) ids.push_back(id);
  for (const uint64_t id : ids) ReleasePeer(id);
  leases_.Clear();
  lease_durations_.clear();
  for (const uint64_t lease : path_leases_) path_->EndLease(lease);
  path_leases_.clear();
  timers_.Clear();
}

void Dispatcher::Complete(CompletionKind kind, uint64_t id, BootNanos at, double extra) {
  Completion completion;
  completion.kind = kind;
  completion.id = id;
  completion.at_ms = ToMillis(at);
  completion.extra = extra;
  completions_.push_back(completion);
}

void Dispatcher::CompleteJob(uint64_t id, JobStatus status, PathKind path, BootNanos now) {
  Completion completion;
  completion.id = id;
  completion.status = static_cast<int>(status);
  completion.at_ms = ToMillis(now);
  completion.extra = static_cast<double>(path);
  completions_.push_back(completion);
}

void Dispatcher::Count() const {
  statistics_->jobs_running.store(jobs_.size() - quarantined_, std::memory_order_relaxed);
  statistics_->quarantined_jobs.store(quarantined_, std::memory_order_relaxed);
  statistics_->leases_held.store(leases_.size(), std::memory_order_relaxed);
  statistics_->peers_mapped.store(peers_.size() - reaching_, std::memory_order_relaxed);
}

}  // namespace kvt
