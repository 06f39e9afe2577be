#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace kvt {

// What the memory of a pool consists of. kHugetlb: huge pages that were set aside, always huge. kTransparent:
// the kernel was asked for huge pages and gives them where it can. kNormal: 4 KiB.
enum class PageKind { kHugetlb, kTransparent, kNormal };

const char* PageKindName(PageKind kind);

// Huge pages of 2 MiB that were set aside (vm.nr_hugepages) and those that a new mapping can have.
struct HugePages {
  uint64_t total = 0;
  uint64_t available = 0;
};

// `root` stands before /sys, for tests. Zeros where the kernel has none or tells nothing.
HugePages FindHugePages(const std::string& root = "");

// Whether the kernel gives shared memory huge pages where we ask for them.
bool ShmemTakesAdvice();

bool IsHugetlb(int fd);

}  // namespace kvt
