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

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

size_t PageBytesOf(int fd) { return IsHugetlb(fd) ? kHugePageBytes : 4096; }

Mapping::Mapping(std::span<const MappedRegion> regions, Access access) {
  if (regions.empty()) return;
  size_t bytes = RoundUp(regions.back().bytes, PageBytesOf(regions.back().fd));
  for (const MappedRegion& region : regions.first(regions.size() - 1)) bytes += region.bytes;
  const size_t lead = regions.front().offset % kHugePageBytes;
  const size_t reserved = lead + bytes + kHugePageBytes;
  void* area = mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (area == MAP_FAILED) return;
  const auto start = reinterpret_cast<uintptr_t>(area);
  const uintptr_t wanted = RoundUp(start, kHugePageBytes) + lead;
  const int protection = access == Access::kRead ? PROT_READ : PROT_READ | PROT_WRITE;
  uintptr_t end = wanted;
  for (size_t index = 0; index < regions.size(); ++index) {
    const MappedRegion& region = regions[index];
    const size_t length = index + 1 < regions.size() ? region.bytes : wanted + bytes - end;
    const void* mapped = mmap(reinterpret_cast<void*>(end), length, protection, MAP_SHARED | MAP_FIXED,
                              region.fd, static_cast<off_t>(region.offset));
    if (mapped == MAP_FAILED) {
      const int error = errno;
      munmap(area, reserved);
      errno = error;
      return;
    }
    end += length;
  }
  if (wanted > start) munmap(area, wanted - start);
  if (start + reserved > end) munmap(reinterpret_cast<void*>(end), start + reserved - end);
  data_ = reinterpret_cast<std::byte*>(wanted);
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
