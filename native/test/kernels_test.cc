#include "engine/kernels.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "engine/float_formats.h"

using namespace kvt;
using namespace kvt::engine;

namespace {

std::vector<float> Random(size_t count, uint32_t seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

std::vector<uint16_t> ToBf16(const std::vector<float>& values) {
  std::vector<uint16_t> halves;
  for (const float value : values) halves.push_back(Bf16FromFloat(value));
  return halves;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool Close(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(std::abs(a[i] - b[i]) <= tolerance)) return false;
  }
  return a.size() == b.size();
}

// Levels with fused multiply-add agree in every bit; the generic one is near.
template <class Run>
void CheckLevels(Run run, const std::vector<float>& right, float tolerance) {
  std::vector<float> fused;
  for (const VectorLevel level : VectorLevelsHere()) {
    const std::vector<float> got = run(KernelsFor(level));
    CHECK(Close(got, right, tolerance));
    if (level == VectorLevel::kGeneric) continue;
    if (!fused.empty()) CHECK(SameBits(got, fused));
    fused = got;
  }
}

struct Product {
  size_t rows, columns, outputs;
  std::vector<float> x = Random(rows * columns, 1);
  std::vector<float> w = Random((outputs + 15) / 16 * columns * 16, 2);

  std::vector<float> Right(const std::vector<float>& start, bool bf16) const {
    std::vector<float> y(rows * outputs);
    for (size_t row = 0; row < rows; ++row) {
      for (size_t output = 0; output < outputs; ++output) {
        double sum = start[row * outputs + output];
        for (size_t c = 0; c < columns; ++c) {
          const float weight = w[output / 16 * columns * 16 + c * 16 + output % 16];
          sum += static_cast<double>(x[row * columns + c]) *
                 (bf16 ? FloatFromBf16(Bf16FromFloat(weight)) : weight);
        }
        y[row * outputs + output] = static_cast<float>(sum);
      }
    }
    return y;
  }
  GemmArgs Args(const void* weights, float* y, bool accumulate) const {
    return {x.data(), rows, columns, weights, 0, (outputs + 15) / 16, y, outputs, outputs, accumulate};
  }
};

}  // namespace

TEST("a matrix product is right for every number of rows and outputs, and alike on every level") {
  for (const size_t rows : {1u, 2u, 4u, 5u, 11u, 12u, 13u, 29u}) {
    for (const size_t outputs : {1u, 16u, 17u, 48u, 130u, 300u}) {
      const Product product{rows, 32, outputs};
      const std::vector<float> zeros(rows * outputs);
      const std::vector<uint16_t> halves = ToBf16(product.w);
      CheckLevels(
          [&](const Kernels& kernels) {
            std::vector<float> y(rows * outputs, NAN);
            kernels.gemm_f32(product.Args(product.w.data(), y.data(), false));
            return y;
          },
          product.Right(zeros, false), 1e-4f);
      CheckLevels(
          [&](const Kernels& kernels) {
            std::vector<float> y(rows * outputs, NAN);
            kernels.gemm_bf16(product.Args(halves.data(), y.data(), false));
            return y;
          },
          product.Right(zeros, true), 1e-4f);
    }
  }
}

TEST("a matrix product adds to what is there when asked to") {
  const Product product{13, 48, 70};
  const std::vector<float> start = Random(13 * 70, 3);
  CheckLevels(
      [&](const Kernels& kernels) {
        std::vector<float> y = start;
        kernels.gemm_f32(product.Args(product.w.data(), y.data(), true));
        return y;
      },
      product.Right(start, false), 1e-4f);
}

TEST("a row's product has the same bits in any batch and any range of groups") {
  const Product product{29, 64, 200};
  for (const VectorLevel level : VectorLevelsHere()) {
    const Kernels& kernels = KernelsFor(level);
    std::vector<float> together(29 * 200);
    kernels.gemm_f32(product.Args(product.w.data(), together.data(), false));
    std::vector<float> alone(29 * 200);
    for (size_t row = 0; row < 29; ++row) {
      for (size_t group = 0; group < 13; ++group) {
        GemmArgs args = product.Args(product.w.data(), alone.data() + row * 200, false);
        args.x += row * 64;
        args.rows = 1;
        args.group_begin = group;
        args.group_end = group + 1;
        kernels.gemm_f32(args);
      }
    }
    CHECK(SameBits(alone, together));
  }
}

TEST("attention over scattered blocks equals softmax by its definition") {
  constexpr size_t kTokens = 8;
  constexpr size_t kBlocks = 9;
  for (const size_t head_dim : {16u, 32u, 80u, 128u}) {
    for (const size_t position : {0u, 6u, 7u, 8u, 30u, 63u}) {
      const size_t plane = kTokens * head_dim;
      const std::vector<float> pool = Random(kBlocks * 2 * plane, 4);
      const std::vector<uint16_t> halves = ToBf16(pool);
      const std::vector<uint32_t> table = {7, 2, 5, 0, 8, 1, 6, 3};
      const std::vector<float> query = Random(head_dim, 5);
      for (const bool bf16 : {false, true}) {
        const size_t size = bf16 ? 2 : 4;
        const auto at = [&](size_t p, size_t which, size_t d) {
          const float value =
              pool[table[p / kTokens] * 2 * plane + which * plane + p % kTokens * head_dim + d];
          return static_cast<double>(bf16 ? FloatFromBf16(Bf16FromFloat(value)) : value);
        };
        std::vector<double> out(head_dim);
        double total = 0;
        for (size_t p = 0; p <= position; ++p) {
          double score = 0;
          for (size_t d = 0; d < head_dim; ++d) score += query[d] * at(p, 0, d);
          const double weight = std::exp(score * 0.25);
          total += weight;
          for (size_t d = 0; d < head_dim; ++d) out[d] += weight * at(p, 1, d);
        }
        std::vector<float> right;
        for (const double value : out) right.push_back(static_cast<float>(value / total));
        CheckLevels(
            [&](const Kernels& kernels) {
              std::vector<float> got(head_dim, NAN);
              std::vector<float> scores(position + 1 + 15, NAN);
              const auto* data = bf16 ? reinterpret_cast<const uint8_t*>(halves.data())
                                      : reinterpret_cast<const uint8_t*>(pool.data());
              (bf16 ? kernels.attend_bf16 : kernels.attend_f32)({
                  .query = query.data(),
                  .out = got.data(),
                  .pool = data,
                  .block_stride = 2 * plane * size,
                  .token_stride = head_dim * size,
                  .key_offset = 0,
                  .value_offset = plane * size,
                  .table = table.data(),
                  .tokens_per_block = kTokens,
                  .first = 0,
                  .position = position,
                  .head_dim = head_dim,
                  .scale = 0.25f,
                  .scores = scores.data(),
              });
              return got;
            },
            right, 2e-5f);
      }
    }
  }
}

TEST("RMS norm and the gated activation equal their formulas") {
  const std::vector<float> x = Random(96, 6, 3);
  const std::vector<float> w = Random(96, 7);
  std::vector<float> normed;
  std::vector<float> activated;
  double squares = 0;
  for (const float value : x) squares += static_cast<double>(value) * value;
  for (size_t i = 0; i < 96; ++i) {
    normed.push_back(static_cast<float>(x[i] / std::sqrt(squares / 96 + 1e-5) * w[i]));
    activated.push_back(static_cast<float>(x[i] / (1 + std::exp(-static_cast<double>(x[i]))) * w[i]));
  }
  const auto apply = [](auto kernel) {
    return [kernel](const Kernels& kernels) {
      std::vector<float> y(96);
      kernel(kernels, y.data());
      return y;
    };
  };
  CheckLevels(apply([&](const Kernels& k, float* y) { k.rms_norm(x.data(), w.data(), y, 96, 1e-5f); }),
              normed, 2e-6f);
  CheckLevels(apply([&](const Kernels& k, float* y) { k.silu_mul(x.data(), w.data(), y, 96); }), activated,
              2e-6f);
}

// The levels of one processor are compared with each other everywhere else; this compares processors.
TEST("AVX2, AVX-512 and NEON give these very bits, so KV of one processor goes on on another") {
  std::mt19937 random(11);
  // Exact in float, and without the mathematics library, which may round differently elsewhere.
  const auto values = [&](size_t count) {
    std::vector<float> made(count);
    for (float& value : made) value = static_cast<float>(random() >> 8) * 0x1p-22f - 2.0f;
    return made;
  };
  constexpr size_t kRows = 7, kColumns = 96, kOutputs = 80, kTokens = 8, kBlocks = 5, kDim = 32;
  const std::vector<float> x = values(kRows * kColumns);
  const std::vector<float> w = values(kOutputs * kColumns);
  const std::vector<float> pool = values(kBlocks * 2 * kTokens * kDim);
  const std::vector<float> query = values(kDim);
  const std::vector<uint16_t> narrow_w = ToBf16(w);
  const std::vector<uint16_t> narrow_pool = ToBf16(pool);
  const uint32_t table[] = {4, 1, 3, 0, 2};
  for (const VectorLevel level : VectorLevelsHere()) {
    if (level == VectorLevel::kGeneric) continue;
    const Kernels& kernels = KernelsFor(level);
    std::vector<std::vector<float>> results(6, std::vector<float>(kRows * kOutputs));
    GemmArgs gemm{x.data(),          kRows,    kColumns, w.data(), 0, kOutputs / 16,
                  results[0].data(), kOutputs, kOutputs, false};
    kernels.gemm_f32(gemm);
    gemm.w = narrow_w.data();
    gemm.y = results[1].data();
    kernels.gemm_bf16(gemm);
    std::vector<float> scores(48);
    AttendArgs attend{query.data(),
                      results[2].data(),
                      reinterpret_cast<const uint8_t*>(pool.data()),
                      2 * kTokens * kDim * 4,
                      kDim * 4,
                      0,
                      kTokens * kDim * 4,
                      table,
                      kTokens,
                      0,
                      37,
                      kDim,
                      0.125f,
                      scores.data()};
    kernels.attend_f32(attend);
    attend.out = results[3].data();
    attend.pool = reinterpret_cast<const uint8_t*>(narrow_pool.data());
    attend.block_stride /= 2;
    attend.token_stride /= 2;
    attend.value_offset /= 2;
    kernels.attend_bf16(attend);
    kernels.rms_norm(x.data(), w.data(), results[4].data(), kColumns, 1e-5f);
    kernels.silu_mul(x.data(), w.data(), results[5].data(), kColumns);
    uint64_t hash = 0xcbf29ce484222325;  // FNV-1a, of the bits
    for (const std::vector<float>& result : results) {
      for (const float value : result) {
        hash = (hash ^ std::bit_cast<uint32_t>(value)) * 0x100000001b3;
      }
    }
    CHECK_EQ(hash, 0x62432f0901b9b840U);
  }
}

TEST("KVT_VECTOR_LEVEL takes a lower level that is there, and any other word the highest") {
  const std::vector<VectorLevel> levels = {VectorLevel::kGeneric, VectorLevel::kAvx2, VectorLevel::kAvx512};
  CHECK(ChooseVectorLevel(levels, nullptr) == VectorLevel::kAvx512);
  CHECK(ChooseVectorLevel(levels, "generic") == VectorLevel::kGeneric);
  CHECK(ChooseVectorLevel(levels, "avx2") == VectorLevel::kAvx2);
  CHECK(ChooseVectorLevel(levels, "neon") == VectorLevel::kAvx512);
  CHECK(ChooseVectorLevel({VectorLevel::kGeneric}, "avx2") == VectorLevel::kGeneric);
}

TEST("the activation is exact to 3e-7 over the whole range of the exponential") {
  for (float start = -95; start < 95; start += 0.37f) {
    std::vector<float> gate(16);
    const std::vector<float> ones(16, 1.0f);
    for (size_t i = 0; i < 16; ++i) gate[i] = start + 0.021f * static_cast<float>(i);
    for (const VectorLevel level : VectorLevelsHere()) {
      std::vector<float> y(16);
      KernelsFor(level).silu_mul(gate.data(), ones.data(), y.data(), 16);
      for (size_t i = 0; i < 16; ++i) {
        const double right = gate[i] / (1 + std::exp(-static_cast<double>(gate[i])));
        CHECK(std::abs(y[i] - right) <= 3e-7 * std::abs(right) + 1e-36);
      }
    }
  }
}

KVT_TEST_MAIN
