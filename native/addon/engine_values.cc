#include "addon/engine_values.h"

#include <cstring>
#include <limits>
#include <type_traits>

#include "addon/plane_options.h"
#include "addon/pool_span_external.h"

namespace kvt {
namespace {

constexpr uint64_t kMaxUint32 = std::numeric_limits<uint32_t>::max();
constexpr uint64_t kMaxSafeInteger = (uint64_t{1} << 53) - 1;

const char* CodeOf(engine::Fault fault) {
  switch (fault) {
    case engine::Fault::kUnreadable:
      return "UNREADABLE";
    case engine::Fault::kInvalid:
      return "INVALID";
    case engine::Fault::kUnsupported:
      return "UNSUPPORTED";
    case engine::Fault::kArgument:
      return "ARGUMENT";
    case engine::Fault::kCancelled:
      return "CANCELLED";
    case engine::Fault::kClosed:
      return "CLOSED";
    case engine::Fault::kInternal:
      break;
  }
  return "INTERNAL";
}

engine::DtypeChoice ReadDtype(Arguments& arguments, const Napi::Value& value, const std::string& name) {
  const std::string text = arguments.Text(value, name);
  if (text == "f32") return engine::DtypeChoice::kF32;
  if (text == "bf16") return engine::DtypeChoice::kBf16;
  if (text != "auto") arguments.Fail(name, "must be auto, f32 or bf16");
  return engine::DtypeChoice::kAuto;
}

uint32_t ReadUint32(Arguments& arguments, const Napi::Value& value, const std::string& name) {
  return static_cast<uint32_t>(arguments.Integer(value, name, 0, kMaxUint32));
}

uint64_t ReadSeed(Arguments& arguments, const Napi::Value& value) {
  if (!value.IsBigInt()) {
    arguments.Fail("seed", "must be a bigint");
    return 0;
  }
  bool lossless = false;
  return value.As<Napi::BigInt>().Uint64Value(&lossless);  // modulo 2^64
}

// A number that does not fit is refused here, one that fits and is no sensible count by CheckSampling.
int32_t ReadLogprobs(Arguments& arguments, const Napi::Value& value) {
  const double count = arguments.Real(value, "logprobs");
  if (count >= -1 && count <= 1000) return static_cast<int32_t>(count);
  arguments.Fail("logprobs", "must be an integer from -1 to 20");
  return -1;
}

bool UsesHistory(const engine::Sampling& sampling) {
  return sampling.repetition_penalty != 1 || sampling.presence_penalty != 0 ||
         sampling.frequency_penalty != 0;
}

template <class T>
Napi::Value ToScalar(Napi::Env env, const T& value) {
  if constexpr (std::is_same_v<T, std::string>) {
    return Napi::String::New(env, value);
  } else if constexpr (std::is_same_v<T, bool>) {
    return Napi::Boolean::New(env, value);
  } else if constexpr (std::is_same_v<T, uint64_t>) {
    if (value > kMaxSafeInteger) return Napi::BigInt::New(env, value);
    return Napi::Number::New(env, static_cast<double>(value));
  } else if constexpr (std::is_same_v<T, int64_t>) {
    if (value > static_cast<int64_t>(kMaxSafeInteger) || value < -static_cast<int64_t>(kMaxSafeInteger)) {
      return Napi::BigInt::New(env, value);
    }
    return Napi::Number::New(env, static_cast<double>(value));
  } else {
    return Napi::Number::New(env, value);
  }
}

template <class T>
Napi::Value ToArray(Napi::Env env, const std::vector<T>& values) {
  Napi::Array array = Napi::Array::New(env, values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const Napi::HandleScope scope(env);  // a vocabulary has 100,000 strings
    const T value = values[i];           // a copy: vector<bool> gives proxies
    array.Set(static_cast<uint32_t>(i), ToScalar<T>(env, value));
  }
  return array;
}

struct ToValue {
  Napi::Env env;
  template <class T>
  Napi::Value operator()(const std::vector<T>& values) const {
    return ToArray(env, values);
  }
  template <class T>
  Napi::Value operator()(const T& value) const {
    return ToScalar(env, value);
  }
};

}  // namespace

engine::EngineOptions ReadEngineOptions(Arguments& arguments, const Napi::Value& value) {
  const Napi::Object object = arguments.Object(value, "options");
  engine::EngineOptions options;
  options.threads = ReadUint32(arguments, object.Get("threads"), "threads");
  options.weights = ReadDtype(arguments, object.Get("weights"), "weights");
  options.kv = ReadDtype(arguments, object.Get("kv"), "kv");
  options.tokens_per_block = ReadUint32(arguments, object.Get("tokensPerBlock"), "tokensPerBlock");
  const Napi::Value windows = object.Get("windows");
  if (!windows.IsUndefined()) options.windows = ReadUint32s(arguments, windows, "windows");
  return options;
}

std::vector<engine::RankPool> ReadRankPools(Arguments& arguments, const Napi::Value& value) {
  std::vector<engine::RankPool> pools;
  if (!value.IsArray()) {
    arguments.Fail("pools", "must be an array");
    return pools;
  }
  const auto array = value.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length() && arguments.ok(); ++i) {
    const Napi::Object object = arguments.Object(array.Get(i), "pool");
    // Its pool empties the shared span when it closes; a copy keeps the mapping while the engine may write
    // into it.
    const std::shared_ptr<PoolSpan> shared = PoolSpanOf(object.Get("span"));
    engine::RankPool& pool = pools.emplace_back();
    if (shared != nullptr) pool.span = *shared;
    if (pool.span.data == nullptr) arguments.Fail("span", "is not the span of an open pool");
    const std::string name = "pools[" + std::to_string(i) + "].places";
    pool.places = ReadGroup(&arguments, arguments.Object(object.Get("places"), name), name);
  }
  return pools;
}

std::vector<uint32_t> ReadUint32s(Arguments& arguments, const Napi::Value& value, const std::string& name) {
  const std::span<const uint32_t> values = arguments.Uint32s(value, name);
  return {values.begin(), values.end()};
}

engine::Sampling ReadSampling(Arguments& arguments, const Napi::Value& value) {
  const Napi::Object object = arguments.Object(value, "sampling");
  engine::Sampling sampling;
  sampling.temperature = arguments.Real(object.Get("temperature"), "temperature");
  sampling.top_p = arguments.Real(object.Get("topP"), "topP");
  sampling.top_k = ReadUint32(arguments, object.Get("topK"), "topK");
  sampling.min_p = arguments.Real(object.Get("minP"), "minP");
  sampling.repetition_penalty = arguments.Real(object.Get("repetitionPenalty"), "repetitionPenalty");
  sampling.presence_penalty = arguments.Real(object.Get("presencePenalty"), "presencePenalty");
  sampling.frequency_penalty = arguments.Real(object.Get("frequencyPenalty"), "frequencyPenalty");
  sampling.seed = ReadSeed(arguments, object.Get("seed"));
  sampling.index = arguments.Id(object.Get("index"), "index");
  // A history is as long as the request: not copied for every token unless a penalty reads it.
  const std::span<const uint32_t> history = arguments.Uint32s(object.Get("history"), "history");
  if (UsesHistory(sampling)) sampling.history.assign(history.begin(), history.end());
  sampling.prompt_tokens = arguments.Id(object.Get("promptTokens"), "promptTokens");
  sampling.logprobs = ReadLogprobs(arguments, object.Get("logprobs"));
  sampling.banned = ReadUint32s(arguments, object.Get("banned"), "banned");
  const Napi::Value bias = object.Get("bias");
  if (!bias.IsArray()) {
    arguments.Fail("bias", "must be an array");
    return sampling;
  }
  const auto entries = bias.As<Napi::Array>();
  for (uint32_t i = 0; i < entries.Length() && arguments.ok(); ++i) {
    const Napi::Object entry = arguments.Object(entries.Get(i), "bias");
    const uint32_t token = ReadUint32(arguments, entry.Get("token"), "bias.token");
    sampling.bias.emplace_back(token, arguments.Real(entry.Get("bias"), "bias.bias"));
  }
  return sampling;
}

std::vector<engine::DecodeRow> ReadDecodeRows(Arguments& arguments, const Napi::Value& value) {
  std::vector<engine::DecodeRow> rows;
  if (!value.IsArray()) {
    arguments.Fail("rows", "must be an array");
    return rows;
  }
  const auto array = value.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length() && arguments.ok(); ++i) {
    const Napi::HandleScope scope(value.Env());
    const Napi::Object object = arguments.Object(array.Get(i), "row");
    engine::DecodeRow& row = rows.emplace_back();
    row.token = ReadUint32(arguments, object.Get("token"), "token");
    row.position = ReadUint32(arguments, object.Get("pos"), "pos");
    row.table = ReadUint32s(arguments, object.Get("blockTable"), "blockTable");
    row.sampling = ReadSampling(arguments, object.Get("sampling"));
  }
  return rows;
}

Napi::Value ToError(Napi::Env env, const engine::Failure& failure) {
  Napi::Error error = Napi::Error::New(env, failure.why);
  error.Set("code", Napi::String::New(env, CodeOf(failure.fault)));
  return error.Value();
}

Napi::Value ToSample(Napi::Env env, const engine::Sample& sample) {
  const size_t count = sample.top_tokens.size();
  Napi::Uint32Array tokens = Napi::Uint32Array::New(env, count);
  if (count > 0) std::memcpy(tokens.Data(), sample.top_tokens.data(), count * sizeof(uint32_t));
  Napi::Object object = Napi::Object::New(env);
  object.Set("token", sample.token);
  object.Set("logprob", sample.logprob);
  object.Set("topTokens", tokens);
  object.Set("topLogprobs", ToFloats(env, sample.top_logprobs));
  return object;
}

Napi::Value ToSamples(Napi::Env env, const std::vector<engine::Sample>& samples) {
  Napi::Array array = Napi::Array::New(env, samples.size());
  for (size_t i = 0; i < samples.size(); ++i) array.Set(static_cast<uint32_t>(i), ToSample(env, samples[i]));
  return array;
}

Napi::Value ToFloats(Napi::Env env, const std::vector<float>& values) {
  Napi::Float32Array array = Napi::Float32Array::New(env, values.size());
  if (!values.empty()) std::memcpy(array.Data(), values.data(), values.size() * sizeof(float));
  return array;
}

Napi::Value ToGeometry(Napi::Env env, const engine::Engine& engine) {
  const engine::LlamaConfig& config = engine.config();
  const auto name = [](engine::Dtype dtype) { return dtype == engine::Dtype::kF32 ? "f32" : "bf16"; };
  Napi::Object geometry = Napi::Object::New(env);
  geometry.Set("arch", "llama");
  geometry.Set("layers", config.layers);
  geometry.Set("heads", config.heads);
  geometry.Set("kvHeads", config.kv_heads);
  geometry.Set("headDim", config.head_dim);
  geometry.Set("kvDtype", name(engine.layout().dtype));
  geometry.Set("weightsDtype", name(engine.weights()));
  geometry.Set("tokensPerBlock", engine.layout().tokens_per_block);
  geometry.Set("blockBytes", static_cast<double>(engine.layout().BlockBytes()));
  geometry.Set("vocab", config.vocab);
  geometry.Set("maxSeqLen", config.max_positions);
  geometry.Set("parameters", static_cast<double>(engine.parameters()));
  return geometry;
}

Napi::Value ToMetadata(Napi::Env env, const engine::GgufMetadata& metadata) {
  Napi::Object object = Napi::Object::New(env);
  for (const auto& [key, value] : metadata) object.Set(key, std::visit(ToValue{env}, value));
  return object;
}

}  // namespace kvt
