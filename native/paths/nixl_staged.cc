#include "paths/nixl_staged.h"

#include <algorithm>

namespace kvt {
namespace {

// How long a read waits for a new connection to its peer: dialling takes 250 ms.
constexpr BootNanos kCutNanosMax = 1'000 * kNanosPerMilli;
// A post copies inline on shared memory and tcp, 0.3 ns a byte; and chunks of a transfer overlap only where
// there are several.
constexpr uint64_t kChunkBytesMax = uint64_t{8} << 20;
// No sequence is longer, and no sum of tokens overflows.
constexpr uint64_t kSequenceMax = uint64_t{1} << 40;

uint64_t AddressOf(const void* data) { return reinterpret_cast<uintptr_t>(data); }

}  // namespace

NixlStaged::NixlStaged(Options options, NixlWire* wire)
    : options_(std::move(options)),
      wire_(wire),
      copies_(options_.pool, options_.memory, options_.crew, options_.gate, options_.wake),
      sender_(options_.memory->slots(), options_.stall, this),
      receiver_(options_.memory->slots(), options_.stall, this) {}

NixlStaged::~NixlStaged() = default;

std::optional<StagedPair> NixlStaged::PairOf(const Geometry& source, const Geometry& target,
                                             uint64_t slot_bytes, bool pack, std::string* why) const {
  const auto staged = StagedGeometry({source}, {target}, slot_bytes);
  if (!staged) {
    *why = "a staging slot of " + std::to_string(slot_bytes) + " bytes holds no block";
    return std::nullopt;
  }
  const SourceGeometry from{pack ? source : *staged};
  const TargetGeometry to{pack ? *staged : target};
  auto plans = PairPlans::Compile(from, to, why);
  if (!plans) return std::nullopt;
  StagedPair pair;
  pair.block_bytes = staged->block_bytes;
  pair.shape.block_tokens = staged->tokens_per_block;
  const uint64_t blocks =
      std::min(slot_bytes / pair.block_bytes, std::max<uint64_t>(1, kChunkBytesMax / pair.block_bytes));
  pair.shape.tokens_max = blocks * staged->tokens_per_block;
  pair.plans = std::move(*plans);
  return pair;
}

std::optional<StagedSource> NixlStaged::SourceOf(const NixlDescriptor& descriptor, std::string* why) const {
  const uint64_t slot_bytes = std::min(descriptor.slot_bytes, options_.memory->slot_bytes());
  auto pair = PairOf(descriptor.geometry, options_.geometry, slot_bytes, false, why);
  if (!pair) return std::nullopt;
  return StagedSource{std::move(*pair), descriptor.slots_address, descriptor.slot_bytes, descriptor.slots};
}

bool NixlStaged::Serve(const NixlDescriptor& receiver) {
  std::string why;
  const uint64_t slot_bytes = std::min(receiver.slot_bytes, options_.memory->slot_bytes());
  // Chunks that are under way were cut by what it said first.
  if (!sender_.Serves(receiver.agent)) {
    auto pair = PairOf(options_.geometry, receiver.geometry, slot_bytes, true, &why);
    if (!pair) return false;
    receivers_[receiver.agent] = std::move(*pair);
  }
  Say(receiver.agent, StagedMessage::Introduced{});
  return true;
}

void NixlStaged::EndServe(const std::string& agent) { receivers_.erase(agent); }

void NixlStaged::Grant(LeaseKey lease, StagedGrant grant) {
  const Ticket ticket = grant.ticket;
  grants_[lease] = std::move(grant);
  sender_.Grant(lease, ticket);
}

void NixlStaged::EndLease(LeaseKey lease) {
  sender_.EndLease(lease);
  grants_.erase(lease);
}

void NixlStaged::Post(const std::string& agent, std::shared_ptr<const StagedSource> source,
                      std::unique_ptr<Transfer> transfer) {
  StagedMessage::Want want{transfer->job, transfer->ticket, transfer->tokens, transfer->replicated};
  // Nothing of what no window reaches.
  const uint64_t live = options_.geometry.LiveFrom(want.tokens.sequence);
  want.tokens.from = std::min(want.tokens.to, std::max(want.tokens.from, live));
  pulls_[want.job] = {std::move(source), std::move(transfer), 0, 0, {}};
  receiver_.Start(agent, want, BootNow());
}

void NixlStaged::Cancel(JobKey job) { receiver_.Cancel(job, BootNow()); }

void NixlStaged::Say(const std::string& agent, const StagedMessage::Any& message) {
  if (!wire_->Notify(agent, EncodeStaged(message))) lost_.push_back(agent);
}

void NixlStaged::Hear(const std::string& agent, const StagedMessage::Any& message) {
  using M = StagedMessage;
  const BootNanos now = BootNow();
  if (const auto* want = std::get_if<M::Want>(&message)) sender_.Want(agent, *want, now);
  if (const auto* done = std::get_if<M::ChunkDone>(&message)) sender_.Returned(agent, *done, now);
  if (const auto* stop = std::get_if<M::Stop>(&message)) sender_.Stop(agent, stop->job, now);
  if (const auto* chunk = std::get_if<M::Chunk>(&message)) receiver_.Chunk(agent, *chunk, now);
  if (const auto* refused = std::get_if<M::Refused>(&message)) receiver_.Refused(agent, refused->job, now);
}

bool NixlStaged::Step(std::vector<PathEvent>* events, std::vector<LeaseKey>* stalled) {
  bool moved = false;
  for (const StagedCopies::End& end : copies_.Take()) {
    moved = true;
    if (end.side == StagedCopies::Side::kPack) {
      sender_.Packed(end.slot, BootNow());
    } else {
      const auto pull = pulls_.find(unpacking_[end.slot]);
      if (pull != pulls_.end()) {
        pull->second.runs += end.runs;
        pull->second.pieces += end.pieces;
      }
      receiver_.Unpacked(end.slot, end.whole, BootNow());
    }
  }
  std::vector<std::pair<uint32_t, bool>> ended;
  for (auto& [slot, read] : reads_) {
    const nixl::Status status = StepRead(&read);
    if (status != nixl::Status::kInProgress) ended.emplace_back(slot, status == nixl::Status::kSuccess);
  }
  for (auto& [slot, read] : reads_) {
    if (read.given_up == 0 && receiver_.IsQuarantined(slot)) read.given_up = BootNow();
  }
  for (const auto& [slot, ok] : ended) {
    moved = true;
    const Read& read = reads_[slot];
    if (!ok) lost_.push_back(read.agent);
    const auto pull = pulls_.find(read.job);
    if (ok && pull != pulls_.end()) pull->second.wire.Add(TelemetryOf(*read.flight));
    reads_.erase(slot);
    receiver_.Read(slot, ok, BootNow());
  }
  const BootNanos now = BootNow();
  sender_.Expire(now);
  receiver_.Expire(now);
  for (const std::string& agent : std::exchange(lost_, {})) receiver_.Lost(agent, now);
  moved = moved || !events_.empty();
  events->insert(events->end(), events_.begin(), events_.end());
  events_.clear();
  stalled->insert(stalled->end(), stalled_.begin(), stalled_.end());
  stalled_.clear();
  return moved;
}

// A connection that was cut may be made anew: the read waits for it.
nixl::Status NixlStaged::StepRead(Read* read) {
  if (read->flight) return read->flight->Check();
  const PeerLife::State state = wire_->Life(read->agent);
  if (state == PeerLife::State::kDead) return nixl::Status::kBackend;
  if (state == PeerLife::State::kCut) {
    const BootNanos now = BootNow();
    if (read->cut_since == 0) read->cut_since = now;
    return now - read->cut_since < kCutNanosMax ? nixl::Status::kInProgress : nixl::Status::kBackend;
  }
  read->flight = wire_->Fly(read->agent, {read->own}, {read->far}, std::move(read->done));
  return read->flight ? nixl::Status::kInProgress : nixl::Status::kBackend;
}

bool NixlStaged::Stuck(const Read& read, BootNanos now) const {
  return read.given_up != 0 && now - read.given_up >= StuckReadLimits{}.Of(wire_->Life(read.agent));
}

SlotBytes NixlStaged::slots() const {
  const BootNanos now = BootNow();
  SlotBytes slots;
  slots.all = 2 * options_.memory->side_bytes();
  slots.quarantined = receiver_.quarantined() * options_.memory->slot_bytes();
  slots.stuck = slots.quarantined > 0 && std::any_of(reads_.begin(), reads_.end(), [&](const auto& entry) {
                  return Stuck(entry.second, now);
                });
  return slots;
}

void NixlStaged::TearDown(std::vector<PathEvent>* events) {
  reads_.clear();
  receiver_.TearDown(BootNow());
  events->insert(events->end(), events_.begin(), events_.end());
  events_.clear();
}

bool NixlStaged::Reads(const std::string& agent) const {
  return std::any_of(reads_.begin(), reads_.end(),
                     [&agent](const auto& entry) { return entry.second.agent == agent; });
}

// The slot as a pool of staged blocks: those of the chunk are its first.
std::vector<uint32_t> NixlStaged::SlotTable(const StagedPair& pair, const Tokens& tokens) const {
  const uint64_t first = tokens.from / pair.shape.block_tokens;
  const uint64_t all = (tokens.sequence + pair.shape.block_tokens - 1) / pair.shape.block_tokens;
  // A table that is too short lacks its first entries.
  std::vector<uint32_t> table(all - first, 0);
  const uint64_t used = pair.BlocksOf(tokens.from, tokens.to);
  for (uint64_t at = 0; at < used; ++at) table[at] = static_cast<uint32_t>(at);
  return table;
}

std::optional<ChunkShape> NixlStaged::Judge(const std::string& agent, LeaseKey lease,
                                            const StagedMessage::Want& want) {
  const auto receiver = receivers_.find(agent);
  const auto grant = grants_.find(lease);
  if (receiver == receivers_.end() || grant == grants_.end()) return std::nullopt;
  const Tokens& tokens = want.tokens;
  if (tokens.from >= tokens.to || tokens.to > tokens.sequence || tokens.sequence > kSequenceMax) {
    return std::nullopt;
  }
  // What the granted blocks hold; so a table of slots can't be longer than they allow.
  const uint64_t block_tokens = options_.geometry.tokens_per_block;
  const uint64_t count = grant->second.blocks.size();
  const uint64_t lacking = Lacking(count, tokens.sequence, block_tokens);
  if (tokens.from / block_tokens < lacking || tokens.to > (lacking + count) * block_tokens) {
    return std::nullopt;
  }
  return receiver->second.shape;
}

void NixlStaged::StartPack(uint32_t slot, const StagedSender::Session& session,
                           const StagedMessage::Chunk& chunk) {
  const StagedPair& pair = receivers_[session.job.agent];
  StagedCopies::Copy copy;
  copy.side = StagedCopies::Side::kPack;
  copy.slot = slot;
  copy.plan = pair.plans.For(session.want.replicated);
  copy.source_blocks = grants_[session.lease].blocks;
  copy.tokens = {chunk.from, chunk.to, session.want.tokens.sequence};
  copy.target_blocks = SlotTable(pair, copy.tokens);
  copies_.Start(std::move(copy));
}

bool NixlStaged::Fits(const StagedReceiver::Job& job, const StagedMessage::Chunk& chunk) {
  const StagedSource& source = *pulls_[job.id].source;
  return chunk.slot < source.slots &&
         source.pair.BlocksOf(chunk.from, chunk.to) * source.pair.shape.block_tokens <=
             source.pair.shape.tokens_max;
}

void NixlStaged::PostRead(uint32_t slot, const StagedReceiver::Job& job, const StagedMessage::Chunk& chunk) {
  const StagedSource& source = *pulls_[job.id].source;
  const uint64_t bytes = source.pair.BlocksOf(chunk.from, chunk.to) * source.pair.block_bytes;
  const nixl::Piece own{AddressOf(options_.memory->receiver_slot(slot)), bytes, 0};
  const nixl::Piece far{source.address + chunk.slot * source.slot_bytes, bytes, 0};
  // Posted by the next step.
  reads_[slot] = {job.agent, job.id, own, far, EncodeStaged(StagedMessage::ChunkDone{chunk.job, chunk.n}),
                  {},        0,      0};
}

void NixlStaged::StartUnpack(uint32_t slot, const StagedReceiver::Job& job,
                             const StagedMessage::Chunk& chunk) {
  const Pull& pull = pulls_[job.id];
  StagedCopies::Copy copy;
  copy.side = StagedCopies::Side::kUnpack;
  copy.slot = slot;
  copy.plan = pull.source->pair.plans.For(job.want.replicated);
  copy.tokens = {chunk.from, chunk.to, job.want.tokens.sequence};
  copy.source_blocks = SlotTable(pull.source->pair, copy.tokens);
  copy.target_blocks = pull.transfer->target_blocks;
  unpacking_[slot] = job.id;
  copies_.Start(std::move(copy));
}

void NixlStaged::Quiet(const StagedReceiver::Job& job, bool complete) {
  const auto pull = pulls_.find(job.id);
  const BootNanos now = BootNow();
  const BootNanos started = job.first_chunk != 0 ? job.first_chunk : now;
  PathEvent event;
  event.kind = PathEvent::Kind::kQuiet;
  event.path = PathKind::kNixlStaged;
  event.key = job.id;
  event.complete = complete;
  const Transfer& transfer = *pull->second.transfer;
  const auto& plan = pull->second.source->pair.plans.For(transfer.replicated);
  event.bytes = complete ? plan->Bytes(transfer.tokens) : 0;
  event.queued = started - transfer.posted;
  event.moving = now - started;
  event.runs = pull->second.runs;
  event.pieces = pull->second.pieces;
  event.wire = pull->second.wire;
  events_.push_back(event);
  pulls_.erase(pull);
}

}  // namespace kvt
