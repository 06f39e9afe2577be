#include "memory/huge_pages.h"

#include <sys/vfs.h>

#include <fstream>

namespace kvt {
namespace {

constexpr long kHugetlbMagic = 0x958458f6;  // linux/magic.h

uint64_t ReadCount(const std::string& path) {
  std::ifstream file(path);
  uint64_t count = 0;
  file >> count;
  return count;
}

}  // namespace

const char* PageKindName(PageKind kind) {
  switch (kind) {
    case PageKind::kHugetlb:
      return "hugetlb";
    case PageKind::kTransparent:
      return "transparent";
    case PageKind::kNormal:
      break;
  }
  return "normal";
}

HugePages FindHugePages(const std::string& root) {
  const std::string folder = root + "/sys/kernel/mm/hugepages/hugepages-2048kB/";
  const uint64_t free = ReadCount(folder + "free_hugepages");
  // Promised to mappings that have not touched them yet.
  const uint64_t promised = ReadCount(folder + "resv_hugepages");
  return {ReadCount(folder + "nr_hugepages"), free > promised ? free - promised : 0};
}

bool ShmemTakesAdvice() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  std::string words;
  std::getline(file, words);
  return words.find("[advise]") != std::string::npos || words.find("[always]") != std::string::npos ||
         words.find("[within_size]") != std::string::npos || words.find("[force]") != std::string::npos;
}

bool IsHugetlb(int fd) {
  struct statfs status {};
  return fstatfs(fd, &status) == 0 && static_cast<long>(status.f_type) == kHugetlbMagic;
}

}  // namespace kvt
