#include "memory/pool_descriptor.h"

#include <algorithm>
#include <cstring>
#include <fstream>

namespace kvt {
namespace {

constexpr uint32_t kMagic = 0x3244564b;  // "KVD2", little-endian

class Writer {
 public:
  template <typename T>
  void Number(T value) {
    for (size_t byte = 0; byte < sizeof(T); ++byte) {
      bytes.push_back(static_cast<uint8_t>(uint64_t{value} >> (8 * byte)));
    }
  }
  template <size_t N>
  void Raw(const std::array<uint8_t, N>& value) {
    bytes.insert(bytes.end(), value.begin(), value.end());
  }
  void Text(const std::string& text) {
    Number(static_cast<uint16_t>(text.size()));
    bytes.insert(bytes.end(), text.begin(), text.end());
  }
  std::vector<uint8_t> bytes;
};

class Reader {
 public:
  explicit Reader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  template <typename T>
  T Number() {
    if (!Take(sizeof(T))) return 0;
    uint64_t value = 0;
    for (size_t byte = 0; byte < sizeof(T); ++byte) value |= uint64_t{bytes_[at_ + byte]} << (8 * byte);
    at_ += sizeof(T);
    return static_cast<T>(value);
  }
  template <size_t N>
  std::array<uint8_t, N> Raw() {
    std::array<uint8_t, N> value{};
    if (!Take(N)) return value;
    std::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(at_), N, value.begin());
    at_ += N;
    return value;
  }
  std::string Text() {
    const size_t size = Number<uint16_t>();
    if (!Take(size)) return "";
    std::string text(reinterpret_cast<const char*>(bytes_.data()) + at_, size);
    at_ += size;
    return text;
  }
  bool Finished() const { return whole_ && at_ == bytes_.size(); }

 private:
  bool Take(size_t size) {
    if (size > bytes_.size() - at_) whole_ = false;
    return whole_;
  }

  std::span<const uint8_t> bytes_;
  size_t at_ = 0;
  bool whole_ = true;
};

bool Plausible(const PoolDescriptor& descriptor) {
  const Geometry& geometry = descriptor.geometry;
  const uint32_t parts[] = {geometry.layers,           geometry.planes,     geometry.heads,
                            geometry.tokens_per_block, geometry.head_bytes, descriptor.blocks};
  // Bounded so that no product of them overflows: a pool is less than 2^47 bytes, the user address space.
  double bytes = 1;
  for (const uint32_t part : parts) {
    if (part == 0) return false;
    bytes *= part;
  }
  if (bytes > 1.4e14 || descriptor.offset > (uint64_t{1} << 47)) return false;
  return descriptor.socket.find('/') == std::string::npos &&
         descriptor.socket.find('\0') == std::string::npos &&
         descriptor.directory.find('\0') == std::string::npos;
}

}  // namespace

std::optional<std::vector<uint8_t>> EncodeDescriptor(const PoolDescriptor& descriptor) {
  Writer out;
  out.Number(kMagic);
  out.Raw(descriptor.boot_id);
  out.Raw(descriptor.nonce);
  out.Number(descriptor.epoch);
  out.Number(descriptor.geometry.layers);
  out.Number(descriptor.geometry.planes);
  out.Number(descriptor.geometry.heads);
  out.Number(descriptor.geometry.tokens_per_block);
  out.Number(descriptor.geometry.head_bytes);
  out.Number(descriptor.geometry.first_layer);
  out.Number(descriptor.geometry.first_head);
  out.Number(descriptor.blocks);
  out.Number(descriptor.offset);
  out.Text(descriptor.directory);
  out.Text(descriptor.socket);
  if (out.bytes.size() > kDescriptorBytesMax) return std::nullopt;
  return std::move(out.bytes);
}

std::optional<PoolDescriptor> DecodeDescriptor(std::span<const uint8_t> bytes) {
  if (bytes.size() > kDescriptorBytesMax) return std::nullopt;
  Reader in(bytes);
  if (in.Number<uint32_t>() != kMagic) return std::nullopt;
  PoolDescriptor descriptor;
  descriptor.boot_id = in.Raw<16>();
  descriptor.nonce = in.Raw<16>();
  descriptor.epoch = in.Number<uint64_t>();
  descriptor.geometry.layers = in.Number<uint32_t>();
  descriptor.geometry.planes = in.Number<uint32_t>();
  descriptor.geometry.heads = in.Number<uint32_t>();
  descriptor.geometry.tokens_per_block = in.Number<uint32_t>();
  descriptor.geometry.head_bytes = in.Number<uint32_t>();
  descriptor.geometry.first_layer = in.Number<uint32_t>();
  descriptor.geometry.first_head = in.Number<uint32_t>();
  descriptor.blocks = in.Number<uint32_t>();
  descriptor.offset = in.Number<uint64_t>();
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
