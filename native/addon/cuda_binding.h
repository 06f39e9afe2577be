#pragma once

#include "addon/napi_setup.h"

namespace kvt {

void RegisterCuda(Napi::Env env, Napi::Object exports);

}  // namespace kvt
