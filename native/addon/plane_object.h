#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "addon/napi_setup.h"
#include "dataplane/data_plane.h"
#include "memory/pool_span.h"

namespace kvt {

// The native side of one NativeDataPlane object. Lives from openDataPlane() until the garbage collector or
// the end of its env takes the object, which stays referenced until it is closed or could not be opened.
//
// Three rules, each of which would be a crash at exit:
// - the hook for the env's end is registered after the thread-safe function, so it runs before that one's own
//   and the owner thread is joined while it may still call it;
// - the pool is unmapped only after its ArrayBuffer was detached, on this thread;
// - nothing here waits for JavaScript.
class PlaneObject {
 public:
  // Answers the promise of the object; throws a TypeError for bad arguments.
  static Napi::Value Open(const Napi::CallbackInfo& info);

  ~PlaneObject();
  PlaneObject(const PlaneObject&) = delete;
  PlaneObject& operator=(const PlaneObject&) = delete;

  // The one inside `value`; null for anything else.
  static PlaneObject* Of(const Napi::Value& value);

  Napi::Value Reach(const Napi::CallbackInfo& info);
  Napi::Value ReleasePeer(const Napi::CallbackInfo& info);
  Napi::Value PeerConnected(const Napi::CallbackInfo& info);
  Napi::Value Post(const Napi::CallbackInfo& info);
  Napi::Value Digest(const Napi::CallbackInfo& info);
  Napi::Value TakeDigests(const Napi::CallbackInfo& info);
  Napi::Value Cancel(const Napi::CallbackInfo& info);
  Napi::Value Grant(const Napi::CallbackInfo& info);
  Napi::Value Renew(const Napi::CallbackInfo& info);
  Napi::Value DropLease(const Napi::CallbackInfo& info);
  Napi::Value SetTimer(const Napi::CallbackInfo& info);
  Napi::Value ClearTimer(const Napi::CallbackInfo& info);
  Napi::Value Expect(const Napi::CallbackInfo& info);
  Napi::Value Cork(const Napi::CallbackInfo& info);
  Napi::Value Uncork(const Napi::CallbackInfo& info);
  Napi::Value FillReleased(const Napi::CallbackInfo& info);
  Napi::Value FindTouched(const Napi::CallbackInfo& info);
  Napi::Value Stats(const Napi::CallbackInfo& info);
  Napi::Value Ref(const Napi::CallbackInfo& info);
  Napi::Value Unref(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);
  Napi::Value Descriptor(const Napi::CallbackInfo& info);
  Napi::Value NixlAgents(const Napi::CallbackInfo& info);
  Napi::Value Memory(const Napi::CallbackInfo& info);
  Napi::Value ReadMemory(const Napi::CallbackInfo& info);
  Napi::Value WriteMemory(const Napi::CallbackInfo& info);
  Napi::Value Span(const Napi::CallbackInfo& info);

 private:
  explicit PlaneObject(Napi::Env env) : env_(env), batch_(kBatchRecords) {}

  static constexpr size_t kBatchRecords = 1024;

  bool Listen(const Napi::Function& on_completions);
  void Define(const Napi::Object& object);
  // On the owner thread.
  void Wake();
  // On the JS thread, for each wake-up.
  static void OnWake(napi_env env, napi_value callback, void* context, void* data);
  void SettleOpening();
  void Deliver(napi_value callback);
  void Forget(const Record& record);
  void FinishClose();
  void EndListening();
  static void OnEnvEnd(void* self);
  // False, with an exception pending, once closed.
  bool TakesWork();
  // The same for what needs the pool in memory of the host.
  bool HasHostMemory(const char* what);
  void Submit(Command::Kind kind, uint64_t id, BootNanos when = 0);
  std::span<const uint32_t> CheckedBlocks(const Napi::Value& value);

  const Napi::Env env_;
  napi_threadsafe_function wake_js_ = nullptr;
  std::atomic<bool> wake_pending_{false};
  std::unique_ptr<DataPlane> plane_;
  std::optional<Napi::Promise::Deferred> opening_;
  std::optional<Napi::Promise::Deferred> closing_;
  Napi::ObjectReference self_;
  Napi::Reference<Napi::ArrayBuffer> memory_;
  Napi::Reference<Napi::Value> span_value_;
  std::shared_ptr<PoolSpan> span_;
  std::vector<Record> batch_;
  // An id may be used again only after its last completion was delivered.
  std::unordered_set<uint64_t> live_jobs_;
  std::unordered_map<uint64_t, std::shared_ptr<PeerLife>> live_peers_;
};

}  // namespace kvt
