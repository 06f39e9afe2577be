#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "layout/geometry.h"

namespace kvt {

// KVT_CHECK: a released block holds a pattern that names it, so that a write by someone who no longer holds
// it is found when the block is taken again. Of a pool whose blocks lie one after another that is all of the
// block, of others what its elements are.
void FillPattern(std::byte* pool, const Geometry& geometry, std::span<const uint32_t> blocks);

// The first of `blocks` whose pattern was changed, or -1.
int64_t FindTouched(const std::byte* pool, const Geometry& geometry, std::span<const uint32_t> blocks);

}  // namespace kvt
