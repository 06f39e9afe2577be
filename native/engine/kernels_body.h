// The kernels, written once over `V16`, 16 f32 lanes. Included by one file a vector level, inside an
// anonymous namespace, after it has defined V16, its operations and the tile sizes kRowTile and kGroupTile
// that fit its registers. No #pragma once and no includes: the including file owns both.

// A bf16 is the upper half of an f32, so widening is exact.
inline V16 LoadAs(const float* p) { return Load(p); }
inline V16 LoadAs(const uint16_t* p) { return LoadBf16(p); }

// exp(x) for x <= 88, relative error below 2e-7: 2^n * p(r), n = round(x / ln 2), Cephes' polynomial. Own
// code, so that two machines with different C libraries agree.
inline V16 Exp(V16 x) {
  x = Max(Min(x, Splat(88.0f)), Splat(-87.0f));
  // Adding 1.5 * 2^23 leaves round(x / ln 2) in the low bits of the sum.
  const V16 shift = Splat(12582912.0f);
  const V16 shifted = Fma(x, Splat(1.44269504088896341f), shift);
  const V16 n = Sub(shifted, shift);
  const V16 r = Fma(n, Splat(2.12194440e-4f), Fma(n, Splat(-0.693359375f), x));
  V16 p = Splat(1.9875691500e-4f);
  p = Fma(p, r, Splat(1.3981999507e-3f));
  p = Fma(p, r, Splat(8.3334519073e-3f));
  p = Fma(p, r, Splat(4.1665795894e-2f));
  p = Fma(p, r, Splat(1.6666665459e-1f));
  p = Fma(p, r, Splat(5.0000001201e-1f));
  p = Add(Fma(p, Mul(r, r), r), Splat(1.0f));
  return AddToExponent(p, shifted);
}

// --- matrix product
// ------------------------------------------------------------------------------------------------

template <class W, int Rows, int Groups>
inline void Tile(const GemmArgs& args, size_t row, size_t group) {
  const float* x = args.x + row * args.columns;
  const W* w = static_cast<const W*>(args.w) + group * args.columns * kLanes;
  const size_t group_stride = args.columns * kLanes;
  V16 sums[Rows][Groups];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < Groups; ++j) sums[i][j] = Splat(0.0f);
  }
  for (size_t c = 0; c < args.columns; ++c) {
    V16 weights[Groups];
#pragma GCC unroll 16
    for (int j = 0; j < Groups; ++j) weights[j] = LoadAs(w + j * group_stride + c * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const V16 value = Splat(x[i * args.columns + c]);
#pragma GCC unroll 16
      for (int j = 0; j < Groups; ++j) sums[i][j] = Fma(value, weights[j], sums[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < Groups; ++j) {
      const size_t first = (group + j) * kLanes;
      float* y = args.y + (row + i) * args.stride + first;
      if (first + kLanes <= args.outputs) {
        Store(y, args.accumulate ? Add(Load(y), sums[i][j]) : sums[i][j]);
        continue;
      }
      float lanes[kLanes];
      Store(lanes, sums[i][j]);
      for (size_t lane = 0; first + lane < args.outputs; ++lane) {
        y[lane] = args.accumulate ? y[lane] + lanes[lane] : lanes[lane];
      }
    }
  }
}

// All rows for `Groups` groups: the weights of a tile stay in the first-level cache while the rows pass.
template <class W, int Groups>
inline void Columns(const GemmArgs& args, size_t group) {
  size_t row = 0;
  for (; row + kRowTile <= args.rows; row += kRowTile) Tile<W, kRowTile, Groups>(args, row, group);
  for (; row + 4 <= args.rows; row += 4) Tile<W, 4, Groups>(args, row, group);
  for (; row < args.rows; ++row) Tile<W, 1, Groups>(args, row, group);
}

template <class W>
inline void Gemm(const GemmArgs& args) {
  size_t group = args.group_begin;
  // A single row is one chain of dependent additions a group: several groups at once hide their latency.
  if (args.rows == 1) {
    for (; group + kSingleRowGroups <= args.group_end; group += kSingleRowGroups) {
      Tile<W, 1, kSingleRowGroups>(args, 0, group);
    }
  }
  for (; group + kGroupTile <= args.group_end; group += kGroupTile) Columns<W, kGroupTile>(args, group);
  for (; group < args.group_end; ++group) Columns<W, 1>(args, group);
}

void GemmF32(const GemmArgs& args) { Gemm<float>(args); }
void GemmBf16(const GemmArgs& args) { Gemm<uint16_t>(args); }

// --- attention
// -----------------------------------------------------------------------------------------------------

// The positions from `at` on that lie in one block.
struct Stretch {
  const uint8_t* start;  // without key_offset or value_offset
  size_t tokens;
};

inline Stretch StretchFrom(const AttendArgs& args, size_t at) {
  const size_t in_block = at % args.tokens_per_block;
  const size_t left = args.position + 1 - at;
  const size_t room = args.tokens_per_block - in_block;
  const uint8_t* block = args.pool + args.table[at / args.tokens_per_block] * args.block_stride;
  return {block + in_block * args.token_stride, left < room ? left : room};
}

// scores[p - first] = scale * (query . key of p); returns their maximum.
template <class T>
inline float ScoreKeys(const AttendArgs& args) {
  float highest = -__builtin_inff();
  float* scores = args.scores;
  for (size_t at = args.first; at <= args.position;) {
    const Stretch stretch = StretchFrom(args, at);
    const uint8_t* place = stretch.start + args.key_offset;
    for (size_t token = 0; token < stretch.tokens; ++token, place += args.token_stride) {
      const T* key = reinterpret_cast<const T*>(place);
      V16 sum = Splat(0.0f);
      for (size_t d = 0; d < args.head_dim; d += kLanes)
        sum = Fma(Load(args.query + d), LoadAs(key + d), sum);
      const float score = SumLanes(sum) * args.scale;
      *scores++ = score;
      highest = score > highest ? score : highest;
    }
    at += stretch.tokens;
  }
  return highest;
}

// scores = exp(scores - highest), zero behind the last to the next multiple of 16; returns their sum.
inline float ExpScores(const AttendArgs& args, float highest) {
  const size_t count = args.position + 1 - args.first;
  const size_t padded = (count + kLanes - 1) / kLanes * kLanes;
  for (size_t i = count; i < padded; ++i) args.scores[i] = highest;
  V16 sum = Splat(0.0f);
  for (size_t i = 0; i < padded; i += kLanes) {
    Store(args.scores + i, Exp(Sub(Load(args.scores + i), Splat(highest))));
    if (i + kLanes > count) {
      for (size_t tail = count; tail < padded; ++tail) args.scores[tail] = 0.0f;
    }
    sum = Add(sum, Load(args.scores + i));
  }
  return SumLanes(sum);
}

// out[d ..] = sum over p of scores[p - first] * value of p, for Parts * 16 dimensions
template <class T, int Parts>
inline void SumValues(const AttendArgs& args, size_t d, float factor) {
  V16 sums[Parts];
#pragma GCC unroll 16
  for (int i = 0; i < Parts; ++i) sums[i] = Splat(0.0f);
  const float* scores = args.scores;
  for (size_t at = args.first; at <= args.position;) {
    const Stretch stretch = StretchFrom(args, at);
    const uint8_t* place = stretch.start + args.value_offset;
    for (size_t token = 0; token < stretch.tokens; ++token, place += args.token_stride) {
      const T* value = reinterpret_cast<const T*>(place) + d;
      const V16 weight = Splat(*scores++);
#pragma GCC unroll 16
      for (int i = 0; i < Parts; ++i) sums[i] = Fma(weight, LoadAs(value + i * kLanes), sums[i]);
    }
    at += stretch.tokens;
  }
#pragma GCC unroll 16
  for (int i = 0; i < Parts; ++i) Store(args.out + d + i * kLanes, Mul(sums[i], Splat(factor)));
}

template <class T>
inline void Attend(const AttendArgs& args) {
  const float sum = ExpScores(args, ScoreKeys<T>(args));
  const float factor = 1.0f / sum;
  size_t d = 0;
  for (; d + 4 * kLanes <= args.head_dim; d += 4 * kLanes) SumValues<T, 4>(args, d, factor);
  for (; d + 2 * kLanes <= args.head_dim; d += 2 * kLanes) SumValues<T, 2>(args, d, factor);
  for (; d < args.head_dim; d += kLanes) SumValues<T, 1>(args, d, factor);
}

void AttendF32(const AttendArgs& args) { Attend<float>(args); }
void AttendBf16(const AttendArgs& args) { Attend<uint16_t>(args); }

// --- element-wise
// --------------------------------------------------------------------------------------------------

void RmsNorm(const float* x, const float* weight, float* y, size_t count, float epsilon) {
  V16 sum = Splat(0.0f);
  for (size_t i = 0; i < count; i += kLanes) sum = Fma(Load(x + i), Load(x + i), sum);
  const float mean = SumLanes(sum) / static_cast<float>(count);
  const V16 factor = Splat(1.0f / __builtin_sqrtf(mean + epsilon));
  for (size_t i = 0; i < count; i += kLanes) Store(y + i, Mul(Mul(Load(x + i), factor), Load(weight + i)));
}

void SiluMul(const float* gate, const float* up, float* y, size_t count) {
  const V16 one = Splat(1.0f);
  for (size_t i = 0; i < count; i += kLanes) {
    const V16 g = Load(gate + i);
    const V16 sigmoid = Div(one, Add(one, Exp(Sub(Splat(0.0f), g))));
    Store(y + i, Mul(Mul(g, sigmoid), Load(up + i)));
  }
}
