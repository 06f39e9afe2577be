#pragma once

#include <cstdint>
#include <string>

namespace kvt {

// How much memory this process may still take, and who says so: for the message of a refused pool.
struct MemoryRoom {
  uint64_t bytes = 0;
  std::string limit;  // for example "memory.max of /sys/fs/cgroup/pod7"
};

// The smallest room of MemAvailable and of every cgroup above this process (v2 memory.max, v1
// limit_in_bytes). `root` is prepended to every path read, for tests.
MemoryRoom FindMemoryRoom(const std::string& root = "");

}  // namespace kvt
