#include "layout/digest.h"

#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#include "geometries.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

using namespace kvt;
using kvt::test::Hnd;
using kvt::test::Nhd;

namespace {

constexpr uint64_t kTokens = 48;

// The KV of one sequence in blocks of some size and order, scattered over a pool.
struct Sequence {
  Geometry geometry;
  std::vector<std::byte> pool;
  std::vector<uint32_t> table;

  explicit Sequence(Geometry shape) : geometry(std::move(shape)) {
    const uint64_t blocks = (kTokens + geometry.tokens_per_block - 1) / geometry.tokens_per_block;
    table.resize(blocks);
    std::iota(table.rbegin(), table.rend(), 1);
    pool.assign((blocks + 2) * geometry.BlockBytes(), std::byte{0x77});
    const LayerRun& layers = geometry.groups[0].layers[0];
    for (uint32_t layer = layers.first; layer < layers.first + layers.count; ++layer) {
      for (uint64_t row = uint64_t{layer} * kRows; row < uint64_t{layer + 1} * kRows; ++row) {
        if (!Holds(row)) continue;
        for (uint64_t token = 0; token < kTokens; ++token) {
          for (uint32_t at = 0; at < 20; ++at) *Byte(row, token, at) = Value(row, token, at);
        }
      }
    }
  }

  // Rows are numbered as the model has them: 2 planes of 3 heads a layer.
  static constexpr uint64_t kRows = 6;
  bool Holds(uint64_t row) const {
    const Group& group = geometry.groups[0];
    return row % 3 >= group.first_head && row % 3 < group.first_head + group.heads;
  }
  std::byte* Byte(uint64_t row, uint64_t token, uint32_t at) {
    const Group& group = geometry.groups[0];
    const LayerRun& layers = group.layers[0];
    const uint64_t tokens = geometry.tokens_per_block;
    return pool.data() + layers.base + (row / kRows - layers.first) * layers.stride +
           table[token / tokens] * group.block_stride + row / 3 % 2 * group.plane_stride +
           (row % 3 - group.first_head) * group.head_stride + token % tokens * group.token_stride + at;
  }
  static std::byte Value(uint64_t row, uint64_t token, uint32_t at) {
    return static_cast<std::byte>(row * 89 + token * 31 + at * 7);
  }
  Digest Of(uint64_t from, uint64_t to) const { return Of(test::All(), from, to); }
  Digest Of(const Part& part, uint64_t from, uint64_t to) const {
    return DigestOf(pool.data(), geometry, part, table, {from, to, kTokens});
  }
};

constexpr uint64_t kAllRows = 2 * Sequence::kRows;

Digest Expected(uint64_t from, uint64_t to) {
  std::vector<std::byte> bytes;
  for (uint64_t row = 0; row < kAllRows; ++row) {
    for (uint64_t token = from; token < to; ++token) {
      for (uint32_t at = 0; at < 20; ++at) bytes.push_back(Sequence::Value(row, token, at));
    }
  }
  XXH64_canonical_t canonical;
  XXH64_canonicalFromHash(&canonical, XXH3_64bits(bytes.data(), bytes.size()));
  Digest digest;
  std::copy_n(canonical.digest, 8, digest.begin());
  return digest;
}

}  // namespace

TEST(
    "a digest is XXH3 of the canonical bytes, whatever the size and order of the blocks and wherever they "
    "lie") {
  for (const uint32_t tokens_per_block : {1U, 4U, 16U, 20U, 64U}) {
    for (const Geometry& geometry :
         {Hnd(2, 2, 3, tokens_per_block, 20), Nhd(2, 2, 3, tokens_per_block, 20)}) {
      const Sequence sequence(geometry);
      for (uint64_t from = 0; from < kTokens; from += 5) {
        for (uint64_t to = from + 1; to <= kTokens; to += 3) {
          CHECK(sequence.Of(from, to) == Expected(from, to));
        }
      }
    }
  }
}

TEST("a part has one digest in every pool that holds it") {
  const Sequence whole(Hnd(2, 2, 3, 16, 20));
  const Sequence half(Nhd(1, 2, 2, 4, 20, 1, 1));
  for (const Part& part : {Part{1, 1, 1, 2}, Part{1, 1, 2, 1}}) {
    for (uint64_t from = 0; from < kTokens; from += 8) {
      CHECK(whole.Of(part, from, kTokens) == half.Of(part, from, kTokens));
      CHECK(whole.Of(part, from, from + 4) == half.Of(part, from, from + 4));
    }
  }
  CHECK(whole.Of({1, 1, 1, 1}, 0, 16) != whole.Of({1, 1, 2, 1}, 0, 16));
}

TEST(
    "groups count one after the other: windows from their start on, bytes of a block once, those without "
    "heads if "
    "wanted") {
  Geometry geometry = Hnd(1, 1, 1, 4, 2);
  geometry.block_bytes = 64;
  geometry.groups[0].block_stride = 64;
  geometry.groups.push_back(geometry.groups[0]);
  geometry.groups.push_back(geometry.groups[0]);
  geometry.groups[0].window = 3;
  geometry.groups[1].layers[0].base = 16;
  geometry.groups[1].per_block = true;
  geometry.groups[2].layers[0].base = 32;
  geometry.groups[2].replicated = true;
  std::vector<std::byte> pool(3 * 64);
  for (size_t index = 0; index < pool.size(); ++index) pool[index] = static_cast<std::byte>(index);
  const std::vector<uint32_t> table{0, 2};
  const auto bytes = [&pool](std::initializer_list<std::pair<size_t, size_t>> pieces) {
    std::vector<std::byte> all;
    for (const auto& [from, to] : pieces) all.insert(all.end(), pool.begin() + from, pool.begin() + to);
    Digest digest;
    XXH64_canonical_t canonical;
    XXH64_canonicalFromHash(&canonical, XXH3_64bits(all.data(), all.size()));
    memcpy(digest.data(), canonical.digest, digest.size());
    return digest;
  };
  const auto digest = [&](bool replicated, uint64_t from, uint64_t to) {
    return DigestOf(pool.data(), geometry, {0, 1, 0, 1, replicated}, table, {from, to, 7});
  };
  // Tokens 3 to 5 of 7: the window leaves 4 and 5.
  CHECK(digest(true, 3, 6) == bytes({{128, 132}, {16, 18}, {144, 146}, {38, 40}, {160, 164}}));
  CHECK(digest(false, 3, 6) == bytes({{128, 132}, {16, 18}, {144, 146}}));
  CHECK(digest(false, 0, 4) == bytes({{16, 18}}));
  // Without its first block, as if windows had left it.
  const std::vector<uint32_t> last{2};
  CHECK(DigestOf(pool.data(), geometry, test::All(), last, {4, 6, 7}) ==
        DigestOf(pool.data(), geometry, test::All(), table, {4, 6, 7}));
}

TEST("each byte of the tokens counts, and none beside them") {
  Sequence sequence(Nhd(2, 2, 3, 16, 20));
  const Digest before = sequence.Of(16, 32);
  const Digest part = sequence.Of(20, 30);
  for (uint64_t row = 0; row < kAllRows; ++row) {
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
