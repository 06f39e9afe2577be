#include "nixl/needs.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string_view>

namespace kvt::nixl {
namespace {

// Of the C library and the compiler: whatever could load us has them.
constexpr std::string_view kEverywhere[] = {"libc.",  "libm.",    "libdl.",     "libpthread.",
                                            "librt.", "ld-linux", "libstdc++.", "libgcc_s."};
constexpr size_t kNeedsMax = 64;
constexpr size_t kProvidersMax = 64;

// The part of libfabric that we read, as <rdma/fabric.h> has it since 1.0; what follows is left out.
struct FabricAttributes {
  void* fabric;
  const char* name;
  const char* provider;
};
struct EndpointAttributes {
  int32_t type;
};
struct FabricInfo {
  FabricInfo* next;
  uint64_t caps;
  uint64_t mode;
  uint32_t address_format;
  size_t source_bytes;
  size_t target_bytes;
  void* source;
  void* target;
  void* handle;
  void* transmit;
  void* receive;
  EndpointAttributes* endpoint;
  void* domain;
  FabricAttributes* fabric;
};
static_assert(offsetof(FabricInfo, fabric) == 104);
constexpr int32_t kReliableDatagrams = 3;                  // FI_EP_RDM
constexpr uint32_t kFabricVersionAsked = (1U << 16) | 18;  // as NIXL asks

using FabricVersion = uint32_t (*)();
using GetInfo = int (*)(uint32_t version, const char* node, const char* service, uint64_t flags,
                        const FabricInfo* hints, FabricInfo** info);
using ErrorText = const char* (*)(int);
using HwlocVersion = unsigned (*)();

template <typename Function>
Function Find(void* handle, const char* name) {
  return reinterpret_cast<Function>(dlsym(handle, name));
}

template <typename Value>
std::optional<Value> At(const std::string& bytes, uint64_t offset) {
  Value value;
  if (offset > bytes.size() || bytes.size() - offset < sizeof value) return std::nullopt;
  memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

std::string TextAt(const std::string& bytes, uint64_t offset) {
  if (offset >= bytes.size()) return "";
  const size_t end = bytes.find('\0', offset);
  return end == std::string::npos ? "" : bytes.substr(offset, end - offset);
}

// Of NIXL's own wheel, whose file names carry a hash.
bool IsBrought(const std::string& name) {
  return name.starts_with("libnixl") || name == "libserdes.so" || name == "libstream.so" ||
         name.find('-') != std::string::npos;
}

std::string LoaderError() {
  const char* text = dlerror();
  return text == nullptr ? "the loader gives no reason" : text;
}

std::string VersionOf(const std::string& name, void* handle) {
  if (name.starts_with("libfabric.")) {
    const auto ask = Find<FabricVersion>(handle, "fi_version");
    if (ask == nullptr) return "";
    return std::to_string(ask() >> 16) + "." + std::to_string(ask() & 0xffff);
  }
  if (name.starts_with("libhwloc.")) {
    const auto ask = Find<HwlocVersion>(handle, "hwloc_get_api_version");
    if (ask == nullptr) return "";
    return std::to_string(ask() >> 16) + "." + std::to_string((ask() >> 8) & 0xff);
  }
  return "";
}

void AskProviders(void* libfabric, FabricFinding* finding) {
  const auto get = Find<GetInfo>(libfabric, "fi_getinfo");
  const auto version = Find<FabricVersion>(libfabric, "fi_version");
  if (get == nullptr || version == nullptr) {
    finding->why = "libfabric has no fi_getinfo";
    return;
  }
  FabricInfo* info = nullptr;
  const int status = get(std::min(version(), kFabricVersionAsked), nullptr, nullptr, 0, nullptr, &info);
  if (status != 0) {
    const auto text = Find<ErrorText>(libfabric, "fi_strerror");
    finding->why = "fi_getinfo: " + std::string(text == nullptr ? "it failed" : text(-status));
    return;
  }
  // Never freed: the process is about to end.
  for (; info != nullptr && finding->providers.size() < kProvidersMax; info = info->next) {
    const bool reliable = info->endpoint != nullptr && info->endpoint->type == kReliableDatagrams;
    if (!reliable || info->fabric == nullptr || info->fabric->provider == nullptr) continue;
    auto& providers = finding->providers;
    const std::string name = info->fabric->provider;
    if (std::find(providers.begin(), providers.end(), name) == providers.end()) providers.push_back(name);
  }
  if (finding->providers.empty()) finding->why = "none of its providers has reliable datagrams";
}

}  // namespace

std::vector<std::string> NeededBy(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(stream), {}};
  const auto header = At<Elf64_Ehdr>(bytes, 0);
  if (!header || memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 || header->e_ident[EI_CLASS] != ELFCLASS64) {
    return {};
  }
  std::vector<Elf64_Phdr> segments;
  for (size_t at = 0; at < header->e_phnum; ++at) {
    const auto segment = At<Elf64_Phdr>(bytes, header->e_phoff + at * sizeof(Elf64_Phdr));
    if (segment) segments.push_back(*segment);
  }
  std::vector<uint64_t> names;
  uint64_t strings = 0;
  for (const Elf64_Phdr& dynamic : segments) {
    if (dynamic.p_type != PT_DYNAMIC) continue;
    for (uint64_t at = 0; at + sizeof(Elf64_Dyn) <= dynamic.p_filesz; at += sizeof(Elf64_Dyn)) {
      const auto entry = At<Elf64_Dyn>(bytes, dynamic.p_offset + at);
      if (!entry || entry->d_tag == DT_NULL) break;
      if (entry->d_tag == DT_NEEDED && names.size() < kNeedsMax) names.push_back(entry->d_un.d_val);
      if (entry->d_tag == DT_STRTAB) strings = entry->d_un.d_ptr;
    }
  }
  // The table's address is one in memory: the segment that is loaded there says where it is in the file.
  for (const Elf64_Phdr& segment : segments) {
    if (segment.p_type != PT_LOAD || strings < segment.p_vaddr) continue;
    if (strings - segment.p_vaddr >= segment.p_filesz) continue;
    strings = strings - segment.p_vaddr + segment.p_offset;
    break;
  }
  std::vector<std::string> needed;
  for (const uint64_t name : names) needed.push_back(TextAt(bytes, strings + name));
  return needed;
}

FabricFinding FindFabric(const Library& library, const std::string& file) {
  FabricFinding finding;
  void* libfabric = nullptr;
  for (const std::string& name : NeededBy(file)) {
    const auto starts = [&name](std::string_view part) { return name.starts_with(part); };
    if (name.empty() || std::any_of(std::begin(kEverywhere), std::end(kEverywhere), starts)) continue;
    LibraryFinding found;
    found.name = name;
    void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      found.why = LoaderError();
      const std::string brought = FindDependency(library, name);
      if (!brought.empty()) handle = dlopen(brought.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (!brought.empty() && handle == nullptr) found.why = LoaderError();
    }
    if (handle != nullptr) {
      found.why.clear();
      link_map* map = nullptr;
      if (dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map != nullptr) found.file = map->l_name;
      found.version = VersionOf(name, handle);
      if (name.starts_with("libfabric.")) libfabric = handle;
    }
    if (handle == nullptr || !IsBrought(name)) finding.libraries.push_back(std::move(found));
  }
  if (libfabric != nullptr) AskProviders(libfabric, &finding);
  return finding;
}

}  // namespace kvt::nixl
