#include "layout/digest.h"

#include <algorithm>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace kvt {
namespace {

Digest Canonical(XXH64_hash_t hash) {
  XXH64_canonical_t canonical;
  XXH64_canonicalFromHash(&canonical, hash);
  Digest digest;
  std::copy_n(canonical.digest, digest.size(), digest.begin());
  return digest;
}

}  // namespace

Digest DigestOf(const std::byte* pool, const Geometry& geometry, const Part& part,
                std::span<const uint32_t> table, const TokenRange& tokens) {
  const uint64_t block_tokens = geometry.tokens_per_block;
  const uint64_t block_bytes = geometry.BlockBytes();
  const bool whole_block = tokens.from % block_tokens == 0 && tokens.to == tokens.from + block_tokens;
  if (whole_block && part.layers == geometry.layers && part.heads == geometry.heads) {
    return Canonical(
        XXH3_64bits(pool + table[tokens.from / block_tokens] * block_bytes, geometry.PayloadBytes()));
  }
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  const uint64_t first_plane = uint64_t{part.first_layer - geometry.first_layer} * geometry.planes;
  const uint64_t planes = uint64_t{part.layers} * geometry.planes;
  for (uint64_t plane = first_plane; plane < first_plane + planes; ++plane) {
    const uint64_t first_row = plane * geometry.heads + part.first_head - geometry.first_head;
    for (uint64_t row = first_row; row < first_row + part.heads; ++row) {
      for (uint64_t token = tokens.from; token < tokens.to;) {
        const uint64_t block = token / block_tokens;
        const uint64_t end = std::min(tokens.to, (block + 1) * block_tokens);
        const std::byte* from = pool + table[block] * block_bytes + row * geometry.RowBytes() +
                                (token - block * block_tokens) * geometry.head_bytes;
        XXH3_64bits_update(&state, from, (end - token) * geometry.head_bytes);
        token = end;
      }
    }
  }
  return Canonical(XXH3_64bits_digest(&state));
}

}  // namespace kvt
