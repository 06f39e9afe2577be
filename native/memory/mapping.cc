#include "memory/mapping.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "memory/huge_pages.h"

#ifndef MADV_POPULATE_READ  // Linux 5.14
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

namespace kvt {
namespace {

constexpr size_t kPopulateStep = size_t{32} << 20;

size_t PageBytes(int fd) { return IsHugetlb(fd) ? kHugePageBytes : 4096; }

}  // namespace

Mapping::Mapping(int fd, size_t offset, size_t bytes, Access access) {
  const size_t page = PageBytes(fd);
  bytes = (bytes + page - 1) / page * page;
  const size_t lead = offset % kHugePageBytes;
  const size_t reserved = lead + bytes + kHugePageBytes;
  void* area = mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (area == MAP_FAILED) return;
  const auto start = reinterpret_cast<uintptr_t>(area);
  const uintptr_t aligned = (start + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  const uintptr_t wanted = aligned + lead;
  const int protection = access == Access::kRead ? PROT_READ : PROT_READ | PROT_WRITE;
  void* mapped = mmap(reinterpret_cast<void*>(wanted), bytes, protection, MAP_SHARED | MAP_FIXED, fd,
                      static_cast<off_t>(offset));
  const int error = errno;
  if (mapped == MAP_FAILED) {
    munmap(area, reserved);
    errno = error;
    return;
  }
  const uintptr_t end = wanted + bytes;
  if (wanted > start) munmap(area, wanted - start);
  if (start + reserved > end) munmap(reinterpret_cast<void*>(end), start + reserved - end);
  data_ = static_cast<std::byte*>(mapped);
  bytes_ = bytes;
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    Unmap();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

Mapping::~Mapping() { Unmap(); }

void Mapping::Unmap() {
  if (data_ != nullptr) munmap(data_, bytes_);
  data_ = nullptr;
  bytes_ = 0;
}

bool Mapping::AdviseHugePages() const { return madvise(data_, bytes_, MADV_HUGEPAGE) == 0; }

bool Mapping::HideFromForks() const { return madvise(data_, bytes_, MADV_DONTFORK) == 0; }

Mapping::Populated Mapping::Populate(bool for_writing, const std::atomic<bool>& stop,
                                     BootNanos deadline) const {
  const int advice = for_writing ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
  for (size_t done = 0; done < bytes_; done += kPopulateStep) {
    if (stop.load(std::memory_order_relaxed) || BootNow() >= deadline) return Populated::kStopped;
    const size_t step = std::min(kPopulateStep, bytes_ - done);
    int result = 0;
    do {
      result = madvise(data_ + done, step, advice);
    } while (result != 0 && (errno == EINTR || errno == EAGAIN));
    if (result != 0) return errno == EINVAL ? Populated::kUnsupported : Populated::kFailed;
  }
  return Populated::kAll;
}

}  // namespace kvt
