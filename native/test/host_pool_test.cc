#include "memory/host_pool.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "check.h"
#include "geometries.h"
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

Result<std::shared_ptr<HostPool>> Adopt(std::vector<MappedRegion> regions) {
  return HostPool::Adopt(regions, kRunOn);
}

// Whether a change of one byte is found.
bool FindChange(std::byte* pool, const Geometry& geometry, std::span<const uint32_t> blocks, uint64_t at) {
  pool[at] ^= std::byte{1};
  const bool found = FindTouched(pool, geometry, blocks) >= 0;
  pool[at] ^= std::byte{1};
  return found;
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
  CHECK_EQ(fstat(pool.value()->files()[0].get(), &status), 0);
  CHECK_EQ(status.st_size, off_t{6} << 20);
  CHECK(status.st_blocks * 512 >= off_t{6} << 20);
  CHECK(HasPoolSeals(pool.value()->files()[0].get()));
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
  auto pool = Adopt({{fd.get(), 8192, 65536}});
  CHECK(pool.ok());
  static_cast<char*>(owner)[8192] = 'k';
  CHECK(pool.value()->data()[0] == std::byte{'k'});
  CHECK(HasPoolSeals(fd.get()));
  munmap(owner, 1 << 20);
}

TEST("regions of several memfds lie one behind the other, and each file is sealed") {
  const FileDescriptor one = Memfd(MFD_ALLOW_SEALING, 1 << 16);
  const FileDescriptor other = Memfd(MFD_ALLOW_SEALING, 1 << 16);
  auto* first = static_cast<char*>(mmap(nullptr, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, one.get(), 0));
  auto* second =
      static_cast<char*>(mmap(nullptr, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, other.get(), 0));
  auto pool = Adopt({{one.get(), 8192, 4096}, {other.get(), 0, 8192}, {one.get(), 0, 100}});
  CHECK(pool.ok());
  first[8192 + 5] = 'a';
  second[8191] = 'b';
  first[99] = 'c';
  const std::byte* data = pool.value()->data();
  CHECK(data[5] == std::byte{'a'} && data[4096 + 8191] == std::byte{'b'} &&
        data[12288 + 99] == std::byte{'c'});
  CHECK_EQ(pool.value()->bytes(), 12388u);
  CHECK_EQ(pool.value()->files().size(), 2u);
  CHECK(HasPoolSeals(one.get()) && HasPoolSeals(other.get()));
  CHECK(Adopt({{one.get(), 0, 100}, {other.get(), 0, 100}}).error().why.find("adopt[0].bytes") == 0);
  CHECK(Adopt({{one.get(), 0, 4096}, {one.get(), 4095, 9}}).error().why.find("share bytes") !=
        std::string::npos);
  munmap(first, 1 << 16);
  munmap(second, 1 << 16);
}

TEST(
    "the same regions adopted twice are one pool for as long as either lives, others of the file are "
    "refused") {
  const FileDescriptor one = Memfd(MFD_ALLOW_SEALING, 1 << 16);
  auto pool = Adopt({{one.get(), 0, 8192}, {one.get(), 16384, 4096}});
  const FileDescriptor again(dup(one.get()));
  CHECK(Adopt({{again.get(), 0, 8192}, {again.get(), 16384, 4096}}).value() == pool.value());
  CHECK(Adopt({{one.get(), 0, 8192}}).error().why.find("sealed") != std::string::npos);
  pool = Error{};
  CHECK(Adopt({{one.get(), 0, 8192}, {one.get(), 16384, 4096}}).error().why.find("sealed") !=
        std::string::npos);
}

TEST("memory that can't be sealed, is sealed already, or is too short is refused") {
  const FileDescriptor unsealable = Memfd(0, 1 << 20);
  CHECK(Adopt({{unsealable.get(), 0, 4096}}).error().code == ErrorCode::kMemoryRefused);
  const FileDescriptor twice = Memfd(MFD_ALLOW_SEALING, 1 << 20);
  CHECK(Adopt({{twice.get(), 0, 4096}}).ok());
  CHECK(Adopt({{twice.get(), 0, 4096}}).error().why.find("sealed") != std::string::npos);
  const FileDescriptor small = Memfd(MFD_ALLOW_SEALING, 8192);
  CHECK(Adopt({{small.get(), 4096, 8192}}).error().why.find("end after") != std::string::npos);
  const FileDescriptor file(open("/dev/null", O_RDWR | O_CLOEXEC));
  CHECK(Adopt({{file.get(), 0, 4096}}).error().why.find("not a memfd") != std::string::npos);
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
  const Geometry geometry = test::Hnd(1, 1, 1, 1, 128);
  FillPattern(pool, geometry, blocks);
  CHECK_EQ(FindTouched(pool, geometry, blocks), -1);
  CHECK(pool[0] == std::byte{0});
  pool[3 * 128 + 127] ^= std::byte{1};
  CHECK_EQ(FindTouched(pool, geometry, blocks), 3);
  // A block's pattern in another block's place is a change as well.
  memcpy(pool + 128, pool + 3 * 128, 64);
  CHECK_EQ(FindTouched(pool, geometry, blocks), 1);
}

TEST("of a pool whose blocks lie anywhere the pattern is in each element of the block, and nowhere else") {
  // Two layers, two planes of three heads; 5 tokens of 13 bytes, rows padded, planes before blocks.
  Geometry geometry = test::Hnd(2, 2, 3, 5, 13);
  geometry.block_bytes = 0;
  Group& group = geometry.groups[0];
  group.head_stride = 70;
  group.block_stride = 3 * 70;
  group.plane_stride = 4 * group.block_stride;
  group.layers[0].stride = 2 * group.plane_stride + 9;
  const uint64_t bytes = 2 * group.layers[0].stride;
  CHECK_EQ(geometry.OutOfBounds(4, bytes) + geometry.Overlap(4), "");
  std::vector<std::byte> pool(bytes);
  const uint32_t blocks[] = {2, 0};
  FillPattern(pool.data(), geometry, blocks);
  size_t filled = 0;
  for (uint64_t at = 0; at < bytes; ++at) filled += FindChange(pool.data(), geometry, blocks, at) ? 1 : 0;
  CHECK_EQ(filled, 2u * 2 * 2 * 3 * 5 * 13);
  CHECK_EQ(FindTouched(pool.data(), geometry, blocks), -1);
}

KVT_TEST_MAIN
