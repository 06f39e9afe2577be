#include "memory/pool_descriptor.h"

#include <algorithm>
#include <fstream>

#include "memory/byte_stream.h"

namespace kvt {
namespace {

constexpr uint32_t kMagic = 0x3444564b;  // "KVD4", little-endian

bool Plausible(const PoolDescriptor& descriptor) {
  // The user address space: no sum of offsets in it overflows.
  constexpr uint64_t kBytesMax = uint64_t{1} << 47;
  if (descriptor.bytes == 0 || descriptor.bytes > kBytesMax) return false;
  uint64_t left = descriptor.bytes;
  for (const PoolRegion& region : descriptor.regions) {
    if (region.file >= kRegionsMax || region.bytes == 0 || region.bytes > left) return false;
    if (region.offset > kBytesMax) return false;
    left -= region.bytes;
  }
  if (left != 0) return false;
  if (!descriptor.geometry.OutOfBounds(descriptor.blocks, descriptor.bytes).empty()) return false;
  return descriptor.socket.find('/') == std::string::npos &&
         descriptor.socket.find('\0') == std::string::npos &&
         descriptor.directory.find('\0') == std::string::npos;
}

}  // namespace

void WriteGeometry(const Geometry& geometry, ByteWriter* out) {
  out->Number(geometry.tokens_per_block);
  out->Number(static_cast<uint8_t>(geometry.groups.size()));
  for (const Group& group : geometry.groups) {
    out->Number(group.planes);
    out->Number(group.heads);
    out->Number(group.first_head);
    out->Number(group.element_bytes);
    out->Number(static_cast<uint8_t>((group.per_block ? 1 : 0) | (group.replicated ? 2 : 0)));
    out->Number(group.window);
    out->Number(group.block_stride);
    out->Number(group.plane_stride);
    out->Number(group.head_stride);
    out->Number(group.token_stride);
    out->Number(static_cast<uint16_t>(group.layers.size()));
    for (const LayerRun& run : group.layers) {
      out->Number(static_cast<uint16_t>(run.first));
      out->Number(static_cast<uint16_t>(run.step));
      out->Number(static_cast<uint16_t>(run.count));
      out->Number(run.base);
      out->Number(run.stride);
    }
  }
}

// Takes what it finds; whether it makes sense is judged afterwards.
Geometry ReadGeometry(ByteReader* in) {
  Geometry geometry;
  geometry.tokens_per_block = in->Number<uint32_t>();
  geometry.groups.resize(std::min<size_t>(in->Number<uint8_t>(), kGroupsMax + 1));
  for (Group& group : geometry.groups) {
    group.planes = in->Number<uint32_t>();
    group.heads = in->Number<uint32_t>();
    group.first_head = in->Number<uint32_t>();
    group.element_bytes = in->Number<uint32_t>();
    const auto flags = in->Number<uint8_t>();
    group.per_block = (flags & 1) != 0;
    group.replicated = (flags & 2) != 0;
    group.window = in->Number<uint32_t>();
    group.block_stride = in->Number<uint64_t>();
    group.plane_stride = in->Number<uint64_t>();
    group.head_stride = in->Number<uint64_t>();
    group.token_stride = in->Number<uint64_t>();
    group.layers.resize(std::min<size_t>(in->Number<uint16_t>(), kLayersMax));
    for (LayerRun& run : group.layers) {
      run.first = in->Number<uint16_t>();
      run.step = in->Number<uint16_t>();
      run.count = in->Number<uint16_t>();
      run.base = in->Number<uint64_t>();
      run.stride = in->Number<uint64_t>();
    }
  }
  return geometry;
}

size_t FilesOf(const std::vector<PoolRegion>& regions) {
  size_t files = 0;
  for (const PoolRegion& region : regions) files = std::max(files, size_t{region.file} + 1);
  return files;
}

std::optional<std::vector<uint8_t>> EncodeDescriptor(const PoolDescriptor& descriptor) {
  ByteWriter out;
  out.Number(kMagic);
  out.Raw(descriptor.boot_id);
  out.Raw(descriptor.nonce);
  out.Number(descriptor.epoch);
  WriteGeometry(descriptor.geometry, &out);
  out.Number(descriptor.blocks);
  out.Number(descriptor.bytes);
  out.Number(static_cast<uint16_t>(descriptor.regions.size()));
  for (const PoolRegion& region : descriptor.regions) {
    out.Number(region.file);
    out.Number(region.offset);
    out.Number(region.bytes);
  }
  out.Text(descriptor.directory);
  out.Text(descriptor.socket);
  if (out.bytes.size() > kDescriptorBytesMax) return std::nullopt;
  return std::move(out.bytes);
}

std::optional<PoolDescriptor> DecodeDescriptor(std::span<const uint8_t> bytes) {
  if (bytes.size() > kDescriptorBytesMax) return std::nullopt;
  ByteReader in(bytes);
  if (in.Number<uint32_t>() != kMagic) return std::nullopt;
  PoolDescriptor descriptor;
  descriptor.boot_id = in.Raw<16>();
  descriptor.nonce = in.Raw<16>();
  descriptor.epoch = in.Number<uint64_t>();
  descriptor.geometry = ReadGeometry(&in);
  descriptor.blocks = in.Number<uint32_t>();
  descriptor.bytes = in.Number<uint64_t>();
  descriptor.regions.resize(std::min<size_t>(in.Number<uint16_t>(), kRegionsMax));
  for (PoolRegion& region : descriptor.regions) {
    region.file = in.Number<uint16_t>();
    region.offset = in.Number<uint64_t>();
    region.bytes = in.Number<uint64_t>();
  }
  descriptor.directory = in.Text();
  descriptor.socket = in.Text();
  if (!in.Finished() || !Plausible(descriptor)) return std::nullopt;
  return descriptor;
}

BootId ReadBootId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  BootId id{};
  size_t digit = 0;
  char letter = 0;
  while (digit < 2 * id.size() && file.get(letter)) {
    if (letter == '-') continue;
    const int value = letter >= '0' && letter <= '9'   ? letter - '0'
                      : letter >= 'a' && letter <= 'f' ? letter - 'a' + 10
                                                       : -1;
    if (value < 0) return BootId{};
    id[digit / 2] = static_cast<uint8_t>(id[digit / 2] << 4 | value);
    ++digit;
  }
  return digit == 2 * id.size() ? id : BootId{};
}

}  // namespace kvt
