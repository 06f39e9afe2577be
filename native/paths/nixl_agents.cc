#include "paths/nixl_agents.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "memory/thread.h"

namespace kvt {
namespace {

// What an agent that is told to end may take beyond its deadline, before it counts as wedged.
constexpr BootNanos kEndNanos = 3'000 * kNanosPerMilli;

PathEvent Quiet(JobKey key, bool complete) {
  PathEvent event;
  event.kind = PathEvent::Kind::kQuiet;
  event.path = PathKind::kNixlDirect;
  event.key = key;
  event.complete = complete;
  return event;
}

PathEvent Unreached(PeerKey key, ReachStatus status) {
  PathEvent event;
  event.kind = PathEvent::Kind::kReached;
  event.path = PathKind::kNixlDirect;
  event.key = key;
  event.reached = status;
  return event;
}

}  // namespace

NixlAgents::NixlAgents(std::unique_ptr<NixlAgentPath> first, Open open, uint64_t block_bytes,
                       std::shared_ptr<NixlAgentsReport> report, NixlAgentLimits limits, Clock clock)
    : open_(std::move(open)),
      block_bytes_(block_bytes),
      report_(std::move(report)),
      limits_(limits),
      clock_(std::move(clock)),
      descriptor_(first->Descriptor()) {
  agents_.push_back(std::make_unique<Agent>());
  current_ = agents_.back().get();
  current_->path = std::move(first);
  current_->open = true;
}

NixlAgents::~NixlAgents() {
  for (std::thread& thread : ending_) thread.join();
  for (const auto& agent : agents_) {
    // Its thread still uses all of it, the pool too.
    if (agent->state == State::kWedged) (void)agent->path.release();
  }
}

void NixlAgents::Know(PeerKey peer, std::shared_ptr<const PeerLife> life) { lives_[peer] = std::move(life); }

void NixlAgents::Reach(PeerKey key, std::vector<uint8_t> descriptor, BootNanos deadline) {
  Peer& peer = peers_[key];
  auto life = lives_.extract(key);
  peer.descriptor = std::move(descriptor);
  peer.deadline = deadline;
  if (life) peer.life = std::move(life.mapped());
  Assign(key, &peer);
}

// Without an agent the reach ends here; the owner is told by the next Poll.
void NixlAgents::Assign(PeerKey key, Peer* peer) {
  if (current_ != nullptr && current_->path->remotes_loaded() >= limits_.remotes) Retire(current_);
  if (current_ == nullptr) {
    EndWaiting(peer);
    if (peer->told) return;
    events_.push_back(Unreached(key, ReachStatus::kNixlFailed));
    peers_.erase(key);
    return;
  }
  peer->agent = current_;
  peer->reached = false;
  current_->path->Know(key, peer->life);
  current_->path->Reach(key, peer->descriptor, peer->deadline);
}

std::optional<double> NixlAgents::CostMicros(PeerKey key, uint64_t bytes, uint64_t piece_bytes) const {
  const auto peer = peers_.find(key);
  if (peer == peers_.end() || peer->second.agent == nullptr) return std::nullopt;
  return peer->second.agent->path->CostMicros(key, bytes, piece_bytes);
}

Path::Posted NixlAgents::Post(std::unique_ptr<Transfer> transfer) {
  const auto found = peers_.find(transfer->peer);
  if (found == peers_.end() || !found->second.told || current_ == nullptr) return Posted::kNoPeer;
  Peer& peer = found->second;
  const JobKey key = transfer->job;
  Job job;
  job.peer = transfer->peer;
  job.blocks = transfer->target_blocks;
  job.life = peer.life;
  if (peer.agent == current_ && peer.reached) {
    job.agent = current_;
    job.staged = peer.staged;
    const Posted posted = current_->path->Post(std::move(transfer));
    if (posted == Posted::kTaken) jobs_[key] = std::move(job);
    return posted;
  }
  // Its agent has gone: the new one reaches it first.
  const BootNanos deadline = Later(clock_(), limits_.cut);
  job.waiting = std::move(transfer);
  jobs_[key] = std::move(job);
  peer.waiting.push_back(key);
  if (peer.agent != current_) {
    peer.deadline = deadline;
    Assign(found->first, &peer);
  }
  return Posted::kTaken;
}

void NixlAgents::Cancel(JobKey key) {
  const auto found = jobs_.find(key);
  if (found == jobs_.end()) return;
  Job& job = found->second;
  if (job.cancelled == 0) job.cancelled = clock_();
  if (job.agent != nullptr) return job.agent->path->Cancel(key);
  const auto peer = peers_.find(job.peer);
  if (peer != peers_.end()) std::erase(peer->second.waiting, key);
  EndJob(key, false);
}

void NixlAgents::Release(PeerKey key) {
  const auto found = peers_.find(key);
  if (found == peers_.end()) return;
  Peer& peer = found->second;
  EndWaiting(&peer);
  if (peer.agent != nullptr) peer.agent->path->Release(key);
  // A reach that is not told is, by its agent.
  if (peer.told) peers_.erase(found);
}

void NixlAgents::Grant(LeaseKey lease, const StagedGrant& grant) {
  grants_[lease] = grant;
  for (const auto& agent : agents_) agent->path->Grant(lease, grant);
}

void NixlAgents::EndLease(LeaseKey lease) {
  grants_.erase(lease);
  for (const auto& agent : agents_) agent->path->EndLease(lease);
}

void NixlAgents::Serve(bool leases_out) {
  leases_out_ = leases_out;
  for (const auto& agent : agents_) agent->path->Serve(leases_out);
}

void NixlAgents::EndBy(BootNanos deadline) {
  end_by_ = deadline;
  for (const auto& agent : agents_) agent->path->EndBy(deadline);
}

BootNanos NixlAgents::Next() const {
  const bool watches =
      std::any_of(agents_.begin(), agents_.end(), [this](const auto& agent) { return Watched(*agent); });
  const BootNanos look = watches ? Later(looked_, Tick()) : kNever;
  return end_by_ == kNever ? look : std::min(look, Later(end_by_, kEndNanos));
}

bool NixlAgents::Watched(const Agent& agent) const {
  if (agent.state != State::kServing || leases_out_ || !jobs_.empty()) return true;
  if (agent.path->slots().stuck) return true;
  return std::any_of(peers_.begin(), peers_.end(), [&agent](const auto& entry) {
    return entry.second.agent == &agent && !entry.second.reached;
  });
}

size_t NixlAgents::JobsOf(const Agent* agent) const {
  return static_cast<size_t>(std::count_if(
      jobs_.begin(), jobs_.end(), [agent](const auto& entry) { return entry.second.agent == agent; }));
}

void NixlAgents::Poll(std::vector<PathEvent>* events) {
  std::vector<PathEvent> seen;
  for (size_t at = 0; at < agents_.size(); ++at) {
    Agent* agent = agents_[at].get();
    seen.clear();
    agent->path->Poll(&seen);
    if (!agent->open && agent->path->phase() == NixlAgentPath::Phase::kOpen) {
      agent->open = true;
      descriptor_ = agent->path->Descriptor();
      PathEvent renewed;
      renewed.kind = PathEvent::Kind::kRenewed;
      events_.push_back(renewed);
    }
    for (const PathEvent& event : seen) Take(agent, event);
  }
  const BootNanos now = clock_();
  if (now >= Next()) Look(now);
  TellSlots();
  events->insert(events->end(), events_.begin(), events_.end());
  events_.clear();
}

void NixlAgents::Take(Agent* agent, const PathEvent& event) {
  switch (event.kind) {
    case PathEvent::Kind::kReached:
      OnReached(agent, event);
      break;
    case PathEvent::Kind::kQuiet:
      if (jobs_.erase(event.key) > 0) events_.push_back(event);
      if (agent->state == State::kWedged) Tell();
      break;
    case PathEvent::Kind::kPeerDead:
    case PathEvent::Kind::kStalled:
    case PathEvent::Kind::kFailed:
    case PathEvent::Kind::kRenewed:
      events_.push_back(event);
      break;
  }
}

void NixlAgents::OnReached(Agent* agent, const PathEvent& event) {
  const auto found = peers_.find(event.key);
  const bool ok = event.reached == ReachStatus::kOk;
  if (found == peers_.end() || found->second.agent != agent) {
    // Another agent has it now, or nobody.
    if (ok) agent->path->Release(event.key);
    return;
  }
  Peer& peer = found->second;
  peer.reached = ok;
  peer.staged = event.path == PathKind::kNixlStaged;
  if (!peer.told) events_.push_back(event);
  if (!ok) {
    EndWaiting(&peer);
    if (!peer.told)
      peers_.erase(found);
    else
      peer.agent = nullptr;
    return;
  }
  peer.told = true;
  for (const JobKey key : std::exchange(peer.waiting, {})) {
    Job& job = jobs_[key];
    job.agent = agent;
    job.staged = peer.staged;
    if (agent->path->Post(std::move(job.waiting)) != Posted::kTaken) EndJob(key, false);
  }
}

void NixlAgents::EndWaiting(Peer* peer) {
  for (const JobKey key : std::exchange(peer->waiting, {})) EndJob(key, false);
}

void NixlAgents::EndJob(JobKey key, bool complete) {
  if (jobs_.erase(key) > 0) events_.push_back(Quiet(key, complete));
}

// A look that comes far too late was made by a process that had stood still itself: it proves nothing of
// others.
void NixlAgents::Look(BootNanos now) {
  const bool trusted = now - looked_ < 2 * Tick();
  looked_ = now;
  for (size_t at = 0; at < agents_.size(); ++at) LookAt(agents_[at].get(), trusted);
  EndStuck(now);
  EndRetired(now);
  if (end_by_ != kNever && now >= Later(end_by_, kEndNanos)) GiveUp();
}

void NixlAgents::LookAt(Agent* agent, bool trusted) {
  const NixlAgentPath::Phase phase = agent->path->phase();
  if (phase == NixlAgentPath::Phase::kFailed) return Wedge(agent);
  const uint64_t beats = agent->path->beats();
  const bool moved = beats != agent->beats;
  agent->beats = beats;
  if (moved || !trusted || phase == NixlAgentPath::Phase::kOpening || !Watched(*agent)) {
    agent->still = 0;
  } else {
    ++agent->still;
  }
  if (agent->state == State::kWedged) {
    EndAbandoned(agent);
    // It has come back after all, and lets its jobs go.
    if (moved && JobsOf(agent) == 0) {
      --wedged_;
      ++retired_;
      agent->state = State::kRetiring;
      agent->retired = looked_;
      Tell();
    }
  } else if (agent->still >= kLooks) {
    Wedge(agent);
  }
}

void NixlAgents::EndStuck(BootNanos now) {
  for (const auto& [key, job] : jobs_) {
    if (job.cancelled == 0 || job.agent == nullptr || job.agent->state == State::kWedged) continue;
    const auto life = job.life ? job.life->Ask() : PeerLife::State::kAlive;
    if (now - job.cancelled < limits_.Of(life)) continue;
    if (job.agent->state == State::kServing) return Retire(job.agent);
  }
  if (current_ != nullptr && current_->path->slots().stuck) Retire(current_);
}

void NixlAgents::EndRetired(BootNanos now) {
  for (size_t at = 0; at < agents_.size();) {
    Agent* agent = agents_[at].get();
    ++at;
    if (agent->state != State::kRetiring || agent->still > 0) continue;
    size_t jobs = 0;
    bool working = false;
    for (const auto& [key, job] : jobs_) {
      if (job.agent != agent) continue;
      ++jobs;
      working = working || job.cancelled == 0;
    }
    const bool late = now - agent->retired >= limits_.grace;
    if (jobs > 0) {
      const bool end = (!working || late) && !agent->ending;
      agent->ending = agent->ending || end;
      if (end) agent->path->EndBy(now);
      continue;
    }
    // Who reads from here was told of the new agent; what has begun goes on.
    if (leases_out_ && now - agent->retired < limits_.serve) continue;
    // Ending an agent takes a while.
    std::shared_ptr<NixlAgentPath> path = std::move(agent->path);
    auto thread = StartThread("kvt-nixl-end", [path]() mutable { path.reset(); });
    path.reset();
    if (thread) ending_.push_back(std::move(*thread));
    --at;
    agents_.erase(agents_.begin() + static_cast<std::ptrdiff_t>(at));
  }
}

void NixlAgents::Wedge(Agent* agent) {
  if (agent->state == State::kWedged) return;
  const bool serving = agent->state == State::kServing;
  agent->state = State::kWedged;
  ++wedged_;
  for (auto& [key, job] : jobs_) {
    if (job.agent != agent) continue;
    // Should it come back, it begins nothing more for them.
    agent->path->Cancel(key);
    if (job.staged) continue;
    if (std::exchange(job.failed, true)) continue;
    PathEvent failed;
    failed.kind = PathEvent::Kind::kFailed;
    failed.path = PathKind::kNixlDirect;
    failed.key = key;
    events_.push_back(failed);
  }
  EndAbandoned(agent);
  if (serving) {
    if (wedged_ <= limits_.replacements) {
      OpenNext();
    } else {
      current_ = nullptr;
      exhausted_ = true;
      // Nothing comes in its place, which is to be known too.
      PathEvent renewed;
      renewed.kind = PathEvent::Kind::kRenewed;
      events_.push_back(renewed);
    }
    Leave(agent);
  }
  Tell();
}

// Its reads of these end in slots, whenever they do; only copies out of those could touch a block.
void NixlAgents::EndAbandoned(Agent* agent) {
  if (!agent->path->Abandon()) return;
  std::vector<JobKey> staged;
  for (const auto& [key, job] : jobs_) {
    if (job.agent == agent && job.staged) staged.push_back(key);
  }
  for (const JobKey key : staged) EndJob(key, false);
  if (!staged.empty()) Tell();
}

void NixlAgents::Retire(Agent* agent) {
  agent->state = State::kRetiring;
  agent->retired = clock_();
  ++retired_;
  OpenNext();
  Leave(agent);
  Tell();
}

void NixlAgents::OpenNext() {
  current_ = nullptr;
  if (end_by_ != kNever) return;
  auto path = open_(++opened_);
  if (!path) {
    exhausted_ = true;
    return;
  }
  agents_.push_back(std::make_unique<Agent>());
  current_ = agents_.back().get();
  current_->path = std::move(path);
  current_->path->Serve(leases_out_);
  for (const auto& [lease, grant] : grants_) current_->path->Grant(lease, grant);
}

void NixlAgents::Leave(Agent* agent) {
  std::vector<PeerKey> begun;
  for (auto& [key, peer] : peers_) {
    if (peer.agent != agent) continue;
    peer.agent = nullptr;
    if (!peer.told || !peer.waiting.empty()) begun.push_back(key);
  }
  for (const PeerKey key : begun) Assign(key, &peers_[key]);
}

// The plane closes and waits for nobody any more: what a wedged agent holds is never used again, so its jobs
// count as quiet, and it keeps its memory.
void NixlAgents::GiveUp() {
  end_by_ = kNever;
  for (const auto& agent : agents_) {
    if (JobsOf(agent.get()) > 0) agent->state = State::kWedged;
  }
  std::vector<JobKey> jobs;
  for (const auto& [key, job] : jobs_) jobs.push_back(key);
  for (const JobKey key : jobs) EndJob(key, false);
  for (const auto& [key, peer] : peers_) {
    if (!peer.told) events_.push_back(Unreached(key, ReachStatus::kReleased));
  }
  peers_.clear();
}

void NixlAgents::TellSlots() {
  uint64_t bytes = 0;
  for (const auto& agent : agents_) {
    if (agent->state != State::kWedged) bytes += agent->path->slots().quarantined;
  }
  if (std::exchange(told_slot_bytes_, bytes) != bytes) Tell();
}

void NixlAgents::Tell() {
  NixlAgentsReport::State state;
  for (const auto& agent : agents_) {
    if (agent->state != State::kWedged) continue;
    // Jobs of one transfer share their blocks.
    std::unordered_set<uint32_t> blocks;
    for (const auto& [key, job] : jobs_) {
      if (job.agent == agent.get()) blocks.insert(job.blocks.begin(), job.blocks.end());
    }
    state.wedged.push_back({agent->path->name(), blocks.size() * block_bytes_, agent->path->slots().all});
  }
  state.replaced = std::min(wedged_, limits_.replacements);
  state.retired = retired_;
  state.exhausted = exhausted_;
  state.quarantined_slot_bytes = told_slot_bytes_;
  report_->Set(std::move(state));
}

}  // namespace kvt
