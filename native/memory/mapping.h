#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "memory/boot_clock.h"

namespace kvt {

constexpr size_t kHugePageBytes = size_t{2} << 20;

// One mmap of a shared file whose first byte lies at an address with the same offset from a 2 MiB boundary as
// in the file, so that huge pages of the file can be mapped as huge pages.
class Mapping {
 public:
  enum class Access { kRead, kReadWrite };

  Mapping() = default;
  // `offset` may be any multiple of the page size; `bytes` is rounded up to whole pages. On failure ok() is
  // false and errno says why.
  Mapping(int fd, size_t offset, size_t bytes, Access access);
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

}  // namespace kvt
