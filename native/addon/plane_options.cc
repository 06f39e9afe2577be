#include "addon/plane_options.h"

#include <fcntl.h>

#include <limits>

namespace kvt {
namespace {

constexpr uint64_t kUint32Max = std::numeric_limits<uint32_t>::max();
// User addresses end at 2^47; a larger pool could not be mapped.
constexpr double kPoolBytesMax = 140'737'488'355'328.0;

Geometry ReadLayout(Arguments* arguments, const Napi::Object& layout) {
  Geometry geometry;
  const auto field = [&](const char* name, uint64_t least = 1) {
    return static_cast<uint32_t>(
        arguments->Integer(layout.Get(name), std::string("options.layout.") + name, least, kUint32Max));
  };
  geometry.layers = field("layers");
  geometry.planes = field("planes");
  geometry.heads = field("heads");
  geometry.tokens_per_block = field("tokensPerBlock");
  geometry.head_bytes = field("headBytes");
  if (layout.Has("firstLayer")) geometry.first_layer = field("firstLayer", 0);
  if (layout.Has("firstHead")) geometry.first_head = field("firstHead", 0);
  return geometry;
}

uint64_t ReadEpoch(Arguments* arguments, const Napi::Value& value) {
  const std::string text = arguments->Text(value, "options.epoch");
  uint64_t epoch = 0;
  bool hex = text.size() == 16;
  for (const char letter : text) {
    const bool digit = letter >= '0' && letter <= '9';
    hex = hex && (digit || (letter >= 'a' && letter <= 'f'));
    epoch = epoch << 4 | static_cast<uint64_t>(digit ? letter - '0' : letter - 'a' + 10);
  }
  if (!hex) arguments->Fail("options.epoch", "must be 16 hex digits in lower case");
  return epoch;
}

DataPlane::Adoption ReadAdoption(Arguments* arguments, const Napi::Object& adopt, double pool_bytes) {
  DataPlane::Adoption adoption;
  if (adopt.Has("address")) {
    arguments->Fail("options.adopt.address",
                    "is a plain pointer, which no other process can map; allocate the pool in a memfd "
                    "(memfd_create with MFD_ALLOW_SEALING) and give { fd, offset, bytes }");
    return adoption;
  }
  const auto fd = arguments->Integer(adopt.Get("fd"), "options.adopt.fd", 0, 1 << 30);
  adoption.offset = arguments->Integer(adopt.Get("offset"), "options.adopt.offset", 0, uint64_t{1} << 47);
  adoption.bytes = arguments->Integer(adopt.Get("bytes"), "options.adopt.bytes", 1, uint64_t{1} << 47);
  if (adoption.offset % 4096 != 0) {
    arguments->Fail("options.adopt.offset", "must be a multiple of 4096, the page size");
  }
  if (static_cast<double>(adoption.bytes) < pool_bytes) {
    arguments->Fail("options.adopt.bytes", "must hold all blocks: " + std::to_string(pool_bytes) + " bytes");
  }
  if (!arguments->ok()) return adoption;
  // Ours from here on, so that the caller may close its own at once.
  adoption.fd = FileDescriptor(fcntl(static_cast<int>(fd), F_DUPFD_CLOEXEC, 0));
  if (!adoption.fd.ok()) arguments->Fail("options.adopt.fd", "is not an open file descriptor");
  return adoption;
}

}  // namespace

DataPlane::Options ReadPlaneOptions(Arguments* arguments, const Napi::Value& value) {
  const Napi::Object object = arguments->Object(value, "options");
  DataPlane::Options options;
  options.geometry = ReadLayout(arguments, arguments->Object(object.Get("layout"), "options.layout"));
  options.blocks =
      static_cast<uint32_t>(arguments->Integer(object.Get("blocks"), "options.blocks", 1, kUint32Max));
  options.epoch = ReadEpoch(arguments, object.Get("epoch"));
  const Geometry& geometry = options.geometry;
  const double pool_bytes = 1.0 * geometry.layers * geometry.planes * geometry.heads *
                            geometry.tokens_per_block * geometry.head_bytes * options.blocks;
  if (pool_bytes > kPoolBytesMax)
    arguments->Fail("options.blocks", "times the block size is over 2^47 bytes");
  const Napi::Value directory = object.Get("socketDir");
  if (!directory.IsUndefined()) {
    options.socket_directory = arguments->Text(directory, "options.socketDir");
    if (options.socket_directory.empty() || options.socket_directory[0] != '/') {
      arguments->Fail("options.socketDir", "must be an absolute path");
    }
  }
  const Napi::Value adopt = object.Get("adopt");
  if (!adopt.IsUndefined() && arguments->ok()) {
    const auto needed = static_cast<double>(geometry.BlockBytes()) * options.blocks;
    options.adopt = ReadAdoption(arguments, arguments->Object(adopt, "options.adopt"), needed);
  }
  return options;
}

}  // namespace kvt
