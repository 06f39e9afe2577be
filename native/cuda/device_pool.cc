#include "cuda/device_pool.h"

#include <algorithm>
#include <cstring>

namespace kvt::cuda {
namespace {

constexpr uint64_t kWindowBytesMin = uint64_t{4} << 20;

CUmemAllocationProp PropertiesOn(const Context& context) {
  CUmemAllocationProp properties{};
  properties.type = kMemAllocationPinned;
  properties.requestedHandleTypes = kHandlePosixFd;
  properties.location = {kMemLocationDevice, context.device()};
  return properties;
}

std::string On(const Context& context, uint64_t bytes) {
  return std::to_string(bytes) + " bytes on cuda:" + std::to_string(context.facts().index);
}

}  // namespace

Result<std::unique_ptr<DeviceMemory>> DeviceMemory::Create(std::shared_ptr<const Context> context,
                                                           uint64_t bytes) {
  const Driver& cuda = context->cuda();
  if (!context->facts().exportable) {
    return Error{ErrorCode::kCudaUnusable, context->facts().name + " can't share memory as file descriptors"};
  }
  CUresult result = context->MakeCurrent();
  if (result != kSuccess) return cuda.Failed("cuCtxSetCurrent", result);
  const CUmemAllocationProp properties = PropertiesOn(*context);
  size_t granularity = 0;
  result = cuda->cuMemGetAllocationGranularity(&granularity, &properties, kGranularityMinimum);
  if (result != kSuccess) return cuda.Failed("cuMemGetAllocationGranularity", result);
  const uint64_t rounded = (bytes + granularity - 1) / granularity * granularity;
  std::unique_ptr<DeviceMemory> memory(new DeviceMemory(std::move(context), rounded));
  result = cuda->cuMemCreate(&memory->handle_, rounded, &properties, 0);
  if (result != kSuccess) {
    memory->handle_ = 0;
    return cuda.Failed("cuMemCreate of " + On(*memory->context_, rounded), result);
  }
  auto mapped = memory->Map();
  if (!mapped.ok()) return mapped.error();
  return memory;
}

Result<std::unique_ptr<DeviceMemory>> DeviceMemory::Import(std::shared_ptr<const Context> context, int fd,
                                                           uint64_t bytes) {
  const Driver& cuda = context->cuda();
  CUresult result = context->MakeCurrent();
  if (result != kSuccess) return cuda.Failed("cuCtxSetCurrent", result);
  std::unique_ptr<DeviceMemory> memory(new DeviceMemory(std::move(context), bytes));
  memory->access_ = Access::kRead;
  // The descriptor itself stands where a pointer to it would be expected.
  result = cuda->cuMemImportFromShareableHandle(
      &memory->handle_, reinterpret_cast<void*>(static_cast<uintptr_t>(fd)), kHandlePosixFd);
  if (result != kSuccess) {
    memory->handle_ = 0;
    return cuda.Failed("cuMemImportFromShareableHandle", result);
  }
  auto mapped = memory->Map();
  if (!mapped.ok()) return mapped.error();
  return memory;
}

Result<bool> DeviceMemory::Map() {
  const Driver& cuda = context_->cuda();
  CUresult result = cuda->cuMemAddressReserve(&address_, bytes_, 0, 0, 0);
  if (result != kSuccess) {
    address_ = 0;
    return cuda.Failed("cuMemAddressReserve of " + On(*context_, bytes_), result);
  }
  result = cuda->cuMemMap(address_, bytes_, 0, handle_, 0);
  if (result != kSuccess) return cuda.Failed("cuMemMap of " + On(*context_, bytes_), result);
  mapped_ = true;
  CUmemAccessDesc access{{kMemLocationDevice, context_->device()}, kMemAccessReadWrite};
  if (access_ == Access::kRead) {
    access.flags = kMemAccessRead;
    if (cuda->cuMemSetAccess(address_, bytes_, &access, 1) == kSuccess) return true;
    // Drivers of today map a device's memory for writing or not at all; our kernels never write there.
    access.flags = kMemAccessReadWrite;
    access_ = Access::kReadWrite;
  }
  result = cuda->cuMemSetAccess(address_, bytes_, &access, 1);
  if (result != kSuccess) return cuda.Failed("cuMemSetAccess of " + On(*context_, bytes_), result);
  return true;
}

DeviceMemory::~DeviceMemory() {
  const Driver& cuda = context_->cuda();
  context_->MakeCurrent();
  if (mapped_) cuda->cuMemUnmap(address_, bytes_);
  if (address_ != 0) cuda->cuMemAddressFree(address_, bytes_);
  if (handle_ != 0) cuda->cuMemRelease(handle_);
}

Result<FileDescriptor> DeviceMemory::Export() const {
  const Driver& cuda = context_->cuda();
  int fd = -1;
  const CUresult result = cuda->cuMemExportToShareableHandle(&fd, handle_, kHandlePosixFd, 0);
  if (result != kSuccess) return cuda.Failed("cuMemExportToShareableHandle", result);
  return FileDescriptor(fd);
}

Result<bool> DeviceMemory::OpenTo(const Context& other) const {
  const Driver& cuda = context_->cuda();
  if (other.device() == context_->device()) return true;
  const CUmemAccessDesc access{{kMemLocationDevice, other.device()}, kMemAccessReadWrite};
  const CUresult result = cuda->cuMemSetAccess(address_, bytes_, &access, 1);
  if (result != kSuccess) return cuda.Failed("cuMemSetAccess of " + On(other, bytes_), result);
  return true;
}

Result<std::shared_ptr<DevicePool>> DevicePool::Create(int device, uint64_t bytes) {
  auto context = Context::Open(device);
  if (!context.ok()) return context.error();
  auto memory = DeviceMemory::Create(context.value(), bytes);
  if (!memory.ok()) return memory.error();
  auto fd = memory.value()->Export();
  if (!fd.ok()) return fd.error();
  std::shared_ptr<DevicePool> pool(new DevicePool(context.value(), bytes));
  pool->memory_ = std::move(memory.value());
  pool->fd_ = std::move(fd.value());
  auto stream = Stream::Create(context.value());
  if (!stream.ok()) return stream.error();
  pool->stream_ = std::move(stream.value());
  return pool;
}

std::optional<Error> DevicePool::WidenWindow(uint64_t bytes) const {
  if (window_ != nullptr && window_->bytes() >= bytes) return std::nullopt;
  window_.reset();
  auto wider = PinnedBuffer::Create(context_, std::max(bytes, kWindowBytesMin));
  if (!wider.ok()) return wider.error();
  window_ = std::move(wider.value());
  return std::nullopt;
}

std::optional<Error> DevicePool::Finish(CUresult result, const char* call) const {
  const Driver& cuda = context_->cuda();
  if (result != kSuccess) return cuda.Failed(call, result);
  result = cuda->cuStreamSynchronize(stream_->get());
  if (result != kSuccess) return cuda.Failed(std::string(call) + ", cuStreamSynchronize", result);
  return std::nullopt;
}

std::optional<Error> DevicePool::FillWindow(std::span<const ByteRange> ranges) const {
  const Driver& cuda = context_->cuda();
  uint64_t bytes = 0;
  for (const ByteRange& range : ranges) bytes += range.bytes;
  if (auto failed = WidenWindow(bytes)) return failed;
  CUresult result = context_->MakeCurrent();
  std::byte* to = window_->data();
  for (const ByteRange& range : ranges) {
    if (result != kSuccess) break;
    result = cuda->cuMemcpyDtoHAsync(to, address() + range.offset, range.bytes, stream_->get());
    to += range.bytes;
  }
  return Finish(result, "cuMemcpyDtoHAsync");
}

std::optional<Error> DevicePool::Write(uint64_t offset, std::span<const std::byte> bytes) const {
  const Driver& cuda = context_->cuda();
  const std::lock_guard lock(window_mutex_);
  if (auto failed = WidenWindow(bytes.size())) return failed;
  memcpy(window_->data(), bytes.data(), bytes.size());
  CUresult result = context_->MakeCurrent();
  if (result == kSuccess) {
    result = cuda->cuMemcpyHtoDAsync(address() + offset, window_->data(), bytes.size(), stream_->get());
  }
  return Finish(result, "cuMemcpyHtoDAsync");
}

}  // namespace kvt::cuda
