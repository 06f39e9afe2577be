#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "layout/geometry.h"

namespace kvt {

// What a peer needs to read a pool through NIXL: straight, from staging slots, or both. Secret, as the first
// opens the whole pool (invariant I7).
struct NixlDescriptor {
  std::string version;  // of NIXL; empty: not known
  std::string plugin;
  std::string agent;
  Geometry geometry;
  uint32_t blocks = 0;
  uint64_t address = 0;        // of the pool, in its own process; 0: it is not readable
  uint64_t bytes = 0;          // of the pool
  uint64_t slots_address = 0;  // of the first staging slot
  uint64_t slot_bytes = 0;
  uint32_t slots = 0;  // one after another; 0: there are none
  std::vector<uint8_t> metadata;
};

constexpr size_t kNixlMetadataBytesMax = 2048;
constexpr uint32_t kStagingSlotsMax = 1024;

// With a checksum: UCX ends the process on some damaged metadata (nixl/agent.h), so what is not as a peer
// wrote it must not get there. Nothing when the metadata are larger than a descriptor may be.
std::optional<std::vector<uint8_t>> EncodeNixlDescriptor(const NixlDescriptor& descriptor);
// Nothing when the bytes are not exactly those of a plausible descriptor.
std::optional<NixlDescriptor> DecodeNixlDescriptor(std::span<const uint8_t> bytes);

// Whether agents of these versions were seen to move bytes and notifications both ways (spec nixl.md section
// 6.1): 1.4 and 1.5 with each other, 0.10 to 1.3 with each other, and any with itself.
bool NixlVersionsPair(const std::string& one, const std::string& other);

}  // namespace kvt
