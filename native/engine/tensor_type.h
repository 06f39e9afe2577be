#pragma once

#include <cstddef>
#include <cstdint>

namespace kvt::engine {

// A GGUF tensor encoding that this engine reads: `block_values` numbers are stored in `block_bytes` bytes.
// Layouts: ggml-common.h of llama.cpp (block_q4_0, block_q4_1, block_q8_0, block_q6_K).
struct TensorType {
  uint32_t id;
  const char* name;
  uint32_t block_values;
  uint32_t block_bytes;
  // Writes `values` numbers, a multiple of block_values, as f32.
  void (*dequantize)(const uint8_t* source, size_t values, float* target);
};

// Null when this engine does not read the type.
const TensorType* FindTensorType(uint32_t id);

// Name of any type that GGUF defines, for messages; "unknown" otherwise.
const char* TensorTypeName(uint32_t id);

}  // namespace kvt::engine
