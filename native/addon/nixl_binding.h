#pragma once

#include "addon/napi_setup.h"

namespace kvt {

// Exports probeNixl (src/native/nixl_binding.ts).
void RegisterNixl(Napi::Env env, Napi::Object exports);

}  // namespace kvt
