#include "addon/error_value.h"

namespace kvt {
namespace {

const char* NameOf(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "INVALID_ARGUMENT";
    case ErrorCode::kPoolUnavailable:
      return "POOL_UNAVAILABLE";
    case ErrorCode::kMemoryRefused:
      return "MEMORY_REFUSED";
    case ErrorCode::kSocketDirRefused:
      return "SOCKET_DIR_REFUSED";
    case ErrorCode::kDescriptorTooLong:
      return "DESCRIPTOR_TOO_LONG";
    case ErrorCode::kNixlUnusable:
      return "NIXL_UNUSABLE";
    case ErrorCode::kNixlFailed:
      return "NIXL_FAILED";
    case ErrorCode::kStagingUnavailable:
      return "STAGING_UNAVAILABLE";
    case ErrorCode::kCudaUnusable:
      return "CUDA_UNUSABLE";
    case ErrorCode::kCudaFailed:
      return "CUDA_FAILED";
  }
  return "INTERNAL";
}

}  // namespace

Napi::Error ToError(Napi::Env env, const char* code, const std::string& why) {
  Napi::Error error = Napi::Error::New(env, why);
  error.Set("code", Napi::String::New(env, code));
  return error;
}

Napi::Error ToError(Napi::Env env, const Error& error) { return ToError(env, NameOf(error.code), error.why); }

}  // namespace kvt
