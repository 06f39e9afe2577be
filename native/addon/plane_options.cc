#include "addon/plane_options.h"

#include <fcntl.h>

#include <cmath>
#include <cstdlib>
#include <limits>

namespace kvt {
namespace {

constexpr uint64_t kUint32Max = std::numeric_limits<uint32_t>::max();
// User addresses end at 2^47; a larger pool could not be mapped.
constexpr double kPoolBytesMax = 140'737'488'355'328.0;

constexpr uint64_t kPageBytes = 4096;
// Offsets and strides: a pool ends below them.
constexpr uint64_t kOffsetMax = uint64_t{1} << 47;

std::vector<LayerRun> ReadLayers(Arguments* arguments, const Napi::Object& group, const std::string& name) {
  const auto numbers = arguments->Uint32s(group.Get("layers"), name + ".layers");
  const auto bases = arguments->Float64s(group.Get("bases"), name + ".bases");
  if (numbers.size() != bases.size()) arguments->Fail(name + ".bases", "must hold one offset for each layer");
  std::vector<LayerRun> runs;
  if (!arguments->ok()) return runs;
  for (size_t index = 0; index < numbers.size(); ++index) {
    if (!(bases[index] >= 0 && bases[index] <= static_cast<double>(kOffsetMax)) ||
        bases[index] != std::floor(bases[index])) {
      arguments->Fail(name + ".bases", "must hold offsets in bytes");
      return runs;
    }
    AddLayer(&runs, numbers[index], static_cast<uint64_t>(bases[index]));
  }
  return runs;
}

Geometry ReadLayout(Arguments* arguments, const Napi::Object& layout) {
  Geometry geometry;
  geometry.tokens_per_block = static_cast<uint32_t>(
      arguments->Integer(layout.Get("tokensPerBlock"), "options.layout.tokensPerBlock", 1, kUint32Max));
  geometry.block_bytes =
      arguments->Integer(layout.Get("blockBytes"), "options.layout.blockBytes", 0, kOffsetMax);
  const Napi::Value groups = layout.Get("groups");
  if (!groups.IsArray()) {
    arguments->Fail("options.layout.groups", "must be an array");
    return geometry;
  }
  const auto list = groups.As<Napi::Array>();
  for (uint32_t index = 0; index < list.Length() && arguments->ok(); ++index) {
    const std::string name = "options.layout.groups[" + std::to_string(index) + "]";
    geometry.groups.push_back(ReadGroup(arguments, arguments->Object(list.Get(index), name), name));
  }
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

DataPlane::Adoption ReadRegion(Arguments* arguments, const Napi::Object& region, const std::string& name) {
  DataPlane::Adoption adoption;
  if (region.Has("address")) {
    arguments->Fail(name + ".address",
                    "is a plain pointer, which no other process can map; allocate the pool in a memfd "
                    "(memfd_create with MFD_ALLOW_SEALING) and give { fd, offset, bytes }");
    return adoption;
  }
  const auto fd = arguments->Integer(region.Get("fd"), name + ".fd", 0, 1 << 30);
  adoption.offset = arguments->Integer(region.Get("offset"), name + ".offset", 0, uint64_t{1} << 47);
  adoption.bytes = arguments->Integer(region.Get("bytes"), name + ".bytes", 1, uint64_t{1} << 47);
  if (adoption.offset % kPageBytes != 0) {
    arguments->Fail(name + ".offset", "must be a multiple of 4096, the page size");
  }
  if (!arguments->ok()) return adoption;
  // Ours from here on, so that the caller may close its own at once.
  adoption.fd = FileDescriptor(fcntl(static_cast<int>(fd), F_DUPFD_CLOEXEC, 0));
  if (!adoption.fd.ok()) arguments->Fail(name + ".fd", "is not an open file descriptor");
  return adoption;
}

std::vector<DataPlane::Adoption> ReadAdoption(Arguments* arguments, const Napi::Value& value) {
  std::vector<DataPlane::Adoption> regions;
  const auto list = value.IsArray() ? value.As<Napi::Array>() : Napi::Array();
  const uint32_t count = list.IsEmpty() ? 0 : list.Length();
  if (count < 1 || count > kRegionsMax) {
    arguments->Fail("options.adopt", "must be an array of 1 to 1024 regions");
    return regions;
  }
  for (uint32_t at = 0; at < count && arguments->ok(); ++at) {
    const std::string name = "options.adopt[" + std::to_string(at) + "]";
    regions.push_back(ReadRegion(arguments, arguments->Object(list.Get(at), name), name));
    if (arguments->ok() && at + 1 < count && regions.back().bytes % kPageBytes != 0) {
      arguments->Fail(name + ".bytes", "must be a multiple of 4096, the page size: another region follows");
    }
  }
  return regions;
}

void CheckPlaces(Arguments* arguments, const DataPlane::Options& options) {
  const Geometry& geometry = options.geometry;
  if (options.adopt.empty()) {
    if (1.0 * static_cast<double>(geometry.block_bytes) * options.blocks > kPoolBytesMax) {
      arguments->Fail("options.blocks", "times the block size is over 2^47 bytes");
      return;
    }
    if (geometry.block_bytes == 0 || geometry.block_bytes % 64 != 0) {
      arguments->Fail("options.layout.blockBytes", "must be a multiple of 64");
      return;
    }
  }
  std::string wrong = geometry.OutOfBounds(options.blocks, options.PoolBytes());
  if (wrong.empty()) wrong = geometry.Overlap(options.blocks);
  if (!wrong.empty()) {
    arguments->Fail(options.adopt.empty() ? "options.layout" : "options.adopt",
                    "doesn't hold its blocks: " + wrong);
  }
}

StagingOptions ReadStaging(Arguments* arguments, const Napi::Object& staging) {
  StagingOptions chosen;
  chosen.slots = static_cast<uint32_t>(
      arguments->Integer(staging.Get("slots"), "options.nixl.staging.slots", 1, kStagingSlotsMax));
  chosen.tokens = arguments->Integer(staging.Get("tokens"), "options.nixl.staging.tokens", 1, kUint32Max);
  chosen.stall = FromMillis(arguments->Millis(staging.Get("stallMs"), "options.nixl.staging.stallMs"));
  return chosen;
}

// Sets the environment that NIXL and UCX read when they are loaded: here, because of all threads only this
// one may.
DataPlane::Nixl ReadNixl(Arguments* arguments, const Napi::Object& nixl) {
  DataPlane::Nixl chosen;
  chosen.library = arguments->Text(nixl.Get("library"), "options.nixl.library");
  chosen.plugin = arguments->Text(nixl.Get("plugin"), "options.nixl.plugin");
  chosen.direct = arguments->Boolean(nixl.Get("direct"), "options.nixl.direct");
  const Napi::Value staging = nixl.Get("staging");
  if (!staging.IsUndefined()) {
    chosen.staging = ReadStaging(arguments, arguments->Object(staging, "options.nixl.staging"));
  }
  if (!chosen.direct && !chosen.staging) {
    arguments->Fail("options.nixl.direct", "false leaves no way without options.nixl.staging");
  }
  const Napi::Object environment = arguments->Object(nixl.Get("environment"), "options.nixl.environment");
  if (!arguments->ok()) return chosen;
  const Napi::Array names = environment.GetPropertyNames();
  for (uint32_t at = 0; at < names.Length(); ++at) {
    const std::string name = names.Get(at).ToString().Utf8Value();
    const std::string value = arguments->Text(environment.Get(name), "options.nixl.environment." + name);
    if (arguments->ok()) setenv(name.c_str(), value.c_str(), 1);
  }
  return chosen;
}

DataPlane::Gpu ReadGpu(Arguments* arguments, const Napi::Object& gpu) {
  DataPlane::Gpu chosen;
  chosen.device = static_cast<int>(arguments->Integer(gpu.Get("device"), "options.gpu.device", 0, 1 << 16));
  chosen.multiprocessors = static_cast<unsigned>(
      arguments->Integer(gpu.Get("multiprocessors"), "options.gpu.multiprocessors", 1, 1 << 16));
  return chosen;
}

}  // namespace

Group ReadGroup(Arguments* arguments, const Napi::Object& value, const std::string& name) {
  const auto count = [&](const char* field, uint64_t least = 1) {
    return static_cast<uint32_t>(arguments->Integer(value.Get(field), name + "." + field, least, kUint32Max));
  };
  const auto stride = [&](const char* field) {
    return arguments->Integer(value.Get(field), name + "." + field, 0, kOffsetMax);
  };
  Group group;
  group.planes = count("planes");
  group.heads = count("heads");
  group.first_head = count("firstHead", 0);
  group.element_bytes = count("elementBytes");
  group.per_block = arguments->Boolean(value.Get("perBlock"), name + ".perBlock");
  group.replicated = arguments->Boolean(value.Get("replicated"), name + ".replicated");
  group.window = count("window", 0);
  group.block_stride = stride("blockStride");
  group.plane_stride = stride("planeStride");
  group.head_stride = stride("headStride");
  group.token_stride = stride("tokenStride");
  group.layers = ReadLayers(arguments, value, name);
  return group;
}

DataPlane::Options ReadPlaneOptions(Arguments* arguments, const Napi::Value& value) {
  const Napi::Object object = arguments->Object(value, "options");
  DataPlane::Options options;
  options.geometry = ReadLayout(arguments, arguments->Object(object.Get("layout"), "options.layout"));
  options.blocks =
      static_cast<uint32_t>(arguments->Integer(object.Get("blocks"), "options.blocks", 1, kUint32Max));
  options.epoch = ReadEpoch(arguments, object.Get("epoch"));
  const Napi::Value directory = object.Get("socketDir");
  if (!directory.IsUndefined()) {
    options.socket_directory = arguments->Text(directory, "options.socketDir");
    if (options.socket_directory.empty() || options.socket_directory[0] != '/') {
      arguments->Fail("options.socketDir", "must be an absolute path");
    }
  }
  const Napi::Value shared = object.Get("sharedMemory");
  if (!shared.IsUndefined()) options.shared_memory = arguments->Boolean(shared, "options.sharedMemory");
  const Napi::Value nixl = object.Get("nixl");
  if (!nixl.IsUndefined()) options.nixl = ReadNixl(arguments, arguments->Object(nixl, "options.nixl"));
  const Napi::Value gpu = object.Get("gpu");
  if (!gpu.IsUndefined()) options.gpu = ReadGpu(arguments, arguments->Object(gpu, "options.gpu"));
  if (options.gpu && (options.shared_memory || options.nixl)) {
    arguments->Fail("options.gpu",
                    "goes with neither sharedMemory nor nixl, which are for memory of the host");
  }
  if (!options.shared_memory && !options.nixl && !options.gpu) {
    arguments->Fail("options.sharedMemory", "false leaves no path without options.nixl");
  }
  const Napi::Value adopt = object.Get("adopt");
  if (!adopt.IsUndefined() && arguments->ok()) {
    if (options.gpu) {
      arguments->Fail("options.adopt", "is of memory of the host, options.gpu allocates its own");
    }
    options.adopt = ReadAdoption(arguments, adopt);
  }
  if (arguments->ok()) CheckPlaces(arguments, options);
  return options;
}

}  // namespace kvt
