#pragma once

// For headers whose arithmetic is compiled into kernels by nvcc and into the addon and its tests by any C++
// compiler, so that it is tested where there is no GPU.
#if defined(__CUDACC__)
#define KVT_ON_DEVICE __device__ __forceinline__
#define KVT_CONSTANT static __constant__ const
#define KVT_KEEP_LOOP _Pragma("unroll 1")
#else
#define KVT_ON_DEVICE inline
#define KVT_CONSTANT inline constexpr
#define KVT_KEEP_LOOP
#endif
