#include "memory/fd_exchange.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <condition_variable>
#include <cstdlib>
#include <filesystem>

#include "check.h"
#include "geometries.h"
#include "memory/fd_exchange_wire.h"
#include "memory/socket_directory.h"

using namespace kvt;

namespace {

const std::atomic<bool> kRunOn{false};

struct Directory {
  Directory() {
    char name[] = "/tmp/kvt-test-XXXXXX";
    path = mkdtemp(name);
  }
  ~Directory() { std::filesystem::remove_all(path); }
  std::string path;
};

struct Host {
  explicit Host(const std::string& directory) {
    pool = HostPool::Create(kBytes, kRunOn).value();
    for (size_t index = 0; index < kBytes; ++index)
      pool->data()[index] = static_cast<std::byte>(index * 31 >> 3);
    descriptor.boot_id = ReadBootId();
    descriptor.nonce.fill(0x42);
    descriptor.epoch = 0x1122334455667788;
    descriptor.geometry = test::Hnd(2, 2, 2, 16, 64);
    descriptor.blocks = static_cast<uint32_t>(kBytes / descriptor.geometry.BlockBytes());
    descriptor.bytes = descriptor.blocks * descriptor.geometry.BlockBytes();
    descriptor.regions = {{0, 0, descriptor.bytes}};
    descriptor.directory = directory;
    descriptor.socket = std::string(kSocketPrefix) + "1.sock";
    exchange = FdExchange::Open({directory, descriptor, PoolFiles::Of(pool),
                                 [this](uint64_t key) {
                                   const std::lock_guard lock(mutex);
                                   dead = key;
                                   died.notify_all();
                                 }})
                   .value()
                   .release();
  }
  ~Host() { delete exchange; }

  static constexpr size_t kBytes = size_t{3} << 20;
  std::shared_ptr<HostPool> pool;
  PoolDescriptor descriptor;
  FdExchange* exchange = nullptr;
  std::mutex mutex;
  std::condition_variable died;
  uint64_t dead = 0;
};

BootNanos In(int64_t millis) { return BootNow() + millis * kNanosPerMilli; }

Reached ReachAs(const PoolDescriptor& descriptor, const std::string& own = "", int64_t millis = 5'000) {
  return ReachPool(*EncodeDescriptor(descriptor), own, kRunOn, In(millis));
}

// A peer process that lies: accepts one connection and answers with a file of its own making.
template <typename Answer>
void ServeOnce(const std::string& directory, const std::string& name, Answer answer) {
  FileDescriptor listener = std::move(ListenIn(directory, name, 4).value());
  fcntl(listener.get(), F_SETFL, 0);
  const FileDescriptor connection(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  ExchangeRequest request;
  [[maybe_unused]] const ssize_t got = recv(connection.get(), &request, sizeof request, 0);
  answer(connection.get());
}

void AnswerWithFile(int connection, int file, uint64_t bytes) {
  ExchangeReply reply{kExchangeMagic, 1, 1, bytes};
  iovec part{&reply, sizeof reply};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &file, sizeof file);
  sendmsg(connection, &message, MSG_NOSIGNAL);
}

ReachStatus ReachLiar(int seals, uint64_t file_bytes) {
  const Directory directory;
  Host honest(directory.path);
  PoolDescriptor descriptor = honest.descriptor;
  descriptor.socket = std::string(kSocketPrefix) + "liar.sock";
  std::thread liar([&] {
    ServeOnce(directory.path, descriptor.socket, [&](int connection) {
      const FileDescriptor file(memfd_create("liar", MFD_CLOEXEC | MFD_ALLOW_SEALING));
      CHECK_EQ(ftruncate(file.get(), static_cast<off_t>(file_bytes)), 0);
      if (seals != 0) CHECK_EQ(fcntl(file.get(), F_ADD_SEALS, seals), 0);
      AnswerWithFile(connection, file.get(), Host::kBytes);
    });
  });
  Reached reached = ReachAs(descriptor);
  while (reached.status == ReachStatus::kNoSocket) reached = ReachAs(descriptor);
  liar.join();
  return reached.status;
}

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE;

}  // namespace

TEST("a peer with nonce and epoch maps the pool read-only and sees its bytes") {
  const Directory directory;
  Host host(directory.path);
  const Reached reached = ReachAs(host.descriptor);
  CHECK(reached.status == ReachStatus::kOk);
  const size_t bytes = host.descriptor.blocks * host.descriptor.geometry.BlockBytes();
  CHECK_EQ(memcmp(reached.pool->data(), host.pool->data(), bytes), 0);
  CHECK(mprotect(const_cast<std::byte*>(reached.pool->data()), 4096, PROT_READ | PROT_WRITE) != 0);
  CHECK(reached.pool->process.pidfd.ok());
  CHECK_EQ(reached.pool->process.pid, getpid());
}

TEST("nobody can map a pool writable, nor write it, nor resize it through its descriptor") {
  auto pool = HostPool::Create(size_t{1} << 20, kRunOn).value();
  void* mapped = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, pool->files()[0].get(), 0);
  CHECK(mapped == MAP_FAILED);
  CHECK_EQ(errno, EPERM);
  CHECK_EQ(pwrite(pool->files()[0].get(), "x", 1, 0), -1);
  CHECK_EQ(errno, EPERM);
  CHECK_EQ(ftruncate(pool->files()[0].get(), 4096), -1);
  CHECK_EQ(fcntl(pool->files()[0].get(), F_ADD_SEALS, F_SEAL_WRITE), -1);
  CHECK_EQ(reinterpret_cast<uintptr_t>(pool->data()) % kHugePageBytes, 0u);
}

TEST("a pool of more files than one packet carries is mapped whole, region behind region") {
  constexpr size_t kFiles = 2 * kFilesPerPacket + 44;
  const Directory directory;
  std::vector<FileDescriptor> files;
  std::vector<MappedRegion> regions;
  for (size_t index = 0; index < kFiles; ++index) {
    files.emplace_back(memfd_create("layer", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    CHECK_EQ(ftruncate(files.back().get(), 8192), 0);
    regions.push_back({files.back().get(), index % 2 * 4096, 4096});
  }
  auto pool = HostPool::Adopt(regions, kRunOn).value();
  PoolDescriptor descriptor;
  descriptor.boot_id = ReadBootId();
  descriptor.geometry = test::Hnd(1, 1, 1, 1, 4096);
  descriptor.blocks = kFiles;
  descriptor.bytes = pool->bytes();
  descriptor.regions = pool->regions();
  descriptor.directory = directory.path;
  descriptor.socket = std::string(kSocketPrefix) + "many.sock";
  const auto exchange =
      std::move(FdExchange::Open({directory.path, descriptor, PoolFiles::Of(pool), [](uint64_t) {}}).value());
  for (size_t index = 0; index < kFiles; ++index) {
    memset(pool->data() + index * 4096, static_cast<int>(index % 251), 4096);
  }
  const Reached reached = ReachAs(descriptor);
  CHECK(reached.status == ReachStatus::kOk);
  CHECK_EQ(reached.pool->mapping.bytes(), kFiles * 4096);
  CHECK_EQ(memcmp(reached.pool->data(), pool->data(), kFiles * 4096), 0);
  // It asks for a file more than there are.
  descriptor.regions.back().file++;
  CHECK(ReachAs(descriptor).status == ReachStatus::kBadDescriptor);
}

TEST("a wrong nonce, a wrong epoch, or garbage gets no file") {
  const Directory directory;
  Host host(directory.path);
  PoolDescriptor wrong = host.descriptor;
  wrong.nonce[15] ^= 1;
  CHECK(ReachAs(wrong).status == ReachStatus::kRefused);
  wrong = host.descriptor;
  wrong.epoch ^= 1;
  CHECK(ReachAs(wrong).status == ReachStatus::kRefused);
  const FileDescriptor raw = ConnectTo(directory.path + "/" + host.descriptor.socket);
  CHECK_EQ(send(raw.get(), "hello", 5, MSG_NOSIGNAL), 5);
  fcntl(raw.get(), F_SETFL, 0);
  ExchangeReply reply;
  CHECK_EQ(recv(raw.get(), &reply, sizeof reply, 0), static_cast<ssize_t>(sizeof reply));
  CHECK_EQ(reply.accepted, 0u);
  CHECK(ReachAs(host.descriptor).status == ReachStatus::kOk);
}

TEST("another user gets no file even where it may enter the directory") {
  if (geteuid() != 0) {
    std::printf("skipped: only root can become another user\n");
    return;
  }
  const Directory directory;
  Host host(directory.path);
  chmod(directory.path.c_str(), 0777);
  chmod((directory.path + "/" + host.descriptor.socket).c_str(), 0777);
  const pid_t child = fork();
  if (child == 0) {
    if (setuid(65534) != 0) _exit(99);
    _exit(static_cast<int>(ReachAs(host.descriptor).status));
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK_EQ(WEXITSTATUS(status), static_cast<int>(ReachStatus::kRefused));
}

TEST("a file without the seals, or shorter than it claims, is not mapped") {
  CHECK(ReachLiar(0, Host::kBytes) == ReachStatus::kNotSealed);
  CHECK(ReachLiar(F_SEAL_SHRINK | F_SEAL_GROW, Host::kBytes) == ReachStatus::kNotSealed);
  CHECK(ReachLiar(kSeals, Host::kBytes / 2) == ReachStatus::kBadDescriptor);
  CHECK(ReachLiar(kSeals, Host::kBytes) == ReachStatus::kOk);
}

TEST("descriptors of another host, of nobody, and cut or changed ones are told apart") {
  const Directory directory;
  Host host(directory.path);
  PoolDescriptor elsewhere = host.descriptor;
  elsewhere.boot_id[3] ^= 1;
  CHECK(ReachAs(elsewhere).status == ReachStatus::kOtherHost);
  PoolDescriptor nobody = host.descriptor;
  nobody.socket = std::string(kSocketPrefix) + "gone.sock";
  CHECK(ReachAs(nobody).status == ReachStatus::kNoSocket);
  nobody.socket = "";
  nobody.directory = "";
  CHECK(ReachAs(nobody, directory.path).status == ReachStatus::kNoSocket);
  const auto bytes = *EncodeDescriptor(host.descriptor);
  for (size_t size = 0; size < bytes.size(); ++size) {
    CHECK(ReachPool({bytes.data(), size}, "", kRunOn, In(100)).status == ReachStatus::kBadDescriptor);
  }
  for (size_t at = 0; at < bytes.size(); ++at) {
    auto changed = bytes;
    changed[at] ^= 0xff;
    // Whatever it asks for now, it must not map memory that the answer does not hold.
    const Reached reached = ReachPool(changed, "", kRunOn, In(1'000));
    if (reached.status != ReachStatus::kOk) continue;
    const PoolDescriptor& taken = reached.pool->descriptor;
    CHECK(reached.pool->mapping.bytes() <= (size_t{4} << 20));
    CHECK_EQ(taken.geometry.OutOfBounds(taken.blocks, reached.pool->mapping.bytes()), "");
  }
}

TEST("a descriptor comes back as it was, and one whose places lie outside its pool is not understood") {
  PoolDescriptor descriptor;
  descriptor.geometry = test::Nhd(3, 2, 2, 16, 64, 1, 4);
  descriptor.geometry.groups.push_back(test::Hnd(1, 1, 1, 16, 8).groups[0]);
  Group& scales = descriptor.geometry.groups[1];
  scales.layers.clear();
  for (const uint32_t layer : {0U, 2U, 4U, 5U})
    AddLayer(&scales.layers, layer, 300'000 + layer * layer * 2'000);
  scales.per_block = true;
  scales.replicated = true;
  scales.window = 77;
  descriptor.blocks = 7;
  descriptor.bytes = 400'000;
  descriptor.regions = {{1, 8192, 300'000}, {0, 0, 100'000}};
  descriptor.socket = "a.sock";
  const auto bytes = EncodeDescriptor(descriptor);
  CHECK(bytes.has_value());
  const auto decoded = DecodeDescriptor(*bytes);
  CHECK(decoded.has_value());
  descriptor.geometry.block_bytes = 0;  // how a pool allocates is its own affair
  CHECK(decoded->geometry == descriptor.geometry);
  CHECK_EQ(decoded->bytes, descriptor.bytes);
  CHECK(decoded->regions == descriptor.regions);
  for (const uint64_t stride : {uint64_t{400'000}, UINT64_MAX, UINT64_MAX / 6, uint64_t{1} << 60}) {
    PoolDescriptor hostile = descriptor;
    hostile.geometry.groups[0].block_stride = stride;
    CHECK(!DecodeDescriptor(*EncodeDescriptor(hostile)).has_value());
    hostile = descriptor;
    hostile.geometry.groups[1].layers[0].base = stride;
    CHECK(!DecodeDescriptor(*EncodeDescriptor(hostile)).has_value());
  }
  for (const std::vector<PoolRegion>& regions : {std::vector<PoolRegion>{},
                                                 {{0, 0, 399'999}},
                                                 {{0, 0, 400'000}, {1, 0, 0}},
                                                 {{0, 0, 400'001}},
                                                 {{0, UINT64_MAX, 400'000}},
                                                 {{kRegionsMax, 0, 400'000}}}) {
    PoolDescriptor hostile = descriptor;
    hostile.regions = regions;
    CHECK(!DecodeDescriptor(*EncodeDescriptor(hostile)).has_value());
  }
  descriptor.bytes = UINT64_MAX;
  CHECK(!DecodeDescriptor(*EncodeDescriptor(descriptor)).has_value());
}

TEST("a peer looks in its own directory first: containers mount the same one elsewhere") {
  const Directory directory;
  Host host(directory.path);
  PoolDescriptor moved = host.descriptor;
  moved.directory = "/nowhere/at/all";
  CHECK(ReachAs(moved, directory.path).status == ReachStatus::kOk);
}

TEST("a silent listener costs its time limit, and stop ends the wait early") {
  const Directory directory;
  Host host(directory.path);
  PoolDescriptor silent = host.descriptor;
  silent.socket = std::string(kSocketPrefix) + "silent.sock";
  const FileDescriptor listener = std::move(ListenIn(directory.path, silent.socket, 4).value());
  const BootNanos before = BootNow();
  CHECK(ReachAs(silent, "", 120).status == ReachStatus::kTimedOut);
  CHECK(BootNow() - before >= 120 * kNanosPerMilli);
  const std::atomic<bool> stopped{true};
  CHECK(ReachPool(*EncodeDescriptor(silent), "", stopped, In(60'000)).status == ReachStatus::kTimedOut);
}

TEST("connections that say nothing are closed, and more than the limit do not lock others out") {
  const Directory directory;
  Host host(directory.path);
  std::vector<FileDescriptor> idle;
  for (int count = 0; count < 40; ++count) {
    FileDescriptor connection = ConnectTo(directory.path + "/" + host.descriptor.socket);
    if (connection.ok()) idle.push_back(std::move(connection));
  }
  CHECK(idle.size() >= 16);
  CHECK(ReachAs(host.descriptor, "", 20'000).status == ReachStatus::kOk);
}

TEST("sockets of dead processes are removed, those of live ones and other files stay") {
  const Directory directory;
  Host host(directory.path);
  const std::string stale = directory.path + "/" + kSocketPrefix + "stale.sock";
  const std::string other = directory.path + "/control.sock";
  const pid_t child = fork();
  if (child == 0) {
    auto listener = ListenIn(directory.path, std::string(kSocketPrefix) + "stale.sock", 4);
    // The end of a process that was killed: its file stays.
    _exit(listener.ok() ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK_EQ(status, 0);
  CHECK(std::filesystem::exists(stale));
  close(open(other.c_str(), O_CREAT | O_CLOEXEC, 0600));
  RemoveStaleSockets(directory.path);
  CHECK(!std::filesystem::exists(stale));
  CHECK(std::filesystem::exists(other));
  CHECK(ReachAs(host.descriptor).status == ReachStatus::kOk);
}

TEST("a directory that others could use is refused, a missing one is made for us alone") {
  const Directory directory;
  const std::string open_to_all = directory.path + "/open";
  mkdir(open_to_all.c_str(), 0700);
  chmod(open_to_all.c_str(), 0755);
  CHECK(!PrepareSocketDirectory(open_to_all).ok());
  const std::string link = directory.path + "/link";
  CHECK_EQ(symlink(directory.path.c_str(), link.c_str()), 0);
  CHECK(!PrepareSocketDirectory(link).ok());
  const std::string deep = directory.path + "/a/b";
  CHECK(PrepareSocketDirectory(deep).ok());
  struct stat made {};
  CHECK_EQ(lstat(deep.c_str(), &made), 0);
  CHECK_EQ(made.st_mode & 0777, 0700u);
  CHECK(!ListenIn(directory.path + "/" + std::string(120, 'x'), "name", 4).ok());
}

// ThreadSanitizer can't start threads in a child of a process that has threads.
#ifndef __SANITIZE_THREAD__
TEST("the death of a peer's process is told once, by its pidfd") {
  const Directory directory;
  Host host(directory.path);
  int ready[2];
  CHECK_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    PoolDescriptor own = host.descriptor;
    own.socket = std::string(kSocketPrefix) + "child.sock";
    auto exchange = FdExchange::Open({directory.path, own, PoolFiles::Of(host.pool), [](uint64_t) {}});
    if (exchange.ok()) [[maybe_unused]]
      const ssize_t told = write(ready[1], "r", 1);
    pause();
  }
  char letter = 0;
  CHECK_EQ(read(ready[0], &letter, 1), 1);
  PoolDescriptor descriptor = host.descriptor;
  descriptor.socket = std::string(kSocketPrefix) + "child.sock";
  Reached reached = ReachAs(descriptor);
  CHECK(reached.status == ReachStatus::kOk);
  CHECK_EQ(reached.pool->process.pid, child);
  host.exchange->Watch(77, std::move(reached.pool->process.pidfd));
  kill(child, SIGKILL);
  {
    std::unique_lock lock(host.mutex);
    host.died.wait(lock, [&] { return host.dead == 77; });
  }
  waitpid(child, nullptr, 0);
  // The mapping outlives the process: what it had granted can still be read.
  CHECK_EQ(memcmp(reached.pool->data(), host.pool->data(), 4096), 0);
  close(ready[0]);
  close(ready[1]);
}
#endif

KVT_TEST_MAIN
