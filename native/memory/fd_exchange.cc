#include "memory/fd_exchange.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <span>

#include "memory/fd_exchange_wire.h"
#include "memory/socket_directory.h"
#include "memory/thread.h"

namespace kvt {
namespace {

constexpr size_t kConnectionsMax = 16;
constexpr BootNanos kConnectionNanos = 1'000 * kNanosPerMilli;

bool SameUser(int fd) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

// Compares without telling by its time how many bytes were right.
bool SameNonce(const Nonce& left, const Nonce& right) {
  uint8_t difference = 0;
  for (size_t index = 0; index < left.size(); ++index) difference |= left[index] ^ right[index];
  return difference == 0;
}

// A read-only view of the same file, so that the peer holds no descriptor that could ever write; without
// /proc the seals alone see to that.
FileDescriptor ReadOnlyView(int fd) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return FileDescriptor(open(path, O_RDONLY | O_CLOEXEC));
}

void SendReply(int connection, const ExchangeReply& reply, std::span<const int> files) {
  ExchangeReply copy = reply;
  iovec part{&copy, sizeof copy};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kFilesPerPacket * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!files.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(files.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(files.size_bytes());
    std::copy_n(reinterpret_cast<const char*>(files.data()), files.size_bytes(),
                reinterpret_cast<char*>(CMSG_DATA(header)));
  }
  // A peer that does not take its answer in an empty socket's buffer is gone; its loss.
  [[maybe_unused]] const ssize_t sent = sendmsg(connection, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace

Result<std::unique_ptr<FdExchange>> FdExchange::Open(Options options) {
  FileDescriptor listener;
  if (!options.directory.empty()) {
    auto prepared = PrepareSocketDirectory(options.directory);
    if (!prepared.ok()) return prepared.error();
    RemoveStaleSockets(options.directory);
    auto listening = ListenIn(options.directory, options.descriptor.socket, kConnectionsMax);
    if (!listening.ok()) return listening.error();
    listener = std::move(listening.value());
  }
  std::unique_ptr<FdExchange> exchange(new FdExchange(std::move(options), std::move(listener)));
  if (!exchange->wake_.ok() || !exchange->Start()) {
    return Error{ErrorCode::kPoolUnavailable, "the system gives no more threads or file descriptors"};
  }
  return exchange;
}

FdExchange::FdExchange(Options options, FileDescriptor listener)
    : options_(std::move(options)),
      socket_path_(options_.directory + "/" + options_.descriptor.socket),
      listener_(std::move(listener)) {
  connections_.reserve(kConnectionsMax);
}

bool FdExchange::Start() {
  auto thread = StartThread("kvt-exchange", [this] { Run(); });
  if (thread) thread_ = std::move(*thread);
  return thread.has_value();
}

FdExchange::~FdExchange() {
  stop_.store(true, std::memory_order_release);
  wake_.Signal();
  if (thread_.joinable()) thread_.join();
  if (listener_.ok()) RemoveSocket(socket_path_);
}

void FdExchange::Watch(uint64_t key, FileDescriptor pidfd) {
  {
    const std::lock_guard lock(watched_mutex_);
    watched_.insert_or_assign(key, std::move(pidfd));
  }
  wake_.Signal();
}

void FdExchange::Unwatch(uint64_t key) {
  {
    const std::lock_guard lock(watched_mutex_);
    watched_.erase(key);
  }
  wake_.Signal();
}

void FdExchange::Run() {
  std::vector<pollfd> polled;
  while (!stop_.load(std::memory_order_acquire)) {
    polled.clear();
    polled.push_back({wake_.get(), POLLIN, 0});
    // Full: the queue of the listener holds the next ones, and their own time runs there.
    const bool accepting = connections_.size() < kConnectionsMax;
    polled.push_back({accepting ? listener_.get() : -1, POLLIN, 0});
    for (const Connection& connection : connections_) polled.push_back({connection.fd.get(), POLLIN, 0});
    {
      const std::lock_guard lock(watched_mutex_);
      for (const auto& [key, pidfd] : watched_) polled.push_back({pidfd.get(), POLLIN, 0});
    }
    BootNanos next = kNever;
    for (const Connection& connection : connections_) next = std::min(next, connection.deadline);
    const BootNanos now = BootNow();
    const int timeout =
        next == kNever ? -1 : static_cast<int>(std::max<BootNanos>(0, next - now) / kNanosPerMilli + 1);
    if (poll(polled.data(), polled.size(), timeout) < 0) continue;
    wake_.Clear();
    const BootNanos after = BootNow();
    const size_t served = connections_.size();
    for (size_t index = served; index-- > 0;) {
      const bool readable = polled[2 + index].revents != 0;
      if (readable) Serve(connections_[index].fd.get());
      if (!readable && connections_[index].deadline > after) continue;
      connections_.erase(connections_.begin() + static_cast<std::ptrdiff_t>(index));
    }
    if (polled[1].revents != 0) Accept();
    ReportDeaths();
  }
}

void FdExchange::Accept() {
  FileDescriptor connection(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!connection.ok() || !SameUser(connection.get())) return;
  connections_.push_back({std::move(connection), BootNow() + kConnectionNanos});
}

void FdExchange::Serve(int fd) const {
  ExchangeRequest request;
  const ssize_t got = recv(fd, &request, sizeof request, MSG_DONTWAIT | MSG_TRUNC);
  const PoolDescriptor& own = options_.descriptor;
  const bool known = got == sizeof request && request.magic == kExchangeMagic &&
                     request.version == kExchangeVersion && request.epoch == own.epoch &&
                     SameNonce(request.nonce, own.nonce);
  if (!known) {
    SendReply(fd, {kExchangeMagic, 0, 0, 0}, {});
    return;
  }
  const PoolFiles& pool = options_.pool;
  const ExchangeReply reply{kExchangeMagic, 1, pool.files.size(), pool.bytes};
  for (size_t from = 0; from < pool.files.size(); from += kFilesPerPacket) {
    const size_t count = std::min(kFilesPerPacket, pool.files.size() - from);
    std::vector<FileDescriptor> views;
    std::vector<int> files;
    for (size_t index = from; index < from + count; ++index) {
      const int file = pool.files[index];
      views.push_back(pool.read_only_views ? ReadOnlyView(file) : FileDescriptor());
      files.push_back(views.back().ok() ? views.back().get() : file);
    }
    SendReply(fd, reply, files);
  }
}

void FdExchange::ReportDeaths() {
  std::vector<uint64_t> dead;
  {
    const std::lock_guard lock(watched_mutex_);
    for (auto entry = watched_.begin(); entry != watched_.end();) {
      pollfd polled{entry->second.get(), POLLIN, 0};
      if (poll(&polled, 1, 0) == 1) {
        dead.push_back(entry->first);
        entry = watched_.erase(entry);
      } else {
        ++entry;
      }
    }
  }
  for (const uint64_t key : dead) options_.on_death(key);
}

}  // namespace kvt
