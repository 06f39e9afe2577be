#include <dlfcn.h>

#include <cstdlib>
#include <type_traits>

#include "check.h"
#include "cuda/driver.h"
#include "cuda/images.h"
#include "cuda/probe.h"

// CUDA's own declarations, where its toolkit is installed; in other words than ours.
#if __has_include(<cudaTypedefs.h>)
#include <cuda.h>
#include <cudaTypedefs.h>
#define KVT_HAS_CUDA_HEADERS 1
#endif

namespace {

using kvt::ErrorCode;
using kvt::cuda::Driver;

}  // namespace

#ifdef KVT_HAS_CUDA_HEADERS
// Our list, read with CUDA's types in the place of ours: each row must be the very prototype of that version.
#define KVT_SAME(name, version, parameters)                                             \
  static_assert(std::is_same_v<CUresult(CUDAAPI*) parameters, PFN_##name##_v##version>, \
                #name " is not what CUDA " #version " declares");
KVT_CUDA_FUNCTIONS(KVT_SAME)
#undef KVT_SAME

namespace mine = kvt::cuda;
#define KVT_SAME_LAYOUT(type, field)                    \
  static_assert(sizeof(mine::type) == sizeof(::type) && \
                offsetof(mine::type, field) == offsetof(::type, field))
KVT_SAME_LAYOUT(CUuuid, bytes);
KVT_SAME_LAYOUT(CUmemLocation, id);
KVT_SAME_LAYOUT(CUmemAllocationProp, requestedHandleTypes);
KVT_SAME_LAYOUT(CUmemAllocationProp, location);
KVT_SAME_LAYOUT(CUmemAllocationProp, allocFlags);
KVT_SAME_LAYOUT(CUmemAccessDesc, flags);
static_assert(sizeof(mine::CUdeviceptr) == sizeof(::CUdeviceptr));
static_assert(sizeof(mine::CUmemGenericAllocationHandle) == sizeof(::CUmemGenericAllocationHandle));
static_assert(mine::kSuccess == CUDA_SUCCESS);
static_assert(mine::kMultiprocessorCount == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
static_assert(mine::kComputeCapabilityMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(mine::kComputeCapabilityMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(mine::kVirtualMemorySupported == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
static_assert(mine::kPosixHandlesSupported ==
              CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
static_assert(mine::kStreamNonBlocking == CU_STREAM_NON_BLOCKING);
static_assert(mine::kEventBlockingSync == CU_EVENT_BLOCKING_SYNC);
static_assert(mine::kHostAllocPortable == CU_MEMHOSTALLOC_PORTABLE);
static_assert(mine::kHostAllocDeviceMap == CU_MEMHOSTALLOC_DEVICEMAP);
static_assert(mine::kMemAllocationPinned == CU_MEM_ALLOCATION_TYPE_PINNED);
static_assert(mine::kMemLocationDevice == CU_MEM_LOCATION_TYPE_DEVICE);
static_assert(mine::kMemAccessRead == CU_MEM_ACCESS_FLAGS_PROT_READ);
static_assert(mine::kMemAccessReadWrite == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
static_assert(mine::kHandlePosixFd == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
static_assert(mine::kGranularityMinimum == CU_MEM_ALLOC_GRANULARITY_MINIMUM);
#endif

TEST("our prototypes and constants are those of cuda.h") {
#ifndef KVT_HAS_CUDA_HEADERS
  SKIP("cudaTypedefs.h was not found when this was built: CUDA's toolkit is not installed");
#endif
}

TEST("a host without a driver, and one with a driver that is too old, are told so in one sentence") {
  auto none = Driver::Load("libcuda-of-nobody.so.1");
  CHECK(!none.ok());
  CHECK(none.error().code == ErrorCode::kCudaUnusable);
  CHECK(none.error().why.find("there is no CUDA driver: libcuda-of-nobody.so.1") == 0);
  auto old = Driver::Load("libm.so.6");
  CHECK(!old.ok());
  CHECK(old.error().why.find("older than 525") != std::string::npos);
}

TEST(
    "a driver has every function of the list; what fails is told with CUDA's name, its number and the call") {
  unsetenv("KVT_FAKE_CUDA_FAILS");
  auto loaded = Driver::Load(KVT_CUDA_FAKE);
  CHECK(loaded.ok());
  const Driver& cuda = *loaded.value();
  CHECK(kvt::cuda::MissingFunctions(*cuda.operator->()).empty());
  CHECK_EQ(cuda.version(), 12000);
  CHECK_EQ(cuda.Failed("cuMemCreate of 64 bytes on cuda:0", 2).why,
           "cuMemCreate of 64 bytes on cuda:0: CUDA_ERROR_OF_THE_FAKE (2), as it was told");
  setenv("KVT_FAKE_CUDA_FAILS", "cuInit", 1);
  auto broken = Driver::Load(KVT_CUDA_FAKE);
  unsetenv("KVT_FAKE_CUDA_FAILS");
  CHECK(!broken.ok());
  CHECK_EQ(broken.error().why, "cuInit: CUDA_ERROR_OF_THE_FAKE (1), as it was told");
}

TEST("machine code runs on GPUs of its generation from its revision on, and PTX on the others") {
  const auto best = [](int major, int minor) {
    for (const kvt::cuda::Image& image : kvt::cuda::AllImages()) {
      if (RunsOn(image, major, minor)) return image.name;
    }
    return std::string();
  };
  CHECK_EQ(best(9, 0), "cubin sm_90");
  CHECK_EQ(best(8, 0), "cubin sm_80");
  CHECK_EQ(best(8, 7), "cubin sm_86");
  CHECK_EQ(best(8, 9), "cubin sm_89");
  CHECK_EQ(best(10, 3), "cubin sm_100");
  CHECK_EQ(best(12, 1), "cubin sm_120");
  CHECK_EQ(best(7, 5), "PTX");
  CHECK_EQ(best(11, 0), "PTX");
  const auto& first = kvt::cuda::AllImages().front();
  const auto& last = kvt::cuda::AllImages().back();
  for (const void* cubin : {first.gather, first.digest}) {
    CHECK_EQ(std::string(static_cast<const char*>(cubin), 1, 3), "ELF");
  }
  const auto holds = [](const void* ptx, const char* text) {
    return std::string(static_cast<const char*>(ptx)).find(text) != std::string::npos;
  };
  CHECK(holds(last.gather, ".version 8.0") && holds(last.gather, "kvt_gather"));
  CHECK(holds(last.digest, ".version 8.0") && holds(last.digest, "kvt_digest_sums"));
}

TEST("what is found on this host is told without a crash, GPU or not") {
  const kvt::cuda::ProbeReport report = kvt::cuda::Probe();
  CHECK(report.library.empty() != report.why.empty());
  std::printf("  %s %s, %zu GPUs %s\n", report.library.c_str(), report.version.c_str(), report.devices.size(),
              report.why.c_str());
  for (const auto& device : report.devices) {
    std::printf("  %s %s, kernels: %s %s\n", device.facts.name.c_str(),
                kvt::cuda::UuidText(device.facts.uuid).c_str(), device.kernels.c_str(), device.why.c_str());
    CHECK(!device.kernels.empty());
  }
}

KVT_TEST_MAIN
