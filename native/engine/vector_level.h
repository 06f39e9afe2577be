#pragma once

namespace kvt::engine {

// AVX-512, AVX2 and NEON give the same bits: the same lanes, the same order, fused multiply-add. Generic has
// no fused multiply-add and so gives other bits.
enum class VectorLevel { kGeneric, kNeon, kAvx2, kAvx512 };

// The best level that this CPU and this build have. KVT_TEST_VECTOR_LEVEL (generic, avx2) asks for a lower
// one.
VectorLevel DetectVectorLevel();

const char* VectorLevelName(VectorLevel level);

}  // namespace kvt::engine
