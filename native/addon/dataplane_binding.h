#pragma once

#include "addon/napi_setup.h"

namespace kvt {

// Exports openDataPlane, bootTimeMs and vectorLevel (src/native/plane_binding.ts).
void RegisterDataPlane(Napi::Env env, Napi::Object exports);

}  // namespace kvt
