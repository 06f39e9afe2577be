#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace kvt::engine {

enum class Fault {
  kUnreadable,   // the file can't be opened or mapped
  kInvalid,      // the file contradicts itself or GGUF
  kUnsupported,  // a sound file that needs what this engine does not have
  kArgument,     // a call with a value out of range
  kCancelled,
  kClosed,
  kInternal,
};

// Why something was not done: names the thing and the place.
struct Failure {
  Fault fault;
  std::string why;
};

// A value or a Failure. Nothing in this room throws on purpose; std::bad_alloc is caught at the thread's
// edge.
template <class T>
class Result {
 public:
  Result(T value) : state_(std::move(value)) {}  // NOLINT: implicit on purpose, as in `return value`
  Result(Failure failure) : state_(std::move(failure)) {}  // NOLINT

  explicit operator bool() const { return std::holds_alternative<T>(state_); }
  T& operator*() { return std::get<T>(state_); }
  T* operator->() { return &std::get<T>(state_); }
  const Failure& failure() const { return std::get<Failure>(state_); }

 private:
  std::variant<T, Failure> state_;
};

using MaybeFailure = std::optional<Failure>;

}  // namespace kvt::engine
