#include "addon/engine_binding.h"

#include <exception>

#include "addon/engine_object.h"
#include "addon/engine_values.h"
#include "memory/vector_level.h"

namespace kvt {
namespace {

Napi::Value LoadModel(const Napi::CallbackInfo& info) {
  try {
    return EngineObject::Load(info);
  } catch (const std::exception& error) {
    const Napi::Env env = info.Env();
    Napi::Error(env, ToError(env, engine::Failure{engine::Fault::kInternal, error.what()}))
        .ThrowAsJavaScriptException();
    return env.Undefined();
  }
}

}  // namespace

void RegisterEngine(Napi::Env env, Napi::Object exports) {
  exports.Set("vectorLevel", VectorLevelName(ChosenVectorLevel()));
  exports.Set("loadModel", Napi::Function::New(env, LoadModel, "loadModel"));
}

}  // namespace kvt
