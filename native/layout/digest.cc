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

Digest DigestOf(const std::byte* pool, const Geometry& geometry, std::span<const uint32_t> table,
                const TokenRange& tokens) {
  const uint64_t block_tokens = geometry.tokens_per_block;
  const uint64_t block_bytes = geometry.BlockBytes();
  const bool whole_block = tokens.from % block_tokens == 0 && tokens.to == tokens.from + block_tokens;
  if (whole_block) {
    return Canonical(
        XXH3_64bits(pool + table[tokens.from / block_tokens] * block_bytes, geometry.PayloadBytes()));
  }
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  for (uint64_t row = 0; row < geometry.Rows(); ++row) {
    for (uint64_t token = tokens.from; token < tokens.to;) {
      const uint64_t block = token / block_tokens;
      const uint64_t end = std::min(tokens.to, (block + 1) * block_tokens);
      const std::byte* from = pool + table[block] * block_bytes + row * geometry.RowBytes() +
                              (token - block * block_tokens) * geometry.head_bytes;
      XXH3_64bits_update(&state, from, (end - token) * geometry.head_bytes);
      token = end;
    }
  }
  return Canonical(XXH3_64bits_digest(&state));
}

}  // namespace kvt
