#include "paths/nixl_worker.h"

#include <algorithm>
#include <utility>

namespace kvt {
namespace {

constexpr size_t kWarmUpBytes = 64;
// Receivers that may be told of chunks.
constexpr size_t kIntroducedMax = 128;
constexpr BootNanos kToldFor = 1'000 * kNanosPerMilli;
// Larger pieces are read straight: what a copy on both sides costs is more than what posting them does.
constexpr uint64_t kDirectPieceBytesMin = uint64_t{256} << 10;
const std::vector<uint8_t> kWarmUp = {'k', 'v', 't', '-', 'w', 'a', 'r', 'm'};

bool IsThere(const std::shared_ptr<const PeerLife>& life) {
  return !life || life->Ask() == PeerLife::State::kAlive;
}

}  // namespace

Result<std::unique_ptr<NixlWorker>> NixlWorker::Open(Options options) {
  std::unique_ptr<NixlWorker> worker(new NixlWorker(std::move(options)));
  if (auto wrong = worker->Start()) return *wrong;
  return worker;
}

std::optional<Error> NixlWorker::Start() {
  nixl::AgentOptions chosen;
  chosen.name = options_.name;
  chosen.plugin = options_.plugin;
  chosen.progress_thread = options_.plugin != "UCX";
  auto agent = nixl::Agent::Open(options_.library, chosen);
  if (!agent.ok()) return agent.error();
  agent_ = std::move(agent.value());
  memory_ = std::make_unique<NixlMemory>();
  NixlDescriptor own;
  auto wrong =
      memory_->Share(agent_.get(), options_.geometry, options_.pool, options_.direct, options_.staging, &own);
  if (!wrong) wrong = Describe(std::move(own));
  if (!wrong) wrong = memory_->Land(agent_.get());
  if (!wrong) StartTransfers();
  return wrong;
}

std::optional<Error> NixlWorker::Describe(NixlDescriptor own) {
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
  return std::nullopt;
}

void NixlWorker::StartTransfers() {
  NixlRemotes::Options remotes;
  remotes.version = options_.library->version();
  remotes.plugin = options_.plugin;
  if (options_.staging) remotes.leave = EncodeStaged(StagedMessage::Leave{});
  remotes.flying = [this](const std::string& name) {
    return direct_->Reads(name) || (staged_ && staged_->Reads(name));
  };
  remotes_ = std::make_unique<NixlRemotes>(std::move(remotes), agent_.get());
  direct_ = std::make_unique<NixlDirect>(reinterpret_cast<uintptr_t>(options_.pool->data()), remotes_.get());
  if (!options_.staging) return;
  staged_ = std::make_unique<NixlStaged>(
      NixlStaged::Options{options_.geometry, options_.blocks, options_.pool, memory_->slots(), options_.crew,
                          options_.staging->stall, options_.gate, options_.wake, descriptor_},
      remotes_.get());
}

void NixlWorker::Reach(PeerKey peer, const std::vector<uint8_t>& descriptor, BootNanos deadline,
                       std::shared_ptr<const PeerLife> life) {
  auto reach = std::make_unique<RunningReach>();
  reach->peer = peer;
  reach->deadline = deadline;
  reach->status = agent_ ? BeginReach(reach.get(), descriptor, std::move(life)) : ReachStatus::kReleased;
  // One that has failed is told by the next step.
  if (reach->status != ReachStatus::kOk) {
    Release(peer);
    reach->found.reset();
  }
  reaches_.push_back(std::move(reach));
}

ReachStatus NixlWorker::BeginReach(RunningReach* reach, const std::vector<uint8_t>& bytes,
                                   std::shared_ptr<const PeerLife> life) {
  const auto descriptor = DecodeNixlDescriptor(bytes);
  if (!descriptor) return ReachStatus::kBadDescriptor;
  std::string why;
  auto plans = PairPlans::Compile({descriptor->geometry}, {options_.geometry}, &why);
  if (!plans) return ReachStatus::kBadDescriptor;
  const std::string& name = descriptor->agent;
  NixlPeer found{name, std::move(*plans), descriptor->blocks, descriptor->address, life, nullptr};
  if (const ReachStatus status = Pair(*descriptor, &found); status != ReachStatus::kOk) return status;
  if (!IsThere(life)) return ReachStatus::kNixlFailed;
  if (const ReachStatus status = remotes_->Load(*descriptor); status != ReachStatus::kOk) return status;
  const bool slots = found.staged != nullptr;
  reach->found = std::make_shared<const NixlPeer>(std::move(found));
  reach->introduced = !slots;
  remotes_->SetLife(name, std::move(life));
  remotes_->Use(name);
  remotes_->Told(name) = BootNow();
  if (!slots) SetGrid(*descriptor, *reach->found);
  peers_[reach->peer] = name;
  // The other side wakes up for it.
  (void)remotes_->Notify(name, slots ? EncodeStaged(StagedMessage::Introduce{descriptor_}) : kWarmUp);
  const uint64_t far = slots ? descriptor->slots_address : descriptor->address;
  const size_t size = std::min<uint64_t>(kWarmUpBytes, slots ? descriptor->slot_bytes : descriptor->bytes);
  auto flight = remotes_->Fly(name, {{memory_->scratch(), size, 0}}, {{far, size, 0}}, std::nullopt);
  if (!flight) return ReachStatus::kNixlFailed;
  reach->flight = std::move(*flight);
  return ReachStatus::kOk;
}

void NixlWorker::SetGrid(const NixlDescriptor& descriptor, const NixlPeer& peer) {
  const nixl::Piece own{reinterpret_cast<uintptr_t>(options_.pool->data()), options_.pool->bytes(), 0};
  const nixl::Piece far{descriptor.address, descriptor.bytes, 0};
  const auto grid = NixlGrid::Of(*peer.plans.all, descriptor.geometry, options_.geometry, own, far);
  if (grid) remotes_->SetGrid(peer.agent, *grid);
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

void NixlWorker::Post(std::shared_ptr<const NixlPeer> peer, std::unique_ptr<Transfer> transfer) {
  remotes_->Use(peer->agent);
  jobs_[transfer->job] = peer->agent;
  if (!peer->staged) return direct_->Post(std::move(peer), std::move(transfer));
  // A sender that serves many forgets those that were silent.
  const BootNanos now = BootNow();
  if (now - std::exchange(remotes_->Told(peer->agent), now) > kToldFor) {
    (void)remotes_->Notify(peer->agent, EncodeStaged(StagedMessage::Introduce{descriptor_}));
  }
  staged_->Post(peer->agent, peer->staged, std::move(transfer));
}

void NixlWorker::Grant(LeaseKey lease, StagedGrant grant) {
  if (staged_) staged_->Grant(lease, std::move(grant));
}

void NixlWorker::EndLease(LeaseKey lease) {
  if (staged_) staged_->EndLease(lease);
}

void NixlWorker::Cancel(JobKey key) {
  direct_->Cancel(key);
  if (staged_) staged_->Cancel(key);
}

void NixlWorker::Release(PeerKey peer) {
  for (const auto& reach : reaches_) {
    if (reach->peer == peer) reach->released = true;
  }
  const auto found = peers_.extract(peer);
  if (found) remotes_->Unuse(found.mapped());
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
  return StepTransfers(events) || moved;
}

bool NixlWorker::HearAll() {
  auto heard = agent_->TakeNotifications();
  if (!heard.ok() || heard.value().empty()) return false;
  last_heard_ = BootNow();
  for (const nixl::Notification& one : heard.value()) Hear(one);
  return true;
}

bool NixlWorker::StepTransfers(std::vector<PathEvent>* events) {
  const size_t before = events->size();
  std::vector<LeaseKey> stalled;
  bool moved = direct_->Step(events);
  if (agent_) moved = HearAll() || moved;
  if (agent_ && staged_) moved = staged_->Step(events, &stalled) || moved;
  for (const LeaseKey lease : stalled) {
    PathEvent event;
    event.kind = PathEvent::Kind::kStalled;
    event.key = lease;
    events->push_back(event);
  }
  for (size_t at = before; at < events->size(); ++at) {
    if ((*events)[at].kind != PathEvent::Kind::kQuiet) continue;
    const auto job = jobs_.extract((*events)[at].key);
    if (job) remotes_->Unuse(job.mapped());
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
  if (!descriptor || descriptor->agent != agent) return;
  if (remotes_->Load(*descriptor) != ReachStatus::kOk) return;
  if (std::erase(introduced_, agent) == 0) remotes_->Use(agent);
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
  if (staged_->Uses(agent) || std::erase(introduced_, agent) == 0) return;
  staged_->EndServe(agent);
  remotes_->Unuse(agent);
}

void NixlWorker::TearDown(std::vector<PathEvent>* events, std::vector<Reached>* reached) {
  for (const auto& reach : reaches_) reached->push_back({reach->peer, ReachStatus::kReleased, nullptr});
  reaches_.clear();
  direct_->DropFlights();
  if (staged_) staged_->TearDown(events);
  remotes_->AgentEnded();
  // Only its end makes it certain that no byte lands any more: a released request may still be in flight.
  memory_.reset();
  agent_.reset();
  (void)direct_->Step(events);
}

// True when it has ended.
bool NixlWorker::StepReach(RunningReach* reach, std::vector<Reached>* reached) {
  ReachStatus status = ReachStatus::kOk;
  if (!reach->found) {
    status = reach->status;
  } else {
    nixl::Status read = reach->flight.Check();
    if (read == nixl::Status::kSuccess && !reach->introduced) read = nixl::Status::kInProgress;
    const bool late = read == nixl::Status::kInProgress && BootNow() >= reach->deadline;
    if (read == nixl::Status::kInProgress && !late && !reach->released) return false;
    if (read != nixl::Status::kSuccess) status = late ? ReachStatus::kTimedOut : ReachStatus::kNixlFailed;
    // Its scratch may still be written: that holds nothing.
    if (status != ReachStatus::kOk) {
      if (late || read != nixl::Status::kInProgress) remotes_->Break(reach->found->agent);
      if (!reach->released) Release(reach->peer);
    }
  }
  if (reach->released && status == ReachStatus::kOk) status = ReachStatus::kReleased;
  reached->push_back({reach->peer, status, status == ReachStatus::kOk ? reach->found : nullptr});
  return true;
}

}  // namespace kvt
