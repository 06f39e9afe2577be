#include "paths/nixl_worker.h"

#include <algorithm>
#include <utility>

namespace kvt {
namespace {

constexpr size_t kScratchBytes = 4096;
constexpr size_t kWarmUpBytes = 64;
constexpr size_t kFlightsPerJob = 4;
// A peer that comes back within a while needs no new connection.
constexpr size_t kIdleRemotesMax = 32;
// How long a job waits for a new connection to its peer: dialling takes 250 ms.
constexpr BootNanos kCutNanosMax = 1'000 * kNanosPerMilli;
const std::vector<uint8_t> kWarmUp = {'k', 'v', 't', '-', 'w', 'a', 'r', 'm'};

std::vector<int32_t> FirstIndices(size_t count) {
  std::vector<int32_t> indices(count);
  for (size_t at = 0; at < count; ++at) indices[at] = static_cast<int32_t>(at);
  return indices;
}

bool IsThere(const std::shared_ptr<const PeerLife>& life) {
  return !life || life->Ask() == PeerLife::State::kAlive;
}

uint64_t AddressOf(const void* data) { return reinterpret_cast<uintptr_t>(data); }

}  // namespace

Result<std::unique_ptr<NixlWorker>> NixlWorker::Open(Options options) {
  std::unique_ptr<NixlWorker> worker(new NixlWorker(std::move(options)));
  if (auto wrong = worker->Start()) return *wrong;
  return worker;
}

// Requests go first: they use lists, memory and agent.
NixlWorker::~NixlWorker() {
  jobs_.clear();
  reaches_.clear();
}

std::optional<Error> NixlWorker::Start() {
  nixl::AgentOptions chosen;
  chosen.name = options_.name;
  chosen.plugin = options_.plugin;
  auto agent = nixl::Agent::Open(options_.library, chosen);
  if (!agent.ok()) return agent.error();
  agent_ = std::move(agent.value());
  auto pool = agent_->Register(nixl::MemoryKind::kDram, {{AddressOf(options_.pool), options_.pool_bytes, 0}});
  if (!pool.ok()) return pool.error();
  pool_ = std::move(pool.value());
  auto metadata = agent_->LocalMetadata();
  if (!metadata.ok()) return metadata.error();
  NixlDescriptor own;
  own.version = options_.library->version();
  own.plugin = options_.plugin;
  own.agent = options_.name;
  own.geometry = options_.geometry;
  own.blocks = options_.blocks;
  own.address = AddressOf(options_.pool);
  own.bytes = options_.pool_bytes;
  own.metadata = std::move(metadata.value());
  auto descriptor = EncodeNixlDescriptor(own);
  if (!descriptor) {
    return Error{ErrorCode::kNixlFailed, "NIXL agent " + options_.name + ": its metadata of " +
                                             std::to_string(own.metadata.size()) +
                                             " bytes are too large for a descriptor; choose fewer network "
                                             "devices with UCX_NET_DEVICES"};
  }
  descriptor_ = std::move(*descriptor);
  scratch_.resize(kScratchBytes);
  auto scratch = agent_->Register(nixl::MemoryKind::kDram, {{AddressOf(scratch_.data()), kScratchBytes, 0}});
  if (!scratch.ok()) return scratch.error();
  scratch_memory_ = std::move(scratch.value());
  return std::nullopt;
}

void NixlWorker::Reach(PeerKey peer, const std::vector<uint8_t>& bytes, BootNanos deadline,
                       std::shared_ptr<const PeerLife> life) {
  auto reach = std::make_unique<RunningReach>();
  reach->peer = peer;
  reach->deadline = deadline;
  if (!agent_) {
    reach->status = ReachStatus::kReleased;
    reaches_.push_back(std::move(reach));
    return;
  }
  const auto descriptor = DecodeNixlDescriptor(bytes);
  ReachStatus status = descriptor ? ReachStatus::kOk : ReachStatus::kBadDescriptor;
  std::string why;
  std::optional<Plan> plan;
  std::optional<Plan> rest;
  if (descriptor) {
    plan = Plan::Compile({descriptor->geometry}, {options_.geometry}, &why);
    rest = Plan::Compile({descriptor->geometry}, {options_.geometry}, &why, false);
    if (!plan || !rest) status = ReachStatus::kBadDescriptor;
  }
  if (status == ReachStatus::kOk && !IsThere(life)) status = ReachStatus::kNixlFailed;
  if (status == ReachStatus::kOk) status = Load(*descriptor);
  if (status == ReachStatus::kOk) {
    reach->found = std::make_shared<const NixlPeer>(
        NixlPeer{descriptor->agent, std::make_shared<const Plan>(std::move(*plan)),
                 std::make_shared<const Plan>(std::move(*rest)), descriptor->blocks, descriptor->address,
                 std::move(life)});
    ++remotes_[descriptor->agent].users;
    peers_[peer] = descriptor->agent;
    // The other side wakes up for it.
    (void)agent_->Notify(descriptor->agent, kWarmUp);
    const size_t warm_up_bytes = std::min<uint64_t>(kWarmUpBytes, descriptor->bytes);
    auto flight = Fly(descriptor->agent, {{AddressOf(scratch_.data()), warm_up_bytes, 0}},
                      {{descriptor->address, warm_up_bytes, 0}});
    if (flight) {
      reach->flight = std::move(*flight);
    } else {
      status = ReachStatus::kNixlFailed;
    }
  }
  // One that has failed is told by the next step.
  if (status != ReachStatus::kOk) {
    Release(peer);
    reach->status = status;
    reach->found.reset();
  }
  reaches_.push_back(std::move(reach));
}

ReachStatus NixlWorker::Load(const NixlDescriptor& descriptor) {
  const bool pair = descriptor.plugin == options_.plugin &&
                    NixlVersionsPair(descriptor.version, options_.library->version());
  if (!pair) return ReachStatus::kNixlVersions;
  const auto known = remotes_.find(descriptor.agent);
  if (known != remotes_.end()) {
    Remote& remote = known->second;
    if (remote.broken) Recover(descriptor.agent);
    if (remote.broken) return ReachStatus::kNixlFailed;
    if (remote.metadata == descriptor.metadata) return ReachStatus::kOk;
  }
  auto name = agent_->LoadRemote(descriptor.metadata);
  // Metadata that name another agent than their descriptor does are nobody's we know.
  if (!name.ok() || name.value() != descriptor.agent) return ReachStatus::kNixlFailed;
  remotes_[descriptor.agent].metadata = descriptor.metadata;
  return ReachStatus::kOk;
}

std::optional<NixlWorker::Flight> NixlWorker::Fly(const std::string& agent,
                                                  const std::vector<nixl::Piece>& own,
                                                  const std::vector<nixl::Piece>& far) {
  Flight flight;
  auto own_list = agent_->Prepare("", nixl::MemoryKind::kDram, own);
  if (!own_list.ok()) return std::nullopt;
  auto far_list = agent_->Prepare(agent, nixl::MemoryKind::kDram, far);
  if (!far_list.ok()) return std::nullopt;
  const std::vector<int32_t> indices = FirstIndices(own.size());
  auto request = agent_->Make(nixl::Operation::kRead, *own_list.value(), indices, *far_list.value(), indices,
                              {std::nullopt, false});
  if (!request.ok()) return std::nullopt;
  flight.own = std::move(own_list.value());
  flight.far = std::move(far_list.value());
  flight.request = std::move(request.value());
  for (const nixl::Piece& piece : own) flight.bytes += piece.bytes;
  const nixl::Status posted = flight.request->Post();
  if (posted != nixl::Status::kSuccess && posted != nixl::Status::kInProgress) return std::nullopt;
  return flight;
}

void NixlWorker::Post(std::shared_ptr<const NixlPeer> peer, std::unique_ptr<Transfer> transfer) {
  std::shared_ptr<const Plan> plan = peer->PlanFor(*transfer);
  jobs_.push_back(
      std::make_unique<Job>(std::move(peer), std::move(plan), std::move(transfer), AddressOf(options_.pool)));
  ++remotes_[jobs_.back()->peer->agent].users;
}

void NixlWorker::Cancel(JobKey key) {
  for (const auto& job : jobs_) {
    if (job->cutter.transfer().job == key) job->stopped = true;
  }
}

void NixlWorker::Release(PeerKey peer) {
  for (const auto& reach : reaches_) {
    if (reach->peer == peer) reach->released = true;
  }
  const auto found = peers_.find(peer);
  if (found == peers_.end()) return;
  const std::string agent = found->second;
  peers_.erase(found);
  Unuse(agent);
}

void NixlWorker::Unuse(const std::string& agent) {
  const auto found = remotes_.find(agent);
  if (found == remotes_.end() || --found->second.users > 0) return;
  if (found->second.broken) return ForgetIdle(agent);
  idle_remotes_.push_back(agent);
  while (idle_remotes_.size() > kIdleRemotesMax) {
    const std::string oldest = idle_remotes_.front();
    idle_remotes_.pop_front();
    const auto remote = remotes_.find(oldest);
    if (remote != remotes_.end() && remote->second.users == 0) ForgetIdle(oldest);
  }
}

void NixlWorker::ForgetIdle(const std::string& agent) {
  if (agent_) (void)agent_->Forget(agent);
  remotes_.erase(agent);
}

bool NixlWorker::Step(std::vector<PathEvent>* events, std::vector<Reached>* reached) {
  bool moved = false;
  for (size_t at = 0; at < reaches_.size();) {
    if (StepReach(reaches_[at].get(), reached)) {
      reaches_.erase(reaches_.begin() + static_cast<std::ptrdiff_t>(at));
      moved = true;
    } else {
      ++at;
    }
  }
  for (size_t at = 0; at < jobs_.size();) {
    Job& job = *jobs_[at];
    moved = StepJob(&job) || moved;
    if (job.stopped && job.flights.empty()) {
      events->push_back(EndOf(job));
      const std::string agent = job.peer->agent;
      jobs_.erase(jobs_.begin() + static_cast<std::ptrdiff_t>(at));
      Unuse(agent);
    } else {
      ++at;
    }
  }
  if (!agent_) return moved;
  auto heard = agent_->TakeNotifications();
  if (heard.ok() && !heard.value().empty()) {
    last_heard_ = BootNow();
    moved = true;
  }
  return moved;
}

void NixlWorker::TearDown(std::vector<PathEvent>* events, std::vector<Reached>* reached) {
  for (const auto& reach : reaches_) reached->push_back({reach->peer, ReachStatus::kReleased, nullptr});
  reaches_.clear();
  for (const auto& job : jobs_) {
    job->flights.clear();
    job->stopped = true;
  }
  // Only its end makes it certain that no byte lands any more: a released request may still be in flight.
  scratch_memory_.reset();
  pool_.reset();
  agent_.reset();
  for (const auto& job : jobs_) events->push_back(EndOf(*job));
  jobs_.clear();
}

// True when it has ended.
bool NixlWorker::StepReach(RunningReach* reach, std::vector<Reached>* reached) {
  ReachStatus status = ReachStatus::kOk;
  if (!reach->found) {
    status = reach->status;
  } else {
    const nixl::Status read = reach->flight.request->Check();
    const bool late = read == nixl::Status::kInProgress && BootNow() >= reach->deadline;
    if (read == nixl::Status::kInProgress && !late && !reach->released) return false;
    if (read != nixl::Status::kSuccess) status = late ? ReachStatus::kTimedOut : ReachStatus::kNixlFailed;
    // Its scratch may still be written: that holds nothing.
    if (status != ReachStatus::kOk) {
      remotes_[reach->found->agent].broken = late || read != nixl::Status::kInProgress;
      if (!reach->released) Release(reach->peer);
    }
  }
  if (reach->released && status == ReachStatus::kOk) status = ReachStatus::kReleased;
  reached->push_back({reach->peer, status, status == ReachStatus::kOk ? reach->found : nullptr});
  return true;
}

bool NixlWorker::StepJob(Job* job) {
  bool moved = false;
  for (size_t at = 0; at < job->flights.size();) {
    Flight& flight = job->flights[at];
    const nixl::Status status = flight.request->Check();
    if (status == nixl::Status::kInProgress) {
      ++at;
      continue;
    }
    moved = true;
    if (status == nixl::Status::kSuccess) {
      job->bytes += flight.bytes;
    } else {
      job->failed = true;
      job->stopped = true;
      remotes_[job->peer->agent].broken = true;
    }
    job->flights.erase(job->flights.begin() + static_cast<std::ptrdiff_t>(at));
  }
  const bool wants = !job->stopped && job->flights.size() < kFlightsPerJob;
  if (wants && MayPost(job)) moved = PostNext(job) || moved;
  return moved;
}

// A post to a dead peer may never return, so the kernel is asked before each. Over a new connection the job
// goes on where it was.
bool NixlWorker::MayPost(Job* job) {
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

bool NixlWorker::PostNext(Job* job) {
  if (job->started == 0) job->started = BootNow();
  NixlChunk chunk;
  if (!job->cutter.Next(&chunk)) {
    job->stopped = true;
    return true;
  }
  job->runs += chunk.runs;
  job->pieces += chunk.own.size();
  Recover(job->peer->agent);
  auto flight = Fly(job->peer->agent, chunk.own, chunk.far);
  if (flight) {
    job->flights.push_back(std::move(*flight));
  } else {
    job->failed = true;
    job->stopped = true;
    remotes_[job->peer->agent].broken = true;
  }
  return true;
}

// A connection that was cut is made anew for the next job; a peer that has died gives the next error.
void NixlWorker::Recover(const std::string& agent) {
  Remote& remote = remotes_[agent];
  if (!remote.broken) return;
  const bool flying = std::any_of(jobs_.begin(), jobs_.end(), [&agent](const std::unique_ptr<Job>& job) {
    return job->peer->agent == agent && !job->flights.empty();
  });
  if (flying) return;
  (void)agent_->Forget(agent);
  remote.broken = !agent_->LoadRemote(remote.metadata).ok();
}

PathEvent NixlWorker::EndOf(const Job& job) const {
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
  return event;
}

}  // namespace kvt
