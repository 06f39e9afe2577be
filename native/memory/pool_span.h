#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace kvt {

// A pool's memory as the data plane hands it to an engine: what a foreign engine would get too. `owner` keeps
// the mapping alive for as long as an engine may write into it.
struct PoolSpan {
  std::byte* data = nullptr;
  size_t bytes = 0;
  size_t block_bytes = 0;  // 0: blocks lie somewhere else for each layer or plane
  uint32_t blocks = 0;
  std::shared_ptr<void> owner;
};

}  // namespace kvt
