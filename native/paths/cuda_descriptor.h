#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cuda/device_pool.h"
#include "memory/pool_descriptor.h"

namespace kvt {

// What a peer needs to map a pool on a GPU of this host. The memory itself comes through the fd exchange.
struct CudaDescriptor {
  PoolDescriptor pool;
  cuda::DeviceUuid device{};
  uint64_t mapped_bytes = 0;  // of the allocation that holds the pool
};

// Nothing when it would be longer than a descriptor may be.
std::optional<std::vector<uint8_t>> EncodeCudaDescriptor(const CudaDescriptor& descriptor);
// Nothing when the bytes are not a whole, plausible descriptor.
std::optional<CudaDescriptor> DecodeCudaDescriptor(std::span<const uint8_t> bytes);

// The pools on GPUs of this process, by the nonce of their descriptor: what this process has mapped already
// is read where it lies. Any thread.
void AnnouncePool(const Nonce& nonce, const std::shared_ptr<cuda::DevicePool>& pool);
void WithdrawPool(const Nonce& nonce);
std::shared_ptr<cuda::DevicePool> FindPool(const Nonce& nonce);

}  // namespace kvt
