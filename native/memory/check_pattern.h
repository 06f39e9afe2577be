#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvt {

// KVT_CHECK: a released block holds a pattern that names it, so that a write by someone who no longer holds
// it is found when the block is taken again.
void FillPattern(std::byte* pool, uint64_t block_bytes, std::span<const uint32_t> blocks);

// The first of `blocks` whose pattern was changed, or -1.
int64_t FindTouched(const std::byte* pool, uint64_t block_bytes, std::span<const uint32_t> blocks);

}  // namespace kvt
