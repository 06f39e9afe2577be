#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "memory/boot_clock.h"

namespace kvt {

constexpr size_t kHugePageBytes = size_t{2} << 20;

struct MappedRegion {
  int fd = -1;
  size_t offset = 0;  // any multiple of the file's page size
  size_t bytes = 0;
};

// Regions of shared files, one behind the other in one range of addresses. The first byte lies at an address
// with the same offset from a 2 MiB boundary as in its file, so that huge pages of the file can be mapped as
// huge pages.
class Mapping {
 public:
  enum class Access { kRead, kReadWrite };

  Mapping() = default;
  // All regions but the last must be whole pages; that is rounded up to them. On failure ok() is false and
  // errno says why.
  Mapping(std::span<const MappedRegion> regions, Access access);
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  bool ok() const { return data_ != nullptr; }
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

  bool AdviseHugePages() const;
  // A forked child must not hold our pool: the peer takes our death as proof that nobody can change it.
  bool HideFromForks() const;

  enum class Populated { kAll, kStopped, kUnsupported, kFailed };
  // Faults every page in, in steps between which `stop` and the deadline are looked at. kFailed: errno.
  Populated Populate(bool for_writing, const std::atomic<bool>& stop, BootNanos deadline) const;

 private:
  void Unmap();

  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

size_t PageBytesOf(int fd);

}  // namespace kvt
