#include "engine/tensor_type.h"

#include <iterator>

#include "engine/float_formats.h"

// GGUF is little-endian, and so is every machine this is built for.
static_assert(std::endian::native == std::endian::little);

namespace kvt::engine {
namespace {

void DequantizeF32(const uint8_t* source, size_t values, float* target) {
  std::memcpy(target, source, values * sizeof(float));
}

void DequantizeF16(const uint8_t* source, size_t values, float* target) {
  for (size_t i = 0; i < values; ++i) target[i] = FloatFromHalf(LoadUnaligned<uint16_t>(source + 2 * i));
}

void DequantizeBf16(const uint8_t* source, size_t values, float* target) {
  for (size_t i = 0; i < values; ++i) target[i] = FloatFromBf16(LoadUnaligned<uint16_t>(source + 2 * i));
}

float HalfAt(const uint8_t* source) { return FloatFromHalf(LoadUnaligned<uint16_t>(source)); }

// [f16 scale][16 bytes: value j in the low half, value j + 16 in the high half], biased by 8
void DequantizeQ4_0(const uint8_t* source, size_t values, float* target) {
  for (size_t start = 0; start < values; start += 32, source += 18) {
    const float scale = HalfAt(source);
    const uint8_t* nibbles = source + 2;
    for (size_t j = 0; j < 16; ++j) {
      target[start + j] = static_cast<float>((nibbles[j] & 15) - 8) * scale;
      target[start + j + 16] = static_cast<float>((nibbles[j] >> 4) - 8) * scale;
    }
  }
}

// [f16 scale][f16 minimum][16 bytes as in Q4_0, not biased]
void DequantizeQ4_1(const uint8_t* source, size_t values, float* target) {
  for (size_t start = 0; start < values; start += 32, source += 20) {
    const float scale = HalfAt(source);
    const float minimum = HalfAt(source + 2);
    const uint8_t* nibbles = source + 4;
    for (size_t j = 0; j < 16; ++j) {
      target[start + j] = static_cast<float>(nibbles[j] & 15) * scale + minimum;
      target[start + j + 16] = static_cast<float>(nibbles[j] >> 4) * scale + minimum;
    }
  }
}

// [f16 scale][32 signed bytes]
void DequantizeQ8_0(const uint8_t* source, size_t values, float* target) {
  for (size_t start = 0; start < values; start += 32, source += 34) {
    const float scale = HalfAt(source);
    for (size_t j = 0; j < 32; ++j) {
      target[start + j] = static_cast<float>(static_cast<int8_t>(source[2 + j])) * scale;
    }
  }
}

// [128 bytes: low 4 bits][64 bytes: high 2 bits][16 signed scales, one for 16 values][f16 scale of the 256]
// Each half of 128 values interleaves four runs of 32: byte l holds bits of values l, l+32, l+64 and l+96.
void DequantizeQ6_K(const uint8_t* source, size_t values, float* target) {
  for (size_t start = 0; start < values; start += 256, source += 210) {
    const float scale = HalfAt(source + 208);
    for (size_t half = 0; half < 2; ++half) {
      const uint8_t* low = source + 64 * half;
      const uint8_t* high = source + 128 + 32 * half;
      const uint8_t* scales = source + 192 + 8 * half;
      float* out = target + start + 128 * half;
      for (size_t l = 0; l < 32; ++l) {
        const int bits[4] = {low[l] & 15, low[l + 32] & 15, low[l] >> 4, low[l + 32] >> 4};
        for (size_t run = 0; run < 4; ++run) {
          const int value = (bits[run] | (((high[l] >> (2 * run)) & 3) << 4)) - 32;
          const auto sub_scale = static_cast<int8_t>(scales[l / 16 + 2 * run]);
          out[l + 32 * run] = scale * static_cast<float>(sub_scale) * static_cast<float>(value);
        }
      }
    }
  }
}

constexpr TensorType kReadable[] = {
    {0, "F32", 1, 4, DequantizeF32},     {1, "F16", 1, 2, DequantizeF16},
    {2, "Q4_0", 32, 18, DequantizeQ4_0}, {3, "Q4_1", 32, 20, DequantizeQ4_1},
    {8, "Q8_0", 32, 34, DequantizeQ8_0}, {14, "Q6_K", 256, 210, DequantizeQ6_K},
    {30, "BF16", 1, 2, DequantizeBf16},
};

// Index = id in GGUF; empty places were never used or were withdrawn.
constexpr const char* kNames[] = {
    "F32",    "F16",   "Q4_0",  "Q4_1",   "",      "",      "Q5_0",    "Q5_1",   "Q8_0",    "Q8_1",
    "Q2_K",   "Q3_K",  "Q4_K",  "Q5_K",   "Q6_K",  "Q8_K",  "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S",
    "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8",    "I16",   "I32",     "I64",    "F64",     "IQ1_M",
    "BF16",   "",      "",      "",       "TQ1_0", "TQ2_0", "",        "",       "",        "MXFP4",
};

}  // namespace

const TensorType* FindTensorType(uint32_t id) {
  for (const TensorType& type : kReadable) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

const char* TensorTypeName(uint32_t id) {
  return id < std::size(kNames) && kNames[id][0] != '\0' ? kNames[id] : "unknown";
}

}  // namespace kvt::engine
