#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "cuda/driver.h"

namespace kvt::cuda {

// Of a GPU or a MIG slice of one; the same in every process, whatever CUDA_VISIBLE_DEVICES says there.
using DeviceUuid = std::array<uint8_t, 16>;

struct DeviceFacts {
  int index = 0;  // as this process counts
  std::string name;
  DeviceUuid uuid{};
  std::string bus;
  int major = 0;  // compute capability
  int minor = 0;
  int multiprocessors = 0;
  uint64_t memory_bytes = 0;
  // Its memory can be handed to another process as a file descriptor.
  bool exportable = false;
};

Result<DeviceFacts> FactsOf(const Driver& cuda, int index);
// "GPU-6c2f…", as nvidia-smi writes it.
std::string UuidText(const DeviceUuid& uuid);

// The primary context of a device, which other users of CUDA in this process share, for as long as this
// lives.
class Context {
 public:
  static Result<std::shared_ptr<const Context>> Open(int index);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  const Driver& cuda() const { return *cuda_; }
  const DeviceFacts& facts() const { return facts_; }
  CUdevice device() const { return device_; }

  // Of the calling thread, which every call below needs. A thread that is not ours gets back what it had:
  // keep to threads of ours.
  CUresult MakeCurrent() const { return (*cuda_)->cuCtxSetCurrent(context_); }

 private:
  Context(const Driver* cuda, DeviceFacts facts) : cuda_(cuda), facts_(std::move(facts)) {}

  const Driver* cuda_;
  DeviceFacts facts_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
};

// A stream of our own, above the others in priority: its kernels use few multiprocessors and others wait for
// what they bring.
class Stream {
 public:
  static Result<std::unique_ptr<Stream>> Create(std::shared_ptr<const Context> context);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  CUstream get() const { return stream_; }

 private:
  explicit Stream(std::shared_ptr<const Context> context) : context_(std::move(context)) {}

  std::shared_ptr<const Context> context_;
  CUstream stream_ = nullptr;
};

// Memory of the host that GPUs read and write where it lies.
class PinnedBuffer {
 public:
  static Result<std::unique_ptr<PinnedBuffer>> Create(std::shared_ptr<const Context> context, size_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  std::byte* data() const { return data_; }
  CUdeviceptr address() const { return address_; }
  size_t bytes() const { return bytes_; }

 private:
  PinnedBuffer(std::shared_ptr<const Context> context, size_t bytes)
      : context_(std::move(context)), bytes_(bytes) {}

  std::shared_ptr<const Context> context_;
  std::byte* data_ = nullptr;
  CUdeviceptr address_ = 0;
  size_t bytes_;
};

}  // namespace kvt::cuda
