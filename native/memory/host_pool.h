#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "memory/file_descriptor.h"
#include "memory/huge_pages.h"
#include "memory/mapping.h"
#include "memory/result.h"

namespace kvt {

struct PoolPages {
  PageKind kind;
  std::string why_not_huge;  // empty: kHugetlb
};

// Shared memory of this process that peers can map read-only: a sealed memfd with one writable mapping, ours.
// Sealed SHRINK and GROW, so that no access can fault, and FUTURE_WRITE, so that nobody else can ever write
// (invariant I1).
class HostPool {
 public:
  // Reserves the memory now: a pool that doesn't fit is an error here, never a SIGBUS later. Takes long for
  // large pools; `stop` ends it early with an error. Of huge pages when enough of `huge` are available and
  // the kernel gives them, else of normal ones.
  static Result<std::shared_ptr<HostPool>> Create(size_t bytes, const std::atomic<bool>& stop,
                                                  const HugePages& huge = FindHugePages());
  // Uses memory of somebody else's memfd, which must be sealable and not yet sealed against us. `fd` stays
  // the caller's.
  static Result<std::shared_ptr<HostPool>> Adopt(int fd, size_t offset, size_t bytes,
                                                 const std::atomic<bool>& stop);

  std::byte* data() const { return mapping_.data(); }
  size_t bytes() const { return bytes_; }
  int fd() const { return fd_.get(); }
  size_t offset() const { return offset_; }
  const PoolPages& pages() const { return pages_; }

  HostPool(FileDescriptor fd, Mapping mapping, size_t offset, size_t bytes, PoolPages pages)
      : fd_(std::move(fd)),
        mapping_(std::move(mapping)),
        offset_(offset),
        bytes_(bytes),
        pages_(std::move(pages)) {}

 private:
  FileDescriptor fd_;
  Mapping mapping_;
  size_t offset_;
  size_t bytes_;
  PoolPages pages_;
};

// The seals that a peer demands before it maps.
bool HasPoolSeals(int fd);

}  // namespace kvt
