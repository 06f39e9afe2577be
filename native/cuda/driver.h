#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cuda/driver_functions.h"
#include "memory/result.h"

namespace kvt::cuda {

// libcuda of this process, loaded and initialised once; never unloaded. All threads.
class Driver {
 public:
  // KVT_CUDA_LIBRARY, else libcuda.so.1. Blocks for up to some seconds the first time: never on the JS
  // thread of a server. What failed is remembered.
  static Result<const Driver*> OfProcess();
  // One of its own, for tests and for OfProcess().
  static Result<std::unique_ptr<const Driver>> Load(const std::string& library);

  const Functions* operator->() const { return &functions_; }
  const std::string& library() const { return library_; }
  // 13000 for CUDA 13.0: the newest that the driver knows.
  int version() const { return version_; }
  int devices() const { return devices_; }

  // "cuMemCreate(64 MiB on cuda:0): CUDA_ERROR_OUT_OF_MEMORY (2), out of memory".
  Error Failed(const std::string& call, CUresult result) const;

 private:
  Driver() = default;

  Functions functions_;
  std::string library_;
  int version_ = 0;
  int devices_ = 0;
};

// Name, version and why not of each function that the library lacks; for tests.
std::vector<std::string> MissingFunctions(const Functions& functions);

}  // namespace kvt::cuda
