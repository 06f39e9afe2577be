#include "addon/cuda_binding.h"
#include "addon/dataplane_binding.h"
#include "addon/engine_binding.h"
#include "addon/napi_setup.h"
#include "addon/nixl_binding.h"

namespace {

// src/native/binding.ts mirrors the exports; the loader refuses an addon whose number differs.
constexpr int kMirrorVersion = 16;

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  exports.Set("mirrorVersion", kMirrorVersion);
  kvt::RegisterDataPlane(env, exports);
  kvt::RegisterEngine(env, exports);
  kvt::RegisterNixl(env, exports);
  kvt::RegisterCuda(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(kv_transceiver, Init)
