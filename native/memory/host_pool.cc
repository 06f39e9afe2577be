#include "memory/host_pool.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <mutex>
#include <optional>
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
Result<bool> Reserve(const Mapping& mapping, std::span<const MappedRegion> regions,
                     const std::atomic<bool>& stop) {
  const auto populated = mapping.Populate(true, stop, kNever);
  if (populated == Mapping::Populated::kStopped) return Unavailable("closed while its memory was reserved");
  for (const MappedRegion& region : regions) {
    const size_t bytes = RoundUp(region.bytes, PageBytesOf(region.fd));
    int result = 0;
    do {
      result = fallocate(region.fd, 0, static_cast<off_t>(region.offset), static_cast<off_t>(bytes));
    } while (result != 0 && errno == EINTR);
    if (result != 0) return Unavailable(ErrnoText("the kernel can't reserve the memory"));
  }
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
  const MappedRegion whole{fd.get(), 0, mapped};
  Mapping mapping({&whole, 1}, Mapping::Access::kReadWrite);
  if (!mapping.ok()) return Unavailable(ErrnoText("the memfd can't be mapped"));
  const bool advised = mapping.AdviseHugePages() && ShmemTakesAdvice();
  if (!mapping.HideFromForks()) return Unavailable(ErrnoText("MADV_DONTFORK"));
  auto reserved = Reserve(mapping, {&whole, 1}, stop);
  if (!reserved.ok()) return reserved.error();
  auto sealed = Seal(fd.get());
  if (!sealed.ok()) return sealed.error();
  const PoolPages pages{KindOf(fd.get(), advised), std::move(why_not_huge)};
  std::vector<FileDescriptor> files;
  files.push_back(std::move(fd));
  return std::make_shared<HostPool>(std::move(files), std::vector<PoolRegion>{{0, 0, bytes}},
                                    std::move(mapping), bytes, pages);
}

constexpr const char* kRemedy =
    "; give a memfd made with MFD_ALLOW_SEALING that no other transceiver has adopted";

std::string PlaceOf(size_t region) { return "adopt[" + std::to_string(region) + "]"; }

// Memory that can become a pool: what its regions are, and its files, each once.
struct Adoptable {
  std::vector<FileDescriptor> files;
  std::vector<std::pair<dev_t, ino_t>> identities;
  std::vector<PoolRegion> regions;

  bool operator==(const Adoptable& other) const {
    return identities == other.identities && regions == other.regions;
  }
};

std::optional<Error> AddFile(const MappedRegion& region, const std::string& name, Adoptable* all) {
  FileDescriptor own(fcntl(region.fd, F_DUPFD_CLOEXEC, 0));
  if (!own.ok()) return Refused(ErrnoText(name + ".fd") + kRemedy);
  if (fcntl(own.get(), F_GET_SEALS) < 0) return Refused(name + ".fd is not a memfd" + kRemedy);
  struct stat status {};
  if (fstat(own.get(), &status) != 0) return Refused(ErrnoText(name + ".fd"));
  const auto size = static_cast<size_t>(status.st_size);
  if (region.offset > size || region.bytes > size - region.offset) {
    return Refused(name + ".bytes " + std::to_string(region.bytes) + " at " + name + ".offset " +
                   std::to_string(region.offset) + " end after the memfd's " + std::to_string(size) +
                   " bytes");
  }
  const std::pair identity{status.st_dev, status.st_ino};
  const auto found = std::find(all->identities.begin(), all->identities.end(), identity);
  const auto file = static_cast<uint16_t>(found - all->identities.begin());
  for (size_t other = 0; other < all->regions.size(); ++other) {
    const PoolRegion& before = all->regions[other];
    if (before.file != file || before.offset + before.bytes <= region.offset ||
        region.offset + region.bytes <= before.offset) {
      continue;
    }
    return Refused(name + " and " + PlaceOf(other) + " share bytes of one memfd");
  }
  if (found == all->identities.end()) {
    all->identities.push_back(identity);
    all->files.push_back(std::move(own));
  }
  all->regions.push_back({file, region.offset, region.bytes});
  return std::nullopt;
}

Result<Adoptable> Look(std::span<const MappedRegion> regions) {
  Adoptable all;
  for (size_t index = 0; index < regions.size(); ++index) {
    const std::string name = PlaceOf(index);
    if (auto refused = AddFile(regions[index], name, &all)) return *refused;
    const size_t page = PageBytesOf(regions[index].fd);
    if (index + 1 < regions.size() && regions[index].bytes % page != 0) {
      return Refused(name + ".bytes must be a multiple of " + std::to_string(page) +
                     ", the page size of its memfd: another region follows");
    }
  }
  return all;
}

std::optional<Error> RefuseSealed(const Adoptable& all) {
  for (const FileDescriptor& file : all.files) {
    const int seals = fcntl(file.get(), F_GET_SEALS);
    if ((seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0) {
      return Refused(std::string("adopt.fd is sealed against writing already") + kRemedy);
    }
    if ((seals & F_SEAL_SEAL) != 0) return Refused(std::string("adopt.fd allows no more seals") + kRemedy);
  }
  return std::nullopt;
}

// Pools of this process that were adopted: a second transceiver over the same memory, for layers whose blocks
// have a table of their own, can't map it for writing once it is sealed.
struct Adopted {
  std::mutex mutex;
  std::vector<std::pair<Adoptable, std::weak_ptr<HostPool>>> pools;

  std::shared_ptr<HostPool> Find(const Adoptable& wanted) {
    std::erase_if(pools, [](const auto& entry) { return entry.second.expired(); });
    for (const auto& [known, pool] : pools) {
      if (known == wanted) return pool.lock();
    }
    return nullptr;
  }
};

// Never destroyed: other threads run on while exit() works.
Adopted& AllAdopted() {
  static auto* adopted = new Adopted;
  return *adopted;
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

Result<std::shared_ptr<HostPool>> HostPool::Adopt(std::span<const MappedRegion> regions,
                                                  const std::atomic<bool>& stop) {
  auto looked = Look(regions);
  if (!looked.ok()) return looked.error();
  Adoptable& all = looked.value();
  Adopted& adopted = AllAdopted();
  const std::lock_guard lock(adopted.mutex);
  if (auto pool = adopted.Find(all)) return pool;
  if (auto sealed = RefuseSealed(all)) return *sealed;
  Mapping mapping(regions, Mapping::Access::kReadWrite);
  if (!mapping.ok()) {
    return Refused(ErrnoText("adopt can't be mapped") + "; offsets must be multiples of the page size");
  }
  const bool advised = mapping.AdviseHugePages() && ShmemTakesAdvice();
  if (!mapping.HideFromForks()) return Refused(ErrnoText("MADV_DONTFORK"));
  auto reserved = Reserve(mapping, regions, stop);
  if (!reserved.ok()) return reserved.error();
  size_t bytes = 0;
  for (const MappedRegion& region : regions) bytes += region.bytes;
  PageKind kind = PageKind::kHugetlb;
  for (const FileDescriptor& file : all.files) {
    auto sealed = Seal(file.get());
    if (!sealed.ok()) return sealed.error();
    if (!IsHugetlb(file.get())) kind = KindOf(file.get(), advised);
  }
  const PoolPages pages{kind, kind == PageKind::kHugetlb ? "" : "the adopted memory has none"};
  auto pool = std::make_shared<HostPool>(std::move(all.files), all.regions, std::move(mapping), bytes, pages);
  all.files.clear();
  adopted.pools.emplace_back(std::move(all), pool);
  return pool;
}

}  // namespace kvt
