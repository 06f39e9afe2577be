#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <variant>
#include <vector>

#include "addon/napi_setup.h"
#include "engine/engine.h"
#include "engine/engine_thread.h"

namespace kvt {

// The native side of one NativeEngine object: calls go to the engine's thread in order, answers come back
// through one thread-safe function and settle their promises on the JS thread. Referenced from JS while a
// call is pending, otherwise the garbage collector may take it. The rules at exit are those of PlaneObject.
class EngineObject {
 public:
  // Answers the promise of the object; throws a TypeError for bad arguments.
  static Napi::Value Load(const Napi::CallbackInfo& info);

  ~EngineObject();
  EngineObject(const EngineObject&) = delete;
  EngineObject& operator=(const EngineObject&) = delete;

  // The one inside `value`; null for anything else.
  static EngineObject* Of(const Napi::Value& value);

  Napi::Value AttachPools(const Napi::CallbackInfo& info);
  Napi::Value Prefill(const Napi::CallbackInfo& info);
  Napi::Value Decode(const Napi::CallbackInfo& info);
  Napi::Value Logits(const Napi::CallbackInfo& info);
  Napi::Value CopyTokens(const Napi::CallbackInfo& info);
  Napi::Value Cancel(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);
  Napi::Value Metadata(const Napi::CallbackInfo& info);

 private:
  struct Loaded {};
  struct Closed {};
  struct Copied {};
  using Outcome = std::variant<engine::Failure, Loaded, Closed, Copied, std::optional<engine::Sample>,
                               std::vector<engine::Sample>, std::vector<float>>;
  using Cancelled = std::shared_ptr<std::atomic<bool>>;
  struct Pending {
    Napi::Promise::Deferred deferred;
    Cancelled cancelled;
    std::shared_ptr<Napi::FunctionReference> on_layers;  // null: nobody listens
  };
  struct Answer {
    uint64_t ticket;
    Outcome outcome;
  };
  // How far a call is: the KV of its tokens is written in so many first layers. Calls run one after another,
  // so one place holds it, and JavaScript takes what is there when it comes to it.
  struct Progress {
    uint64_t ticket = 0;
    uint32_t layers = 0;
  };

  explicit EngineObject(Napi::Env env) : env_(env) {}

  bool Listen();
  void EndListening();
  static void OnEnvEnd(void* self);
  static void OnWake(napi_env env, napi_value callback, void* context, void* data);

  // Starts `work` on the engine's thread; its outcome settles the promise. `call` 0: can't be cancelled.
  template <class Work>
  Napi::Value Submit(uint64_t call, Work work, std::shared_ptr<Napi::FunctionReference> on_layers = nullptr);
  Napi::Value Rejected(engine::Failure failure);
  std::optional<engine::Failure> Refusal() const;
  uint64_t ReadCall(const Napi::Value& value, class Arguments& arguments) const;
  void CancelAll();
  // On the engine's thread.
  void Push(uint64_t ticket, Outcome outcome);
  void Report(uint64_t ticket, uint32_t layers);
  // On the JS thread, for each wake-up.
  void Deliver();
  void TellProgress(const Progress& progress, const std::vector<Answer>& answers);
  void Settle(const Napi::Promise::Deferred& deferred, const Outcome& outcome);
  void Define(const Napi::Object& object);

  const Napi::Env env_;
  napi_threadsafe_function wake_js_ = nullptr;
  Napi::ObjectReference self_;  // counted: one for each pending call
  Napi::ObjectReference metadata_;
  uint64_t last_ticket_ = 0;
  std::map<uint64_t, Pending> pending_;   // by ticket
  std::map<uint64_t, uint64_t> tickets_;  // by call, of pending calls
  bool closing_ = false;
  std::mutex answers_mutex_;
  std::vector<Answer> answers_;
  Progress progress_;
  bool woken_ = false;  // JavaScript has been called and has not come yet
  // Set by the load, read by the JS thread once that has answered, ended by the close: never written in
  // between.
  std::unique_ptr<engine::Engine> engine_;
  engine::EngineThread thread_;  // last: its tasks use everything above
};

}  // namespace kvt
