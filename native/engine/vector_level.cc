#include "engine/vector_level.h"

#include <cstdlib>
#include <cstring>

namespace kvt::engine {
namespace {

VectorLevel BestLevel() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f")) return VectorLevel::kAvx512;
  return avx2 ? VectorLevel::kAvx2 : VectorLevel::kGeneric;
#elif defined(__aarch64__)
  return VectorLevel::kNeon;  // part of every AArch64
#else
  return VectorLevel::kGeneric;
#endif
}

}  // namespace

VectorLevel DetectVectorLevel() {
  const VectorLevel best = BestLevel();
  const char* wish = std::getenv("KVT_TEST_VECTOR_LEVEL");
  if (wish == nullptr) return best;
  if (std::strcmp(wish, "generic") == 0) return VectorLevel::kGeneric;
  if (std::strcmp(wish, "avx2") == 0 && best == VectorLevel::kAvx512) return VectorLevel::kAvx2;
  return best;
}

const char* VectorLevelName(VectorLevel level) {
  switch (level) {
    case VectorLevel::kAvx512:
      return "avx512";
    case VectorLevel::kAvx2:
      return "avx2";
    case VectorLevel::kNeon:
      return "neon";
    case VectorLevel::kGeneric:
      break;
  }
  return "generic";
}

}  // namespace kvt::engine
