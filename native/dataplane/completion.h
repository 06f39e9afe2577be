#pragma once

#include <array>
#include <cstdint>

namespace kvt {

// Mirrors src/native/plane_binding.ts: completionKind, jobStatus, and the words of a record.
enum class CompletionKind {
  kJob = 1,
  kJobQuiet = 2,
  kRenewed = 4,
  kRenewEnd = 5,
  kLeaseOver = 6,
  kTimer = 8,
  kReached = 9,
  kPeerDead = 10,
  kDigested = 11,
  kSlotStalled = 12,
  kPathsRenewed = 13,
  kWire = 14,
};

enum class JobStatus { kOk = 0, kCancelled = 1, kTimedOut = 2, kFailed = 3, kBadRange = 4, kNoPeer = 5 };

struct Completion {
  CompletionKind kind = CompletionKind::kJob;
  uint64_t id = 0;
  int status = 0;
  uint64_t bytes = 0;
  double queued_us = 0;
  double moving_us = 0;
  double at_ms = 0;
  double extra = 0;
  uint64_t runs = 0;
  uint64_t pieces = 0;
};

constexpr size_t kRecordWords = 10;
using Record = std::array<double, kRecordWords>;

// Ids are below 2^53, so every word is exact.
inline Record ToRecord(const Completion& completion) {
  return {static_cast<double>(completion.kind),
          static_cast<double>(completion.id),
          static_cast<double>(completion.status),
          static_cast<double>(completion.bytes),
          completion.queued_us,
          completion.moving_us,
          completion.at_ms,
          completion.extra,
          static_cast<double>(completion.runs),
          static_cast<double>(completion.pieces)};
}

}  // namespace kvt
