#include "addon/dataplane_binding.h"
#include "addon/napi_setup.h"
#if __has_include("addon/engine_binding.h")
#include "addon/engine_binding.h"
#define KVT_WITH_ENGINE
#endif

namespace {

// src/native/binding.ts mirrors the exports; the loader refuses an addon whose number differs.
constexpr int kMirrorVersion = 1;

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  exports.Set("mirrorVersion", kMirrorVersion);
  kvt::RegisterDataPlane(env, exports);
#ifdef KVT_WITH_ENGINE
  kvt::RegisterEngine(env, exports);
#endif
  return exports;
}

}  // namespace

NODE_API_MODULE(kv_transceiver, Init)
