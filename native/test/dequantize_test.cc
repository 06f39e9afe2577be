#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "engine/float_formats.h"
#include "engine/tensor_type.h"

using namespace kvt::engine;

namespace {

std::vector<uint8_t> RandomBlocks(const TensorType& type, size_t blocks, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> bytes(blocks * type.block_bytes);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

std::vector<float> Dequantized(const TensorType& type, const std::vector<uint8_t>& bytes) {
  std::vector<float> values(bytes.size() / type.block_bytes * type.block_values);
  type.dequantize(bytes.data(), values.size(), values.data());
  return values;
}

// IEEE half by its definition.
double Half(const uint8_t* p) {
  const int bits = p[0] | p[1] << 8;
  const double sign = bits & 0x8000 ? -1 : 1;
  const int exponent = bits >> 10 & 31;
  const double fraction = (bits & 1023) / 1024.0;
  if (exponent == 31) return fraction == 0 ? sign * INFINITY : NAN;
  return sign * (exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15));
}

// A block of quants whose first half-float is a plain number.
void PutScale(uint8_t* p, uint32_t i) {
  const uint32_t bits = 0x2000 + (i * 2654435761u >> 19) % 0x1800;  // about 0.008 .. 0.5
  p[0] = static_cast<uint8_t>(bits);
  p[1] = static_cast<uint8_t>(bits >> 8 | (i % 2 == 0 ? 0x80 : 0));
}

void CheckBlocks(uint32_t id, size_t scale_at, double (*expected)(const uint8_t* block, int i)) {
  const TensorType& type = *FindTensorType(id);
  std::vector<uint8_t> bytes = RandomBlocks(type, 200, id);
  for (uint32_t b = 0; b < 200; ++b) {
    PutScale(bytes.data() + b * type.block_bytes + scale_at, b);
    if (id == 3) PutScale(bytes.data() + b * type.block_bytes + 2, b + 7);
  }
  const std::vector<float> values = Dequantized(type, bytes);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint8_t* block = bytes.data() + i / type.block_values * type.block_bytes;
    const double right = expected(block, static_cast<int>(i % type.block_values));
    if (std::abs(values[i] - right) > 1e-6 * std::abs(right) + 1e-9) {
      CHECK_EQ(values[i], right);
      return;
    }
  }
}

}  // namespace

TEST("every half-float pattern widens to its value") {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint8_t bytes[2] = {static_cast<uint8_t>(bits), static_cast<uint8_t>(bits >> 8)};
    const double right = Half(bytes);
    const float got = FloatFromHalf(static_cast<uint16_t>(bits));
    if (std::isnan(right)) {
      CHECK(std::isnan(got));
    } else {
      CHECK_EQ(static_cast<double>(got), right);
      CHECK_EQ(std::signbit(got), std::signbit(right));
    }
  }
}

TEST("bf16 rounds to the nearest value, ties to even, and keeps NaN and infinity") {
  CHECK_EQ(Bf16FromFloat(1.0f), 0x3f80);
  CHECK_EQ(Bf16FromFloat(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // a tie: down to even
  CHECK_EQ(Bf16FromFloat(std::bit_cast<float>(0x3f818000u)), 0x3f82);  // a tie: up to even
  CHECK_EQ(Bf16FromFloat(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  CHECK_EQ(Bf16FromFloat(INFINITY), 0x7f80);
  CHECK_EQ(Bf16FromFloat(-INFINITY), 0xff80);
  CHECK(std::isnan(FloatFromBf16(Bf16FromFloat(std::bit_cast<float>(0x7f800001u)))));
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = FloatFromBf16(static_cast<uint16_t>(bits));
    if (!std::isnan(value)) CHECK_EQ(Bf16FromFloat(value), bits);
  }
}

TEST("F32, F16 and BF16 are copied exactly from any address") {
  const std::vector<uint8_t> bytes = {0xff, 0, 0, 0x80, 0x3f, 0, 0xc0, 0xff};
  float values[2];
  FindTensorType(0)->dequantize(bytes.data() + 1, 1, values);
  CHECK_EQ(values[0], 1.0f);
  FindTensorType(30)->dequantize(bytes.data() + 3, 2, values);
  CHECK_EQ(values[0], 1.0f);
  CHECK_EQ(values[1], -2.0f);
  const uint8_t half[] = {7, 0x00, 0x3c, 0x00, 0xc0};
  FindTensorType(1)->dequantize(half + 1, 2, values);
  CHECK_EQ(values[0], 1.0f);
  CHECK_EQ(values[1], -2.0f);
}

TEST("Q4_0: value i is (nibble i - 8) * scale, second half of the block in the high nibbles") {
  CheckBlocks(2, 0, [](const uint8_t* b, int i) {
    const int nibble = i < 16 ? b[2 + i] % 16 : b[2 + i - 16] / 16;
    return (nibble - 8) * Half(b);
  });
}

TEST("Q4_1: value i is nibble i * scale + minimum") {
  CheckBlocks(3, 0, [](const uint8_t* b, int i) {
    const int nibble = i < 16 ? b[4 + i] % 16 : b[4 + i - 16] / 16;
    return nibble * Half(b) + Half(b + 2);
  });
}

TEST("Q8_0: value i is the signed byte i * scale") {
  CheckBlocks(8, 0, [](const uint8_t* b, int i) {
    const int byte = b[2 + i] < 128 ? b[2 + i] : b[2 + i] - 256;
    return byte * Half(b);
  });
}

TEST("Q6_K: value i is (6 bits - 32) * its sixteenth's scale * the block's scale") {
  CheckBlocks(14, 208, [](const uint8_t* b, int i) {
    const int half = i / 128, quarter = i % 128 / 32, lane = i % 32;
    const int low_byte = b[half * 64 + (quarter % 2) * 32 + lane];
    const int low = quarter < 2 ? low_byte % 16 : low_byte / 16;
    const int high = b[128 + half * 32 + lane] >> (quarter * 2) & 3;
    const int scale_byte = b[192 + i / 16];
    const int scale = scale_byte < 128 ? scale_byte : scale_byte - 256;
    return Half(b + 208) * scale * (high * 16 + low - 32);
  });
}

TEST("types that are not read have a name for the message") {
  CHECK(FindTensorType(12) == nullptr);
  CHECK_EQ(std::string(TensorTypeName(12)), "Q4_K");
  CHECK_EQ(std::string(TensorTypeName(39)), "MXFP4");
  CHECK_EQ(std::string(TensorTypeName(4)), "unknown");
  CHECK_EQ(std::string(TensorTypeName(4'000'000'000u)), "unknown");
}

KVT_TEST_MAIN
