#include "cuda/device.h"

#include <cstring>

namespace kvt::cuda {

Result<DeviceFacts> FactsOf(const Driver& cuda, int index) {
  if (index < 0 || index >= cuda.devices()) {
    return Error{ErrorCode::kCudaUnusable, "there is no cuda:" + std::to_string(index) +
                                               ": this process sees " + std::to_string(cuda.devices()) +
                                               " GPUs (CUDA_VISIBLE_DEVICES)"};
  }
  DeviceFacts facts;
  facts.index = index;
  CUdevice device = 0;
  char name[256] = "";
  char bus[32] = "";
  CUuuid uuid{};
  size_t bytes = 0;
  int virtual_memory = 0;
  int posix_handles = 0;
  const auto attribute = [&](CUdevice_attribute which, int* value) {
    return cuda->cuDeviceGetAttribute(value, which, device);
  };
  const char* call = "cuDeviceGet";
  CUresult result = cuda->cuDeviceGet(&device, index);
  const auto next = [&](const char* name_of_call, auto body) {
    if (result != kSuccess) return;
    call = name_of_call;
    result = body();
  };
  next("cuDeviceGetName", [&] { return cuda->cuDeviceGetName(name, sizeof name, device); });
  next("cuDeviceGetUuid", [&] { return cuda->cuDeviceGetUuid(&uuid, device); });
  next("cuDeviceGetPCIBusId", [&] { return cuda->cuDeviceGetPCIBusId(bus, sizeof bus, device); });
  next("cuDeviceTotalMem", [&] { return cuda->cuDeviceTotalMem(&bytes, device); });
  next("cuDeviceGetAttribute", [&] { return attribute(kComputeCapabilityMajor, &facts.major); });
  next("cuDeviceGetAttribute", [&] { return attribute(kComputeCapabilityMinor, &facts.minor); });
  next("cuDeviceGetAttribute", [&] { return attribute(kMultiprocessorCount, &facts.multiprocessors); });
  next("cuDeviceGetAttribute", [&] { return attribute(kVirtualMemorySupported, &virtual_memory); });
  next("cuDeviceGetAttribute", [&] { return attribute(kPosixHandlesSupported, &posix_handles); });
  if (result != kSuccess) return cuda.Failed(std::string(call) + " of cuda:" + std::to_string(index), result);
  facts.name = name;
  facts.bus = bus;
  facts.memory_bytes = bytes;
  facts.exportable = virtual_memory != 0 && posix_handles != 0;
  memcpy(facts.uuid.data(), uuid.bytes, facts.uuid.size());
  return facts;
}

std::string UuidText(const DeviceUuid& uuid) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string text = "GPU-";
  for (size_t index = 0; index < uuid.size(); ++index) {
    if (index == 4 || index == 6 || index == 8 || index == 10) text += '-';
    text += kDigits[uuid[index] >> 4];
    text += kDigits[uuid[index] & 15];
  }
  return text;
}

Result<std::shared_ptr<const Context>> Context::Open(int index) {
  auto loaded = Driver::OfProcess();
  if (!loaded.ok()) return loaded.error();
  const Driver& cuda = *loaded.value();
  auto facts = FactsOf(cuda, index);
  if (!facts.ok()) return facts.error();
  std::shared_ptr<Context> context(new Context(&cuda, std::move(facts.value())));
  CUresult result = cuda->cuDeviceGet(&context->device_, index);
  if (result != kSuccess) return cuda.Failed("cuDeviceGet", result);
  result = cuda->cuDevicePrimaryCtxRetain(&context->context_, context->device_);
  if (result != kSuccess) {
    return cuda.Failed("cuDevicePrimaryCtxRetain of cuda:" + std::to_string(index), result);
  }
  return std::shared_ptr<const Context>(std::move(context));
}

Context::~Context() {
  if (context_ != nullptr) cuda()->cuDevicePrimaryCtxRelease(device_);
}

Result<std::unique_ptr<Stream>> Stream::Create(std::shared_ptr<const Context> context) {
  const Driver& cuda = context->cuda();
  std::unique_ptr<Stream> stream(new Stream(std::move(context)));
  CUresult result = stream->context_->MakeCurrent();
  if (result != kSuccess) return cuda.Failed("cuCtxSetCurrent", result);
  int least = 0;
  int greatest = 0;
  result = cuda->cuCtxGetStreamPriorityRange(&least, &greatest);
  if (result != kSuccess) return cuda.Failed("cuCtxGetStreamPriorityRange", result);
  result = cuda->cuStreamCreateWithPriority(&stream->stream_, kStreamNonBlocking, greatest);
  if (result != kSuccess) return cuda.Failed("cuStreamCreateWithPriority", result);
  return stream;
}

Stream::~Stream() {
  if (stream_ == nullptr) return;
  context_->MakeCurrent();
  context_->cuda()->cuStreamDestroy(stream_);
}

Result<std::unique_ptr<PinnedBuffer>> PinnedBuffer::Create(std::shared_ptr<const Context> context,
                                                           size_t bytes) {
  const Driver& cuda = context->cuda();
  std::unique_ptr<PinnedBuffer> buffer(new PinnedBuffer(std::move(context), bytes));
  CUresult result = buffer->context_->MakeCurrent();
  if (result != kSuccess) return cuda.Failed("cuCtxSetCurrent", result);
  void* data = nullptr;
  result = cuda->cuMemHostAlloc(&data, bytes, kHostAllocPortable | kHostAllocDeviceMap);
  if (result != kSuccess) return cuda.Failed("cuMemHostAlloc of " + std::to_string(bytes) + " bytes", result);
  buffer->data_ = static_cast<std::byte*>(data);
  result = cuda->cuMemHostGetDevicePointer(&buffer->address_, data, 0);
  if (result != kSuccess) return cuda.Failed("cuMemHostGetDevicePointer", result);
  return buffer;
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ == nullptr) return;
  context_->MakeCurrent();
  context_->cuda()->cuMemFreeHost(data_);
}

}  // namespace kvt::cuda
