#pragma once

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <variant>

namespace kvt {

// Codes of src/errors.ts: they cross into JavaScript as they are.
enum class ErrorCode {
  kInvalidArgument,
  kPoolUnavailable,
  kMemoryRefused,
  kSocketDirRefused,
  kDescriptorTooLong,
  kNixlUnusable,
  kNixlFailed,
  kStagingUnavailable,
  kCudaUnusable,
  kCudaFailed,
};

struct Error {
  ErrorCode code = ErrorCode::kInvalidArgument;
  std::string why;  // one sentence that names the thing, the place, and what to do
};

// std::expected is C++23; this is the part of it we need.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : held_(std::move(value)) {}      // NOLINT: as std::expected
  Result(Error error) : held_(std::move(error)) {}  // NOLINT: as std::expected

  bool ok() const { return held_.index() == 0; }
  T& value() { return std::get<0>(held_); }
  const Error& error() const { return std::get<1>(held_); }

 private:
  std::variant<T, Error> held_;
};

inline std::string ErrnoText(const std::string& what, int error = errno) {
  char buffer[128];
  return what + ": " + strerror_r(error, buffer, sizeof buffer);
}

}  // namespace kvt
