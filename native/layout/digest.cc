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

// Bytes that lie one after another are hashed at once: most blocks are one piece.
class Hasher {
 public:
  void Add(const std::byte* from, uint64_t bytes) {
    if (from == from_ + bytes_) {
      bytes_ += bytes;
      return;
    }
    Flush();
    from_ = from;
    bytes_ = bytes;
  }

  Digest End() {
    if (!streaming_) return Canonical(XXH3_64bits(from_, bytes_));
    Flush();
    return Canonical(XXH3_64bits_digest(&state_));
  }

 private:
  void Flush() {
    if (bytes_ == 0) return;
    if (!streaming_) XXH3_64bits_reset(&state_);
    streaming_ = true;
    XXH3_64bits_update(&state_, from_, bytes_);
  }

  const std::byte* from_ = nullptr;
  uint64_t bytes_ = 0;
  bool streaming_ = false;
  XXH3_state_t state_;
};

// What one head of one plane of one layer has of the tokens; `row` is its place in block 0.
void AddRow(const std::byte* row, const Group& group, uint64_t block_tokens, std::span<const uint32_t> table,
            uint64_t lacking, uint64_t from, uint64_t to, Hasher* hasher) {
  for (uint64_t token = from; token < to;) {
    const uint64_t index = token / block_tokens;
    const uint64_t end = std::min(to, (index + 1) * block_tokens);
    const std::byte* block = row + table[index - lacking] * group.block_stride;
    if (group.per_block) {
      hasher->Add(block, group.element_bytes);
    } else if (group.token_stride == group.element_bytes) {
      hasher->Add(block + token % block_tokens * group.token_stride, (end - token) * group.element_bytes);
    } else {
      for (; token < end; ++token) {
        hasher->Add(block + token % block_tokens * group.token_stride, group.element_bytes);
      }
    }
    token = end;
  }
}

}  // namespace

Digest DigestOf(const std::byte* pool, const Geometry& geometry, const Part& part,
                std::span<const uint32_t> table, const Tokens& tokens) {
  Hasher hasher;
  const uint64_t lacking = Lacking(table.size(), tokens.sequence, geometry.tokens_per_block);
  const uint64_t last_layer = uint64_t{part.first_layer} + part.layers;
  for (const Group& group : geometry.groups) {
    if (group.replicated && !part.replicated) continue;
    const uint64_t from = std::max(tokens.from, WindowStart(group.window, tokens.sequence));
    if (from >= tokens.to) continue;
    const uint64_t first_head = group.replicated ? 0 : std::max(part.first_head, group.first_head);
    const uint64_t end_head = group.replicated ? group.heads
                                               : std::min(uint64_t{part.first_head} + part.heads,
                                                          uint64_t{group.first_head} + group.heads);
    const uint64_t held_from = group.replicated ? 0 : group.first_head;
    for (const LayerRun& run : group.layers) {
      for (uint32_t index = 0; index < run.count; ++index) {
        const uint64_t layer = run.first + uint64_t{index} * run.step;
        if (layer < part.first_layer || layer >= last_layer) continue;
        const std::byte* base = pool + run.base + index * run.stride;
        for (uint64_t plane = 0; plane < group.planes; ++plane) {
          for (uint64_t head = first_head; head < end_head; ++head) {
            const std::byte* row = base + plane * group.plane_stride + (head - held_from) * group.head_stride;
            AddRow(row, group, geometry.tokens_per_block, table, lacking, from, tokens.to, &hasher);
          }
        }
      }
    }
  }
  return hasher.End();
}

}  // namespace kvt
