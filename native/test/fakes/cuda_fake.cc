// A libcuda of one GPU whose memory is that of the host and whose kernels run on the processor, in the
// call that launches them. It shows what is asked of CUDA and in which order, and that the right bytes
// arrive; nothing about a real driver, its memory model or its speed. KVT_FAKE_CUDA_FAILS names a function
// that then fails.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "cuda/digest_input.h"
#include "cuda/driver_functions.h"
#include "cuda/gather_segment.h"

namespace kvt::cuda {
namespace {

constexpr CUresult kErrorInvalidValue = 1;
constexpr CUresult kErrorOutOfMemory = 2;
constexpr size_t kGranularity = size_t{2} << 20;
constexpr uint64_t kMemoryBytes = uint64_t{1} << 30;
constexpr unsigned kThreadsOfBlock = 512;

struct Allocation {
  int fd = -1;
  size_t bytes = 0;
};

struct State {
  std::mutex mutex;
  std::map<CUmemGenericAllocationHandle, Allocation> allocations;
  CUmemGenericAllocationHandle last = 0;
};

State& Shared() {
  static State& state = *new State();
  return state;
}

int Opaque = 0;
template <typename Handle>
Handle Some() {
  return reinterpret_cast<Handle>(&Opaque);
}

CUresult Text(const char* text, char* out, int size) {
  strncpy(out, text, static_cast<size_t>(size));
  return kSuccess;
}

CUresult Add(int fd, size_t bytes, CUmemGenericAllocationHandle* handle) {
  State& state = Shared();
  const std::lock_guard lock(state.mutex);
  *handle = ++state.last;
  state.allocations[*handle] = {fd, bytes};
  return kSuccess;
}

Allocation Find(CUmemGenericAllocationHandle handle) {
  State& state = Shared();
  const std::lock_guard lock(state.mutex);
  const auto found = state.allocations.find(handle);
  return found == state.allocations.end() ? Allocation{} : found->second;
}

template <typename Value>
Value Parameter(void** parameters, int index) {
  return *static_cast<Value*>(parameters[index]);
}

// As kernels/gather.cu, in the order of one thread after another.
void Gather(unsigned blocks, void** parameters) {
  const auto* source = reinterpret_cast<const char*>(Parameter<CUdeviceptr>(parameters, 0));
  auto* target = reinterpret_cast<char*>(Parameter<CUdeviceptr>(parameters, 1));
  const auto* segments = reinterpret_cast<const GatherSegment*>(Parameter<CUdeviceptr>(parameters, 2));
  const auto count = Parameter<uint32_t>(parameters, 3);
  const auto* source_table = reinterpret_cast<const uint32_t*>(Parameter<CUdeviceptr>(parameters, 4));
  const auto* target_table = reinterpret_cast<const uint32_t*>(Parameter<CUdeviceptr>(parameters, 5));
  for (uint32_t index = 0; index < count; ++index) {
    const GatherSegment& segment = segments[index];
    if (segment.first_block >= blocks || uint64_t{segment.share} * blocks < segment.vectors) abort();
    for (uint32_t first = 0; first < segment.vectors;) {
      const GatherTile tile = TileFrom(segment, first, segment.vectors);
      for (uint32_t vector = tile.first; vector < tile.last; ++vector) {
        const GatherPlaces places = PlacesOf(segment, tile, source_table + tile.source_entry,
                                             target_table + tile.target_entry, vector);
        memcpy(target + places.target, source + places.source, segment.width);
      }
      first = tile.last;
    }
  }
}

// As kernels/digest.cu: what its lanes exchange is added up here.
void RunDigestSums(unsigned, void** parameters) {
  const auto* packed = reinterpret_cast<const uint8_t*>(Parameter<CUdeviceptr>(parameters, 0));
  const auto* inputs = reinterpret_cast<const DigestInput*>(Parameter<CUdeviceptr>(parameters, 1));
  const auto count = Parameter<uint32_t>(parameters, 2);
  const auto total = Parameter<uint32_t>(parameters, 3);
  auto* sums = reinterpret_cast<uint64_t*>(Parameter<CUdeviceptr>(parameters, 4));
  for (uint32_t sum = 0; sum < total; ++sum) {
    const DigestInput& input = inputs[DigestInputOf(inputs, count, sum)];
    if (sum - input.first_sum >= input.sums) abort();
    uint64_t* const row = sums + uint64_t{sum} * kXxh3Accumulators;
    memset(row, 0, kXxh3Accumulators * sizeof(uint64_t));
    for (uint32_t lane = 0; lane < kDigestLanes; ++lane) {
      uint64_t keys[kDigestWordsOfLane];
      for (uint32_t turn = 0; turn < kDigestWordsOfLane; ++turn) keys[turn] = DigestKey(lane, turn);
      const uint32_t own = lane % kXxh3Accumulators;
      const DigestSum added = DigestSumOf(DigestWordsOf(packed, input, sum - input.first_sum, lane), keys,
                                          Xxh3SecretAt(kXxh3LastKeyByte + 8 * own));
      row[own] += added.own;
      row[own ^ 1] += added.neighbour;
    }
  }
}

void RunDigestEnds(unsigned, void** parameters) {
  const auto* packed = reinterpret_cast<const uint8_t*>(Parameter<CUdeviceptr>(parameters, 0));
  const auto* inputs = reinterpret_cast<const DigestInput*>(Parameter<CUdeviceptr>(parameters, 1));
  const auto count = Parameter<uint32_t>(parameters, 2);
  const auto* sums = reinterpret_cast<const uint64_t*>(Parameter<CUdeviceptr>(parameters, 3));
  auto* digests = reinterpret_cast<uint64_t*>(Parameter<CUdeviceptr>(parameters, 4));
  for (uint32_t index = 0; index < count; ++index) {
    const DigestInput& input = inputs[index];
    if (input.sums == 0) {
      digests[index] = Xxh3Short(packed + input.offset, static_cast<uint32_t>(input.bytes));
      continue;
    }
    uint64_t accumulators[kXxh3Accumulators];
    for (uint32_t own = 0; own < kXxh3Accumulators; ++own) {
      accumulators[own] = kXxh3First[own];
      for (uint32_t block = 0; block < input.sums; ++block) {
        accumulators[own] += sums[uint64_t{input.first_sum + block} * kXxh3Accumulators + own];
        if (block + 1 == input.sums) break;
        accumulators[own] = Xxh3Scramble(accumulators[own], kXxh3Secret[kXxh3ScrambleKey + own]);
      }
    }
    digests[index] = Xxh3End(accumulators, input.bytes);
  }
}

bool Fails(const char* name) {
  const char* failing = getenv("KVT_FAKE_CUDA_FAILS");
  return failing != nullptr && strcmp(failing, name) == 0;
}

// What a CUfunction points to.
struct Kernel {
  const char* name;
  void (*run)(unsigned blocks, void** parameters);
};

Kernel Kernels[] = {
    {"kvt_gather", &Gather}, {"kvt_digest_sums", &RunDigestSums}, {"kvt_digest_ends", &RunDigestEnds}};

// The table, one body a function.
struct Fake {
  static CUresult cuInit(unsigned) { return kSuccess; }
  static CUresult cuDriverGetVersion(int* version) { return *version = 12000, kSuccess; }
  static CUresult cuGetErrorName(CUresult, const char** text) {
    return *text = "CUDA_ERROR_OF_THE_FAKE", kSuccess;
  }
  static CUresult cuGetErrorString(CUresult, const char** text) { return *text = "as it was told", kSuccess; }
  static CUresult cuDeviceGetCount(int* count) { return *count = 1, kSuccess; }
  static CUresult cuDeviceGet(CUdevice* device, int) { return *device = 0, kSuccess; }
  static CUresult cuDeviceGetName(char* name, int size, CUdevice) { return Text("Fake GPU", name, size); }
  static CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice) { return memset(uuid, 7, sizeof *uuid), kSuccess; }
  static CUresult cuDeviceGetPCIBusId(char* bus, int size, CUdevice) {
    return Text("0000:01:00.0", bus, size);
  }
  static CUresult cuDeviceTotalMem(size_t* bytes, CUdevice) { return *bytes = kMemoryBytes, kSuccess; }
  static CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
    *value = which == kComputeCapabilityMajor ? 9 : which == kComputeCapabilityMinor ? 0 : 1;
    return kSuccess;
  }
  static CUresult cuDeviceCanAccessPeer(int* can, CUdevice, CUdevice) { return *can = 1, kSuccess; }
  static CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
    return *context = Some<CUcontext>(), kSuccess;
  }
  static CUresult cuDevicePrimaryCtxRelease(CUdevice) { return kSuccess; }
  static CUresult cuCtxSetCurrent(CUcontext) { return kSuccess; }
  static CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    return *least = 0, *greatest = -5, kSuccess;
  }
  static CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned, int) {
    return *stream = Some<CUstream>(), kSuccess;
  }
  static CUresult cuStreamDestroy(CUstream) { return kSuccess; }
  static CUresult cuStreamSynchronize(CUstream) { return kSuccess; }
  static CUresult cuEventCreate(CUevent* event, unsigned) { return *event = Some<CUevent>(), kSuccess; }
  static CUresult cuEventDestroy(CUevent) { return kSuccess; }
  static CUresult cuEventRecord(CUevent, CUstream) { return kSuccess; }
  static CUresult cuEventSynchronize(CUevent) { return kSuccess; }
  static CUresult cuEventElapsedTime(float* millis, CUevent, CUevent) { return *millis = 0.5F, kSuccess; }
  static CUresult cuMemHostAlloc(void** data, size_t bytes, unsigned) {
    *data = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *data == nullptr ? kErrorOutOfMemory : kSuccess;
  }
  static CUresult cuMemFreeHost(void* data) { return free(data), kSuccess; }
  static CUresult cuMemHostGetDevicePointer(CUdeviceptr* address, void* data, unsigned) {
    return *address = reinterpret_cast<CUdeviceptr>(data), kSuccess;
  }
  static CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream) {
    return memcpy(to, reinterpret_cast<const void*>(from), bytes), kSuccess;
  }
  static CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream) {
    return memcpy(reinterpret_cast<void*>(to), from, bytes), kSuccess;
  }
  static CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream) {
    return memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes), kSuccess;
  }
  static CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp*,
                              unsigned long long) {
    if (bytes % kGranularity != 0) return kErrorInvalidValue;
    if (bytes > kMemoryBytes) return kErrorOutOfMemory;
    const int fd = memfd_create("fake-gpu", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0) return kErrorOutOfMemory;
    return Add(fd, bytes, handle);
  }
  static CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    State& state = Shared();
    const std::lock_guard lock(state.mutex);
    const auto found = state.allocations.find(handle);
    if (found == state.allocations.end()) return kErrorInvalidValue;
    close(found->second.fd);
    state.allocations.erase(found);
    return kSuccess;
  }
  static CUresult cuMemAddressReserve(CUdeviceptr* address, size_t bytes, size_t, CUdeviceptr,
                                      unsigned long long) {
    void* area = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *address = reinterpret_cast<CUdeviceptr>(area);
    return area == MAP_FAILED ? kErrorOutOfMemory : kSuccess;
  }
  static CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
    return munmap(reinterpret_cast<void*>(address), bytes) == 0 ? kSuccess : kErrorInvalidValue;
  }
  static CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t, CUmemGenericAllocationHandle handle,
                           unsigned long long) {
    const Allocation allocation = Find(handle);
    if (allocation.fd < 0 || lseek(allocation.fd, 0, SEEK_END) != static_cast<off_t>(bytes))
      return kErrorInvalidValue;
    void* mapped =
        mmap(reinterpret_cast<void*>(address), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, allocation.fd, 0);
    return mapped == MAP_FAILED ? kErrorInvalidValue : kSuccess;
  }
  static CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
    void* area = mmap(reinterpret_cast<void*>(address), bytes, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return area == MAP_FAILED ? kErrorInvalidValue : kSuccess;
  }
  static CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc* access, size_t) {
    const int protection = access->flags == kMemAccessRead ? PROT_READ : PROT_READ | PROT_WRITE;
    return mprotect(reinterpret_cast<void*>(address), bytes, protection) == 0 ? kSuccess : kErrorInvalidValue;
  }
  static CUresult cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp*,
                                                CUmemAllocationGranularity_flags) {
    return *bytes = kGranularity, kSuccess;
  }
  static CUresult cuMemExportToShareableHandle(void* out, CUmemGenericAllocationHandle handle,
                                               CUmemAllocationHandleType, unsigned long long) {
    const int fd = dup(Find(handle).fd);
    *static_cast<int*>(out) = fd;
    return fd < 0 ? kErrorInvalidValue : kSuccess;
  }
  static CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* handle, void* fd,
                                                 CUmemAllocationHandleType) {
    const int own = dup(static_cast<int>(reinterpret_cast<uintptr_t>(fd)));
    return own < 0 ? kErrorInvalidValue : Add(own, 0, handle);
  }
  static CUresult cuModuleLoadData(CUmodule* module, const void*) {
    return *module = Some<CUmodule>(), kSuccess;
  }
  static CUresult cuModuleUnload(CUmodule) { return kSuccess; }
  static CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
    for (Kernel& kernel : Kernels) {
      if (strcmp(name, kernel.name) != 0) continue;
      *function = reinterpret_cast<CUfunction>(&kernel);
      return kSuccess;
    }
    return kErrorInvalidValue;
  }
  static CUresult cuLaunchKernel(CUfunction function, unsigned blocks, unsigned, unsigned, unsigned threads,
                                 unsigned, unsigned, unsigned, CUstream, void** parameters, void**) {
    if (threads != kThreadsOfBlock) return kErrorInvalidValue;
    const auto* kernel = reinterpret_cast<const Kernel*>(function);
    if (Fails(kernel->name)) return kErrorInvalidValue;
    kernel->run(blocks, parameters);
    return kSuccess;
  }
};

// The one that KVT_FAKE_CUDA_FAILS names, told by its place in the list.
template <int place, typename Function>
struct Guarded;

template <int place, typename... Parameters>
struct Guarded<place, CUresult (*)(Parameters...)> {
  static inline const char* name = nullptr;
  static inline CUresult (*body)(Parameters...) = nullptr;
  static CUresult Call(Parameters... parameters) {
    if (Fails(name)) return kErrorInvalidValue;
    return body(parameters...);
  }
};

}  // namespace
}  // namespace kvt::cuda

extern "C" __attribute__((visibility("default"))) int cuGetProcAddress_v2(const char* symbol, void** function,
                                                                          int, uint64_t, int*) {
  using namespace kvt::cuda;
#define KVT_FAKE(function_name, version, parameters)                    \
  if (strcmp(symbol, #function_name) == 0) {                            \
    using Guard = Guarded<__COUNTER__, decltype(&Fake::function_name)>; \
    Guard::name = #function_name;                                       \
    Guard::body = &Fake::function_name;                                 \
    *function = reinterpret_cast<void*>(&Guard::Call);                  \
    return kSuccess;                                                    \
  }
  KVT_CUDA_FUNCTIONS(KVT_FAKE)
#undef KVT_FAKE
  return 500;  // CUDA_ERROR_NOT_FOUND
}
