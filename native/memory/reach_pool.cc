#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "memory/fd_exchange.h"
#include "memory/fd_exchange_wire.h"
#include "memory/peer_life.h"
#include "memory/socket_directory.h"

namespace kvt {
namespace {

// Between two looks at `stop`: close() and process exit wait for this at most.
constexpr int kStepMillis = 50;

class Deadline {
 public:
  Deadline(const std::atomic<bool>& stop, BootNanos at) : stop_(stop), at_(at) {}

  bool Over() const { return stop_.load(std::memory_order_relaxed) || BootNow() >= at_; }
  int StepMillis() const {
    const BootNanos left = at_ - BootNow();
    return static_cast<int>(std::clamp<BootNanos>(left / kNanosPerMilli, 1, kStepMillis));
  }

 private:
  const std::atomic<bool>& stop_;
  const BootNanos at_;
};

ReachStatus StatusOfConnect(int error) {
  switch (error) {
    case EACCES:
    case EPERM:
      return ReachStatus::kRefused;
    default:
      return ReachStatus::kNoSocket;
  }
}

// A listener whose queue is full is alive: try again until the deadline.
Result<FileDescriptor> ConnectUntil(const std::string& path, const Deadline& deadline, ReachStatus* status) {
  for (;;) {
    FileDescriptor connection = ConnectTo(path);
    if (connection.ok()) return connection;
    if (errno != EAGAIN) {
      *status = StatusOfConnect(errno);
      return Error{};
    }
    *status = ReachStatus::kTimedOut;
    if (deadline.Over()) return Error{};
    poll(nullptr, 0, 1);
  }
}

Result<FileDescriptor> ConnectToPeer(const PoolDescriptor& descriptor, const std::string& own_directory,
                                     const Deadline& deadline, ReachStatus* status) {
  *status = ReachStatus::kNoSocket;
  const std::string directories[] = {own_directory, descriptor.directory};
  for (const std::string& directory : directories) {
    if (directory.empty() || descriptor.socket.empty()) continue;
    auto connection = ConnectUntil(directory + "/" + descriptor.socket, deadline, status);
    if (connection.ok()) return connection;
    if (*status != ReachStatus::kNoSocket) return connection;
  }
  return Error{};
}

bool Ask(int fd, const PoolDescriptor& descriptor) {
  const ExchangeRequest request{kExchangeMagic, kExchangeVersion, descriptor.epoch, descriptor.nonce};
  return send(fd, &request, sizeof request, MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof request;
}

bool WaitReadable(int fd, const Deadline& deadline) {
  while (!deadline.Over()) {
    pollfd polled{fd, POLLIN, 0};
    if (poll(&polled, 1, deadline.StepMillis()) == 1) return true;
  }
  return false;
}

// Adds the files that came with one packet of the answer; false when it is none or refuses.
bool TakePacket(int fd, ExchangeReply* reply, std::vector<FileDescriptor>* files) {
  iovec part{reply, sizeof *reply};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kFilesPerPacket * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  const size_t before = files->size();
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); got > 0 && header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t index = 0; index < count; ++index) {
      int passed = -1;
      memcpy(&passed, CMSG_DATA(header) + index * sizeof passed, sizeof passed);
      files->emplace_back(passed);
    }
  }
  return got == sizeof *reply && reply->magic == kExchangeMagic && reply->accepted == 1 &&
         files->size() > before && files->size() <= reply->files;
}

ReachStatus TakeAnswer(int fd, const Deadline& deadline, ExchangeReply* reply,
                       std::vector<FileDescriptor>* files) {
  do {
    if (!WaitReadable(fd, deadline)) return ReachStatus::kTimedOut;
    if (!TakePacket(fd, reply, files)) return ReachStatus::kRefused;
  } while (files->size() < reply->files);
  return ReachStatus::kOk;
}

bool ServedBySameUser(int fd) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

ReachStatus MapPool(const std::vector<FileDescriptor>& files, const std::atomic<bool>& stop, BootNanos at,
                    PeerPool* pool) {
  const PoolDescriptor& descriptor = pool->descriptor;
  std::vector<uint64_t> sizes;
  for (const FileDescriptor& file : files) {
    if (!HasPoolSeals(file.get())) return ReachStatus::kNotSealed;
    struct stat status {};
    if (fstat(file.get(), &status) != 0) return ReachStatus::kMapFailed;
    sizes.push_back(static_cast<uint64_t>(status.st_size));
  }
  std::vector<MappedRegion> regions;
  for (const auto& [file, offset, bytes] : descriptor.regions) {
    // Checked against the file itself, which the seals keep at this size: no access can fault.
    if (offset > sizes[file] || bytes > sizes[file] - offset) return ReachStatus::kBadDescriptor;
    regions.push_back({files[file].get(), offset, bytes});
  }
  pool->mapping = Mapping(regions, Mapping::Access::kRead);
  if (!pool->mapping.ok()) return ReachStatus::kMapFailed;
  pool->mapping.AdviseHugePages();
  // What is not faulted in when time is up, or on an old kernel, is at its first use.
  pool->mapping.Populate(false, stop, at);
  return ReachStatus::kOk;
}

}  // namespace

AskedPool AskForPool(const PoolDescriptor& descriptor, const std::string& own_directory,
                     const std::atomic<bool>& stop, BootNanos at) {
  AskedPool asked;
  const auto failed = [&asked](ReachStatus status) {
    asked.status = status;
    return std::move(asked);
  };
  const BootId own_boot = ReadBootId();
  const BootId unknown{};
  if (own_boot != unknown && descriptor.boot_id != unknown && own_boot != descriptor.boot_id) {
    return failed(ReachStatus::kOtherHost);
  }
  const Deadline deadline(stop, at);
  ReachStatus status = ReachStatus::kOk;
  auto connected = ConnectToPeer(descriptor, own_directory, deadline, &status);
  if (!connected.ok()) return failed(status);
  const int fd = connected.value().get();
  if (!ServedBySameUser(fd)) return failed(ReachStatus::kRefused);
  if (!Ask(fd, descriptor)) return failed(ReachStatus::kRefused);
  ExchangeReply reply;
  status = TakeAnswer(fd, deadline, &reply, &asked.files);
  if (status != ReachStatus::kOk) return failed(status);
  if (asked.files.size() != FilesOf(descriptor.regions) || reply.bytes < descriptor.bytes) {
    return failed(ReachStatus::kBadDescriptor);
  }
  int pid = 0;
  asked.process.pidfd = PeerProcess(fd, &pid);
  asked.process.pid = pid;
  return asked;
}

Reached ReachPool(std::span<const uint8_t> bytes, const std::string& own_directory,
                  const std::atomic<bool>& stop, BootNanos at) {
  const auto descriptor = DecodeDescriptor(bytes);
  if (!descriptor) return {ReachStatus::kBadDescriptor, nullptr};
  AskedPool asked = AskForPool(*descriptor, own_directory, stop, at);
  if (asked.status != ReachStatus::kOk) return {asked.status, nullptr};
  auto pool = std::make_shared<PeerPool>();
  pool->descriptor = *descriptor;
  pool->process = std::move(asked.process);
  const ReachStatus status = MapPool(asked.files, stop, at, pool.get());
  if (status != ReachStatus::kOk) return {status, nullptr};
  return {ReachStatus::kOk, std::move(pool)};
}

}  // namespace kvt
