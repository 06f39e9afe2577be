#include "paths/nixl_direct.h"

#include <algorithm>
#include <utility>

namespace kvt {
namespace {

constexpr size_t kFlightsPerJob = 4;
// How long a job waits for a new connection to its peer: dialling takes 250 ms.
constexpr BootNanos kCutNanosMax = 1'000 * kNanosPerMilli;

}  // namespace

void NixlDirect::Post(std::shared_ptr<const NixlPeer> peer, std::unique_ptr<Transfer> transfer) {
  std::shared_ptr<const Plan> plan = peer->plans.For(transfer->replicated);
  jobs_.push_back(std::make_unique<Job>(std::move(peer), std::move(plan), std::move(transfer), own_pool_));
}

void NixlDirect::Cancel(JobKey key) {
  for (const auto& job : jobs_) {
    if (job->cutter.transfer().job == key) job->stopped = true;
  }
}

bool NixlDirect::Reads(const std::string& agent) const {
  return std::any_of(jobs_.begin(), jobs_.end(), [&agent](const std::unique_ptr<Job>& job) {
    return job->peer->agent == agent && !job->flights.empty();
  });
}

bool NixlDirect::Step(std::vector<PathEvent>* events) {
  bool moved = false;
  for (size_t at = 0; at < jobs_.size();) {
    Job& job = *jobs_[at];
    moved = StepJob(&job) || moved;
    if (job.stopped && job.flights.empty()) {
      events->push_back(EndOf(job));
      jobs_.erase(jobs_.begin() + static_cast<std::ptrdiff_t>(at));
    } else {
      ++at;
    }
  }
  return moved;
}

void NixlDirect::DropFlights() {
  for (const auto& job : jobs_) {
    job->flights.clear();
    job->stopped = true;
  }
}

bool NixlDirect::StepJob(Job* job) {
  const bool moved = TakeEnded(job);
  const bool wants = !job->stopped && job->flights.size() < kFlightsPerJob;
  if (!wants || !MayPost(job)) return moved;
  PostNext(job);
  // On shared memory the post has copied.
  (void)TakeEnded(job);
  return true;
}

bool NixlDirect::TakeEnded(Job* job) {
  bool moved = false;
  for (size_t at = 0; at < job->flights.size();) {
    NixlFlight& flight = job->flights[at];
    const nixl::Status status = flight.Check();
    if (status == nixl::Status::kInProgress) {
      ++at;
      continue;
    }
    moved = true;
    if (status == nixl::Status::kSuccess) {
      job->bytes += flight.bytes;
      job->wire.Add(TelemetryOf(flight));
    } else {
      job->failed = true;
      job->stopped = true;
      wire_->Break(job->peer->agent);
    }
    job->flights.erase(job->flights.begin() + static_cast<std::ptrdiff_t>(at));
  }
  return moved;
}

// A post to a dead peer may never return, so the kernel is asked before each. Over a new connection the job
// goes on where it was.
bool NixlDirect::MayPost(Job* job) {
  const auto& life = job->peer->life;
  const PeerLife::State state = life ? life->Ask() : PeerLife::State::kAlive;
  if (state == PeerLife::State::kAlive) {
    job->cut_since = 0;
    return true;
  }
  const BootNanos now = BootNow();
  if (job->cut_since == 0) job->cut_since = now;
  if (state == PeerLife::State::kDead || now - job->cut_since >= kCutNanosMax) {
    job->failed = true;
    job->stopped = true;
  }
  return false;
}

void NixlDirect::PostNext(Job* job) {
  if (job->started == 0) job->started = BootNow();
  NixlChunk chunk;
  if (!job->cutter.Next(&chunk)) {
    job->stopped = true;
    return;
  }
  job->runs += chunk.runs;
  job->pieces += chunk.own.size();
  auto flight = wire_->Fly(job->peer->agent, chunk.own, chunk.far, std::nullopt);
  if (flight) {
    job->flights.push_back(std::move(*flight));
    job->stopped = job->cutter.AtEnd();
  } else {
    job->failed = true;
    job->stopped = true;
    wire_->Break(job->peer->agent);
  }
}

PathEvent NixlDirect::EndOf(const Job& job) {
  const BootNanos now = BootNow();
  const BootNanos posted = job.cutter.transfer().posted;
  PathEvent event;
  event.kind = PathEvent::Kind::kQuiet;
  event.path = PathKind::kNixlDirect;
  event.key = job.cutter.transfer().job;
  event.complete = !job.failed && job.bytes == job.cutter.Bytes();
  event.bytes = event.complete ? job.bytes : 0;
  event.queued = (job.started != 0 ? job.started : now) - posted;
  event.moving = job.started != 0 ? now - job.started : 0;
  event.runs = job.runs;
  event.pieces = job.pieces;
  event.wire = job.wire;
  return event;
}

}  // namespace kvt
