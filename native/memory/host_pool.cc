#include "memory/host_pool.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <string>
#include <utility>

#include "memory/memory_limit.h"

#ifndef F_SEAL_FUTURE_WRITE  // Linux 5.1
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif

namespace kvt {
namespace {

// SEAL as well: after it nobody, the peers included, can add a seal to a file that we pass around.
constexpr int kPoolSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

Error Unavailable(std::string why) { return {ErrorCode::kPoolUnavailable, std::move(why)}; }
Error Refused(std::string why) { return {ErrorCode::kMemoryRefused, std::move(why)}; }

// Takes the memory now. Populating through the mapping comes first, as only that obeys the advice for huge
// pages; fallocate then fills what older kernels left, and is the one to report that memory ran out.
Result<bool> Reserve(int fd, const Mapping& mapping, size_t offset, const std::atomic<bool>& stop) {
  const auto populated = mapping.Populate(true, stop, kNever);
  if (populated == Mapping::Populated::kStopped) return Unavailable("closed while its memory was reserved");
  int result = 0;
  do {
    result = fallocate(fd, 0, static_cast<off_t>(offset), static_cast<off_t>(mapping.bytes()));
  } while (result != 0 && errno == EINTR);
  if (result != 0) return Unavailable(ErrnoText("the kernel can't reserve the memory"));
  return true;
}

Result<bool> Seal(int fd) {
  if (fcntl(fd, F_ADD_SEALS, kPoolSeals) == 0) return true;
  return Unavailable(ErrnoText("the memfd can't be sealed (needs Linux 5.1)"));
}

PageKind KindOf(int fd, bool advised) {
  if (IsHugetlb(fd)) return PageKind::kHugetlb;
  return advised ? PageKind::kTransparent : PageKind::kNormal;
}

Result<std::shared_ptr<HostPool>> CreateWith(unsigned flags, size_t bytes, const std::atomic<bool>& stop,
                                             std::string why_not_huge) {
  const size_t mapped = RoundUp(bytes, kHugePageBytes);
  FileDescriptor fd(memfd_create("kvt-pool", flags | MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.ok()) return Unavailable(ErrnoText("memfd_create"));
  if (ftruncate(fd.get(), static_cast<off_t>(mapped)) != 0) {
    return Unavailable(ErrnoText("the memfd can't get its size"));
  }
  Mapping mapping(fd.get(), 0, mapped, Mapping::Access::kReadWrite);
  if (!mapping.ok()) return Unavailable(ErrnoText("the memfd can't be mapped"));
  const bool advised = mapping.AdviseHugePages() && ShmemTakesAdvice();
  if (!mapping.HideFromForks()) return Unavailable(ErrnoText("MADV_DONTFORK"));
  auto reserved = Reserve(fd.get(), mapping, 0, stop);
  if (!reserved.ok()) return reserved.error();
  auto sealed = Seal(fd.get());
  if (!sealed.ok()) return sealed.error();
  const PoolPages pages{KindOf(fd.get(), advised), std::move(why_not_huge)};
  return std::make_shared<HostPool>(std::move(fd), std::move(mapping), 0, bytes, pages);
}

}  // namespace

bool HasPoolSeals(int fd) {
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0) return false;
  const bool no_writes = (seals & F_SEAL_FUTURE_WRITE) != 0 || (seals & F_SEAL_WRITE) != 0;
  return no_writes && (seals & F_SEAL_SHRINK) != 0 && (seals & F_SEAL_GROW) != 0;
}

Result<std::shared_ptr<HostPool>> HostPool::Create(size_t bytes, const std::atomic<bool>& stop,
                                                   const HugePages& huge) {
  const size_t needed = RoundUp(bytes, kHugePageBytes);
  const uint64_t pages = needed / kHugePageBytes;
  std::string why_not_huge = "no huge pages of 2 MiB are set aside (vm.nr_hugepages)";
  // Huge pages are set aside already and count against no group's memory.max.
  if (huge.available >= pages) {
    auto pool = CreateWith(MFD_HUGETLB | MFD_HUGE_2MB, bytes, stop, "");
    if (pool.ok()) return pool;
    why_not_huge = "huge pages were refused: " + pool.error().why;
  } else if (huge.total > 0) {
    why_not_huge = std::to_string(pages) + " huge pages of 2 MiB are needed, " +
                   std::to_string(huge.available) + " of " + std::to_string(huge.total) + " are free";
  }
  const MemoryRoom room = FindMemoryRoom();
  if (needed > room.bytes) {
    return Unavailable(std::to_string(needed) + " bytes are needed, " + room.limit + " leaves " +
                       std::to_string(room.bytes));
  }
  return CreateWith(0, bytes, stop, std::move(why_not_huge));
}

Result<std::shared_ptr<HostPool>> HostPool::Adopt(int fd, size_t offset, size_t bytes,
                                                  const std::atomic<bool>& stop) {
  const std::string remedy =
      "; give a memfd made with MFD_ALLOW_SEALING that no other transceiver has adopted";
  FileDescriptor own(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!own.ok()) return Refused(ErrnoText("adopt.fd") + remedy);
  const int seals = fcntl(own.get(), F_GET_SEALS);
  if (seals < 0) return Refused("adopt.fd is not a memfd" + remedy);
  if ((seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0) {
    return Refused("adopt.fd is sealed against writing already" + remedy);
  }
  if ((seals & F_SEAL_SEAL) != 0) {
    return Refused("adopt.fd allows no more seals" + remedy);
  }
  struct stat status {};
  if (fstat(own.get(), &status) != 0) return Refused(ErrnoText("adopt.fd"));
  const auto size = static_cast<size_t>(status.st_size);
  if (offset > size || bytes > size - offset) {
    return Refused("adopt.bytes " + std::to_string(bytes) + " at adopt.offset " + std::to_string(offset) +
                   " end after the memfd's " + std::to_string(size) + " bytes");
  }
  Mapping mapping(own.get(), offset, bytes, Mapping::Access::kReadWrite);
  if (!mapping.ok()) {
    return Refused(ErrnoText("adopt.fd can't be mapped at offset " + std::to_string(offset)) +
                   "; adopt.offset must be a multiple of the page size");
  }
  const bool advised = mapping.AdviseHugePages() && ShmemTakesAdvice();
  if (!mapping.HideFromForks()) return Refused(ErrnoText("MADV_DONTFORK"));
  auto reserved = Reserve(own.get(), mapping, offset, stop);
  if (!reserved.ok()) return reserved.error();
  auto sealed = Seal(own.get());
  if (!sealed.ok()) return sealed.error();
  const PageKind kind = KindOf(own.get(), advised);
  const PoolPages pages{kind, kind == PageKind::kHugetlb ? "" : "the adopted memory has none"};
  return std::make_shared<HostPool>(std::move(own), std::move(mapping), offset, bytes, pages);
}

}  // namespace kvt
