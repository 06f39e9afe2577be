#include "engine/kernels.h"

namespace kvt::engine {

const Kernels& KernelsFor([[maybe_unused]] VectorLevel level) {
#if defined(__x86_64__)
  if (level == VectorLevel::kAvx512) return kAvx512Kernels;
  if (level == VectorLevel::kAvx2) return kAvx2Kernels;
#elif defined(__aarch64__)
  if (level == VectorLevel::kNeon) return kNeonKernels;
#endif
  return kGenericKernels;
}

}  // namespace kvt::engine
