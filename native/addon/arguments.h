#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string>

#include "addon/napi_setup.h"

namespace kvt {

// Reads arguments of one call. The first bad one becomes a TypeError that names it; later reads answer zero,
// so that a caller checks ok() once, before it acts.
class Arguments {
 public:
  explicit Arguments(Napi::Env env) : env_(env) {}

  bool ok() const { return !failed_; }

  void Fail(const std::string& name, const std::string& why) {
    if (failed_) return;
    failed_ = true;
    Napi::TypeError::New(env_, name + " " + why).ThrowAsJavaScriptException();
  }

  // An integer of [least, most].
  uint64_t Integer(const Napi::Value& value, const std::string& name, uint64_t least, uint64_t most) {
    const double number = failed_ || !value.IsNumber() ? NAN : value.As<Napi::Number>().DoubleValue();
    if (number >= static_cast<double>(least) && number <= static_cast<double>(most) &&
        number == std::floor(number)) {
      return static_cast<uint64_t>(number);
    }
    Fail(name, "must be an integer from " + std::to_string(least) + " to " + std::to_string(most));
    return 0;
  }

  uint64_t Id(const Napi::Value& value, const std::string& name) {
    return Integer(value, name, 0, (uint64_t{1} << 53) - 1);
  }

  // Any number, NaN included: whoever uses it knows its range.
  double Real(const Napi::Value& value, const std::string& name) {
    if (!failed_ && value.IsNumber()) return value.As<Napi::Number>().DoubleValue();
    Fail(name, "must be a number");
    return 0;
  }

  // Any number but NaN: Infinity means no limit.
  double Millis(const Napi::Value& value, const std::string& name) {
    const double number = failed_ || !value.IsNumber() ? NAN : value.As<Napi::Number>().DoubleValue();
    if (std::isnan(number)) Fail(name, "must be a number of milliseconds");
    return number;
  }

  std::string Text(const Napi::Value& value, const std::string& name) {
    if (!failed_ && value.IsString()) return value.As<Napi::String>().Utf8Value();
    Fail(name, "must be a string");
    return "";
  }

  bool Boolean(const Napi::Value& value, const std::string& name) {
    if (!failed_ && value.IsBoolean()) return value.As<Napi::Boolean>().Value();
    Fail(name, "must be a boolean");
    return false;
  }

  Napi::Object Object(const Napi::Value& value, const std::string& name) {
    if (!failed_ && value.IsObject()) return value.As<Napi::Object>();
    Fail(name, "must be an object");
    return Napi::Object::New(env_);
  }

  // Valid during the call only: JavaScript owns the memory.
  std::span<const uint32_t> Uint32s(const Napi::Value& value, const std::string& name) {
    return Elements<uint32_t>(value, napi_uint32_array, name, "a Uint32Array");
  }
  std::span<const double> Float64s(const Napi::Value& value, const std::string& name) {
    return Elements<double>(value, napi_float64_array, name, "a Float64Array");
  }
  std::span<const uint8_t> Bytes(const Napi::Value& value, const std::string& name) {
    return Elements<uint8_t>(value, napi_uint8_array, name, "a Uint8Array");
  }

 private:
  template <typename T>
  std::span<const T> Elements(const Napi::Value& value, napi_typedarray_type wanted, const std::string& name,
                              const std::string& type_name) {
    if (!failed_ && value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == wanted) {
      const auto array = value.As<Napi::TypedArrayOf<T>>();
      return {array.Data(), array.ElementLength()};
    }
    Fail(name, "must be " + type_name);
    return {};
  }

  const Napi::Env env_;
  bool failed_ = false;
};

}  // namespace kvt
