#include "memory/check_pattern.h"

#include <algorithm>

namespace kvt {
namespace {

uint64_t WordOf(uint32_t block) { return 0xdeadb10c00000000ULL | block; }

// Blocks are multiples of 64 bytes at addresses that are.
template <typename Word, typename Byte>
std::span<Word> Words(Byte* pool, uint64_t block_bytes, uint32_t block) {
  return {reinterpret_cast<Word*>(pool + block * block_bytes), block_bytes / sizeof(Word)};
}

}  // namespace

void FillPattern(std::byte* pool, uint64_t block_bytes, std::span<const uint32_t> blocks) {
  for (const uint32_t block : blocks) {
    const auto words = Words<uint64_t>(pool, block_bytes, block);
    std::fill(words.begin(), words.end(), WordOf(block));
  }
}

int64_t FindTouched(const std::byte* pool, uint64_t block_bytes, std::span<const uint32_t> blocks) {
  for (const uint32_t block : blocks) {
    const auto words = Words<const uint64_t>(pool, block_bytes, block);
    const auto intact = [expected = WordOf(block)](uint64_t word) { return word == expected; };
    if (!std::all_of(words.begin(), words.end(), intact)) return block;
  }
  return -1;
}

}  // namespace kvt
