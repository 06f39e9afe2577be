#include "paths/nixl_descriptor.h"

// The third-party header brings its code along.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstdio>

#include "memory/byte_stream.h"
#include "memory/pool_descriptor.h"

namespace kvt {
namespace {

constexpr uint32_t kMagic = 0x324e564b;  // "KVN2", little-endian
constexpr uint64_t kSeed = 0x6b76742d6e69786cULL;

// 0: none known.
int VersionGroup(const std::string& version) {
  unsigned major = 0;
  unsigned minor = 0;
  if (sscanf(version.c_str(), "%u.%u.", &major, &minor) != 2) return 0;
  if (major == 0) return minor >= 10 ? 1 : 0;
  if (major > 1 || minor > 5) return 0;
  return minor <= 3 ? 1 : 2;
}

}  // namespace

std::optional<std::vector<uint8_t>> EncodeNixlDescriptor(const NixlDescriptor& descriptor) {
  if (descriptor.metadata.size() > kNixlMetadataBytesMax) return std::nullopt;
  ByteWriter out;
  out.Number(kMagic);
  out.Text(descriptor.version);
  out.Text(descriptor.plugin);
  out.Text(descriptor.agent);
  WriteGeometry(descriptor.geometry, &out);
  out.Number(descriptor.blocks);
  out.Number(descriptor.address);
  out.Number(descriptor.bytes);
  out.Number(descriptor.slots_address);
  out.Number(descriptor.slot_bytes);
  out.Number(descriptor.slots);
  out.Blob(descriptor.metadata);
  out.Number(XXH3_64bits_withSeed(out.bytes.data(), out.bytes.size(), kSeed));
  return std::move(out.bytes);
}

std::optional<NixlDescriptor> DecodeNixlDescriptor(std::span<const uint8_t> bytes) {
  constexpr size_t kSumBytes = sizeof(uint64_t);
  if (bytes.size() < kSumBytes) return std::nullopt;
  const auto body = bytes.first(bytes.size() - kSumBytes);
  ByteReader sum(bytes.last(kSumBytes));
  if (sum.Number<uint64_t>() != XXH3_64bits_withSeed(body.data(), body.size(), kSeed)) return std::nullopt;
  ByteReader in(body);
  if (in.Number<uint32_t>() != kMagic) return std::nullopt;
  NixlDescriptor descriptor;
  descriptor.version = in.Text();
  descriptor.plugin = in.Text();
  descriptor.agent = in.Text();
  descriptor.geometry = ReadGeometry(&in);
  descriptor.blocks = in.Number<uint32_t>();
  descriptor.address = in.Number<uint64_t>();
  descriptor.bytes = in.Number<uint64_t>();
  descriptor.slots_address = in.Number<uint64_t>();
  descriptor.slot_bytes = in.Number<uint64_t>();
  descriptor.slots = in.Number<uint32_t>();
  descriptor.metadata = in.Blob();
  // The user address space: no sum of offsets in it overflows.
  constexpr uint64_t kBytesMax = uint64_t{1} << 47;
  if (!in.Finished() || descriptor.bytes == 0 || descriptor.bytes > kBytesMax) return std::nullopt;
  if (descriptor.address > kBytesMax || descriptor.slots_address > kBytesMax) return std::nullopt;
  if (descriptor.slots > 0 && (descriptor.slots_address == 0 || descriptor.slot_bytes == 0))
    return std::nullopt;
  if (descriptor.slots > kStagingSlotsMax || descriptor.slot_bytes > kBytesMax / kStagingSlotsMax)
    return std::nullopt;
  if (descriptor.address == 0 && descriptor.slots == 0) return std::nullopt;
  if (!descriptor.geometry.OutOfBounds(descriptor.blocks, descriptor.bytes).empty()) return std::nullopt;
  if (descriptor.agent.empty() || descriptor.metadata.size() > kNixlMetadataBytesMax) return std::nullopt;
  return descriptor;
}

bool NixlVersionsPair(const std::string& one, const std::string& other) {
  if (one == other && !one.empty()) return true;
  const int group = VersionGroup(one);
  return group != 0 && group == VersionGroup(other);
}

}  // namespace kvt
