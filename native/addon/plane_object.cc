#include "addon/plane_object.h"

#include <cstring>
#include <utility>

#include "addon/arguments.h"
#include "addon/error_value.h"
#include "addon/plane_options.h"
#include "addon/pool_span_external.h"

namespace kvt {
namespace {

constexpr napi_type_tag kPlaneTag = {0x6b76742d64617461ULL, 0x2d706c616e652d31ULL};

// Null when JavaScript can't run any more, as in a thread that is being terminated: then nothing may be
// touched.
template <typename T>
napi_value NewArray(napi_env env, napi_typedarray_type type, const T* from, size_t count) {
  void* data = nullptr;
  napi_value buffer = nullptr;
  napi_value array = nullptr;
  if (napi_create_arraybuffer(env, count * sizeof(T), &data, &buffer) != napi_ok) return nullptr;
  if (napi_create_typedarray(env, type, count, buffer, 0, &array) != napi_ok) return nullptr;
  if (count > 0) memcpy(data, from, count * sizeof(T));
  return array;
}

// Every method checks what it is called on, and lets no C++ exception out.
template <Napi::Value (PlaneObject::*method)(const Napi::CallbackInfo&)>
napi_value Call(napi_env env, napi_callback_info raw) {
  const Napi::CallbackInfo info(env, raw);
  PlaneObject* self = PlaneObject::Of(info.This());
  if (self == nullptr) {
    Napi::TypeError::New(env, "this is not a data plane of openDataPlane()").ThrowAsJavaScriptException();
    return nullptr;
  }
  try {
    return (self->*method)(info);
  } catch (const std::exception& error) {
    ToError(env, "INTERNAL", error.what()).ThrowAsJavaScriptException();
    return nullptr;
  }
}

template <Napi::Value (PlaneObject::*method)(const Napi::CallbackInfo&)>
napi_property_descriptor Method(const char* name) {
  return {name, nullptr, Call<method>, nullptr, nullptr, nullptr, napi_enumerable, nullptr};
}

template <Napi::Value (PlaneObject::*method)(const Napi::CallbackInfo&)>
napi_property_descriptor Getter(const char* name) {
  return {name, nullptr, nullptr, Call<method>, nullptr, nullptr, napi_enumerable, nullptr};
}

Napi::Object GpuFacts(Napi::Env env, const cuda::DevicePool& pool) {
  const cuda::DeviceFacts& facts = pool.context()->facts();
  Napi::Object gpu = Napi::Object::New(env);
  gpu.Set("device", facts.index);
  gpu.Set("name", facts.name);
  gpu.Set("uuid", cuda::UuidText(facts.uuid));
  gpu.Set("address", Napi::BigInt::New(env, static_cast<uint64_t>(pool.address())));
  return gpu;
}

}  // namespace

PlaneObject* PlaneObject::Of(const Napi::Value& value) {
  if (!value.IsObject()) return nullptr;
  bool tagged = false;
  void* self = nullptr;
  if (napi_check_object_type_tag(value.Env(), value, &kPlaneTag, &tagged) != napi_ok || !tagged)
    return nullptr;
  if (napi_unwrap(value.Env(), value, &self) != napi_ok) return nullptr;
  return static_cast<PlaneObject*>(self);
}

Napi::Value PlaneObject::Open(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Arguments arguments(env);
  DataPlane::Options options = ReadPlaneOptions(&arguments, info[0]);
  if (arguments.ok() && !info[1].IsFunction()) arguments.Fail("onCompletions", "must be a function");
  if (!arguments.ok()) return env.Undefined();
  options.crew = &CopyCrew::OfProcess();

  Napi::Object object = Napi::Object::New(env);
  auto owned = std::unique_ptr<PlaneObject>(new PlaneObject(env));
  PlaneObject* self = owned.get();
  const auto finalize = [](napi_env, void* data, void*) { delete static_cast<PlaneObject*>(data); };
  if (napi_wrap(env, object, self, finalize, nullptr, nullptr) != napi_ok) return env.Undefined();
  owned.release();
  if (napi_type_tag_object(env, object, &kPlaneTag) != napi_ok) return env.Undefined();
  self->opening_ = Napi::Promise::Deferred::New(env);
  const Napi::Promise promise = self->opening_->Promise();
  if (!self->Listen(info[1].As<Napi::Function>())) return env.Undefined();
  auto plane = DataPlane::Start(std::move(options), [self] { self->Wake(); });
  if (!plane.ok()) {
    self->opening_->Reject(ToError(env, plane.error()).Value());
    self->opening_.reset();
    self->EndListening();
    return promise;
  }
  self->plane_ = std::move(plane.value());
  self->self_ = Napi::Persistent(object);
  return promise;
}

PlaneObject::~PlaneObject() {
  EndListening();
  plane_.reset();
}

bool PlaneObject::Listen(const Napi::Function& on_completions) {
  const Napi::String name = Napi::String::New(env_, "kv-transceiver completions");
  return napi_create_threadsafe_function(env_, on_completions, nullptr, name, 0, 1, nullptr, nullptr, this,
                                         OnWake, &wake_js_) == napi_ok &&
         napi_add_env_cleanup_hook(env_, OnEnvEnd, this) == napi_ok;
}

void PlaneObject::EndListening() {
  if (wake_js_ == nullptr) return;
  if (plane_) plane_->Stop();
  napi_remove_env_cleanup_hook(env_, OnEnvEnd, this);
  napi_release_threadsafe_function(std::exchange(wake_js_, nullptr), napi_tsfn_abort);
}

// The thread-safe function ends by its own hook, which runs after this one.
void PlaneObject::OnEnvEnd(void* raw) {
  auto* self = static_cast<PlaneObject*>(raw);
  if (self->plane_) self->plane_->Stop();
  self->wake_js_ = nullptr;
}

void PlaneObject::Wake() {
  if (wake_pending_.exchange(true)) return;
  // Its queue has no bound, but at most two entries: this flag lets one through at a time.
  napi_call_threadsafe_function(wake_js_, nullptr, napi_tsfn_nonblocking);
}

void PlaneObject::OnWake(napi_env env, napi_value callback, void* context, void*) {
  // Without an env it is being torn down: JavaScript can't run any more.
  if (env == nullptr || callback == nullptr) return;
  auto* self = static_cast<PlaneObject*>(context);
  self->wake_pending_.store(false);
  if (!self->plane_) return;
  self->SettleOpening();
  if (self->plane_) self->Deliver(callback);
}

void PlaneObject::SettleOpening() {
  if (!opening_) return;
  const DataPlane::Phase phase = plane_->phase();
  if (phase == DataPlane::Phase::kOpening) return;
  const Napi::Promise::Deferred opening = *opening_;
  opening_.reset();
  if (phase == DataPlane::Phase::kFailed) {
    opening.Reject(ToError(env_, plane_->error()).Value());
    EndListening();
    plane_.reset();
    self_.Reset();
    return;
  }
  const Napi::Object object = self_.Value();
  Define(object);
  napi_unref_threadsafe_function(env_, wake_js_);
  opening.Resolve(object);
}

void PlaneObject::Define(const Napi::Object& object) {
  const Napi::Env env = env_;
  const DataPlane::Options& options = plane_->options();
  const uint64_t block_bytes = options.geometry.BlockBytes();
  const auto& host = plane_->pool();
  const auto& gpu = plane_->gpu_pool();
  const auto value = [](const char* name, napi_value of) {
    return napi_property_descriptor{name, nullptr, nullptr, nullptr, nullptr, of, napi_enumerable, nullptr};
  };
  const napi_property_descriptor properties[] = {
      value("poolBytes", Napi::Number::New(env, static_cast<double>(options.PoolBytes()))),
      value("blockBytes", Napi::Number::New(env, static_cast<double>(block_bytes))),
      value("pages", Napi::String::New(env, host ? PageKindName(host->pages().kind) : "gpu")),
      value("whyNotHuge", Napi::String::New(env, host ? host->pages().why_not_huge : "")),
      value("gpu", gpu ? Napi::Value(GpuFacts(env, *gpu)) : env.Null()),
      Getter<&PlaneObject::Descriptor>("descriptor"),
      Getter<&PlaneObject::Memory>("memory"),
      Getter<&PlaneObject::Span>("span"),
      Method<&PlaneObject::ReadMemory>("readMemory"),
      Method<&PlaneObject::WriteMemory>("writeMemory"),
      Method<&PlaneObject::Reach>("reach"),
      Method<&PlaneObject::ReleasePeer>("releasePeer"),
      Method<&PlaneObject::PeerConnected>("peerConnected"),
      Method<&PlaneObject::Post>("post"),
      Method<&PlaneObject::Digest>("digest"),
      Method<&PlaneObject::TakeDigests>("takeDigests"),
      Method<&PlaneObject::Cancel>("cancel"),
      Method<&PlaneObject::Grant>("grant"),
      Method<&PlaneObject::Renew>("renew"),
      Method<&PlaneObject::DropLease>("dropLease"),
      Method<&PlaneObject::SetTimer>("setTimer"),
      Method<&PlaneObject::ClearTimer>("clearTimer"),
      Method<&PlaneObject::Expect>("expect"),
      Method<&PlaneObject::Cork>("cork"),
      Method<&PlaneObject::Uncork>("uncork"),
      Method<&PlaneObject::FillReleased>("fillReleased"),
      Method<&PlaneObject::FindTouched>("findTouched"),
      Method<&PlaneObject::Stats>("stats"),
      Method<&PlaneObject::NixlAgents>("nixlAgents"),
      Method<&PlaneObject::Ref>("ref"),
      Method<&PlaneObject::Unref>("unref"),
      Method<&PlaneObject::Close>("close"),
  };
  napi_define_properties(env, object, std::size(properties), properties);
}

void PlaneObject::Deliver(napi_value callback) {
  // Read before the ring: a plane that is closed has put everything.
  const bool closed = plane_->phase() == DataPlane::Phase::kClosed;
  const size_t count = plane_->Take(batch_);
  const bool more = plane_->HasCompletions();
  if (more) Wake();
  for (size_t index = 0; index < count; ++index) Forget(batch_[index]);
  if (closed && !more) FinishClose();
  if (count == 0) return;
  const napi_value records = NewArray(env_, napi_float64_array, batch_[0].data(), count * kRecordWords);
  if (records == nullptr) return;
  // Last, as it may throw: the exception stays pending and reaches process "uncaughtException".
  napi_call_function(env_, env_.Undefined(), callback, 1, &records, nullptr);
}

void PlaneObject::Forget(const Record& record) {
  const auto kind = static_cast<CompletionKind>(static_cast<int>(record[0]));
  const auto id = static_cast<uint64_t>(record[1]);
  if (kind == CompletionKind::kJobQuiet) live_jobs_.erase(id);
  if (kind != CompletionKind::kReached || record[2] == 0) return;
  const auto live = live_peers_.find(id);
  if (live == live_peers_.end()) return;
  live->second->Disconnected();
  live_peers_.erase(live);
}

void PlaneObject::FinishClose() {
  EndListening();
  plane_.reset();
  if (closing_) closing_->Resolve(env_.Undefined());
  self_.Reset();
}

}  // namespace kvt
