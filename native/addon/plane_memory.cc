#include <cstring>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/error_value.h"
#include "addon/plane_object.h"

namespace kvt {
namespace {

// Copies between a pool, wherever it lies, and bytes of JavaScript, on a thread of libuv.
class MemoryCopy final : public Napi::AsyncWorker {
 public:
  enum class Direction { kRead, kWrite };

  MemoryCopy(Napi::Env env, Direction direction, const DataPlane& plane, uint64_t offset,
             std::vector<std::byte> bytes)
      : Napi::AsyncWorker(env, "kv-transceiver memory"),
        deferred_(Napi::Promise::Deferred::New(env)),
        direction_(direction),
        host_(plane.pool()),
        gpu_(plane.gpu_pool()),
        offset_(offset),
        bytes_(std::move(bytes)) {}

  Napi::Promise Promise() const { return deferred_.Promise(); }

  void Execute() override {
    if (host_) {
      std::byte* const there = host_->data() + offset_;
      if (direction_ == Direction::kRead) {
        memcpy(bytes_.data(), there, bytes_.size());
      } else {
        memcpy(there, bytes_.data(), bytes_.size());
      }
      return;
    }
    if (direction_ == Direction::kWrite) {
      failed_ = gpu_->Write(offset_, bytes_);
      return;
    }
    const cuda::ByteRange range{offset_, bytes_.size()};
    failed_ = gpu_->Read({&range, 1},
                         [this](const std::byte* copied) { memcpy(bytes_.data(), copied, bytes_.size()); });
  }

  void OnOK() override {
    const Napi::Env env = Env();
    if (failed_) {
      deferred_.Reject(ToError(env, *failed_).Value());
      return;
    }
    if (direction_ == Direction::kWrite) {
      deferred_.Resolve(env.Undefined());
      return;
    }
    auto array = Napi::Uint8Array::New(env, bytes_.size());
    memcpy(array.Data(), bytes_.data(), bytes_.size());
    deferred_.Resolve(array);
  }

 private:
  Napi::Promise::Deferred deferred_;
  const Direction direction_;
  const std::shared_ptr<HostPool> host_;
  const std::shared_ptr<cuda::DevicePool> gpu_;
  const uint64_t offset_;
  std::vector<std::byte> bytes_;
  std::optional<Error> failed_;
};

}  // namespace

Napi::Value PlaneObject::ReadMemory(const Napi::CallbackInfo& info) {
  if (!TakesWork()) return env_.Undefined();
  Arguments arguments(env_);
  const uint64_t bytes = plane_->options().PoolBytes();
  const uint64_t offset = arguments.Integer(info[0], "offset", 0, bytes);
  const uint64_t count = arguments.Integer(info[1], "bytes", 0, bytes - offset);
  if (!arguments.ok()) return env_.Undefined();
  auto* copy =
      new MemoryCopy(env_, MemoryCopy::Direction::kRead, *plane_, offset, std::vector<std::byte>(count));
  const Napi::Promise promise = copy->Promise();
  copy->Queue();
  return promise;
}

Napi::Value PlaneObject::WriteMemory(const Napi::CallbackInfo& info) {
  if (!TakesWork()) return env_.Undefined();
  Arguments arguments(env_);
  const uint64_t bytes = plane_->options().PoolBytes();
  const uint64_t offset = arguments.Integer(info[0], "offset", 0, bytes);
  const auto source = arguments.Bytes(info[1], "bytes");
  if (source.size() > bytes - offset) arguments.Fail("bytes", "end after the pool");
  if (!arguments.ok()) return env_.Undefined();
  const auto* first = reinterpret_cast<const std::byte*>(source.data());
  auto* copy = new MemoryCopy(env_, MemoryCopy::Direction::kWrite, *plane_, offset,
                              std::vector<std::byte>(first, first + source.size()));
  const Napi::Promise promise = copy->Promise();
  copy->Queue();
  return promise;
}

}  // namespace kvt
