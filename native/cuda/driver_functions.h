#pragma once

#include "cuda/driver_types.h"

// The functions of libcuda that we call: name, CUDA version whose prototype this is, parameters. All return
// CUresult. Filled through cuGetProcAddress_v2 with that version, never by dlsym of the bare name, which
// gives the oldest ABI. Versions are the oldest that will do: drivers from 525 on (CUDA 12.0) have all of
// them.
#define KVT_CUDA_FUNCTIONS(X)                                                                            \
  X(cuInit, 2000, (unsigned))                                                                            \
  X(cuDriverGetVersion, 2020, (int*))                                                                    \
  X(cuGetErrorName, 6000, (CUresult, const char**))                                                      \
  X(cuGetErrorString, 6000, (CUresult, const char**))                                                    \
  X(cuDeviceGetCount, 2000, (int*))                                                                      \
  X(cuDeviceGet, 2000, (CUdevice*, int))                                                                 \
  X(cuDeviceGetName, 2000, (char*, int, CUdevice))                                                       \
  X(cuDeviceGetUuid, 11040, (CUuuid*, CUdevice))                                                         \
  X(cuDeviceGetPCIBusId, 4010, (char*, int, CUdevice))                                                   \
  X(cuDeviceTotalMem, 3020, (size_t*, CUdevice))                                                         \
  X(cuDeviceGetAttribute, 2000, (int*, CUdevice_attribute, CUdevice))                                    \
  X(cuDeviceCanAccessPeer, 4000, (int*, CUdevice, CUdevice))                                             \
  X(cuDevicePrimaryCtxRetain, 7000, (CUcontext*, CUdevice))                                              \
  X(cuDevicePrimaryCtxRelease, 11000, (CUdevice))                                                        \
  X(cuCtxSetCurrent, 4000, (CUcontext))                                                                  \
  X(cuCtxGetStreamPriorityRange, 5050, (int*, int*))                                                     \
  X(cuStreamCreateWithPriority, 5050, (CUstream*, unsigned, int))                                        \
  X(cuStreamDestroy, 4000, (CUstream))                                                                   \
  X(cuStreamSynchronize, 2000, (CUstream))                                                               \
  X(cuEventCreate, 2000, (CUevent*, unsigned))                                                           \
  X(cuEventDestroy, 4000, (CUevent))                                                                     \
  X(cuEventRecord, 2000, (CUevent, CUstream))                                                            \
  X(cuEventSynchronize, 2000, (CUevent))                                                                 \
  X(cuEventElapsedTime, 2000, (float*, CUevent, CUevent))                                                \
  X(cuMemHostAlloc, 2020, (void**, size_t, unsigned))                                                    \
  X(cuMemFreeHost, 2000, (void*))                                                                        \
  X(cuMemHostGetDevicePointer, 3020, (CUdeviceptr*, void*, unsigned))                                    \
  X(cuMemcpyDtoHAsync, 3020, (void*, CUdeviceptr, size_t, CUstream))                                     \
  X(cuMemcpyHtoDAsync, 3020, (CUdeviceptr, const void*, size_t, CUstream))                               \
  X(cuMemcpyDtoDAsync, 3020, (CUdeviceptr, CUdeviceptr, size_t, CUstream))                               \
  X(cuMemCreate, 10020,                                                                                  \
    (CUmemGenericAllocationHandle*, size_t, const CUmemAllocationProp*, unsigned long long))             \
  X(cuMemRelease, 10020, (CUmemGenericAllocationHandle))                                                 \
  X(cuMemAddressReserve, 10020, (CUdeviceptr*, size_t, size_t, CUdeviceptr, unsigned long long))         \
  X(cuMemAddressFree, 10020, (CUdeviceptr, size_t))                                                      \
  X(cuMemMap, 10020, (CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long))    \
  X(cuMemUnmap, 10020, (CUdeviceptr, size_t))                                                            \
  X(cuMemSetAccess, 10020, (CUdeviceptr, size_t, const CUmemAccessDesc*, size_t))                        \
  X(cuMemGetAllocationGranularity, 10020,                                                                \
    (size_t*, const CUmemAllocationProp*, CUmemAllocationGranularity_flags))                             \
  X(cuMemExportToShareableHandle, 10020,                                                                 \
    (void*, CUmemGenericAllocationHandle, CUmemAllocationHandleType, unsigned long long))                \
  X(cuMemImportFromShareableHandle, 10020,                                                               \
    (CUmemGenericAllocationHandle*, void*, CUmemAllocationHandleType))                                   \
  X(cuModuleLoadData, 2000, (CUmodule*, const void*))                                                    \
  X(cuModuleUnload, 2000, (CUmodule))                                                                    \
  X(cuModuleGetFunction, 2000, (CUfunction*, CUmodule, const char*))                                     \
  X(cuLaunchKernel, 4000,                                                                                \
    (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, \
     void**))

namespace kvt::cuda {

struct Functions {
#define KVT_CUDA_MEMBER(name, version, parameters) CUresult(*name) parameters = nullptr;
  KVT_CUDA_FUNCTIONS(KVT_CUDA_MEMBER)
#undef KVT_CUDA_MEMBER
};

}  // namespace kvt::cuda
