#pragma once

#include <cstdint>

#include "cuda/xxh3.h"

// What the digest kernels get, and the parts of their work that one lane does. Lanes of a warp share a block
// of XXH3: of its 128 words, lane l has those at l, l + 32, l + 64 and l + 96.
namespace kvt::cuda {

constexpr uint32_t kDigestLanes = 32;
constexpr uint32_t kDigestWordsOfLane = kXxh3BlockBytes / 8 / kDigestLanes;

// One digest to be made, of bytes that were packed one after another.
struct DigestInput {
  uint64_t offset = 0;  // a multiple of 256
  uint64_t bytes = 0;
  // Sums of its blocks, kXxh3Accumulators each; short inputs have none.
  uint32_t first_sum = 0;
  uint32_t sums = 0;
};

KVT_ON_DEVICE uint32_t DigestSums(uint64_t bytes) {
  return bytes <= kXxh3ShortBytesMax ? 0 : Xxh3WholeBlocks(bytes) + 1;
}

// The input that a sum belongs to. Those without sums are passed over.
KVT_ON_DEVICE uint32_t DigestInputOf(const DigestInput* inputs, uint32_t count, uint32_t sum) {
  uint32_t low = 0;
  uint32_t high = count;
  // inputs[low] begins at the sum or before it, inputs[high] after it.
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    if (inputs[middle].first_sum <= sum) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// What a lane has of one block.
struct DigestWords {
  uint64_t words[kDigestWordsOfLane];
  uint32_t count;  // the first ones; of the last block not all
  bool last;       // a word of the last stripe, of the first lanes
  uint64_t last_word;
};

KVT_ON_DEVICE DigestWords DigestWordsOf(const uint8_t* packed, const DigestInput& input, uint32_t block,
                                        uint32_t lane) {
  DigestWords of{};
  const uint8_t* const at = packed + input.offset + static_cast<uint64_t>(block) * kXxh3BlockBytes;
  uint32_t words = kXxh3BlockBytes / 8;
  if (block + 1 == input.sums) {
    words = Xxh3LastStripes(input.bytes) * kXxh3Accumulators;
    if (lane < kXxh3Accumulators) {
      of.last = true;
      of.last_word = Xxh3WordAt(packed + input.offset + input.bytes - kXxh3StripeBytes + 8 * lane);
    }
  }
  for (uint32_t turn = 0; turn < kDigestWordsOfLane; ++turn) {
    const uint32_t word = lane + turn * kDigestLanes;
    if (word >= words) break;
    of.words[turn] = *reinterpret_cast<const uint64_t*>(at + static_cast<uint64_t>(word) * 8);
    of.count = turn + 1;
  }
  return of;
}

// Of words at lane, lane + 32, …: their stripes' part of the secret moves by a word a stripe.
KVT_ON_DEVICE uint64_t DigestKey(uint32_t lane, uint32_t turn) {
  return kXxh3Secret[lane / kXxh3Accumulators + turn * (kDigestLanes / kXxh3Accumulators) +
                     lane % kXxh3Accumulators];
}

// What the words add to the accumulator of the lane's own place, and to that of its neighbour's.
struct DigestSum {
  uint64_t own;
  uint64_t neighbour;
};

KVT_ON_DEVICE DigestSum DigestSumOf(const DigestWords& of, const uint64_t* keys, uint64_t last_key) {
  DigestSum sum{0, 0};
  for (uint32_t turn = 0; turn < kDigestWordsOfLane; ++turn) {
    if (turn >= of.count) break;
    sum.own += Xxh3Product(of.words[turn], keys[turn]);
    sum.neighbour += of.words[turn];
  }
  if (of.last) {
    sum.own += Xxh3Product(of.last_word, last_key);
    sum.neighbour += of.last_word;
  }
  return sum;
}

}  // namespace kvt::cuda
