#pragma once

#include <vector>

namespace kvt {

// In the order of preference of those that a processor may have. AVX-512, AVX2 and NEON give the engine the
// same bits: the same lanes, the same order, fused multiply-add. Generic has no fused multiply-add and so
// gives other bits.
enum class VectorLevel { kGeneric, kNeon, kAvx2, kAvx512 };

// What engine and copies use in this process, decided once: the widest level of this processor, or the lower
// one that KVT_VECTOR_LEVEL names.
VectorLevel ChosenVectorLevel();

// All that this processor and this build can run, lowest first; never empty.
std::vector<VectorLevel> VectorLevelsHere();

// The level called `wish` if `levels` (lowest first) has it, else the highest of them. `wish` may be null.
VectorLevel ChooseVectorLevel(const std::vector<VectorLevel>& levels, const char* wish);

const char* VectorLevelName(VectorLevel level);

}  // namespace kvt
