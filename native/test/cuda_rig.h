#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "cuda/device_pool.h"

namespace kvt::test {

// A real GPU where there is one. The library is only looked for: a process that has initialised CUDA can't
// fork.
inline bool OnRealGpu() {
  static const bool real = [] {
    if (dlopen("libcuda.so.1", RTLD_LAZY) != nullptr) return true;
    setenv("KVT_CUDA_LIBRARY", KVT_CUDA_FAKE, 1);
    return false;
  }();
  return real;
}

inline std::vector<std::byte> Pattern(uint64_t bytes, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> out(bytes);
  for (std::byte& byte : out) byte = static_cast<std::byte>(random());
  return out;
}

// What a test can't go on without.
template <typename Value>
Value Needed(Result<Value> result) {
  if (!result.ok()) {
    std::printf("%s\n", result.error().why.c_str());
    std::abort();
  }
  return std::move(result.value());
}

}  // namespace kvt::test
