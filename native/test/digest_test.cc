#include "layout/digest.h"

#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

using namespace kvt;

namespace {

constexpr uint64_t kTokens = 48;

// The KV of one sequence in blocks of some size, scattered over a pool.
struct Sequence {
  Geometry geometry;
  std::vector<std::byte> pool;
  std::vector<uint32_t> table;

  explicit Sequence(uint32_t tokens_per_block) : geometry{2, 2, 3, tokens_per_block, 20} {
    const uint64_t blocks = (kTokens + tokens_per_block - 1) / tokens_per_block;
    table.resize(blocks);
    std::iota(table.rbegin(), table.rend(), 1);
    pool.resize((blocks + 2) * geometry.BlockBytes());
    for (uint64_t row = 0; row < geometry.Rows(); ++row) {
      for (uint64_t token = 0; token < kTokens; ++token) {
        for (uint32_t at = 0; at < geometry.head_bytes; ++at) *Byte(row, token, at) = Value(row, token, at);
      }
    }
  }

  std::byte* Byte(uint64_t row, uint64_t token, uint32_t at) {
    const uint64_t tokens = geometry.tokens_per_block;
    return pool.data() + table[token / tokens] * geometry.BlockBytes() + row * geometry.RowBytes() +
           token % tokens * geometry.head_bytes + at;
  }
  static std::byte Value(uint64_t row, uint64_t token, uint32_t at) {
    return static_cast<std::byte>(row * 89 + token * 31 + at * 7);
  }
  Digest Of(uint64_t from, uint64_t to) const { return Of(WholeOf(geometry), from, to); }
  Digest Of(const Part& part, uint64_t from, uint64_t to) const {
    return DigestOf(pool.data(), geometry, part, table, {from, to});
  }
};

Digest Expected(const Geometry& geometry, uint64_t from, uint64_t to) {
  std::vector<std::byte> bytes;
  for (uint64_t row = 0; row < geometry.Rows(); ++row) {
    for (uint64_t token = from; token < to; ++token) {
      for (uint32_t at = 0; at < geometry.head_bytes; ++at) bytes.push_back(Sequence::Value(row, token, at));
    }
  }
  XXH64_canonical_t canonical;
  XXH64_canonicalFromHash(&canonical, XXH3_64bits(bytes.data(), bytes.size()));
  Digest digest;
  std::copy_n(canonical.digest, 8, digest.begin());
  return digest;
}

}  // namespace

TEST("a digest is XXH3 of the canonical bytes, whatever the size of the blocks and wherever they lie") {
  for (const uint32_t tokens_per_block : {1U, 4U, 16U, 20U, 64U}) {
    const Sequence sequence(tokens_per_block);
    for (uint64_t from = 0; from < kTokens; from += 5) {
      for (uint64_t to = from + 1; to <= kTokens; to += 3) {
        CHECK(sequence.Of(from, to) == Expected(sequence.geometry, from, to));
      }
    }
  }
}

TEST("a part has one digest in every pool that holds it") {
  const Sequence whole(16);
  // A pool of the second layer's last two heads, filled with the same values.
  Sequence half(4);
  half.geometry = {1, 2, 2, 4, 20, 1, 1};
  half.pool.assign((half.table.size() + 2) * half.geometry.BlockBytes(), std::byte{0x77});
  for (uint64_t row = 0; row < half.geometry.Rows(); ++row) {
    const uint64_t there = (2 + row / 2) * 3 + 1 + row % 2;
    for (uint64_t token = 0; token < kTokens; ++token) {
      for (uint32_t at = 0; at < 20; ++at) *half.Byte(row, token, at) = Sequence::Value(there, token, at);
    }
  }
  for (const Part& part : {Part{1, 1, 1, 2}, Part{1, 1, 2, 1}}) {
    CHECK(part.IsIn(whole.geometry) && part.IsIn(half.geometry));
    for (uint64_t from = 0; from < kTokens; from += 8) {
      CHECK(whole.Of(part, from, kTokens) == half.Of(part, from, kTokens));
      CHECK(whole.Of(part, from, from + 4) == half.Of(part, from, from + 4));
    }
  }
  CHECK(whole.Of({1, 1, 1, 1}, 0, 16) != whole.Of({1, 1, 2, 1}, 0, 16));
  CHECK(!(Part{0, 1, 1, 1}).IsIn(half.geometry));
  CHECK(!(Part{1, 1, 1, 4294967295u}).IsIn(half.geometry));
}

TEST("each byte of the tokens counts, and none beside them") {
  Sequence sequence(16);
  const Digest before = sequence.Of(16, 32);
  const Digest part = sequence.Of(20, 30);
  for (uint64_t row = 0; row < sequence.geometry.Rows(); ++row) {
    for (uint64_t token = 0; token < kTokens; ++token) {
      std::byte* byte = sequence.Byte(row, token, static_cast<uint32_t>((row + token) % 20));
      *byte ^= std::byte{0x10};
      CHECK((sequence.Of(16, 32) == before) == (token < 16 || token >= 32));
      CHECK((sequence.Of(20, 30) == part) == (token < 20 || token >= 30));
      *byte ^= std::byte{0x10};
    }
  }
  CHECK(sequence.Of(16, 32) == before);
}

KVT_TEST_MAIN
