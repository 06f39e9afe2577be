#include "memory/memory_limit.h"

#include <fstream>
#include <limits>
#include <optional>

namespace kvt {
namespace {

std::optional<uint64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  uint64_t number = 0;
  // "max" is no number: no limit here.
  if (!(file >> number)) return std::nullopt;
  return number;
}

uint64_t ReadField(const std::string& path, const std::string& field, uint64_t otherwise) {
  std::ifstream file(path);
  std::string name;
  uint64_t number = 0;
  std::string rest;
  while (file >> name >> number) {
    if (name == field) return number;
    std::getline(file, rest);
  }
  return otherwise;
}

void Narrow(MemoryRoom* room, uint64_t bytes, const std::string& limit) {
  if (bytes < room->bytes) *room = {bytes, limit};
}

// Page cache that can be dropped counts as usage, but is no obstacle.
void NarrowByGroup(MemoryRoom* room, const std::string& folder, const char* limit_file,
                   const char* usage_file, const char* cache_field) {
  const auto limit = ReadNumber(folder + limit_file);
  const auto usage = ReadNumber(folder + usage_file);
  if (!limit || !usage) return;
  const uint64_t cache = ReadField(folder + "memory.stat", cache_field, 0);
  const uint64_t fixed = *usage > cache ? *usage - cache : 0;
  Narrow(room, *limit > fixed ? *limit - fixed : 0, limit_file + std::string(" of ") + folder);
}

void NarrowByAncestors(MemoryRoom* room, const std::string& top, std::string group, bool v2) {
  for (;;) {
    const std::string folder = top + group + (group.ends_with('/') ? "" : "/");
    if (v2) {
      NarrowByGroup(room, folder, "memory.max", "memory.current", "inactive_file");
    } else {
      NarrowByGroup(room, folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file");
    }
    if (group.empty() || group == "/") return;
    group.erase(group.rfind('/'));
  }
}

}  // namespace

MemoryRoom FindMemoryRoom(const std::string& root) {
  MemoryRoom room{std::numeric_limits<uint64_t>::max(), "nothing"};
  const uint64_t unknown = std::numeric_limits<uint64_t>::max() / 1024;
  const uint64_t available = ReadField(root + "/proc/meminfo", "MemAvailable:", unknown);
  if (available != unknown) Narrow(&room, available * 1024, "MemAvailable");
  std::ifstream groups(root + "/proc/self/cgroup");
  std::string line;
  // "0::/path" (v2) or "5:memory:/path" (v1). Inside a container the path may not exist below the mount: then
  // the walk up ends at the mount itself, which is the container's own group.
  while (std::getline(groups, line)) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string group = line.substr(second + 1);
    if (!group.starts_with('/')) continue;
    if (controllers.empty()) NarrowByAncestors(&room, root + "/sys/fs/cgroup", group, true);
    if (("," + controllers + ",").find(",memory,") != std::string::npos) {
      NarrowByAncestors(&room, root + "/sys/fs/cgroup/memory", group, false);
    }
  }
  return room;
}

}  // namespace kvt
