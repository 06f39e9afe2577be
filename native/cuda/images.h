#pragma once

#include <span>
#include <string>

namespace kvt::cuda {

// One form of the kernels, a module each, as cuModuleLoadData takes it.
struct Image {
  std::string name;  // "cubin sm_90", "PTX"
  int major = 0;     // of the GPUs that run it; 0: PTX, which the driver compiles
  int minor = 0;
  const void* gather = nullptr;
  const void* digest = nullptr;
};

// The best first for any GPU: machine code, newest first, then PTX.
std::span<const Image> AllImages();
// Machine code runs on GPUs of its own generation, from its own revision on; PTX on all.
bool RunsOn(const Image& image, int major, int minor);

}  // namespace kvt::cuda
