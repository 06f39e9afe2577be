#pragma once

#include "addon/napi_setup.h"

namespace kvt {

// The engine half of src/native/engine_binding.ts: `vectorLevel` and `loadModel`.
void RegisterEngine(Napi::Env env, Napi::Object exports);

}  // namespace kvt
