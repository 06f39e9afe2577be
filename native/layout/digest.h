#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "layout/plan.h"

namespace kvt {

// 64-bit XXH3 in its canonical form: big-endian, as it travels.
using Digest = std::array<uint8_t, 8>;

// Over what `part` has of some tokens of a sequence, in canonical order: group, then layer, plane, head,
// token. It depends on the values alone, not on where they lie, how many tokens a block holds or what else
// the pool holds, so both ends of a transfer get the same one
// (docs/decisions/028-digests-of-moved-blocks.md). `table` must cover the tokens that windows leave,
// `geometry` lie in the pool.
Digest DigestOf(const std::byte* pool, const Geometry& geometry, const Part& part,
                std::span<const uint32_t> table, const Tokens& tokens);

}  // namespace kvt
