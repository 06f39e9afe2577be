#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "layout/geometry.h"
#include "memory/byte_stream.h"
#include "memory/host_pool.h"

namespace kvt {

using Nonce = std::array<uint8_t, 16>;
using BootId = std::array<uint8_t, 16>;  // all zero: not known

// What a peer needs to reach a pool. Secret: whoever has it and our uid can read the whole pool (invariant
// I7).
struct PoolDescriptor {
  BootId boot_id{};
  Nonce nonce{};
  uint64_t epoch = 0;
  Geometry geometry;
  uint32_t blocks = 0;
  std::vector<PoolRegion> regions;  // of the files that the exchange hands over
  uint64_t bytes = 0;               // of all regions
  std::string directory;            // empty: no fd exchange
  std::string
      socket;  // file name in it; a peer looks in its own directory first (containers mount it elsewhere)
};

// What the length of a blob can say (PathSet): 2,900 layers at places that follow no rule.
constexpr size_t kDescriptorBytesMax = 65'535;

// Nothing when it would be longer than kDescriptorBytesMax.
std::optional<std::vector<uint8_t>> EncodeDescriptor(const PoolDescriptor& descriptor);
// Nothing when the bytes are not a whole, plausible descriptor.
std::optional<PoolDescriptor> DecodeDescriptor(std::span<const uint8_t> bytes);

void WriteGeometry(const Geometry& geometry, ByteWriter* out);
// Takes what it finds; whether it makes sense is judged afterwards (Geometry::OutOfBounds).
Geometry ReadGeometry(ByteReader* in);

// Files that the regions are in.
size_t FilesOf(const std::vector<PoolRegion>& regions);

BootId ReadBootId();

}  // namespace kvt
