#include <algorithm>
#include <charconv>
#include <utility>

#include "addon/arguments.h"
#include "addon/error_value.h"
#include "addon/plane_object.h"
#include "addon/pool_span_external.h"
#include "memory/check_pattern.h"

namespace kvt {
namespace {

constexpr uint64_t kTokensMax = uint64_t{1} << 48;
constexpr uint64_t kLayerEndMax = 0xffffffff;

// A transfer id: 40 hex digits.
Ticket ReadTicket(Arguments* arguments, const Napi::Value& value) {
  const std::string text = arguments->Text(value, "transfer");
  Ticket ticket{};
  if (text.size() != 2 * ticket.size()) arguments->Fail("transfer", "must be 40 hex digits");
  for (size_t at = 0; at < ticket.size() && arguments->ok(); ++at) {
    const char* begin = text.data() + 2 * at;
    const auto [end, wrong] = std::from_chars(begin, begin + 2, ticket[at], 16);
    if (end != begin + 2 || wrong != std::errc{}) arguments->Fail("transfer", "must be 40 hex digits");
  }
  return ticket;
}

}  // namespace

bool PlaneObject::TakesWork() {
  if (plane_ && !closing_) return true;
  Napi::Error error = Napi::Error::New(env_, "the data plane is closed");
  error.Set("code", Napi::String::New(env_, "CLOSED"));
  error.ThrowAsJavaScriptException();
  return false;
}

bool PlaneObject::HasHostMemory(const char* what) {
  if (!plane_->gpu_pool()) return true;
  ToError(env_, "INVALID_ARGUMENT",
          std::string(what) + " is of pools in memory of the host; this one lies on a GPU")
      .ThrowAsJavaScriptException();
  return false;
}

void PlaneObject::Submit(Command::Kind kind, uint64_t id, BootNanos when) {
  Command command;
  command.kind = kind;
  command.id = id;
  command.when = when;
  plane_->Submit(std::move(command));
}

Napi::Value PlaneObject::Reach(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const uint64_t peer = arguments.Id(info[0], "peer");
  const auto bytes = arguments.Bytes(info[1], "descriptor");
  const double timeout = arguments.Millis(info[2], "timeoutMs");
  if (live_peers_.contains(peer))
    arguments.Fail("peer", std::to_string(peer) + " is in use; release it first");
  if (!arguments.ok() || !TakesWork()) return env_.Undefined();
  Command command;
  command.kind = Command::Kind::kReach;
  command.id = peer;
  command.descriptor.assign(bytes.begin(), bytes.end());
  command.when = Later(BootNow(), FromMillis(timeout));
  auto life = std::make_shared<PeerLife>();
  live_peers_[peer] = life;
  command.life = std::move(life);
  plane_->Submit(std::move(command));
  return env_.Undefined();
}

Napi::Value PlaneObject::ReleasePeer(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const uint64_t peer = arguments.Id(info[0], "peer");
  if (!arguments.ok() || !plane_ || closing_) return env_.Undefined();
  const auto live = live_peers_.find(peer);
  if (live != live_peers_.end()) {
    live->second->Disconnected();
    live_peers_.erase(live);
  }
  Submit(Command::Kind::kReleasePeer, peer);
  return env_.Undefined();
}

// At once, not when the owner comes to it: the peer sees the end of a connection only when nobody here has
// it.
Napi::Value PlaneObject::PeerConnected(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const uint64_t peer = arguments.Id(info[0], "peer");
  const bool over = info[1].IsNull();
  const uint64_t connection = over ? 0 : arguments.Integer(info[1], "connection", 0, 1 << 30);
  if (!arguments.ok() || !plane_ || closing_) return env_.Undefined();
  const auto live = live_peers_.find(peer);
  if (live == live_peers_.end()) return env_.Undefined();
  if (over) {
    live->second->Disconnected();
  } else if (plane_->options().nixl) {
    live->second->Connected(static_cast<int>(connection));
  }
  return env_.Undefined();
}

Napi::Value PlaneObject::Post(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const uint64_t job = arguments.Id(info[0], "job");
  const uint64_t peer = arguments.Id(info[1], "peer");
  const auto source = arguments.Uint32s(info[2], "sourceBlocks");
  const auto target = arguments.Uint32s(info[3], "targetBlocks");
  const uint64_t from = arguments.Integer(info[4], "fromToken", 0, kTokensMax);
  const uint64_t to = arguments.Integer(info[5], "toToken", 0, kTokensMax);
  const uint64_t sequence = arguments.Integer(info[6], "sequenceTokens", 0, kTokensMax);
  const bool replicated = arguments.Boolean(info[7], "replicated");
  const double deadline = arguments.Millis(info[8], "deadlineMs");
  const auto first_layer = static_cast<uint32_t>(arguments.Integer(info[9], "firstLayer", 0, kLayerEndMax));
  const auto end_layer = static_cast<uint32_t>(arguments.Integer(info[10], "endLayer", 0, kLayerEndMax));
  const Ticket ticket = info[11].IsUndefined() ? Ticket{} : ReadTicket(&arguments, info[11]);
  if (live_jobs_.contains(job)) arguments.Fail("job", std::to_string(job) + " is not quiet yet");
  if (!arguments.ok() || !TakesWork()) return env_.Undefined();
  auto transfer = std::make_unique<Transfer>();
  transfer->source_blocks.assign(source.begin(), source.end());
  transfer->target_blocks.assign(target.begin(), target.end());
  transfer->tokens = {from, to, sequence};
  transfer->replicated = replicated;
  transfer->layers = {first_layer, end_layer};
  transfer->ticket = ticket;
  transfer->posted = BootNow();
  Command command;
  command.kind = Command::Kind::kPost;
  command.id = job;
  command.peer = peer;
  command.when = FromMillis(deadline);
  command.transfer = std::move(transfer);
  live_jobs_.insert(job);
  plane_->Submit(std::move(command));
  return env_.Undefined();
}

Napi::Value PlaneObject::Digest(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const uint64_t digest = arguments.Id(info[0], "digest");
  const auto blocks = CheckedBlocks(info[1]);
  const auto ranges = arguments.Uint32s(info[2], "ranges");
  const auto part = arguments.Uint32s(info[3], "part");
  const uint64_t sequence = arguments.Integer(info[4], "sequenceTokens", 0, kTokensMax);
  if (env_.IsExceptionPending() || !arguments.ok() || !TakesWork()) return env_.Undefined();
  auto request = std::make_unique<DigestRequest>();
  request->table.assign(blocks.begin(), blocks.end());
  const Geometry& geometry = plane_->options().geometry;
  if (part.size() == 5) {
    request->part = {part[0], part[1], part[2], part[3], part[4] != 0};
  } else {
    arguments.Fail("part",
                   "must be first layer, layers, first head, heads, and 1 with groups of no head, else 0");
  }
  request->sequence = sequence;
  const uint64_t block_tokens = geometry.tokens_per_block;
  const uint64_t first = Lacking(blocks.size(), sequence, block_tokens) * block_tokens;
  const uint64_t last = first + blocks.size() * block_tokens;
  const uint64_t live = geometry.LiveFrom(sequence);
  if (ranges.size() % 2 != 0) arguments.Fail("ranges", "must hold pairs of tokens");
  for (size_t at = 0; at + 1 < ranges.size(); at += 2) {
    const TokenRange range{ranges[at], ranges[at + 1]};
    if (range.from >= range.to || range.to > last || std::max(live, range.from) < std::min(first, range.to)) {
      arguments.Fail("ranges", "has tokens " + std::to_string(range.from) + " to " +
                                   std::to_string(range.to) + " of blocks that hold " +
                                   std::to_string(first) + " to " + std::to_string(last));
    }
    request->ranges.push_back(range);
  }
  if (!arguments.ok()) return env_.Undefined();
  Command command;
  command.kind = Command::Kind::kDigest;
  command.id = digest;
  command.digest = std::move(request);
  plane_->Submit(std::move(command));
  return env_.Undefined();
}

Napi::Value PlaneObject::TakeDigests(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const uint64_t digest = arguments.Id(info[0], "digest");
  if (!arguments.ok()) return env_.Undefined();
  const auto digests = plane_ ? plane_->TakeDigests(digest) : std::vector<kvt::Digest>();
  const size_t bytes = digests.size() * sizeof(kvt::Digest);
  auto array = Napi::Uint8Array::New(env_, bytes);
  if (!env_.IsExceptionPending() && bytes > 0) memcpy(array.Data(), digests.data(), bytes);
  return array;
}

Napi::Value PlaneObject::Cancel(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const uint64_t job = arguments.Id(info[0], "job");
  if (arguments.ok() && plane_ && !closing_) Submit(Command::Kind::kCancel, job);
  return env_.Undefined();
}

Napi::Value PlaneObject::Grant(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const uint64_t lease = arguments.Id(info[0], "lease");
  const double duration = arguments.Millis(info[1], "durationMs");
  const bool opens = !info[2].IsUndefined();
  const Ticket ticket = opens ? ReadTicket(&arguments, info[2]) : Ticket{};
  const auto blocks = opens ? CheckedBlocks(info[3]) : std::span<const uint32_t>();
  if (env_.IsExceptionPending() || !arguments.ok() || !TakesWork()) return env_.Undefined();
  Command command;
  command.kind = Command::Kind::kGrant;
  // Only where a path packs them.
  if (opens && plane_->options().nixl && plane_->options().nixl->staging) {
    command.grant = std::make_unique<StagedGrant>();
    command.grant->ticket = ticket;
    command.grant->blocks.assign(blocks.begin(), blocks.end());
  }
  command.id = lease;
  command.duration = FromMillis(duration);
  command.when = Later(BootNow(), command.duration);
  plane_->Submit(std::move(command));
  return env_.Undefined();
}

Napi::Value PlaneObject::Renew(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const uint64_t seq = arguments.Id(info[0], "seq");
  const auto leases = arguments.Float64s(info[1], "leases");
  const bool whole = std::all_of(leases.begin(), leases.end(), [](double lease) {
    return lease >= 0 && lease < 9007199254740992.0 && lease == std::floor(lease);
  });
  if (!whole) arguments.Fail("leases", "must hold integers from 0 to 2^53 - 1");
  if (!arguments.ok() || !TakesWork()) return env_.Undefined();
  Command command;
  command.kind = Command::Kind::kRenew;
  command.id = seq;
  for (const double lease : leases) command.leases.push_back(static_cast<uint64_t>(lease));
  plane_->Submit(std::move(command));
  return env_.Undefined();
}

Napi::Value PlaneObject::DropLease(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const uint64_t lease = arguments.Id(info[0], "lease");
  if (arguments.ok() && plane_ && !closing_) Submit(Command::Kind::kDropLease, lease);
  return env_.Undefined();
}

Napi::Value PlaneObject::SetTimer(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const uint64_t timer = arguments.Id(info[0], "timer");
  const double at = arguments.Millis(info[1], "atMs");
  if (arguments.ok() && TakesWork()) Submit(Command::Kind::kSetTimer, timer, FromMillis(at));
  return env_.Undefined();
}

Napi::Value PlaneObject::ClearTimer(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const uint64_t timer = arguments.Id(info[0], "timer");
  if (arguments.ok() && plane_ && !closing_) Submit(Command::Kind::kClearTimer, timer);
  return env_.Undefined();
}

Napi::Value PlaneObject::Expect(const Napi::CallbackInfo&) {
  if (plane_ && !closing_ && plane_->options().hot > 0) Submit(Command::Kind::kExpect, 0);
  return env_.Undefined();
}

Napi::Value PlaneObject::Cork(const Napi::CallbackInfo&) {
  if (plane_) plane_->Cork();
  return env_.Undefined();
}

Napi::Value PlaneObject::Uncork(const Napi::CallbackInfo&) {
  if (plane_) plane_->Uncork();
  return env_.Undefined();
}

// Empty, with an exception pending, when one of the blocks doesn't exist.
std::span<const uint32_t> PlaneObject::CheckedBlocks(const Napi::Value& value) {
  Arguments arguments(env_);
  const auto blocks = arguments.Uint32s(value, "blocks");
  if (!TakesWork()) return {};
  for (const uint32_t block : blocks) {
    if (block >= plane_->options().blocks) {
      arguments.Fail("blocks", "names block " + std::to_string(block) + " of a pool of " +
                                   std::to_string(plane_->options().blocks));
    }
  }
  return arguments.ok() ? blocks : std::span<const uint32_t>();
}

Napi::Value PlaneObject::FillReleased(const Napi::CallbackInfo& info) {
  const auto blocks = CheckedBlocks(info[0]);
  if (blocks.empty() || !HasHostMemory("fillReleased")) return env_.Undefined();
  FillPattern(plane_->pool()->data(), plane_->options().geometry, blocks);
  return env_.Undefined();
}

Napi::Value PlaneObject::FindTouched(const Napi::CallbackInfo& info) {
  const auto blocks = CheckedBlocks(info[0]);
  if (env_.IsExceptionPending() || !HasHostMemory("findTouched")) return env_.Undefined();
  const int64_t block =
      blocks.empty() ? -1 : kvt::FindTouched(plane_->pool()->data(), plane_->options().geometry, blocks);
  return Napi::Number::New(env_, static_cast<double>(block));
}

Napi::Value PlaneObject::Stats(const Napi::CallbackInfo&) {
  const Statistics none;
  const Statistics& now = plane_ ? plane_->statistics() : none;
  Napi::Object stats = Napi::Object::New(env_);
  const auto set = [&](const char* name, uint64_t value) {
    stats.Set(name, Napi::Number::New(env_, static_cast<double>(value)));
  };
  const auto read = [](const std::atomic<uint64_t>& value) { return value.load(std::memory_order_relaxed); };
  set("jobsPosted", read(now.jobs_posted));
  set("jobsRunning", read(now.jobs_running));
  set("bytesMoved", read(now.bytes_moved));
  set("leasesHeld", read(now.leases_held));
  set("quarantinedJobs", read(now.quarantined_jobs));
  set("peersMapped", read(now.peers_mapped));
  set("ringHighWater", plane_ ? plane_->RingHighWater() : 0);
  return stats;
}

Napi::Value PlaneObject::Descriptor(const Napi::CallbackInfo&) {
  const auto bytes = plane_ ? plane_->descriptor() : std::vector<uint8_t>();
  auto array = Napi::Uint8Array::New(env_, bytes.size());
  if (!env_.IsExceptionPending() && !bytes.empty()) memcpy(array.Data(), bytes.data(), bytes.size());
  return array;
}

Napi::Value PlaneObject::NixlAgents(const Napi::CallbackInfo&) {
  if (!plane_ || !plane_->options().nixl) return env_.Null();
  const NixlAgentsReport::State now = plane_->nixl_report();
  Napi::Object report = Napi::Object::New(env_);
  Napi::Array wedged = Napi::Array::New(env_, now.wedged.size());
  for (uint32_t at = 0; at < now.wedged.size(); ++at) {
    Napi::Object agent = Napi::Object::New(env_);
    agent.Set("agent", now.wedged[at].agent);
    agent.Set("bytes", Napi::Number::New(env_, static_cast<double>(now.wedged[at].bytes)));
    agent.Set("slotBytes", Napi::Number::New(env_, static_cast<double>(now.wedged[at].slot_bytes)));
    wedged.Set(at, agent);
  }
  report.Set("wedged", wedged);
  report.Set("replaced", Napi::Number::New(env_, now.replaced));
  report.Set("retired", Napi::Number::New(env_, now.retired));
  report.Set("exhausted", Napi::Boolean::New(env_, now.exhausted));
  report.Set("quarantinedSlotBytes",
             Napi::Number::New(env_, static_cast<double>(now.quarantined_slot_bytes)));
  return report;
}

Napi::Value PlaneObject::Ref(const Napi::CallbackInfo&) {
  if (wake_js_ != nullptr && !closing_) napi_ref_threadsafe_function(env_, wake_js_);
  return env_.Undefined();
}

Napi::Value PlaneObject::Unref(const Napi::CallbackInfo&) {
  if (wake_js_ != nullptr && !closing_) napi_unref_threadsafe_function(env_, wake_js_);
  return env_.Undefined();
}

Napi::Value PlaneObject::Close(const Napi::CallbackInfo&) {
  if (closing_) return closing_->Promise();
  closing_ = Napi::Promise::Deferred::New(env_);
  for (const auto& [peer, life] : live_peers_) life->Disconnected();
  const Napi::Promise promise = closing_->Promise();
  if (!memory_.IsEmpty()) {
    memory_.Value().Detach();
    memory_.Reset();
  }
  if (span_) {
    // An engine that still works holds its own copy, and with it the mapping.
    *span_ = PoolSpan{};
    span_.reset();
    span_value_.Reset();
  }
  if (!plane_ || wake_js_ == nullptr) {
    closing_->Resolve(env_.Undefined());
    return promise;
  }
  // Until the promise is settled the process has something to wait for.
  napi_ref_threadsafe_function(env_, wake_js_);
  Submit(Command::Kind::kClose, 0);
  return promise;
}

Napi::Value PlaneObject::Memory(const Napi::CallbackInfo&) {
  if (!memory_.IsEmpty()) return memory_.Value();
  if (!plane_ || closing_) return Napi::ArrayBuffer::New(env_, 0);
  if (!HasHostMemory("memory")) return env_.Undefined();
  const size_t bytes = plane_->options().PoolBytes();
  Napi::ArrayBuffer memory =
      Napi::ArrayBuffer::New(env_, plane_->pool()->data(), bytes, [](Napi::Env, void*) {});
  if (env_.IsExceptionPending()) return env_.Undefined();
  memory_ = Napi::Persistent(memory);
  return memory;
}

Napi::Value PlaneObject::Span(const Napi::CallbackInfo&) {
  if (!span_value_.IsEmpty()) return span_value_.Value();
  if (!TakesWork() || !HasHostMemory("span")) return env_.Undefined();
  const auto& pool = plane_->pool();
  const DataPlane::Options& options = plane_->options();
  span_ = std::make_shared<PoolSpan>();
  *span_ = {pool->data(), options.PoolBytes(), options.geometry.BlockBytes(), options.blocks, pool};
  const Napi::Value external = PoolSpanToExternal(env_, span_);
  span_value_ = Napi::Persistent(external);
  return external;
}

}  // namespace kvt
