#include "cuda/driver.h"

#include <dlfcn.h>

#include <cstdlib>
#include <memory>
#include <optional>

namespace kvt::cuda {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";
constexpr int kDriverVersionMin = 12000;
// cuGetProcAddress_v2 itself has no versions: the one function that dlsym may name.
using GetProcAddress = CUresult (*)(const char* symbol, void** function, int version, uint64_t flags,
                                    int* found);

Error Unusable(std::string why) { return {ErrorCode::kCudaUnusable, std::move(why)}; }

std::string Dotted(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

void Fill(GetProcAddress get, Functions* functions) {
  const auto find = [get](const char* name, int version) -> void* {
    void* function = nullptr;
    int found = 0;
    return get(name, &function, version, 0, &found) == kSuccess ? function : nullptr;
  };
#define KVT_CUDA_FILL(name, version, parameters) \
  functions->name = reinterpret_cast<decltype(functions->name)>(find(#name, version));
  KVT_CUDA_FUNCTIONS(KVT_CUDA_FILL)
#undef KVT_CUDA_FILL
}

}  // namespace

std::vector<std::string> MissingFunctions(const Functions& functions) {
  std::vector<std::string> missing;
#define KVT_CUDA_MISSING(name, version, parameters) \
  if (functions.name == nullptr) missing.push_back(#name " of CUDA " + Dotted(version));
  KVT_CUDA_FUNCTIONS(KVT_CUDA_MISSING)
#undef KVT_CUDA_MISSING
  return missing;
}

Result<const Driver*> Driver::OfProcess() {
  static Result<std::unique_ptr<const Driver>>& once = *new Result<std::unique_ptr<const Driver>>([] {
    const char* wanted = std::getenv("KVT_CUDA_LIBRARY");
    return Load(wanted != nullptr && *wanted != '\0' ? wanted : kLibrary);
  }());
  if (!once.ok()) return once.error();
  return once.value().get();
}

Result<std::unique_ptr<const Driver>> Driver::Load(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* why = dlerror();
    return Unusable("there is no CUDA driver: " + std::string(why != nullptr ? why : library));
  }
  const auto get = reinterpret_cast<GetProcAddress>(dlsym(handle, "cuGetProcAddress_v2"));
  if (get == nullptr) {
    return Unusable(library + " has no cuGetProcAddress_v2: its driver is older than 525 (CUDA 12.0)");
  }
  std::unique_ptr<Driver> driver(new Driver());
  driver->library_ = library;
  Fill(get, &driver->functions_);
  const auto missing = MissingFunctions(driver->functions_);
  if (!missing.empty()) return Unusable(library + " has no " + missing.front());
  const Driver& cuda = *driver;
  const auto unusable = [&cuda](const char* call, CUresult result) {
    return Unusable(cuda.Failed(call, result).why);
  };
  if (const CUresult result = cuda->cuInit(0); result != kSuccess) return unusable("cuInit", result);
  CUresult result = cuda->cuDriverGetVersion(&driver->version_);
  if (result != kSuccess) return unusable("cuDriverGetVersion", result);
  if (driver->version_ < kDriverVersionMin) {
    return Unusable("the driver knows CUDA " + Dotted(driver->version_) + "; 12.0 (driver 525) is needed");
  }
  result = cuda->cuDeviceGetCount(&driver->devices_);
  if (result != kSuccess) return unusable("cuDeviceGetCount", result);
  return std::unique_ptr<const Driver>(std::move(driver));
}

Error Driver::Failed(const std::string& call, CUresult result) const {
  const char* name = nullptr;
  const char* text = nullptr;
  functions_.cuGetErrorName(result, &name);
  functions_.cuGetErrorString(result, &text);
  return {ErrorCode::kCudaFailed, call + ": " + (name != nullptr ? name : "CUDA error") + " (" +
                                      std::to_string(result) + "), " +
                                      (text != nullptr ? text : "of no name")};
}

}  // namespace kvt::cuda
