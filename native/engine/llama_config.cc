#include "engine/llama_config.h"

#include <cmath>
#include <optional>

namespace kvt::engine {
namespace {

constexpr uint64_t kMaxLayers = 1024;
constexpr uint64_t kMaxWidth = 1 << 17;
constexpr uint64_t kMaxHeadDim = 1024;
constexpr uint64_t kMaxVocab = 1 << 22;
constexpr uint64_t kMaxPositions = 1 << 24;

Failure Invalid(std::string why) { return Failure{Fault::kInvalid, std::move(why)}; }
Failure Unsupported(std::string why) { return Failure{Fault::kUnsupported, std::move(why)}; }

const GgufValue* Find(const GgufMetadata& metadata, const std::string& key) {
  const auto found = metadata.find(key);
  return found == metadata.end() ? nullptr : &found->second;
}

std::optional<uint64_t> Unsigned(const GgufValue& value) {
  if (const auto* number = std::get_if<uint64_t>(&value)) return *number;
  if (const auto* number = std::get_if<int64_t>(&value); number != nullptr && *number >= 0) {
    return static_cast<uint64_t>(*number);
  }
  return std::nullopt;
}

// Reads the numbers of one file; the first thing wrong is kept and later reads do nothing.
class ConfigReader {
 public:
  explicit ConfigReader(const GgufMetadata& metadata) : metadata_(metadata) {}

  uint32_t Count(const std::string& key, uint64_t limit, std::optional<uint64_t> absent = std::nullopt) {
    const GgufValue* value = Find(metadata_, key);
    if (value == nullptr && absent) return static_cast<uint32_t>(*absent);
    if (value == nullptr) return Fail(Invalid("key `" + key + "` is missing"));
    if (std::holds_alternative<std::vector<uint64_t>>(*value) ||
        std::holds_alternative<std::vector<int64_t>>(*value)) {
      return Fail(Unsupported("key `" + key + "` differs from layer to layer"));
    }
    const std::optional<uint64_t> number = Unsigned(*value);
    if (!number || *number == 0 || *number > limit) {
      return Fail(Invalid("key `" + key + "` is no whole number in 1 .. " + std::to_string(limit)));
    }
    return static_cast<uint32_t>(*number);
  }

  double Real(const std::string& key, double low, double high, std::optional<double> absent = std::nullopt) {
    const GgufValue* value = Find(metadata_, key);
    if (value == nullptr && absent) return *absent;
    const double* number = value == nullptr ? nullptr : std::get_if<double>(value);
    if (number == nullptr || !(*number >= low && *number <= high)) {
      Fail(Invalid("key `" + key + "` is missing or no number in " + std::to_string(low) + " .. " +
                   std::to_string(high)));
      return low;
    }
    return *number;
  }

  void Require(bool holds, Failure failure) {
    if (!holds) Fail(std::move(failure));
  }

  const MaybeFailure& failure() const { return failure_; }

 private:
  // Returns 1, which no later arithmetic trips over.
  uint32_t Fail(Failure failure) {
    if (!failure_) failure_ = std::move(failure);
    return 1;
  }

  const GgufMetadata& metadata_;
  MaybeFailure failure_;
};

bool IsNeutral(const GgufValue& value, double neutral) {
  if (const auto* number = std::get_if<double>(&value)) return *number == neutral;
  if (const auto* truth = std::get_if<bool>(&value)) return *truth == (neutral != 0);
  const std::optional<uint64_t> number = Unsigned(value);
  return number && static_cast<double>(*number) == neutral;
}

// Keys that change the numbers, and the value at which they do nothing.
constexpr struct {
  const char* key;
  double neutral;
} kRefusedKeys[] = {
    {"llama.expert_count", 0},
    {"llama.expert_used_count", 0},
    {"llama.rope.scale_linear", 1},
    {"llama.rope.scaling.factor", 1},
    {"llama.rope.scaling.attn_factor", 1},
    {"llama.attention.sliding_window", 0},
    {"llama.attention.causal", 1},
    {"llama.attention.clamp_kqv", 0},
    {"llama.attention.max_alibi_bias", 0},
    {"llama.attention.scale", 0},
    {"llama.attn_logit_softcapping", 0},
    {"llama.final_logit_softcapping", 0},
    {"llama.logit_scale", 1},
    {"llama.embedding_scale", 1},
    {"llama.residual_scale", 1},
    {"llama.use_parallel_residual", 0},
};

MaybeFailure RefuseUnknownFeatures(const GgufMetadata& metadata) {
  const GgufValue* architecture = Find(metadata, "general.architecture");
  const auto* name = architecture == nullptr ? nullptr : std::get_if<std::string>(architecture);
  if (name == nullptr) return Invalid("key `general.architecture` is missing or no string");
  if (*name != "llama") return Unsupported("architecture `" + *name + "` (only `llama` is implemented)");
  if (const GgufValue* scaling = Find(metadata, "llama.rope.scaling.type")) {
    const auto* kind = std::get_if<std::string>(scaling);
    if (kind == nullptr || *kind != "none") {
      return Unsupported("rope scaling `" + (kind == nullptr ? "?" : *kind) +
                         "` (key `llama.rope.scaling.type`)");
    }
  }
  for (const auto& [key, neutral] : kRefusedKeys) {
    const GgufValue* value = Find(metadata, key);
    if (value != nullptr && !IsNeutral(*value, neutral)) return Unsupported("key `" + std::string(key) + "`");
  }
  return std::nullopt;
}

}  // namespace

Result<LlamaConfig> ReadLlamaConfig(const GgufContents& contents) {
  if (MaybeFailure failure = RefuseUnknownFeatures(contents.metadata)) return *failure;
  ConfigReader reader(contents.metadata);
  LlamaConfig config;
  config.layers = reader.Count("llama.block_count", kMaxLayers);
  config.width = reader.Count("llama.embedding_length", kMaxWidth);
  config.heads = reader.Count("llama.attention.head_count", kMaxWidth);
  config.kv_heads = reader.Count("llama.attention.head_count_kv", kMaxWidth, config.heads);
  config.feed_forward = reader.Count("llama.feed_forward_length", kMaxWidth);
  config.max_positions = reader.Count("llama.context_length", kMaxPositions);
  config.rms_epsilon = static_cast<float>(reader.Real("llama.attention.layer_norm_rms_epsilon", 1e-12, 1));
  config.rope_base = reader.Real("llama.rope.freq_base", 1, 1e12, 10000);
  reader.Require(
      config.width % config.heads == 0 || Find(contents.metadata, "llama.attention.key_length") != nullptr,
      Invalid("key `llama.embedding_length` is no multiple of the heads"));
  const uint32_t even_share = std::max(1u, config.width / config.heads);
  config.head_dim = reader.Count("llama.attention.key_length", kMaxHeadDim, even_share);
  reader.Require(config.head_dim <= kMaxHeadDim, Invalid("a head is wider than 1024 values"));
  const uint32_t value_dim = reader.Count("llama.attention.value_length", kMaxHeadDim, config.head_dim);
  reader.Require(value_dim == config.head_dim,
                 Unsupported("key `llama.attention.value_length` differs from key_length"));
  const uint32_t rotated = reader.Count("llama.rope.dimension_count", kMaxHeadDim, config.head_dim);
  reader.Require(
      rotated == config.head_dim,
      Unsupported("key `llama.rope.dimension_count` = " + std::to_string(rotated) + ": only whole heads of " +
                  std::to_string(config.head_dim) + " values are rotated"));
  reader.Require(config.heads % config.kv_heads == 0, Invalid("heads are no multiple of the KV heads"));
  for (const auto& [name, extent] :
       {std::pair{"llama.embedding_length", config.width},
        std::pair{"llama.feed_forward_length", config.feed_forward},
        std::pair{"llama.attention.key_length (width of a head)", config.head_dim}}) {
    reader.Require(extent % 16 == 0,
                   Unsupported(std::string(name) + " = " + std::to_string(extent) + " is no multiple of 16"));
  }
  reader.Require(uint64_t{config.heads} * config.head_dim <= kMaxWidth,
                 Invalid("the heads together are too wide"));
  if (reader.failure()) return *reader.failure();

  const auto embedding = contents.tensors.find("token_embd.weight");
  if (embedding == contents.tensors.end()) return Invalid("tensor `token_embd.weight` is missing");
  if (embedding->second.rows > kMaxVocab)
    return Invalid("tensor `token_embd.weight` has more than 2^22 rows");
  config.vocab = static_cast<uint32_t>(embedding->second.rows);
  return config;
}

}  // namespace kvt::engine
