#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/llama_config.h"
#include "engine/packed_matrix.h"

namespace kvt::engine {

struct LlamaLayer {
  std::vector<float> attention_norm;
  PackedMatrix query_key_value;  // outputs: queries, keys, values
  PackedMatrix attention_output;
  std::vector<float> feed_forward_norm;
  PackedMatrix gate_up;  // outputs: gate, up
  PackedMatrix down;
};

enum class DtypeChoice { kAuto, kF32, kBf16 };

// Weights in memory, in the kernels' order. Immutable after Load.
class LlamaModel {
 public:
  // Ends kCancelled between two layers once `cancelled` is set.
  static Result<LlamaModel> Load(const GgufContents& contents, DtypeChoice weights, ThreadPool& threads,
                                 const std::atomic<bool>& cancelled);

  const LlamaConfig& config() const { return config_; }
  const std::vector<LlamaLayer>& layers() const { return layers_; }
  const std::vector<float>& output_norm() const { return output_norm_; }
  // [vocab] rows of `width`; embeddings and, when tied, the output.
  const PackedMatrix& embeddings() const { return embeddings_; }
  const PackedMatrix& output() const { return tied_ ? embeddings_ : output_; }
  Dtype weights() const { return embeddings_.dtype(); }
  uint64_t parameters() const { return parameters_; }

 private:
  LlamaModel() = default;

  LlamaConfig config_;
  std::vector<LlamaLayer> layers_;
  std::vector<float> output_norm_;
  PackedMatrix embeddings_;
  PackedMatrix output_;
  bool tied_ = true;
  uint64_t parameters_ = 0;
};

// f32 below 100 million parameters: small models are for tests, where f32 agrees with every other
// implementation.
Dtype Choose(DtypeChoice choice, uint64_t parameters);

}  // namespace kvt::engine
