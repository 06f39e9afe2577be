#include "engine/llama_model.h"

#include <set>

namespace kvt::engine {
namespace {

constexpr uint64_t kSmallModelParameters = 100'000'000;

// Takes tensors by name, checks their shapes, and knows afterwards which were never asked for.
class TensorTaker {
 public:
  explicit TensorTaker(const GgufContents& contents) : contents_(contents) {}

  const GgufTensor* Matrix(const std::string& name, uint64_t rows, uint64_t columns) {
    const GgufTensor* tensor = Take(name);
    if (tensor == nullptr) return nullptr;
    if (tensor->dimensions != 2 || tensor->rows != rows || tensor->columns != columns) {
      Fail("tensor `" + name + "` is " + std::to_string(tensor->rows) + " x " +
           std::to_string(tensor->columns) + ", expected " + std::to_string(rows) + " x " +
           std::to_string(columns));
      return nullptr;
    }
    return tensor;
  }

  std::vector<float> Vector(const std::string& name, uint64_t values) {
    const GgufTensor* tensor = Take(name);
    if (tensor == nullptr) return {};
    if (tensor->rows != 1 || tensor->columns != values) {
      Fail("tensor `" + name + "` has " + std::to_string(tensor->rows * tensor->columns) +
           " values, expected " + std::to_string(values));
      return {};
    }
    std::vector<float> result(values);
    tensor->type->dequantize(tensor->data, values, result.data());
    return result;
  }

  bool Has(const std::string& name) const { return contents_.tensors.contains(name); }

  // A tensor that is not used (a bias, rope factors, experts) would silently change the numbers.
  MaybeFailure Finish() const {
    if (failure_) return failure_;
    for (const auto& [name, tensor] : contents_.tensors) {
      if (!taken_.contains(name))
        return Failure{Fault::kUnsupported, "tensor `" + name + "`, which this engine does not use"};
    }
    return std::nullopt;
  }

  bool failed() const { return failure_.has_value(); }

 private:
  const GgufTensor* Take(const std::string& name) {
    taken_.insert(name);
    const auto found = contents_.tensors.find(name);
    if (found != contents_.tensors.end()) return &found->second;
    Fail("tensor `" + name + "` is missing");
    return nullptr;
  }

  void Fail(std::string why) {
    if (!failure_) failure_ = Failure{Fault::kInvalid, std::move(why)};
  }

  const GgufContents& contents_;
  std::set<std::string> taken_;
  MaybeFailure failure_;
};

struct LayerTensors {
  std::vector<const GgufTensor*> query_key_value;
  std::vector<const GgufTensor*> attention_output;
  std::vector<const GgufTensor*> gate_up;
  std::vector<const GgufTensor*> down;
};

}  // namespace

Dtype Choose(DtypeChoice choice, uint64_t parameters) {
  if (choice == DtypeChoice::kF32) return Dtype::kF32;
  if (choice == DtypeChoice::kBf16) return Dtype::kBf16;
  return parameters < kSmallModelParameters ? Dtype::kF32 : Dtype::kBf16;
}

Result<LlamaModel> LlamaModel::Load(const GgufContents& contents, DtypeChoice weights, ThreadPool& threads,
                                    const std::atomic<bool>& cancelled) {
  Result<LlamaConfig> read = ReadLlamaConfig(contents);
  if (!read) return read.failure();
  const LlamaConfig& config = *read;
  LlamaModel model;
  model.config_ = config;
  for (const auto& [name, tensor] : contents.tensors) model.parameters_ += tensor.rows * tensor.columns;

  // All shapes are checked before the first large allocation.
  TensorTaker taker(contents);
  const GgufTensor* embeddings = taker.Matrix("token_embd.weight", config.vocab, config.width);
  model.tied_ = !taker.Has("output.weight");
  const GgufTensor* output =
      model.tied_ ? nullptr : taker.Matrix("output.weight", config.vocab, config.width);
  model.output_norm_ = taker.Vector("output_norm.weight", config.width);
  std::vector<LayerTensors> tensors;
  for (uint32_t i = 0; i < config.layers && !taker.failed(); ++i) {
    const std::string prefix = "blk." + std::to_string(i) + ".";
    LlamaLayer& layer = model.layers_.emplace_back();
    layer.attention_norm = taker.Vector(prefix + "attn_norm.weight", config.width);
    layer.feed_forward_norm = taker.Vector(prefix + "ffn_norm.weight", config.width);
    const auto matrix = [&](const char* name, uint64_t rows, uint64_t columns) {
      return taker.Matrix(prefix + name + ".weight", rows, columns);
    };
    tensors.push_back({
        {matrix("attn_q", config.QueryWidth(), config.width),
         matrix("attn_k", config.KvWidth(), config.width), matrix("attn_v", config.KvWidth(), config.width)},
        {matrix("attn_output", config.width, config.QueryWidth())},
        {matrix("ffn_gate", config.feed_forward, config.width),
         matrix("ffn_up", config.feed_forward, config.width)},
        {matrix("ffn_down", config.width, config.feed_forward)},
    });
  }
  if (MaybeFailure failure = taker.Finish()) return *failure;

  const Dtype dtype = Choose(weights, model.parameters_);
  model.embeddings_ = PackedMatrix({embeddings}, dtype, threads);
  if (output != nullptr) model.output_ = PackedMatrix({output}, dtype, threads);
  for (uint32_t i = 0; i < config.layers; ++i) {
    if (cancelled.load(std::memory_order_relaxed))
      return Failure{Fault::kCancelled, "cancelled while the model was loaded"};
    LlamaLayer& layer = model.layers_[i];
    layer.query_key_value = PackedMatrix(tensors[i].query_key_value, dtype, threads);
    layer.attention_output = PackedMatrix(tensors[i].attention_output, dtype, threads);
    layer.gate_up = PackedMatrix(tensors[i].gate_up, dtype, threads);
    layer.down = PackedMatrix(tensors[i].down, dtype, threads);
  }
  return model;
}

}  // namespace kvt::engine
