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
// Receivers that may be told of chunks.
constexpr size_t kIntroducedMax = 128;
constexpr BootNanos kToldFor = 1'000 * kNanosPerMilli;
// Larger pieces are read straight: what a copy on both sides costs is more than what posting them does.
constexpr uint64_t kDirectPieceBytesMin = uint64_t{256} << 10;
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
  staged_.reset();
  jobs_.clear();
  reaches_.clear();
}

std::optional<Error> NixlWorker::Start() {
  nixl::AgentOptions chosen;
  chosen.name = options_.name;
  chosen.plugin = options_.plugin;
  chosen.progress_thread = options_.plugin != "UCX";
  auto agent = nixl::Agent::Open(options_.library, chosen);
  if (!agent.ok()) return agent.error();
  agent_ = std::move(agent.value());
  NixlDescriptor own;
  own.bytes = options_.pool->bytes();
  if (options_.direct) {
    own.address = AddressOf(options_.pool->data());
    auto pool = agent_->Register(nixl::MemoryKind::kDram, {{own.address, own.bytes, 0}});
    if (!pool.ok()) return pool.error();
    pool_ = std::move(pool.value());
  }
  if (options_.staging) {
    if (auto wrong = StartStaging(&own)) return wrong;
  }
  auto metadata = agent_->LocalMetadata();
  if (!metadata.ok()) return metadata.error();
  own.version = options_.library->version();
  own.plugin = options_.plugin;
  own.agent = options_.name;
  own.geometry = options_.geometry;
  own.blocks = options_.blocks;
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
  if (!options_.staging) return std::nullopt;
  // What reads land in is no part of what peers are told either.
  auto landing = agent_->Register(nixl::MemoryKind::kDram,
                                  {{AddressOf(slots_->receiver_slot(0)), slots_->side_bytes(), 0}});
  if (!landing.ok()) return landing.error();
  receiver_slots_ = std::move(landing.value());
  staged_ = std::unique_ptr<NixlStaged>(
      new NixlStaged(NixlStaged::Options{options_.geometry, options_.blocks, options_.pool, slots_,
                                         options_.crew, options_.staging->stall, options_.wake, descriptor_},
                     this));
  return std::nullopt;
}

std::optional<Error> NixlWorker::StartStaging(NixlDescriptor* own) {
  const StagingOptions& staging = *options_.staging;
  own->slots = staging.slots;
  own->slot_bytes = StagingSlotBytes(options_.geometry, staging.tokens);
  slots_ = StagingMemory::Create(own->slots, own->slot_bytes);
  if (!slots_) {
    return Error{ErrorCode::kPoolUnavailable,
                 "the system gives no memory for " + std::to_string(2 * own->slots) + " staging slots of " +
                     std::to_string(own->slot_bytes) + " bytes; lower max_tokens_in_buffer"};
  }
  own->slots_address = AddressOf(slots_->sender_slot(0));
  auto slots = agent_->Register(nixl::MemoryKind::kDram, {{own->slots_address, slots_->side_bytes(), 0}});
  if (!slots.ok()) return slots.error();
  sender_slots_ = std::move(slots.value());
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
  std::optional<PairPlans> plans;
  if (descriptor) {
    plans = PairPlans::Compile({descriptor->geometry}, {options_.geometry}, &why);
    if (!plans) status = ReachStatus::kBadDescriptor;
  }
  NixlPeer found;
  if (status == ReachStatus::kOk) {
    found.agent = descriptor->agent;
    found.plans = std::move(*plans);
    found.blocks = descriptor->blocks;
    found.address = descriptor->address;
    found.life = life;
    status = Pair(*descriptor, &found);
  }
  if (status == ReachStatus::kOk && !IsThere(life)) status = ReachStatus::kNixlFailed;
  if (status == ReachStatus::kOk) status = Load(*descriptor);
  if (status == ReachStatus::kOk) {
    reach->found = std::make_shared<const NixlPeer>(std::move(found));
    reach->introduced = !reach->found->staged;
    remotes_[descriptor->agent].life = std::move(life);
    ++remotes_[descriptor->agent].users;
    remotes_[descriptor->agent].told = BootNow();
    peers_[peer] = descriptor->agent;
    // The other side wakes up for it.
    (void)Notify(descriptor->agent,
                 reach->introduced ? kWarmUp : EncodeStaged(StagedMessage::Introduce{descriptor_}));
    const bool slots = reach->found->staged != nullptr;
    const uint64_t far = slots ? descriptor->slots_address : descriptor->address;
    const size_t warm_up_bytes =
        std::min<uint64_t>(kWarmUpBytes, slots ? descriptor->slot_bytes : descriptor->bytes);
    auto flight = Fly(descriptor->agent, {{AddressOf(scratch_.data()), warm_up_bytes, 0}},
                      {{far, warm_up_bytes, 0}}, std::nullopt);
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

ReachStatus NixlWorker::Pair(const NixlDescriptor& descriptor, NixlPeer* peer) const {
  const bool direct = options_.direct && descriptor.address != 0;
  const bool staged = staged_ && descriptor.slots > 0;
  if (!direct && !staged) return ReachStatus::kNoCommonPath;
  if (direct && (!staged || peer->plans.all->PieceBytes() >= kDirectPieceBytesMin)) return ReachStatus::kOk;
  std::string why;
  auto source = staged_->SourceOf(descriptor, &why);
  if (source) peer->staged = std::make_shared<const StagedSource>(std::move(*source));
  return source || direct ? ReachStatus::kOk : ReachStatus::kBadDescriptor;
}

PeerLife::State NixlWorker::Life(const std::string& agent) const {
  const auto found = remotes_.find(agent);
  if (found == remotes_.end()) return PeerLife::State::kDead;
  return found->second.life ? found->second.life->Ask() : PeerLife::State::kAlive;
}

bool NixlWorker::Notify(const std::string& agent, std::span<const uint8_t> bytes) {
  if (!agent_ || Life(agent) != PeerLife::State::kAlive) return false;
  Recover(agent);
  const bool told = agent_->Notify(agent, bytes) == nixl::Status::kSuccess;
  if (!told) remotes_[agent].broken = true;
  return told;
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
  ++remotes_loaded_;
  auto name = agent_->LoadRemote(descriptor.metadata);
  // Metadata that name another agent than their descriptor does are nobody's we know.
  if (!name.ok() || name.value() != descriptor.agent) return ReachStatus::kNixlFailed;
  remotes_[descriptor.agent].metadata = descriptor.metadata;
  return ReachStatus::kOk;
}

std::optional<NixlWorker::Flight> NixlWorker::Fly(const std::string& agent,
                                                  const std::vector<nixl::Piece>& own,
                                                  const std::vector<nixl::Piece>& far,
                                                  std::optional<std::vector<uint8_t>> notification) {
  Flight flight;
  auto own_list = agent_->Prepare("", nixl::MemoryKind::kDram, own);
  if (!own_list.ok()) return std::nullopt;
  auto far_list = agent_->Prepare(agent, nixl::MemoryKind::kDram, far);
  if (!far_list.ok()) return std::nullopt;
  const std::vector<int32_t> indices = FirstIndices(own.size());
  auto request = agent_->Make(nixl::Operation::kRead, *own_list.value(), indices, *far_list.value(), indices,
                              {std::move(notification), false});
  if (!request.ok()) return std::nullopt;
  flight.own = std::move(own_list.value());
  flight.far = std::move(far_list.value());
  flight.request = std::move(request.value());
  for (const nixl::Piece& piece : own) flight.bytes += piece.bytes;
  const nixl::Status posted = flight.request->Post();
  if (beats_ != nullptr) beats_->fetch_add(1, std::memory_order_relaxed);
  if (posted != nixl::Status::kSuccess && posted != nixl::Status::kInProgress) return std::nullopt;
  return flight;
}

void NixlWorker::Post(std::shared_ptr<const NixlPeer> peer, std::unique_ptr<Transfer> transfer) {
  ++remotes_[peer->agent].users;
  if (peer->staged) {
    staged_jobs_[transfer->job] = peer->agent;
    // A sender that serves many forgets those that were silent.
    const BootNanos now = BootNow();
    if (now - std::exchange(remotes_[peer->agent].told, now) > kToldFor) {
      (void)Notify(peer->agent, EncodeStaged(StagedMessage::Introduce{descriptor_}));
    }
    staged_->Post(peer->agent, peer->staged, std::move(transfer));
    return;
  }
  std::shared_ptr<const Plan> plan = peer->plans.For(transfer->replicated);
  jobs_.push_back(std::make_unique<Job>(std::move(peer), std::move(plan), std::move(transfer),
                                        AddressOf(options_.pool->data())));
}

void NixlWorker::Grant(LeaseKey lease, StagedGrant grant) {
  if (staged_) staged_->Grant(lease, std::move(grant));
}

void NixlWorker::EndLease(LeaseKey lease) {
  if (staged_) staged_->EndLease(lease);
}

void NixlWorker::Cancel(JobKey key) {
  for (const auto& job : jobs_) {
    if (job->cutter.transfer().job == key) job->stopped = true;
  }
  if (staged_) staged_->Cancel(key);
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
  const bool broken = remotes_[agent].broken;
  if (agent_ && staged_ && !broken) (void)Notify(agent, EncodeStaged(StagedMessage::Leave{}));
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
    for (const nixl::Notification& one : heard.value()) Hear(one);
  }
  if (staged_) moved = StepStaged(events) || moved;
  return moved;
}

bool NixlWorker::StepStaged(std::vector<PathEvent>* events) {
  const size_t before = events->size();
  std::vector<LeaseKey> stalled;
  const bool moved = staged_->Step(events, &stalled);
  for (const LeaseKey lease : stalled) {
    PathEvent event;
    event.kind = PathEvent::Kind::kStalled;
    event.key = lease;
    events->push_back(event);
  }
  for (size_t at = before; at < events->size(); ++at) {
    const auto job = staged_jobs_.find((*events)[at].key);
    if ((*events)[at].kind != PathEvent::Kind::kQuiet || job == staged_jobs_.end()) continue;
    const std::string agent = job->second;
    staged_jobs_.erase(job);
    Unuse(agent);
  }
  return moved;
}

void NixlWorker::Hear(const nixl::Notification& heard) {
  if (!staged_) return;
  const auto message = DecodeStaged(heard.bytes);
  if (!message) return;
  if (const auto* introduce = std::get_if<StagedMessage::Introduce>(&*message)) {
    return Introduce(heard.agent, introduce->descriptor);
  }
  if (std::holds_alternative<StagedMessage::Introduced>(*message)) {
    for (const auto& reach : reaches_) {
      if (reach->found && reach->found->agent == heard.agent) reach->introduced = true;
    }
    return;
  }
  if (std::holds_alternative<StagedMessage::Leave>(*message)) return EndIntroduction(heard.agent);
  staged_->Hear(heard.agent, *message);
}

// A receiver that has our descriptor gives us its own, so that it can be told of chunks.
void NixlWorker::Introduce(const std::string& agent, std::span<const uint8_t> bytes) {
  const auto descriptor = DecodeNixlDescriptor(bytes);
  if (!descriptor || descriptor->agent != agent || Load(*descriptor) != ReachStatus::kOk) return;
  Remote& remote = remotes_[agent];
  if (!remote.introduced) {
    remote.introduced = true;
    ++remote.users;
  }
  std::erase(introduced_, agent);
  introduced_.push_back(agent);
  (void)staged_->Serve(*descriptor);
  for (size_t at = 0; introduced_.size() > kIntroducedMax && at < introduced_.size();) {
    const std::string oldest = introduced_[at];
    if (staged_->Uses(oldest)) {
      ++at;
    } else {
      EndIntroduction(oldest);
    }
  }
}

void NixlWorker::EndIntroduction(const std::string& agent) {
  const auto found = remotes_.find(agent);
  if (found == remotes_.end() || !found->second.introduced || staged_->Uses(agent)) return;
  found->second.introduced = false;
  std::erase(introduced_, agent);
  staged_->EndServe(agent);
  Unuse(agent);
}

void NixlWorker::TearDown(std::vector<PathEvent>* events, std::vector<Reached>* reached) {
  for (const auto& reach : reaches_) reached->push_back({reach->peer, ReachStatus::kReleased, nullptr});
  reaches_.clear();
  for (const auto& job : jobs_) {
    job->flights.clear();
    job->stopped = true;
  }
  if (staged_) staged_->TearDown(events);
  // Only its end makes it certain that no byte lands any more: a released request may still be in flight.
  sender_slots_.reset();
  receiver_slots_.reset();
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
    nixl::Status read = reach->flight.request->Check();
    if (read == nixl::Status::kSuccess && !reach->introduced) read = nixl::Status::kInProgress;
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
      job->wire.Add(TelemetryOf(flight));
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
  auto flight = Fly(job->peer->agent, chunk.own, chunk.far, std::nullopt);
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
  if (flying || (staged_ && staged_->Reads(agent))) return;
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
  event.wire = job.wire;
  return event;
}

}  // namespace kvt
