#include "memory/peer_life.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <utility>

#ifndef SO_PEERPIDFD  // Linux 6.5
#define SO_PEERPIDFD 77
#endif

namespace kvt {

FileDescriptor PeerProcess(int connection, int* pid) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0) *pid = peer.pid;
  int pidfd = -1;
  size = sizeof pidfd;
  if (getsockopt(connection, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) == 0) return FileDescriptor(pidfd);
  if (*pid <= 0) return FileDescriptor();
  return FileDescriptor(static_cast<int>(syscall(SYS_pidfd_open, *pid, 0)));
}

void PeerLife::Connected(int connection) {
  // Ours, so that its number means the same socket whatever the caller closes.
  FileDescriptor own(fcntl(connection, F_DUPFD_CLOEXEC, 0));
  if (!own.ok()) return;
  int pid = 0;
  FileDescriptor process = PeerProcess(own.get(), &pid);
  const std::lock_guard lock(mutex_);
  was_connected_ = true;
  connection_ = std::move(own);
  if (process.ok()) process_ = std::move(process);
}

void PeerLife::Disconnected() {
  const std::lock_guard lock(mutex_);
  connection_.Reset();
}

PeerLife::State PeerLife::Ask() const {
  const std::lock_guard lock(mutex_);
  if (!was_connected_) return State::kAlive;
  // poll() passes over what is not open.
  pollfd polled[] = {{process_.get(), POLLIN, 0}, {connection_.get(), POLLRDHUP, 0}};
  if (poll(polled, 2, 0) > 0) {
    if (polled[0].revents != 0) return State::kDead;
    if (polled[1].revents != 0) return State::kCut;
  }
  return connection_.ok() ? State::kAlive : State::kCut;
}

}  // namespace kvt
