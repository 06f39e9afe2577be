#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <span>

#include "dataplane/completion.h"

namespace kvt {

// Bounded, lock-free, one producer (the owner thread) and one consumer (the JS thread). A full ring refuses;
// the producer keeps what it could not put and is told by Take() when there is room again, so nothing is lost
// and nobody waits.
class CompletionRing {
 public:
  static constexpr size_t kCapacity = 4096;

  // Producer. False: full, and the next Take() answers `starved`.
  bool Put(const Record& record) {
    if (TryPut(record)) return true;
    starved_.store(true);
    // The consumer may have emptied the ring between the two lines above: then nobody would wake us.
    return TryPut(record);
  }

  struct Taken {
    size_t records = 0;
    bool starved = false;  // the producer waits for room: wake it
  };
  // Consumer. Fills at most `out.size()` records, oldest first.
  Taken Take(std::span<Record> out) {
    const size_t head = head_.load(std::memory_order_relaxed);
    const size_t available = tail_.load(std::memory_order_acquire) - head;
    const size_t count = available < out.size() ? available : out.size();
    for (size_t index = 0; index < count; ++index) out[index] = records_[(head + index) % kCapacity];
    head_.store(head + count);
    return {count, starved_.exchange(false)};
  }

  // Consumer.
  size_t Size() const {
    return tail_.load(std::memory_order_acquire) - head_.load(std::memory_order_relaxed);
  }
  size_t HighWater() const { return high_water_.load(std::memory_order_relaxed); }

 private:
  bool TryPut(const Record& record) {
    const size_t tail = tail_.load(std::memory_order_relaxed);
    const size_t used = tail - head_.load();
    if (used == kCapacity) return false;
    records_[tail % kCapacity] = record;
    tail_.store(tail + 1, std::memory_order_release);
    if (used + 1 > high_water_.load(std::memory_order_relaxed)) {
      high_water_.store(used + 1, std::memory_order_relaxed);
    }
    return true;
  }

  const std::unique_ptr<Record[]> records_ = std::make_unique<Record[]>(kCapacity);
  alignas(64) std::atomic<size_t> head_{0};
  alignas(64) std::atomic<size_t> tail_{0};
  std::atomic<size_t> high_water_{0};
  std::atomic<bool> starved_{false};
};

}  // namespace kvt
