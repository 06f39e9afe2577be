// Compiled with AVX2 and FMA (CMakeLists.txt): nothing but kernels may live here.
#if defined(__x86_64__)
#include <immintrin.h>

#include "engine/kernels.h"

namespace kvt::engine {
namespace {

struct V16 {
  __m256 low;
  __m256 high;
};

inline V16 Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline __m256 WidenBf16(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline V16 LoadBf16(const uint16_t* p) { return {WidenBf16(p), WidenBf16(p + 8)}; }
inline void Store(float* p, V16 a) {
  _mm256_storeu_ps(p, a.low);
  _mm256_storeu_ps(p + 8, a.high);
}
inline V16 Splat(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
inline V16 Add(V16 a, V16 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline V16 Sub(V16 a, V16 b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline V16 Mul(V16 a, V16 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline V16 Div(V16 a, V16 b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline V16 Min(V16 a, V16 b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline V16 Max(V16 a, V16 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline V16 Fma(V16 a, V16 b, V16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline __m256 AddToExponentHalf(__m256 a, __m256 shifted) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent));
}
// Multiplies by 2^n, n in the low bits of `shifted`.
inline V16 AddToExponent(V16 a, V16 shifted) {
  return {AddToExponentHalf(a.low, shifted.low), AddToExponentHalf(a.high, shifted.high)};
}
// Lane l + lane l + 8, then + 4, + 2, + 1.
inline float SumLanes(V16 a) {
  const __m256 eight = _mm256_add_ps(a.low, a.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// 6 x 1 sums of two registers each, 2 weights and 1 value of the 16 registers.
constexpr int kRowTile = 6;
constexpr int kGroupTile = 1;
constexpr int kSingleRowGroups = 4;

#include "engine/kernels_body.h"

}  // namespace

const Kernels kAvx2Kernels = {GemmF32, GemmBf16, AttendF32, AttendBf16, RmsNorm, SiluMul};

}  // namespace kvt::engine
#endif
