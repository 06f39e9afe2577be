#include "engine/engine.h"

#include <algorithm>

namespace kvt::engine {
namespace {

constexpr size_t kLogitRows = 12;
constexpr uint32_t kMaxThreads = 256;
constexpr uint32_t kMaxTokensPerBlock = 65536;

Failure Argument(std::string why) { return Failure{Fault::kArgument, std::move(why)}; }
Failure Cancelled() { return Failure{Fault::kCancelled, "cancelled between two layers"}; }

}  // namespace

Result<std::unique_ptr<Engine>> Engine::Load(const std::string& path, const EngineOptions& options,
                                             const std::atomic<bool>& cancelled) {
  if (options.threads < 1 || options.threads > kMaxThreads) return Argument("threads is not in 1 .. 256");
  if (options.tokens_per_block < 1 || options.tokens_per_block > kMaxTokensPerBlock) {
    return Argument("tokensPerBlock is not in 1 .. 65536");
  }
  Result<MappedFile> file = MappedFile::Open(path);
  if (!file) return file.failure();
  Result<GgufContents> contents = ParseGguf(file->data(), file->size());
  if (!contents) return contents.failure();
  auto threads = std::make_unique<ThreadPool>(options.threads);
  Result<LlamaModel> model = LlamaModel::Load(*contents, options.weights, *threads, cancelled);
  if (!model) return model.failure();
  const LlamaConfig& config = model->config();
  if (!options.windows.empty() && options.windows.size() != config.layers) {
    return Argument("windows has " + std::to_string(options.windows.size()) + " numbers for " +
                    std::to_string(config.layers) + " layers");
  }
  const KvLayout layout = {config.layers,
                           config.kv_heads,
                           options.tokens_per_block,
                           config.head_dim,
                           Choose(options.kv, model->parameters()),
                           options.windows};
  return std::unique_ptr<Engine>(
      new Engine(std::move(*model), std::move(contents->metadata), layout, std::move(threads)));
}

Engine::Engine(LlamaModel model, GgufMetadata metadata, KvLayout layout, std::unique_ptr<ThreadPool> threads)
    : threads_(std::move(threads)),
      model_(std::move(model)),
      metadata_(std::move(metadata)),
      layout_(layout),
      forward_(model_, layout_, ChosenVectorLevel(), *threads_) {}

MaybeFailure Engine::CheckPools(std::span<const RankPool> pools, uint32_t blocks) const {
  return KvMemory::Check(layout_, pools, blocks);
}

void Engine::Attach(std::vector<RankPool> pools, uint32_t blocks) {
  memory_ = KvMemory(layout_, std::move(pools), blocks);
}

MaybeFailure Engine::CheckRows(uint32_t position, uint64_t count, std::span<const uint32_t> table) const {
  if (memory_.blocks() == 0) return Argument("no pool is attached");
  if (count == 0) return Argument("there are no tokens");
  const uint64_t end = position + count;
  if (end > config().max_positions) {
    return Argument("position " + std::to_string(end - 1) + " is past the model's context of " +
                    std::to_string(config().max_positions));
  }
  const uint64_t needed = (end + layout_.tokens_per_block - 1) / layout_.tokens_per_block;
  if (table.size() < needed) {
    return Argument("the block table has " + std::to_string(table.size()) + " blocks, " +
                    std::to_string(end) + " tokens need " + std::to_string(needed));
  }
  for (uint64_t i = 0; i < needed; ++i) {
    if (table[i] >= memory_.blocks()) {
      return Argument("block " + std::to_string(table[i]) + " is not in the pool of " +
                      std::to_string(memory_.blocks()));
    }
  }
  return std::nullopt;
}

MaybeFailure Engine::CheckToken(uint32_t token) const {
  if (token < config().vocab) return std::nullopt;
  return Argument("token " + std::to_string(token) + " is not in the vocabulary of " +
                  std::to_string(config().vocab));
}

MaybeFailure Engine::Evaluate(std::span<const uint32_t> tokens, uint32_t start,
                              const std::vector<uint32_t>& table, const std::atomic<bool>& cancelled,
                              const LayersWritten& written) {
  if (MaybeFailure failure = CheckRows(start, tokens.size(), table)) return failure;
  for (const uint32_t token : tokens) {
    if (MaybeFailure failure = CheckToken(token)) return failure;
  }
  std::vector<Row> rows;
  for (size_t first = 0; first < tokens.size(); first += ForwardPass::kMaxRows) {
    const size_t count = std::min(ForwardPass::kMaxRows, tokens.size() - first);
    rows.clear();
    for (size_t i = first; i < first + count; ++i) {
      rows.push_back({tokens[i], start + static_cast<uint32_t>(i), table.data()});
    }
    const bool last = first + count == tokens.size();
    if (!forward_.Run(rows, memory_, cancelled, last ? written : nullptr)) return Cancelled();
    evaluated_ = count;
  }
  return std::nullopt;
}

Result<std::optional<Sample>> Engine::Prefill(std::span<const uint32_t> tokens, uint32_t start,
                                              const std::vector<uint32_t>& table, const Sampling* sampling,
                                              const std::atomic<bool>& cancelled,
                                              const LayersWritten& written) {
  if (sampling != nullptr) {
    if (MaybeFailure failure = CheckSampling(*sampling, config().vocab)) return *failure;
  }
  if (MaybeFailure failure = Evaluate(tokens, start, table, cancelled, written)) return *failure;
  if (sampling == nullptr) return std::optional<Sample>();
  logits_.resize(std::max<size_t>(logits_.size(), config().vocab));
  forward_.Logits(evaluated_ - 1, 1, logits_.data());
  return std::optional<Sample>(SampleToken(std::span(logits_).first(config().vocab), *sampling));
}

Result<std::vector<float>> Engine::Logits(std::span<const uint32_t> tokens, uint32_t start,
                                          const std::vector<uint32_t>& table,
                                          const std::atomic<bool>& cancelled) {
  if (MaybeFailure failure = Evaluate(tokens, start, table, cancelled)) return *failure;
  std::vector<float> logits(config().vocab);
  forward_.Logits(evaluated_ - 1, 1, logits.data());
  return logits;
}

MaybeFailure Engine::CopyTokens(uint32_t from, uint32_t to, uint32_t tokens) {
  if (memory_.blocks() == 0) return Argument("no pool is attached");
  for (const uint32_t block : {from, to}) {
    if (block < memory_.blocks()) continue;
    return Argument("block " + std::to_string(block) + " is not in the pool of " +
                    std::to_string(memory_.blocks()));
  }
  if (from == to) return Argument("block " + std::to_string(from) + " would be copied to itself");
  if (tokens < 1 || tokens > layout_.tokens_per_block) {
    return Argument("a block holds 1 .. " + std::to_string(layout_.tokens_per_block) + " tokens, not " +
                    std::to_string(tokens));
  }
  memory_.CopyHeads(from, to, tokens);
  return std::nullopt;
}

Result<std::vector<Sample>> Engine::Decode(std::span<const DecodeRow> rows,
                                           const std::atomic<bool>& cancelled) {
  for (const DecodeRow& row : rows) {
    if (MaybeFailure failure = CheckRows(row.position, 1, row.table)) return *failure;
    if (MaybeFailure failure = CheckToken(row.token)) return *failure;
    if (MaybeFailure failure = CheckSampling(row.sampling, config().vocab)) return *failure;
  }
  std::vector<Sample> samples;
  std::vector<Row> batch;
  logits_.resize(std::max(logits_.size(), std::min(kLogitRows, rows.size()) * config().vocab));
  for (size_t first = 0; first < rows.size(); first += ForwardPass::kMaxRows) {
    const size_t count = std::min(ForwardPass::kMaxRows, rows.size() - first);
    batch.clear();
    for (const DecodeRow& row : rows.subspan(first, count)) {
      batch.push_back({row.token, row.position, row.table.data()});
    }
    if (!forward_.Run(batch, memory_, cancelled, nullptr)) return Cancelled();
    // A few rows at a time read the output matrix once and need little memory for a large vocabulary.
    for (size_t i = 0; i < count; i += kLogitRows) {
      const size_t together = std::min(kLogitRows, count - i);
      forward_.Logits(i, together, logits_.data());
      for (size_t j = 0; j < together; ++j) {
        const std::span<float> logits(logits_.data() + j * config().vocab, config().vocab);
        samples.push_back(SampleToken(logits, rows[first + i + j].sampling));
      }
    }
  }
  return samples;
}

}  // namespace kvt::engine
