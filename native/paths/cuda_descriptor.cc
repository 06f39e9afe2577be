#include "paths/cuda_descriptor.h"

#include <map>
#include <mutex>

#include "memory/byte_stream.h"

namespace kvt {
namespace {

constexpr uint32_t kMagic = 0x3143564b;  // "KVC1", little-endian

struct Announced {
  std::mutex mutex;
  std::map<Nonce, std::weak_ptr<cuda::DevicePool>> pools;
};

Announced& OfProcess() {
  static Announced& announced = *new Announced();
  return announced;
}

}  // namespace

std::optional<std::vector<uint8_t>> EncodeCudaDescriptor(const CudaDescriptor& descriptor) {
  const auto pool = EncodeDescriptor(descriptor.pool);
  if (!pool) return std::nullopt;
  ByteWriter out;
  out.Number(kMagic);
  out.Blob(*pool);
  out.Raw(descriptor.device);
  out.Number(descriptor.mapped_bytes);
  if (out.bytes.size() > kDescriptorBytesMax) return std::nullopt;
  return std::move(out.bytes);
}

std::optional<CudaDescriptor> DecodeCudaDescriptor(std::span<const uint8_t> bytes) {
  if (bytes.size() > kDescriptorBytesMax) return std::nullopt;
  ByteReader in(bytes);
  if (in.Number<uint32_t>() != kMagic) return std::nullopt;
  const auto pool = DecodeDescriptor(in.Blob());
  CudaDescriptor descriptor;
  descriptor.device = in.Raw<16>();
  descriptor.mapped_bytes = in.Number<uint64_t>();
  if (!in.Finished() || !pool || pool->regions.size() != 1 || pool->regions[0].offset != 0 ||
      descriptor.mapped_bytes < pool->bytes)
    return std::nullopt;
  descriptor.pool = *pool;
  return descriptor;
}

void AnnouncePool(const Nonce& nonce, const std::shared_ptr<cuda::DevicePool>& pool) {
  Announced& announced = OfProcess();
  const std::lock_guard lock(announced.mutex);
  announced.pools[nonce] = pool;
}

void WithdrawPool(const Nonce& nonce) {
  Announced& announced = OfProcess();
  const std::lock_guard lock(announced.mutex);
  announced.pools.erase(nonce);
}

std::shared_ptr<cuda::DevicePool> FindPool(const Nonce& nonce) {
  Announced& announced = OfProcess();
  const std::lock_guard lock(announced.mutex);
  const auto found = announced.pools.find(nonce);
  return found == announced.pools.end() ? nullptr : found->second.lock();
}

}  // namespace kvt
