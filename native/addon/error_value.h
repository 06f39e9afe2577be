#pragma once

#include <string>

#include "addon/napi_setup.h"
#include "memory/result.h"

namespace kvt {

// A JavaScript Error whose `code` is one of src/errors.ts.
Napi::Error ToError(Napi::Env env, const char* code, const std::string& why);
Napi::Error ToError(Napi::Env env, const Error& error);

}  // namespace kvt
