#if defined(__aarch64__)
#include <arm_neon.h>

#include "engine/kernels.h"

namespace kvt::engine {
namespace {

struct V16 {
  float32x4_t v[4];
};

template <class F>
inline V16 Each(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}

inline V16 Load(const float* p) {
  return Each([&](int i) { return vld1q_f32(p + 4 * i); });
}
inline V16 LoadBf16(const uint16_t* p) {
  return Each([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
}
inline void Store(float* p, V16 a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
}
inline V16 Splat(float a) {
  return Each([&](int) { return vdupq_n_f32(a); });
}
inline V16 Add(V16 a, V16 b) {
  return Each([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline V16 Sub(V16 a, V16 b) {
  return Each([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline V16 Mul(V16 a, V16 b) {
  return Each([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline V16 Div(V16 a, V16 b) {
  return Each([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
inline V16 Min(V16 a, V16 b) {
  return Each([&](int i) { return vminq_f32(a.v[i], b.v[i]); });
}
inline V16 Max(V16 a, V16 b) {
  return Each([&](int i) { return vmaxq_f32(a.v[i], b.v[i]); });
}
inline V16 Fma(V16 a, V16 b, V16 c) {
  return Each([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
// Multiplies by 2^n, n in the low bits of `shifted`.
inline V16 AddToExponent(V16 a, V16 shifted) {
  return Each([&](int i) {
    const uint32x4_t exponent = vshlq_n_u32(vreinterpretq_u32_f32(shifted.v[i]), 23);
    return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(a.v[i]), exponent));
  });
}
// Lane l + lane l + 8, then + 4, + 2, + 1.
inline float SumLanes(V16 a) {
  const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

// 6 x 1 sums of four registers each of the 32 registers.
constexpr int kRowTile = 6;
constexpr int kGroupTile = 1;
constexpr int kSingleRowGroups = 4;

#include "engine/kernels_body.h"

}  // namespace

const Kernels kNeonKernels = {GemmF32, GemmBf16, AttendF32, AttendBf16, RmsNorm, SiluMul};

}  // namespace kvt::engine
#endif
