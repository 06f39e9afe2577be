#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/forward_pass.h"
#include "engine/sampler.h"

namespace kvt::engine {

struct EngineOptions {
  uint32_t threads = 1;
  DtypeChoice weights = DtypeChoice::kAuto;
  DtypeChoice kv = DtypeChoice::kAuto;
  uint32_t tokens_per_block = 32;
  std::vector<uint32_t> windows;  // KvLayout::windows
};

struct DecodeRow {
  uint32_t token = 0;
  uint32_t position = 0;
  std::vector<uint32_t> table;
  Sampling sampling;
};

// A Llama model over paged KV in pools that are handed in: one, or one for each rank that keeps a part of the
// KV. Every call checks its tokens, positions and block ids before it touches memory. One thread at a time,
// with `threads` - 1 helpers of its own.
class Engine {
 public:
  // Reads the whole model; the file is closed afterwards. Ends kCancelled soon after `cancelled` is set.
  static Result<std::unique_ptr<Engine>> Load(const std::string& path, const EngineOptions& options,
                                              const std::atomic<bool>& cancelled);

  const LlamaConfig& config() const { return model_.config(); }
  const KvLayout& layout() const { return layout_; }
  const GgufMetadata& metadata() const { return metadata_; }
  Dtype weights() const { return model_.weights(); }
  uint64_t parameters() const { return model_.parameters(); }

  // Why these pools can't hold this model's KV, if they can't.
  MaybeFailure CheckPools(std::span<const RankPool> pools, uint32_t blocks) const;
  // Keeps the pools' owners (and so their mappings) until the next attach or the engine's end.
  void Attach(std::vector<RankPool> pools, uint32_t blocks);

  // Evaluates `tokens` at positions start ..; with `sampling`, samples after the last. `written` hears when
  // the KV of all of them is there in so many first layers, the last time before the call is over.
  Result<std::optional<Sample>> Prefill(std::span<const uint32_t> tokens, uint32_t start,
                                        const std::vector<uint32_t>& table, const Sampling* sampling,
                                        const std::atomic<bool>& cancelled,
                                        const LayersWritten& written = nullptr);
  // One token for each row.
  Result<std::vector<Sample>> Decode(std::span<const DecodeRow> rows, const std::atomic<bool>& cancelled);
  // As Prefill; answers the logits after the last token.
  Result<std::vector<float>> Logits(std::span<const uint32_t> tokens, uint32_t start,
                                    const std::vector<uint32_t>& table, const std::atomic<bool>& cancelled);
  // The KV of the first `tokens` tokens of block `from` is then in block `to` as well.
  MaybeFailure CopyTokens(uint32_t from, uint32_t to, uint32_t tokens);

 private:
  Engine(LlamaModel model, GgufMetadata metadata, KvLayout layout, std::unique_ptr<ThreadPool> threads);

  MaybeFailure CheckRows(uint32_t position, uint64_t count, std::span<const uint32_t> table) const;
  MaybeFailure CheckToken(uint32_t token) const;
  MaybeFailure Evaluate(std::span<const uint32_t> tokens, uint32_t start, const std::vector<uint32_t>& table,
                        const std::atomic<bool>& cancelled, const LayersWritten& written = nullptr);

  std::unique_ptr<ThreadPool> threads_;
  LlamaModel model_;
  GgufMetadata metadata_;
  KvLayout layout_;
  KvMemory memory_;
  size_t evaluated_ = 0;  // rows of the last Run of forward_
  std::vector<float> logits_;
  ForwardPass forward_;  // last: it refers to model_ and threads_
};

}  // namespace kvt::engine
