#include "memory/vector_level.h"

#include <cstdlib>
#include <cstring>

namespace kvt {

std::vector<VectorLevel> VectorLevelsHere() {
  std::vector<VectorLevel> levels = {VectorLevel::kGeneric};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) levels.push_back(VectorLevel::kAvx2);
  if (avx2 && __builtin_cpu_supports("avx512f")) levels.push_back(VectorLevel::kAvx512);
#elif defined(__aarch64__)
  levels.push_back(VectorLevel::kNeon);  // part of every AArch64
#endif
  return levels;
}

VectorLevel ChooseVectorLevel(const std::vector<VectorLevel>& levels, const char* wish) {
  for (const VectorLevel level : levels) {
    if (wish != nullptr && std::strcmp(wish, VectorLevelName(level)) == 0) return level;
  }
  return levels.back();
}

VectorLevel ChosenVectorLevel() {
  static const VectorLevel level = ChooseVectorLevel(VectorLevelsHere(), std::getenv("KVT_VECTOR_LEVEL"));
  return level;
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

}  // namespace kvt
