#pragma once

#include <cstddef>
#include <cstdint>

// What we use of cuda.h, declared by ourselves so that the addon is built where CUDA is not installed. Names
// are CUDA's, so that cuda_driver_test can read the list of functions with CUDA's own types in their place.
namespace kvt::cuda {

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = struct CUctx_st*;
using CUmodule = struct CUmod_st*;
using CUfunction = struct CUfunc_st*;
using CUstream = struct CUstream_st*;
using CUevent = struct CUevent_st*;
using CUmemGenericAllocationHandle = unsigned long long;
using CUdevice_attribute = int;
using CUmemAllocationHandleType = int;
using CUmemAllocationGranularity_flags = int;

constexpr CUresult kSuccess = 0;
constexpr CUresult kErrorNotReady = 600;

constexpr CUdevice_attribute kMultiprocessorCount = 16;
constexpr CUdevice_attribute kComputeCapabilityMajor = 75;
constexpr CUdevice_attribute kComputeCapabilityMinor = 76;
constexpr CUdevice_attribute kVirtualMemorySupported = 102;
constexpr CUdevice_attribute kPosixHandlesSupported = 103;

constexpr unsigned kStreamNonBlocking = 1;
constexpr unsigned kEventBlockingSync = 1;
constexpr unsigned kEventDisableTiming = 2;
constexpr unsigned kHostAllocPortable = 1;
constexpr unsigned kHostAllocDeviceMap = 2;

constexpr int kMemAllocationPinned = 1;
constexpr int kMemLocationDevice = 1;
constexpr int kMemAccessRead = 1;
constexpr int kMemAccessReadWrite = 3;
constexpr CUmemAllocationHandleType kHandlePosixFd = 1;
constexpr CUmemAllocationGranularity_flags kGranularityMinimum = 0;

struct CUuuid {
  char bytes[16];
};

struct CUmemLocation {
  int type;
  int id;
};

struct CUmemAllocationProp {
  int type;
  CUmemAllocationHandleType requestedHandleTypes;
  CUmemLocation location;
  void* win32HandleMetaData;
  struct {
    unsigned char compressionType;
    unsigned char gpuDirectRDMACapable;
    unsigned short usage;
    unsigned char reserved[4];
  } allocFlags;
};

struct CUmemAccessDesc {
  CUmemLocation location;
  int flags;
};

}  // namespace kvt::cuda
