#include "addon/dataplane_binding.h"

#include "addon/plane_object.h"
#include "memory/boot_clock.h"

namespace kvt {
namespace {

Napi::Value OpenDataPlane(const Napi::CallbackInfo& info) {
  try {
    return PlaneObject::Open(info);
  } catch (const std::exception& error) {
    Napi::Error::New(info.Env(), error.what()).ThrowAsJavaScriptException();
    return info.Env().Undefined();
  }
}

Napi::Value BootTimeMs(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), ToMillis(BootNow()));
}

}  // namespace

void RegisterDataPlane(Napi::Env env, Napi::Object exports) {
  exports.Set("bootTimeMs", Napi::Function::New(env, BootTimeMs, "bootTimeMs"));
  exports.Set("openDataPlane", Napi::Function::New(env, OpenDataPlane, "openDataPlane"));
}

}  // namespace kvt
