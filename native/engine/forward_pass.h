#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/kernels.h"
#include "engine/kv_memory.h"
#include "engine/llama_model.h"
#include "engine/thread_pool.h"

namespace kvt::engine {

// One token of one sequence. `table` holds the sequence's block ids in token order, up to `position` at
// least.
struct Row {
  uint32_t token;
  uint32_t position;
  const uint32_t* table;
};

// Told on the computing thread that K and V of all rows lie in their blocks in the first `layers` layers, for
// each layer once, before the layer's attention. Budget: far below a layer's time.
using LayersWritten = std::function<void(uint32_t layers)>;

// The transformer over a batch of rows, which may belong to any sequences. Trusts its arguments: Engine
// checks them. Owns the intermediate values of one batch; used by one thread at a time.
class ForwardPass {
 public:
  static constexpr size_t kMaxRows = 256;

  ForwardPass(const LlamaModel& model, KvLayout layout, VectorLevel level, ThreadPool& threads);

  // Writes K and V of up to kMaxRows rows into their blocks and keeps the last hidden values. A row attends
  // to every position of its sequence up to its own, whether written earlier or by this batch. False when
  // `cancelled` was seen between two layers. `written` may be empty.
  bool Run(std::span<const Row> rows, const KvMemory& memory, const std::atomic<bool>& cancelled,
           const LayersWritten& written = nullptr);

  // Logits of `count` rows of the last Run, from row `first` on: [count][vocab].
  void Logits(size_t first, size_t count, float* logits);

 private:
  void Rotate(std::span<const Row> rows);
  void StoreKeysAndValues(std::span<const Row> rows, uint32_t layer, const KvMemory& memory);
  // One head's key or value of one token.
  void Store(const float* source, uint8_t* target) const;
  void Attend(std::span<const Row> rows, uint32_t layer, const KvMemory& memory);
  void Norm(const float* x, const std::vector<float>& weight, float* y, size_t rows);
  void Multiply(const float* x, size_t rows, const PackedMatrix& w, float* y, bool accumulate);
  void Activate(size_t rows);
  void PrepareRotation(std::span<const Row> rows);

  const LlamaModel& model_;
  const LlamaConfig& config_;
  const KvLayout layout_;
  const Kernels& kernels_;
  ThreadPool& threads_;
  std::vector<double> frequencies_;  // [head_dim / 2]
  std::vector<float> cosines_;       // [row][head_dim / 2]
  std::vector<float> sines_;
  std::vector<float> hidden_;               // [row][width]
  std::vector<float> normed_;               // [row][width]
  std::vector<float> query_key_value_;      // [row][queries, keys, values]
  std::vector<float> attended_;             // [row][queries]
  std::vector<float> gate_up_;              // [row][gate, up]
  std::vector<float> activated_;            // [row][feed_forward]
  std::vector<std::vector<float>> scores_;  // one a thread
};

}  // namespace kvt::engine
