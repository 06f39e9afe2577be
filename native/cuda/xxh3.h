#pragma once

#include <cstdint>

#include "cuda/on_device.h"

// XXH3 of 64 bits without a seed, taken apart so that many threads can compute one hash. The oracle is
// third_party/xxhash (cuda_xxh3_test); names are those of its description.
//
// A long input is read in blocks of 16 stripes of 8 words. Each word is added to the accumulators in a way
// that depends on the word and its place in the block alone, and only at a block's end are the accumulators
// scrambled. So the sums of all blocks are computed at once, 64 bytes for each 1,024, and what has to be done
// in order is one addition and one scrambling a block.
namespace kvt::cuda {

// Little-endian words.
KVT_CONSTANT uint64_t kXxh3Secret[24] = {
    0xbe4ba423396cfeb8U, 0x1cad21f72c81017cU, 0xdb979083e96dd4deU, 0x1f67b3b7a4a44072U, 0x78e5c0cc4ee679cbU,
    0x2172ffcc7dd05a82U, 0x8e2443f7744608b8U, 0x4c263a81e69035e0U, 0xcb00c391bb52283cU, 0xa32e531b8b65d088U,
    0x4ef90da297486471U, 0xd8acdea946ef1938U, 0x3f349ce33f76faa8U, 0x1d4f0bc7c7bbdcf9U, 0x3159b4cd4be0518aU,
    0x647378d9c97e9fc8U, 0xc3ebd33483acc5eaU, 0xeb6313faffa081c5U, 0x49daf0b751dd0d17U, 0x9e68d429265516d3U,
    0xfca1477d58be162bU, 0xce31d07ad1b8f88fU, 0x280416958f3acb45U, 0x7e404bbbcafbd7afU,
};

constexpr uint32_t kXxh3Accumulators = 8;
constexpr uint32_t kXxh3StripeBytes = 64;
constexpr uint32_t kXxh3BlockBytes = 1024;
constexpr uint32_t kXxh3ShortBytesMax = 240;  // from here on inputs are long
constexpr uint32_t kXxh3LastKeyByte = 121;    // of the secret, for the last stripe
constexpr uint32_t kXxh3ScrambleKey = 16;     // word of the secret

constexpr uint32_t kXxh3Prime32 = 0x9E3779B1U;
constexpr uint64_t kXxh3Prime64 = 0x9E3779B185EBCA87U;
constexpr uint64_t kXxh3PrimeMix = 0x9FB21C651E98DF25U;

// The accumulators before the first block.
KVT_CONSTANT uint64_t kXxh3First[kXxh3Accumulators] = {
    0xC2B2AE3DU,         0x9E3779B185EBCA87U, 0xC2B2AE3D27D4EB4FU, 0x165667B19E3779F9U,
    0x85EBCA77C2B2AE63U, 0x85EBCA77U,         0x27D4EB2F165667C5U, 0x9E3779B1U,
};

// From any byte of the secret on.
KVT_ON_DEVICE uint64_t Xxh3SecretAt(uint32_t byte) {
  const uint32_t word = byte / 8;
  const uint32_t shift = byte % 8 * 8;
  return shift == 0 ? kXxh3Secret[word] : kXxh3Secret[word] >> shift | kXxh3Secret[word + 1] << (64 - shift);
}

KVT_ON_DEVICE uint64_t Xxh3WordAt(const uint8_t* bytes, uint32_t count = 8) {
  uint64_t word = 0;
  for (uint32_t index = 0; index < count; ++index) word |= static_cast<uint64_t>(bytes[index]) << (8 * index);
  return word;
}

KVT_ON_DEVICE uint64_t Xxh3ByteSwap(uint64_t word) {
  uint64_t swapped = 0;
  for (uint32_t index = 0; index < 8; ++index) swapped = swapped << 8 | (word >> (8 * index) & 0xff);
  return swapped;
}

KVT_ON_DEVICE uint64_t Xxh3RotateLeft(uint64_t word, uint32_t by) { return word << by | word >> (64 - by); }

// Low half of the product of 128 bits, xor its high half.
KVT_ON_DEVICE uint64_t Xxh3Fold(uint64_t left, uint64_t right) {
  const uint64_t low = 0xffffffffU;
  const uint64_t low_low = (left & low) * (right & low);
  const uint64_t high_low = (left >> 32) * (right & low);
  const uint64_t low_high = (left & low) * (right >> 32);
  const uint64_t cross = (low_low >> 32) + (high_low & low) + low_high;
  const uint64_t upper = (high_low >> 32) + (cross >> 32) + (left >> 32) * (right >> 32);
  return upper ^ (cross << 32 | (low_low & low));
}

KVT_ON_DEVICE uint64_t Xxh3Avalanche(uint64_t hash) {
  hash = (hash ^ hash >> 37) * 0x165667919E3779F9U;
  return hash ^ hash >> 32;
}

KVT_ON_DEVICE uint64_t Xxh64Avalanche(uint64_t hash) {
  hash = (hash ^ hash >> 33) * 0xC2B2AE3D27D4EB4FU;
  hash = (hash ^ hash >> 29) * 0x165667B19E3779F9U;
  return hash ^ hash >> 32;
}

KVT_ON_DEVICE uint64_t Xxh3Mix16(const uint8_t* input, uint32_t secret) {
  return Xxh3Fold(Xxh3WordAt(input) ^ Xxh3SecretAt(secret), Xxh3WordAt(input + 8) ^ Xxh3SecretAt(secret + 8));
}

// Of at most kXxh3ShortBytesMax bytes.
KVT_ON_DEVICE uint64_t Xxh3Short(const uint8_t* input, uint32_t bytes) {
  if (bytes == 0) return Xxh64Avalanche(Xxh3SecretAt(56) ^ Xxh3SecretAt(64));
  if (bytes < 4) {
    const uint32_t first = input[0];
    const uint32_t middle = input[bytes / 2];
    const uint32_t last = input[bytes - 1];
    const uint32_t combined = first << 16 | middle << 24 | last | bytes << 8;
    const uint64_t key = (Xxh3SecretAt(0) ^ Xxh3SecretAt(4)) & 0xffffffffU;
    return Xxh64Avalanche(combined ^ key);
  }
  if (bytes <= 8) {
    const uint64_t both = Xxh3WordAt(input + bytes - 4, 4) + (Xxh3WordAt(input, 4) << 32);
    uint64_t hash = both ^ (Xxh3SecretAt(8) ^ Xxh3SecretAt(16));
    hash ^= Xxh3RotateLeft(hash, 49) ^ Xxh3RotateLeft(hash, 24);
    hash *= kXxh3PrimeMix;
    hash ^= (hash >> 35) + bytes;
    hash *= kXxh3PrimeMix;
    return hash ^ hash >> 28;
  }
  if (bytes <= 16) {
    const uint64_t low = Xxh3WordAt(input) ^ (Xxh3SecretAt(24) ^ Xxh3SecretAt(32));
    const uint64_t high = Xxh3WordAt(input + bytes - 8) ^ (Xxh3SecretAt(40) ^ Xxh3SecretAt(48));
    return Xxh3Avalanche(bytes + Xxh3ByteSwap(low) + high + Xxh3Fold(low, high));
  }
  uint64_t hash = bytes * kXxh3Prime64;
  if (bytes <= 128) {
    for (uint32_t index = 0; index <= (bytes - 1) / 32; ++index) {
      hash += Xxh3Mix16(input + 16 * index, 32 * index);
      hash += Xxh3Mix16(input + bytes - 16 * (index + 1), 32 * index + 16);
    }
    return Xxh3Avalanche(hash);
  }
  for (uint32_t index = 0; index < 8; ++index) hash += Xxh3Mix16(input + 16 * index, 16 * index);
  hash = Xxh3Avalanche(hash) + Xxh3Mix16(input + bytes - 16, 119);
  for (uint32_t index = 8; index < bytes / 16; ++index) {
    hash += Xxh3Mix16(input + 16 * index, 16 * (index - 8) + 3);
  }
  return Xxh3Avalanche(hash);
}

// What a word adds to the accumulator of its own place in the stripe; the word itself is added to its
// neighbour's.
KVT_ON_DEVICE uint64_t Xxh3Product(uint64_t word, uint64_t key) {
  const uint64_t keyed = word ^ key;
  return (keyed & 0xffffffffU) * (keyed >> 32);
}

KVT_ON_DEVICE uint64_t Xxh3Scramble(uint64_t accumulator, uint64_t key) {
  return (accumulator ^ accumulator >> 47 ^ key) * kXxh3Prime32;
}

// Of a long input, from its accumulators in the end.
KVT_ON_DEVICE uint64_t Xxh3End(const uint64_t* accumulators, uint64_t bytes) {
  uint64_t hash = bytes * kXxh3Prime64;
  for (uint32_t pair = 0; pair < 4; ++pair) {
    hash += Xxh3Fold(accumulators[2 * pair] ^ Xxh3SecretAt(11 + 16 * pair),
                     accumulators[2 * pair + 1] ^ Xxh3SecretAt(19 + 16 * pair));
  }
  return Xxh3Avalanche(hash);
}

// Blocks that are scrambled: all but the last, which is never empty.
KVT_ON_DEVICE uint32_t Xxh3WholeBlocks(uint64_t bytes) {
  return static_cast<uint32_t>((bytes - 1) / kXxh3BlockBytes);
}
// Of the last block; the last 64 bytes are a stripe of their own, which may overlap these.
KVT_ON_DEVICE uint32_t Xxh3LastStripes(uint64_t bytes) {
  return static_cast<uint32_t>((bytes - 1) % kXxh3BlockBytes) / kXxh3StripeBytes;
}

}  // namespace kvt::cuda
