#include "memory/host_pool.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "check.h"
#include "memory/check_pattern.h"
#include "memory/memory_limit.h"

using namespace kvt;

namespace {

const std::atomic<bool> kRunOn{false};

FileDescriptor Memfd(unsigned flags, size_t bytes) {
  FileDescriptor fd(memfd_create("adopted", flags | MFD_CLOEXEC));
  CHECK_EQ(ftruncate(fd.get(), static_cast<off_t>(bytes)), 0);
  return fd;
}

struct Tree {
  Tree() {
    char name[] = "/tmp/kvt-tree-XXXXXX";
    root = mkdtemp(name);
  }
  ~Tree() { std::filesystem::remove_all(root); }
  void Put(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(root + path).parent_path());
    std::ofstream(root + path) << text;
  }
  std::string root;
};

}  // namespace

TEST("a pool is reserved when it is made, and sealed") {
  auto pool = HostPool::Create(size_t{5} << 20, kRunOn);
  CHECK(pool.ok());
  struct stat status {};
  CHECK_EQ(fstat(pool.value()->fd(), &status), 0);
  CHECK_EQ(status.st_size, off_t{6} << 20);
  CHECK(status.st_blocks * 512 >= off_t{6} << 20);
  CHECK(HasPoolSeals(pool.value()->fd()));
}

TEST("a pool larger than the memory is refused with the limit's name, and nothing is killed") {
  auto pool = HostPool::Create(size_t{1} << 46, kRunOn);
  CHECK(!pool.ok());
  CHECK(pool.error().code == ErrorCode::kPoolUnavailable);
  CHECK(pool.error().why.find("leaves") != std::string::npos);
}

TEST("huge pages are counted without those that are promised") {
  const Tree tree;
  CHECK_EQ(FindHugePages(tree.root).total, 0u);
  CHECK_EQ(FindHugePages(tree.root).available, 0u);
  const std::string folder = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
  tree.Put(folder + "nr_hugepages", "40\n");
  tree.Put(folder + "free_hugepages", "30\n");
  tree.Put(folder + "resv_hugepages", "12\n");
  CHECK_EQ(FindHugePages(tree.root).total, 40u);
  CHECK_EQ(FindHugePages(tree.root).available, 18u);
}

TEST("a pool has normal pages, and says why, when huge ones are none, too few, or refused by the kernel") {
  const auto why = [](size_t bytes, const HugePages& huge) {
    auto pool = HostPool::Create(bytes, kRunOn, huge);
    CHECK(pool.ok());
    CHECK(pool.value()->pages().kind != PageKind::kHugetlb);
    pool.value()->data()[bytes - 1] = std::byte{1};
    return pool.value()->pages().why_not_huge;
  };
  const size_t five = size_t{5} << 20;
  CHECK_EQ(why(five, {0, 0}), "no huge pages of 2 MiB are set aside (vm.nr_hugepages)");
  CHECK_EQ(why(five, {40, 2}), "3 huge pages of 2 MiB are needed, 2 of 40 are free");
  // Somebody was quicker: more than the kernel has.
  const uint64_t pages = FindHugePages().total + 3;
  CHECK(why(pages * kHugePageBytes, {pages, pages}).find("huge pages were refused: ") == 0);
}

TEST("opening stops early when it is told to") {
  const std::atomic<bool> stopped{true};
  CHECK(!HostPool::Create(size_t{64} << 20, stopped).ok());
}

TEST("a sealable memfd is adopted at its offset, sealed, and its owner still writes it") {
  const FileDescriptor fd = Memfd(MFD_ALLOW_SEALING, 1 << 20);
  void* owner = mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  auto pool = HostPool::Adopt(fd.get(), 8192, 65536, kRunOn);
  CHECK(pool.ok());
  static_cast<char*>(owner)[8192] = 'k';
  CHECK(pool.value()->data()[0] == std::byte{'k'});
  CHECK(HasPoolSeals(fd.get()));
  munmap(owner, 1 << 20);
}

TEST("memory that can't be sealed, is sealed already, or is too short is refused") {
  const FileDescriptor unsealable = Memfd(0, 1 << 20);
  CHECK(HostPool::Adopt(unsealable.get(), 0, 4096, kRunOn).error().code == ErrorCode::kMemoryRefused);
  const FileDescriptor twice = Memfd(MFD_ALLOW_SEALING, 1 << 20);
  CHECK(HostPool::Adopt(twice.get(), 0, 4096, kRunOn).ok());
  CHECK(HostPool::Adopt(twice.get(), 0, 4096, kRunOn).error().why.find("sealed") != std::string::npos);
  const FileDescriptor small = Memfd(MFD_ALLOW_SEALING, 8192);
  CHECK(HostPool::Adopt(small.get(), 4096, 8192, kRunOn).error().why.find("end after") != std::string::npos);
  const FileDescriptor file(open("/dev/null", O_RDWR | O_CLOEXEC));
  CHECK(HostPool::Adopt(file.get(), 0, 4096, kRunOn).error().why.find("not a memfd") != std::string::npos);
}

TEST("the smallest limit of all cgroups above counts, minus what is used, plus droppable cache") {
  const Tree tree;
  tree.Put("/proc/meminfo", "MemTotal: 100000 kB\nMemAvailable:    9000 kB\n");
  tree.Put("/proc/self/cgroup", "0::/pod/worker\n");
  CHECK_EQ(FindMemoryRoom(tree.root).bytes, 9'216'000u);
  CHECK_EQ(FindMemoryRoom(tree.root).limit, "MemAvailable");
  tree.Put("/sys/fs/cgroup/pod/worker/memory.max", "max\n");
  tree.Put("/sys/fs/cgroup/pod/worker/memory.current", "5000\n");
  tree.Put("/sys/fs/cgroup/pod/memory.max", "8000000\n");
  tree.Put("/sys/fs/cgroup/pod/memory.current", "3000000\n");
  tree.Put("/sys/fs/cgroup/pod/memory.stat", "anon 1\ninactive_file 1000000\n");
  CHECK_EQ(FindMemoryRoom(tree.root).bytes, 6'000'000u);
  CHECK(FindMemoryRoom(tree.root).limit.find("/pod/") != std::string::npos);
}

TEST("a container sees its own limit at the mount, whatever path it is told") {
  const Tree tree;
  tree.Put("/proc/meminfo", "MemAvailable: 9000 kB\n");
  tree.Put("/proc/self/cgroup", "0::/kubepods/pod7\n");
  tree.Put("/sys/fs/cgroup/memory.max", "4096\n");
  tree.Put("/sys/fs/cgroup/memory.current", "96\n");
  CHECK_EQ(FindMemoryRoom(tree.root).bytes, 4000u);
  tree.Put("/proc/self/cgroup", "5:cpu,memory:/docker/1\n");
  tree.Put("/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "2000\n");
  tree.Put("/sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes", "500\n");
  CHECK_EQ(FindMemoryRoom(tree.root).bytes, 1500u);
}

TEST("the pattern of a released block shows a single changed byte") {
  alignas(64) std::byte pool[4 * 128] = {};
  const uint32_t blocks[] = {1, 3};
  FillPattern(pool, 128, blocks);
  CHECK_EQ(FindTouched(pool, 128, blocks), -1);
  CHECK(pool[0] == std::byte{0});
  pool[3 * 128 + 127] ^= std::byte{1};
  CHECK_EQ(FindTouched(pool, 128, blocks), 3);
  // A block's pattern in another block's place is a change as well.
  memcpy(pool + 128, pool + 3 * 128, 64);
  CHECK_EQ(FindTouched(pool, 128, blocks), 1);
}

KVT_TEST_MAIN
