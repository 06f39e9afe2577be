// The one kernel that moves a plan: reads scattered pieces of a pool, a peer's mapped one for instance, and
// writes them into another. Built by `npm run kernels` into native/cuda/images.
#include "cuda/gather_segment.h"

namespace kvt::cuda {
namespace {

constexpr uint32_t kThreads = 512;
// Loads that a thread has in flight before it stores the first: 64 blocks of threads then fill an NVLink.
constexpr int kInFlight = 4;

// KV is read once here, and written for a reader that comes much later: it should not push out what the caches hold.
template <typename Vector>
__device__ __forceinline__ Vector LoadOnce(const Vector* from) {
  return __ldcs(from);
}
template <typename Vector>
__device__ __forceinline__ void StoreOnce(Vector* to, Vector value) {
  __stcs(to, value);
}

template <typename Vector>
__device__ __forceinline__ void Move(const GatherSegment& segment, const GatherTile& tile, const char* source,
                                     char* target, const uint32_t* source_table, const uint32_t* target_table) {
  for (uint32_t vector = tile.first + threadIdx.x; vector < tile.last; vector += kThreads * kInFlight) {
    Vector values[kInFlight];
    char* places[kInFlight];
#pragma unroll
    for (int turn = 0; turn < kInFlight; ++turn) {
      // What is past the end reads the last vector once more, and is not written.
      const uint32_t at = min(vector + turn * kThreads, tile.last - 1);
      const GatherPlaces found = PlacesOf(segment, tile, source_table, target_table, at);
      values[turn] = LoadOnce(reinterpret_cast<const Vector*>(source + found.source));
      places[turn] = target + found.target;
    }
#pragma unroll
    for (int turn = 0; turn < kInFlight; ++turn) {
      if (vector + turn * kThreads < tile.last) StoreOnce(reinterpret_cast<Vector*>(places[turn]), values[turn]);
    }
  }
}

__device__ __forceinline__ void MoveTile(const GatherSegment& segment, const GatherTile& tile, const char* source,
                                         char* target, const uint32_t* source_table, const uint32_t* target_table) {
  switch (segment.width) {
    case 16:
      return Move<uint4>(segment, tile, source, target, source_table, target_table);
    case 8:
      return Move<uint2>(segment, tile, source, target, source_table, target_table);
    case 4:
      return Move<uint32_t>(segment, tile, source, target, source_table, target_table);
    case 2:
      return Move<uint16_t>(segment, tile, source, target, source_table, target_table);
    default:
      return Move<uint8_t>(segment, tile, source, target, source_table, target_table);
  }
}

}  // namespace

// Segments and tables lie in host memory: each block of threads reads what it needs of them once, all at a time.
extern "C" __global__ void __launch_bounds__(kThreads)
    kvt_gather(const char* __restrict__ source, char* __restrict__ target, const GatherSegment* __restrict__ segments,
               uint32_t count, const uint32_t* __restrict__ source_table, const uint32_t* __restrict__ target_table) {
  __shared__ GatherSegment segment;
  __shared__ uint32_t source_entries[kGatherEntries];
  __shared__ uint32_t target_entries[kGatherEntries];
  for (uint32_t index = 0; index < count; ++index) {
    const auto* words = reinterpret_cast<const uint64_t*>(segments + index);
    if (threadIdx.x < sizeof(GatherSegment) / sizeof(uint64_t)) {
      reinterpret_cast<uint64_t*>(&segment)[threadIdx.x] = words[threadIdx.x];
    }
    __syncthreads();
    const uint32_t place =
        blockIdx.x >= segment.first_block ? blockIdx.x - segment.first_block : blockIdx.x + gridDim.x - segment.first_block;
    const uint64_t begin = static_cast<uint64_t>(place) * segment.share;
    const uint64_t end = min(begin + segment.share, static_cast<uint64_t>(segment.vectors));
    for (uint64_t first = begin; first < end;) {
      const GatherTile tile = TileFrom(segment, static_cast<uint32_t>(first), static_cast<uint32_t>(end));
      for (uint32_t at = threadIdx.x; at < tile.source_entries; at += kThreads) {
        source_entries[at] = source_table[tile.source_entry + at];
      }
      for (uint32_t at = threadIdx.x; at < tile.target_entries; at += kThreads) {
        target_entries[at] = target_table[tile.target_entry + at];
      }
      __syncthreads();
      MoveTile(segment, tile, source, target, source_entries, target_entries);
      first = tile.last;
      __syncthreads();
    }
    __syncthreads();
  }
}

}  // namespace kvt::cuda
