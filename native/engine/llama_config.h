#pragma once

#include <cstdint>

#include "engine/gguf.h"

namespace kvt::engine {

// Shape of a Llama model as its GGUF file states it, checked: every width is a multiple of 16 and fits 32
// bits.
struct LlamaConfig {
  uint32_t layers = 0;
  uint32_t width = 0;  // embedding_length
  uint32_t heads = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t feed_forward = 0;
  uint32_t vocab = 0;
  uint32_t max_positions = 0;  // context_length
  float rms_epsilon = 0;
  double rope_base = 10000;

  uint32_t QueryWidth() const { return heads * head_dim; }
  uint32_t KvWidth() const { return kv_heads * head_dim; }
};

// Refuses by name every architecture and every key that would change the numbers and is not implemented.
Result<LlamaConfig> ReadLlamaConfig(const GgufContents& contents);

}  // namespace kvt::engine
