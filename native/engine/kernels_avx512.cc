// Compiled with AVX-512F, AVX2 and FMA (CMakeLists.txt): nothing but kernels may live here.
#if defined(__x86_64__)
#include <immintrin.h>

#include "engine/kernels.h"

namespace kvt::engine {
namespace {

struct V16 {
  __m512 v;
};

inline V16 Load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline V16 LoadBf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline void Store(float* p, V16 a) { _mm512_storeu_ps(p, a.v); }
inline V16 Splat(float a) { return {_mm512_set1_ps(a)}; }
inline V16 Add(V16 a, V16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline V16 Sub(V16 a, V16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline V16 Mul(V16 a, V16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline V16 Div(V16 a, V16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline V16 Min(V16 a, V16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline V16 Max(V16 a, V16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline V16 Fma(V16 a, V16 b, V16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Multiplies by 2^n, n in the low bits of `shifted`.
inline V16 AddToExponent(V16 a, V16 shifted) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), exponent))};
}
// Lane l + lane l + 8, then + 4, + 2, + 1.
inline float SumLanes(V16 a) {
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1));
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// 12 x 2 sums, 2 weights and 1 value of the 32 registers.
constexpr int kRowTile = 12;
constexpr int kGroupTile = 2;
constexpr int kSingleRowGroups = 8;

#include "engine/kernels_body.h"

}  // namespace

const Kernels kAvx512Kernels = {GemmF32, GemmBf16, AttendF32, AttendBf16, RmsNorm, SiluMul};

}  // namespace kvt::engine
#endif
