#include <cstring>

#include "engine/kernels.h"

namespace kvt::engine {
namespace {

struct V16 {
  float v[kLanes];
};

template <class F>
inline V16 Each(F f) {
  V16 result;
  for (size_t i = 0; i < kLanes; ++i) result.v[i] = f(i);
  return result;
}

inline uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline V16 Load(const float* p) {
  return Each([&](size_t i) { return p[i]; });
}
inline V16 LoadBf16(const uint16_t* p) {
  return Each([&](size_t i) { return FloatOf(uint32_t{p[i]} << 16); });
}
inline void Store(float* p, V16 a) { std::memcpy(p, a.v, sizeof a.v); }
inline V16 Splat(float a) {
  return Each([&](size_t) { return a; });
}
inline V16 Add(V16 a, V16 b) {
  return Each([&](size_t i) { return a.v[i] + b.v[i]; });
}
inline V16 Sub(V16 a, V16 b) {
  return Each([&](size_t i) { return a.v[i] - b.v[i]; });
}
inline V16 Mul(V16 a, V16 b) {
  return Each([&](size_t i) { return a.v[i] * b.v[i]; });
}
inline V16 Div(V16 a, V16 b) {
  return Each([&](size_t i) { return a.v[i] / b.v[i]; });
}
inline V16 Min(V16 a, V16 b) {
  return Each([&](size_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline V16 Max(V16 a, V16 b) {
  return Each([&](size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
// Two roundings: a fused one in software would take a hundred times as long.
inline V16 Fma(V16 a, V16 b, V16 c) {
  return Each([&](size_t i) { return a.v[i] * b.v[i] + c.v[i]; });
}
// Multiplies by 2^n, n in the low bits of `shifted`.
inline V16 AddToExponent(V16 a, V16 shifted) {
  return Each([&](size_t i) { return FloatOf(BitsOf(a.v[i]) + (BitsOf(shifted.v[i]) << 23)); });
}
// Lane l + lane l + 8, then + 4, + 2, + 1.
inline float SumLanes(V16 a) {
  for (size_t width = kLanes / 2; width > 0; width /= 2) {
    for (size_t i = 0; i < width; ++i) a.v[i] += a.v[i + width];
  }
  return a.v[0];
}

constexpr int kRowTile = 4;
constexpr int kGroupTile = 1;
constexpr int kSingleRowGroups = 2;

#include "engine/kernels_body.h"

}  // namespace

const Kernels kGenericKernels = {GemmF32, GemmBf16, AttendF32, AttendBf16, RmsNorm, SiluMul};

}  // namespace kvt::engine
