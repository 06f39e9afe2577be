#pragma once

#include <string>
#include <vector>

#include "addon/arguments.h"
#include "engine/engine.h"

// Between the engine's types and the JavaScript values of src/native/engine_binding.ts. JS thread only.
namespace kvt {

engine::EngineOptions ReadEngineOptions(Arguments& arguments, const Napi::Value& value);
std::vector<engine::RankPool> ReadRankPools(Arguments& arguments, const Napi::Value& value);
engine::Sampling ReadSampling(Arguments& arguments, const Napi::Value& value);
std::vector<engine::DecodeRow> ReadDecodeRows(Arguments& arguments, const Napi::Value& value);
std::vector<uint32_t> ReadUint32s(Arguments& arguments, const Napi::Value& value, const std::string& name);

Napi::Value ToError(Napi::Env env, const engine::Failure& failure);
Napi::Value ToSample(Napi::Env env, const engine::Sample& sample);
Napi::Value ToSamples(Napi::Env env, const std::vector<engine::Sample>& samples);
Napi::Value ToFloats(Napi::Env env, const std::vector<float>& values);
Napi::Value ToGeometry(Napi::Env env, const engine::Engine& engine);
// Integers past 2^53 become bigints, all other numbers numbers.
Napi::Value ToMetadata(Napi::Env env, const engine::GgufMetadata& metadata);

}  // namespace kvt
