#pragma once

#include <cstdint>
#include <ctime>
#include <limits>

namespace kvt {

// Nanoseconds of CLOCK_BOOTTIME, which counts suspension: a lease ends while the machine sleeps (invariant
// I2).
using BootNanos = int64_t;

constexpr BootNanos kNever = std::numeric_limits<BootNanos>::max();
constexpr BootNanos kNanosPerMilli = 1'000'000;

inline BootNanos BootNow() {
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return BootNanos{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

inline double ToMillis(BootNanos nanos) { return static_cast<double>(nanos) / 1e6; }

// Millis too large for a clock, infinity included, mean never; NaN and the past mean at once.
inline BootNanos FromMillis(double millis) {
  if (millis >= 9e12) return kNever;
  if (!(millis > 0)) return 0;
  return static_cast<BootNanos>(millis * 1e6);
}

inline BootNanos Later(BootNanos now, BootNanos nanos) {
  return nanos >= kNever - now ? kNever : now + nanos;
}

}  // namespace kvt
