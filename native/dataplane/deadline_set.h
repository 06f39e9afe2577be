#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "memory/boot_clock.h"

namespace kvt {

// One deadline an id, the earliest first. Pure: time is a parameter.
class DeadlineSet {
 public:
  // Setting again moves the deadline.
  void Set(uint64_t id, BootNanos at) {
    Clear(id);
    at_.emplace(id, at);
    order_.emplace(at, id);
  }

  bool Clear(uint64_t id) {
    const auto found = at_.find(id);
    if (found == at_.end()) return false;
    order_.erase({found->second, id});
    at_.erase(found);
    return true;
  }

  // Removes the earliest deadline that is not after `now`.
  std::optional<uint64_t> PopDue(BootNanos now) {
    if (order_.empty() || order_.begin()->first > now) return std::nullopt;
    const uint64_t id = order_.begin()->second;
    Clear(id);
    return id;
  }

  std::optional<BootNanos> Find(uint64_t id) const {
    const auto found = at_.find(id);
    if (found == at_.end()) return std::nullopt;
    return found->second;
  }

  BootNanos Next() const { return order_.empty() ? kNever : order_.begin()->first; }
  size_t size() const { return at_.size(); }
  void Clear() {
    at_.clear();
    order_.clear();
  }

 private:
  std::unordered_map<uint64_t, BootNanos> at_;
  std::set<std::pair<BootNanos, uint64_t>> order_;
};

}  // namespace kvt
