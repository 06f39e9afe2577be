#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <span>

#include "cuda/device.h"
#include "memory/file_descriptor.h"

namespace kvt::cuda {

// Memory of a GPU mapped into this process: our own, or a peer's that came as a file descriptor. Once mapped
// it lives as long as this does, whatever becomes of the process that allocated it.
class DeviceMemory {
 public:
  enum class Access { kRead, kReadWrite };

  // Rounded up to what the device maps at least; exportable.
  static Result<std::unique_ptr<DeviceMemory>> Create(std::shared_ptr<const Context> context, uint64_t bytes);
  // `bytes` as the exporter's bytes() says. `context` may be of another GPU than the exporter's. Read-only
  // where the driver can.
  static Result<std::unique_ptr<DeviceMemory>> Import(std::shared_ptr<const Context> context, int fd,
                                                      uint64_t bytes);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  CUdeviceptr address() const { return address_; }
  uint64_t bytes() const { return bytes_; }
  Access access() const { return access_; }
  Result<FileDescriptor> Export() const;
  // Lets another GPU of this process read it too.
  Result<bool> OpenTo(const Context& other) const;

 private:
  DeviceMemory(std::shared_ptr<const Context> context, uint64_t bytes)
      : context_(std::move(context)), bytes_(bytes) {}
  Result<bool> Map();

  std::shared_ptr<const Context> context_;
  uint64_t bytes_;
  Access access_ = Access::kReadWrite;
  CUmemGenericAllocationHandle handle_ = 0;
  CUdeviceptr address_ = 0;
  bool mapped_ = false;
};

struct ByteRange {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// A pool of blocks in the memory of one GPU, for peers to map.
class DevicePool {
 public:
  static Result<std::shared_ptr<DevicePool>> Create(int device, uint64_t bytes);

  const std::shared_ptr<const Context>& context() const { return context_; }
  const DeviceMemory& memory() const { return *memory_; }
  CUdeviceptr address() const { return memory_->address(); }
  uint64_t bytes() const { return bytes_; }
  int fd() const { return fd_.get(); }

  // Both copy through a pinned buffer and wait for it: for tests, digests and engines without CUDA, on
  // threads that may block. One at a time. What `take` gets is valid until it returns: the ranges, one after
  // another.
  template <typename Take>
  std::optional<Error> Read(std::span<const ByteRange> ranges, const Take& take) const {
    const std::lock_guard lock(window_mutex_);
    if (auto failed = FillWindow(ranges)) return failed;
    take(static_cast<const std::byte*>(window_->data()));
    return std::nullopt;
  }
  std::optional<Error> Write(uint64_t offset, std::span<const std::byte> bytes) const;

 private:
  DevicePool(std::shared_ptr<const Context> context, uint64_t bytes)
      : context_(std::move(context)), bytes_(bytes) {}
  std::optional<Error> FillWindow(std::span<const ByteRange> ranges) const;
  std::optional<Error> WidenWindow(uint64_t bytes) const;
  std::optional<Error> Finish(CUresult result, const char* call) const;

  std::shared_ptr<const Context> context_;
  uint64_t bytes_;
  std::unique_ptr<DeviceMemory> memory_;
  FileDescriptor fd_;
  mutable std::mutex window_mutex_;
  mutable std::unique_ptr<Stream> stream_;
  mutable std::unique_ptr<PinnedBuffer> window_;
};

}  // namespace kvt::cuda
