#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "memory/file_descriptor.h"
#include "memory/huge_pages.h"
#include "memory/mapping.h"
#include "memory/result.h"

namespace kvt {

struct PoolPages {
  PageKind kind;
  std::string why_not_huge;  // empty: kHugetlb
};

// A part of a pool: `bytes` of one of its files.
struct PoolRegion {
  uint16_t file = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;

  bool operator==(const PoolRegion&) const = default;
};

constexpr size_t kRegionsMax = 1024;

// Shared memory of this process that peers can map read-only: sealed memfds with one writable mapping, ours,
// in which the pool's regions lie one behind the other. Sealed SHRINK and GROW, so that no access can fault,
// and FUTURE_WRITE, so that nobody else can ever write (invariant I1).
class HostPool {
 public:
  // Reserves the memory now: a pool that doesn't fit is an error here, never a SIGBUS later. Takes long for
  // large pools; `stop` ends it early with an error. Of huge pages when enough of `huge` are available and
  // the kernel gives them, else of normal ones.
  static Result<std::shared_ptr<HostPool>> Create(size_t bytes, const std::atomic<bool>& stop,
                                                  const HugePages& huge = FindHugePages());
  // Uses memory of somebody else's memfds, which must be sealable and not yet sealed against us. The
  // descriptors stay the caller's. Exactly the regions that this process has adopted already are the same
  // pool.
  static Result<std::shared_ptr<HostPool>> Adopt(std::span<const MappedRegion> regions,
                                                 const std::atomic<bool>& stop);

  std::byte* data() const { return mapping_.data(); }
  size_t bytes() const { return bytes_; }
  const std::vector<FileDescriptor>& files() const { return files_; }
  const std::vector<PoolRegion>& regions() const { return regions_; }
  const PoolPages& pages() const { return pages_; }

  HostPool(std::vector<FileDescriptor> files, std::vector<PoolRegion> regions, Mapping mapping, size_t bytes,
           PoolPages pages)
      : files_(std::move(files)),
        regions_(std::move(regions)),
        mapping_(std::move(mapping)),
        bytes_(bytes),
        pages_(std::move(pages)) {}

 private:
  std::vector<FileDescriptor> files_;
  std::vector<PoolRegion> regions_;
  Mapping mapping_;
  size_t bytes_;
  PoolPages pages_;
};

// The seals that a peer demands before it maps.
bool HasPoolSeals(int fd);

}  // namespace kvt
