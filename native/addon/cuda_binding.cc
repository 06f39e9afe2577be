#include "addon/cuda_binding.h"

#include "cuda/probe.h"

namespace kvt {
namespace {

Napi::Value TextOrNull(Napi::Env env, const std::string& text) {
  return text.empty() ? env.Null() : Napi::Value(Napi::String::New(env, text));
}

Napi::Object ToObject(Napi::Env env, const cuda::DeviceReport& report) {
  const cuda::DeviceFacts& facts = report.facts;
  Napi::Object object = Napi::Object::New(env);
  object.Set("device", facts.index);
  object.Set("name", facts.name);
  object.Set("uuid", cuda::UuidText(facts.uuid));
  object.Set("bus", facts.bus);
  object.Set("capability", std::to_string(facts.major) + "." + std::to_string(facts.minor));
  object.Set("multiprocessors", facts.multiprocessors);
  Napi::Array reaches = Napi::Array::New(env, report.reaches.size());
  for (size_t at = 0; at < report.reaches.size(); ++at) {
    reaches.Set(static_cast<uint32_t>(at), Napi::Number::New(env, report.reaches[at]));
  }
  object.Set("reaches", reaches);
  object.Set("memoryBytes", static_cast<double>(facts.memory_bytes));
  object.Set("exportable", facts.exportable);
  object.Set("kernels", TextOrNull(env, report.kernels));
  object.Set("why", TextOrNull(env, report.why));
  return object;
}

Napi::Value ProbeCuda(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  try {
    const cuda::ProbeReport report = cuda::Probe();
    Napi::Object object = Napi::Object::New(env);
    object.Set("library", TextOrNull(env, report.library));
    object.Set("why", TextOrNull(env, report.why));
    object.Set("version", TextOrNull(env, report.version));
    Napi::Array devices = Napi::Array::New(env, report.devices.size());
    for (size_t at = 0; at < report.devices.size(); ++at) {
      devices.Set(static_cast<uint32_t>(at), ToObject(env, report.devices[at]));
    }
    object.Set("devices", devices);
    return object;
  } catch (const std::exception& error) {
    Napi::Error::New(env, error.what()).ThrowAsJavaScriptException();
    return env.Undefined();
  }
}

}  // namespace

void RegisterCuda(Napi::Env env, Napi::Object exports) {
  exports.Set("probeCuda", Napi::Function::New(env, ProbeCuda, "probeCuda"));
}

}  // namespace kvt
