// XXH3 of packed inputs: first the sums of all their blocks, then each input's own chain over its sums. Built by
// `npm run kernels` into native/cuda/images.
#include "cuda/digest_input.h"

namespace kvt::cuda {
namespace {

constexpr uint32_t kThreads = 512;
constexpr uint32_t kWarps = kThreads / kDigestLanes;
constexpr uint32_t kAllLanes = 0xffffffffU;
// Sums that a chain has loaded before it needs them: a step takes some 30 cycles, a load several hundred.
constexpr uint32_t kAhead = 16;

__device__ __forceinline__ uint64_t FromLane(uint64_t value, uint32_t other) {
  return __shfl_xor_sync(kAllLanes, static_cast<unsigned long long>(value), static_cast<int>(other));
}

}  // namespace

// One warp a block of 1,024 bytes, each warp some blocks in a row: [total][kXxh3Accumulators] sums.
extern "C" __global__ void __launch_bounds__(kThreads)
    kvt_digest_sums(const uint8_t* __restrict__ packed, const DigestInput* __restrict__ inputs, uint32_t count,
                    uint32_t total, uint64_t* __restrict__ sums) {
  const uint32_t lane = threadIdx.x % kDigestLanes;
  const uint32_t warps = gridDim.x * kWarps;
  const uint32_t warp = blockIdx.x * kWarps + threadIdx.x / kDigestLanes;
  const uint32_t share = (total + warps - 1) / warps;
  const uint64_t begin = static_cast<uint64_t>(warp) * share;
  if (begin >= total) return;
  const auto end = static_cast<uint32_t>(min(begin + share, static_cast<uint64_t>(total)));
  uint64_t keys[kDigestWordsOfLane];
#pragma unroll
  for (uint32_t turn = 0; turn < kDigestWordsOfLane; ++turn) keys[turn] = DigestKey(lane, turn);
  const uint64_t last_key = Xxh3SecretAt(kXxh3LastKeyByte + 8 * (lane % kXxh3Accumulators));
  auto sum = static_cast<uint32_t>(begin);
  uint32_t index = DigestInputOf(inputs, count, sum);
  DigestInput input = inputs[index];
  DigestWords words = DigestWordsOf(packed, input, sum - input.first_sum, lane);
  for (; sum < end; ++sum) {
    const DigestWords now = words;
    if (sum + 1 < end) {
      while (sum + 1 >= input.first_sum + input.sums) input = inputs[++index];
      words = DigestWordsOf(packed, input, sum + 1 - input.first_sum, lane);
    }
    const DigestSum added = DigestSumOf(now, keys, last_key);
    uint64_t all = added.own + FromLane(added.neighbour, 1);
    all += FromLane(all, 8);
    all += FromLane(all, 16);
    if (lane < kXxh3Accumulators) sums[static_cast<uint64_t>(sum) * kXxh3Accumulators + lane] = all;
  }
}

// One warp an input, whose lanes in fours do the same.
extern "C" __global__ void __launch_bounds__(kThreads)
    kvt_digest_ends(const uint8_t* __restrict__ packed, const DigestInput* __restrict__ inputs, uint32_t count,
                    const uint64_t* __restrict__ sums, uint64_t* __restrict__ digests) {
  const uint32_t lane = threadIdx.x % kDigestLanes;
  const uint32_t own = lane % kXxh3Accumulators;
  const uint64_t key = kXxh3Secret[kXxh3ScrambleKey + own];
  for (uint32_t index = blockIdx.x * kWarps + threadIdx.x / kDigestLanes; index < count; index += gridDim.x * kWarps) {
    const DigestInput input = inputs[index];
    if (input.sums == 0) {
      if (lane == 0) digests[index] = Xxh3Short(packed + input.offset, static_cast<uint32_t>(input.bytes));
      continue;
    }
    const uint64_t* const column = sums + static_cast<uint64_t>(input.first_sum) * kXxh3Accumulators + own;
    const uint32_t whole = input.sums - 1;
    const auto load = [&](uint64_t* into, uint32_t from) {
#pragma unroll
      for (uint32_t step = 0; step < kAhead; ++step) {
        into[step] = from + step < whole ? column[static_cast<uint64_t>(from + step) * kXxh3Accumulators] : 0;
      }
    };
    uint64_t accumulator = kXxh3First[own];
    uint64_t now[kAhead];
    load(now, 0);
    for (uint32_t block = 0; block < whole; block += kAhead) {
      uint64_t next[kAhead];
      load(next, block + kAhead);
#pragma unroll
      for (uint32_t step = 0; step < kAhead; ++step) {
        if (block + step < whole) accumulator = Xxh3Scramble(accumulator + now[step], key);
        now[step] = next[step];
      }
    }
    accumulator += column[static_cast<uint64_t>(whole) * kXxh3Accumulators];
    uint64_t all[kXxh3Accumulators];
#pragma unroll
    for (uint32_t from = 0; from < kXxh3Accumulators; ++from) {
      all[from] = __shfl_sync(kAllLanes, static_cast<unsigned long long>(accumulator), static_cast<int>(from));
    }
    if (lane == 0) digests[index] = Xxh3End(all, input.bytes);
  }
}

}  // namespace kvt::cuda
