#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "memory/file_descriptor.h"
#include "memory/mapping.h"
#include "memory/result.h"

namespace kvt {

// Shared memory of this process that peers can map read-only: a sealed memfd with one writable mapping, ours.
// Sealed SHRINK and GROW, so that no access can fault, and FUTURE_WRITE, so that nobody else can ever write
// (invariant I1).
class HostPool {
 public:
  // Reserves the memory now: a pool that doesn't fit is an error here, never a SIGBUS later. Takes long for
  // large pools; `stop` ends it early with an error.
  static Result<std::shared_ptr<HostPool>> Create(size_t bytes, const std::atomic<bool>& stop);
  // Uses memory of somebody else's memfd, which must be sealable and not yet sealed against us. `fd` stays
  // the caller's.
  static Result<std::shared_ptr<HostPool>> Adopt(int fd, size_t offset, size_t bytes,
                                                 const std::atomic<bool>& stop);

  std::byte* data() const { return mapping_.data(); }
  size_t bytes() const { return bytes_; }
  int fd() const { return fd_.get(); }
  size_t offset() const { return offset_; }
  bool huge_pages() const { return huge_pages_; }

  HostPool(FileDescriptor fd, Mapping mapping, size_t offset, size_t bytes, bool huge_pages)
      : fd_(std::move(fd)),
        mapping_(std::move(mapping)),
        offset_(offset),
        bytes_(bytes),
        huge_pages_(huge_pages) {}

 private:
  FileDescriptor fd_;
  Mapping mapping_;
  size_t offset_;
  size_t bytes_;
  bool huge_pages_;
};

// The seals that a peer demands before it maps.
bool HasPoolSeals(int fd);

}  // namespace kvt
