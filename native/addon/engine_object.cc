#include "addon/engine_object.h"

#include <exception>
#include <utility>

#include "addon/arguments.h"
#include "addon/engine_values.h"

namespace kvt {
namespace {

using engine::Failure;
using engine::Fault;

constexpr napi_type_tag kEngineTag = {0x6b76742d656e6769ULL, 0x6e652d6f626a3031ULL};
constexpr uint64_t kMaxUint32 = 0xffffffffu;

// Every method checks what it is called on, and lets no C++ exception out.
template <Napi::Value (EngineObject::*method)(const Napi::CallbackInfo&)>
napi_value Call(napi_env env, napi_callback_info raw) {
  const Napi::CallbackInfo info(env, raw);
  EngineObject* self = EngineObject::Of(info.This());
  if (self == nullptr) {
    Napi::TypeError::New(env, "this is not an engine of loadModel()").ThrowAsJavaScriptException();
    return nullptr;
  }
  try {
    return (self->*method)(info);
  } catch (const std::exception& error) {
    Napi::Error(env, ToError(env, Failure{Fault::kInternal, error.what()})).ThrowAsJavaScriptException();
    return nullptr;
  }
}

template <Napi::Value (EngineObject::*method)(const Napi::CallbackInfo&)>
napi_property_descriptor Method(const char* name) {
  return {name, nullptr, Call<method>, nullptr, nullptr, nullptr, napi_enumerable, nullptr};
}

}  // namespace

EngineObject* EngineObject::Of(const Napi::Value& value) {
  if (!value.IsObject()) return nullptr;
  bool tagged = false;
  void* self = nullptr;
  if (napi_check_object_type_tag(value.Env(), value, &kEngineTag, &tagged) != napi_ok || !tagged)
    return nullptr;
  if (napi_unwrap(value.Env(), value, &self) != napi_ok) return nullptr;
  return static_cast<EngineObject*>(self);
}

Napi::Value EngineObject::Load(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Arguments arguments(env);
  const std::string path = arguments.Text(info[0], "path");
  const engine::EngineOptions options = ReadEngineOptions(arguments, info[1]);
  if (!arguments.ok()) return env.Undefined();

  Napi::Object object = Napi::Object::New(env);
  auto owned = std::unique_ptr<EngineObject>(new EngineObject(env));
  EngineObject* self = owned.get();
  const auto finalize = [](napi_env, void* data, void*) { delete static_cast<EngineObject*>(data); };
  if (napi_wrap(env, object, self, finalize, nullptr, nullptr) != napi_ok) return env.Undefined();
  owned.release();
  if (napi_type_tag_object(env, object, &kEngineTag) != napi_ok) return env.Undefined();
  self->self_ = Napi::Weak(object);
  if (!self->Listen()) return env.Undefined();
  return self->Submit(0, [self, path, options](const std::atomic<bool>& cancelled) -> Outcome {
    engine::Result<std::unique_ptr<engine::Engine>> loaded = engine::Engine::Load(path, options, cancelled);
    if (!loaded) return loaded.failure();
    self->engine_ = std::move(*loaded);
    return Loaded{};
  });
}

EngineObject::~EngineObject() { EndListening(); }

bool EngineObject::Listen() {
  const Napi::String name = Napi::String::New(env_, "kv-transceiver engine");
  if (napi_create_threadsafe_function(env_, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this, OnWake,
                                      &wake_js_) != napi_ok) {
    return false;
  }
  // Registered after the thread-safe function, so it runs before that one's own end.
  return napi_add_env_cleanup_hook(env_, OnEnvEnd, this) == napi_ok;
}

void EngineObject::EndListening() {
  if (wake_js_ == nullptr) return;
  CancelAll();
  thread_.Stop();
  napi_remove_env_cleanup_hook(env_, OnEnvEnd, this);
  napi_release_threadsafe_function(std::exchange(wake_js_, nullptr), napi_tsfn_abort);
}

void EngineObject::OnEnvEnd(void* raw) {
  auto* self = static_cast<EngineObject*>(raw);
  self->CancelAll();
  self->thread_.Stop();
  self->wake_js_ = nullptr;
}

void EngineObject::CancelAll() {
  for (auto& [ticket, pending] : pending_) pending.cancelled->store(true);
}

template <class Work>
Napi::Value EngineObject::Submit(uint64_t call, Work work,
                                 std::shared_ptr<Napi::FunctionReference> on_layers) {
  const uint64_t ticket = ++last_ticket_;
  auto cancelled = std::make_shared<std::atomic<bool>>(false);
  auto task = [this, ticket, cancelled, work = std::move(work)]() mutable {
    // No exception may leave the thread; what can throw here is an allocation.
    try {
      if (cancelled->load()) {
        Push(ticket, Failure{Fault::kCancelled, "cancelled before it began"});
      } else {
        Push(ticket, work(*cancelled));
      }
    } catch (const std::exception& error) {
      Push(ticket, Failure{Fault::kInternal, error.what()});
    }
  };
  const auto deferred = Napi::Promise::Deferred::New(env_);
  if (!thread_.Post(std::move(task))) return Rejected(Failure{Fault::kClosed, "the engine is closed"});
  pending_.emplace(ticket, Pending{deferred, cancelled, std::move(on_layers)});
  if (call != 0) tickets_.emplace(call, ticket);
  // Node stays alive, and the object in memory, exactly while something is pending.
  if (pending_.size() == 1) napi_ref_threadsafe_function(env_, wake_js_);
  self_.Ref();
  return deferred.Promise();
}

Napi::Value EngineObject::Rejected(Failure failure) {
  const auto deferred = Napi::Promise::Deferred::New(env_);
  deferred.Reject(ToError(env_, failure));
  return deferred.Promise();
}

std::optional<Failure> EngineObject::Refusal() const {
  if (closing_ || wake_js_ == nullptr) return Failure{Fault::kClosed, "the engine is closed"};
  return std::nullopt;
}

uint64_t EngineObject::ReadCall(const Napi::Value& value, Arguments& arguments) const {
  const uint64_t call = arguments.Integer(value, "call", 1, (uint64_t{1} << 53) - 1);
  if (tickets_.contains(call)) arguments.Fail("call", "is still running");
  return call;
}

Napi::Value EngineObject::AttachPools(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  std::vector<engine::RankPool> pools = ReadRankPools(arguments, info[0]);
  const auto blocks = static_cast<uint32_t>(arguments.Integer(info[1], "blocks", 1, kMaxUint32));
  if (!arguments.ok()) return env_.Undefined();
  std::optional<Failure> failure = Refusal();
  if (!failure) failure = engine_->CheckPools(pools, blocks);
  if (failure) {
    Napi::Error(env_, ToError(env_, *failure)).ThrowAsJavaScriptException();
    return env_.Undefined();
  }
  thread_.Post([this, pools = std::move(pools), blocks] { engine_->Attach(pools, blocks); });
  return env_.Undefined();
}

Napi::Value EngineObject::Prefill(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const uint64_t call = ReadCall(info[0], arguments);
  std::vector<uint32_t> tokens = ReadUint32s(arguments, info[1], "tokens");
  const auto start = static_cast<uint32_t>(arguments.Integer(info[2], "startPos", 0, kMaxUint32));
  std::vector<uint32_t> table = ReadUint32s(arguments, info[3], "blockTable");
  std::optional<engine::Sampling> sampling;
  if (!info[4].IsNull()) sampling = ReadSampling(arguments, info[4]);
  const bool told = !info[5].IsNull();
  if (told && !info[5].IsFunction()) arguments.Fail("onLayers", "must be a function or null");
  const auto from = static_cast<uint32_t>(arguments.Integer(info[6], "fromLayers", 1, kMaxUint32));
  if (!arguments.ok()) return env_.Undefined();
  if (std::optional<Failure> failure = Refusal()) return Rejected(*failure);
  std::shared_ptr<Napi::FunctionReference> on_layers;
  if (told) {
    on_layers = std::make_shared<Napi::FunctionReference>(Napi::Persistent(info[5].As<Napi::Function>()));
  }
  const uint64_t ticket = last_ticket_ + 1;  // as Submit counts
  engine::LayersWritten written;
  if (told) {
    written = [this, ticket, from](uint32_t layers) {
      if (layers >= from) Report(ticket, layers);
    };
  }
  return Submit(
      call,
      [this, tokens = std::move(tokens), start, table = std::move(table), sampling = std::move(sampling),
       written = std::move(written)](const std::atomic<bool>& cancelled) -> Outcome {
        auto result =
            engine_->Prefill(tokens, start, table, sampling ? &*sampling : nullptr, cancelled, written);
        if (!result) return result.failure();
        return std::move(*result);
      },
      std::move(on_layers));
}

Napi::Value EngineObject::Decode(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const uint64_t call = ReadCall(info[0], arguments);
  std::vector<engine::DecodeRow> rows = ReadDecodeRows(arguments, info[1]);
  if (!arguments.ok()) return env_.Undefined();
  if (std::optional<Failure> failure = Refusal()) return Rejected(*failure);
  return Submit(call, [this, rows = std::move(rows)](const std::atomic<bool>& cancelled) -> Outcome {
    auto result = engine_->Decode(rows, cancelled);
    if (!result) return result.failure();
    return std::move(*result);
  });
}

Napi::Value EngineObject::Logits(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const uint64_t call = ReadCall(info[0], arguments);
  std::vector<uint32_t> tokens = ReadUint32s(arguments, info[1], "tokens");
  const auto start = static_cast<uint32_t>(arguments.Integer(info[2], "startPos", 0, kMaxUint32));
  std::vector<uint32_t> table = ReadUint32s(arguments, info[3], "blockTable");
  if (!arguments.ok()) return env_.Undefined();
  if (std::optional<Failure> failure = Refusal()) return Rejected(*failure);
  return Submit(call,
                [this, tokens = std::move(tokens), start,
                 table = std::move(table)](const std::atomic<bool>& cancelled) -> Outcome {
                  auto result = engine_->Logits(tokens, start, table, cancelled);
                  if (!result) return result.failure();
                  return std::move(*result);
                });
}

Napi::Value EngineObject::CopyTokens(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const auto from = static_cast<uint32_t>(arguments.Integer(info[0], "from", 0, kMaxUint32));
  const auto to = static_cast<uint32_t>(arguments.Integer(info[1], "to", 0, kMaxUint32));
  const auto tokens = static_cast<uint32_t>(arguments.Integer(info[2], "tokens", 0, kMaxUint32));
  if (!arguments.ok()) return env_.Undefined();
  if (std::optional<Failure> failure = Refusal()) return Rejected(*failure);
  return Submit(0, [this, from, to, tokens](const std::atomic<bool>&) -> Outcome {
    if (auto failure = engine_->CopyTokens(from, to, tokens)) return *failure;
    return Copied{};
  });
}

Napi::Value EngineObject::Cancel(const Napi::CallbackInfo& info) {
  Arguments arguments(env_);
  const uint64_t call = arguments.Id(info[0], "call");
  if (!arguments.ok()) return env_.Undefined();
  const auto ticket = tickets_.find(call);
  if (ticket != tickets_.end()) pending_.at(ticket->second).cancelled->store(true);
  return env_.Undefined();
}

Napi::Value EngineObject::Close(const Napi::CallbackInfo&) {
  if (std::optional<Failure> failure = Refusal()) {
    const auto deferred = Napi::Promise::Deferred::New(env_);
    deferred.Resolve(env_.Undefined());
    return deferred.Promise();
  }
  CancelAll();
  const Napi::Value promise = Submit(0, [this](const std::atomic<bool>&) -> Outcome {
    engine_.reset();
    return Closed{};
  });
  closing_ = true;
  return promise;
}

Napi::Value EngineObject::Metadata(const Napi::CallbackInfo&) {
  if (metadata_.IsEmpty()) {
    if (std::optional<Failure> failure = Refusal()) {
      Napi::Error(env_, ToError(env_, *failure)).ThrowAsJavaScriptException();
      return env_.Undefined();
    }
    metadata_ = Napi::Persistent(ToMetadata(env_, engine_->metadata()).As<Napi::Object>());
  }
  return metadata_.Value();
}

void EngineObject::Push(uint64_t ticket, Outcome outcome) {
  bool first = false;
  {
    const std::lock_guard lock(answers_mutex_);
    first = !std::exchange(woken_, true);
    answers_.push_back({ticket, std::move(outcome)});
  }
  // The wake-up under way takes all that is there when it runs.
  if (first) napi_call_threadsafe_function(wake_js_, nullptr, napi_tsfn_nonblocking);
}

void EngineObject::Report(uint64_t ticket, uint32_t layers) {
  bool first = false;
  {
    const std::lock_guard lock(answers_mutex_);
    first = !std::exchange(woken_, true);
    progress_ = {ticket, layers};
  }
  if (first) napi_call_threadsafe_function(wake_js_, nullptr, napi_tsfn_nonblocking);
}

void EngineObject::OnWake(napi_env env, napi_value, void* context, void*) {
  // Without an env it is being torn down: JavaScript can't run any more.
  if (env == nullptr) return;
  try {
    static_cast<EngineObject*>(context)->Deliver();
  } catch (const std::exception& error) {
    Napi::Error(env, ToError(env, Failure{Fault::kInternal, error.what()})).ThrowAsJavaScriptException();
  }
}

void EngineObject::Deliver() {
  std::vector<Answer> answers;
  Progress progress;
  {
    const std::lock_guard lock(answers_mutex_);
    woken_ = false;
    answers.swap(answers_);
    progress = std::exchange(progress_, {});
  }
  TellProgress(progress, answers);
  for (const Answer& answer : answers) {
    const auto found = pending_.find(answer.ticket);
    const Napi::Promise::Deferred deferred = found->second.deferred;
    pending_.erase(found);
    std::erase_if(tickets_, [&](const auto& entry) { return entry.second == answer.ticket; });
    Settle(deferred, answer.outcome);
    if (pending_.empty() && wake_js_ != nullptr) napi_unref_threadsafe_function(env_, wake_js_);
    self_.Unref();
  }
}

// A call that is over says more by its answer.
void EngineObject::TellProgress(const Progress& progress, const std::vector<Answer>& answers) {
  const auto found = pending_.find(progress.ticket);
  if (found == pending_.end() || !found->second.on_layers) return;
  for (const Answer& answer : answers) {
    if (answer.ticket == progress.ticket) return;
  }
  // Kept while it runs: it may end the call's entry.
  const std::shared_ptr<Napi::FunctionReference> on_layers = found->second.on_layers;
  on_layers->Call({Napi::Number::New(env_, progress.layers)});
}

void EngineObject::Settle(const Napi::Promise::Deferred& deferred, const Outcome& outcome) {
  if (const auto* failure = std::get_if<Failure>(&outcome)) {
    const bool closed = closing_ && failure->fault == Fault::kCancelled;
    deferred.Reject(ToError(env_, closed ? Failure{Fault::kClosed, "the engine was closed"} : *failure));
  } else if (std::holds_alternative<Loaded>(outcome)) {
    const Napi::Object object = self_.Value();
    Define(object);
    deferred.Resolve(object);
  } else if (std::holds_alternative<Closed>(outcome)) {
    EndListening();
    deferred.Resolve(env_.Undefined());
  } else if (std::holds_alternative<Copied>(outcome)) {
    deferred.Resolve(env_.Undefined());
  } else if (const auto* sample = std::get_if<std::optional<engine::Sample>>(&outcome)) {
    deferred.Resolve(*sample ? ToSample(env_, **sample) : env_.Null());
  } else if (const auto* samples = std::get_if<std::vector<engine::Sample>>(&outcome)) {
    deferred.Resolve(ToSamples(env_, *samples));
  } else {
    deferred.Resolve(ToFloats(env_, std::get<std::vector<float>>(outcome)));
  }
}

void EngineObject::Define(const Napi::Object& object) {
  const napi_property_descriptor properties[] = {
      {"geometry", nullptr, nullptr, nullptr, nullptr, ToGeometry(env_, *engine_), napi_enumerable, nullptr},
      {"metadata", nullptr, nullptr, Call<&EngineObject::Metadata>, nullptr, nullptr, napi_enumerable,
       nullptr},
      Method<&EngineObject::AttachPools>("attachPools"),
      Method<&EngineObject::Prefill>("prefill"),
      Method<&EngineObject::Decode>("decode"),
      Method<&EngineObject::Logits>("logits"),
      Method<&EngineObject::CopyTokens>("copyTokens"),
      Method<&EngineObject::Cancel>("cancel"),
      Method<&EngineObject::Close>("close"),
  };
  napi_define_properties(env_, object, std::size(properties), properties);
}

}  // namespace kvt
