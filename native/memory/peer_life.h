#pragma once

#include <mutex>

#include "memory/file_descriptor.h"

namespace kvt {

// Whether a peer can still answer, as the kernel knows it: its end of the control connection, and on this
// host its process. Asked right before something that may never come back from a dead peer, by whatever
// thread; JavaScript need not run for the answer to be right.
class PeerLife {
 public:
  enum class State {
    kAlive,  // or nothing is known of it
    kCut,    // its connection has ended; another may follow
    kDead,   // its process has ended, for good
  };

  PeerLife() = default;
  PeerLife(const PeerLife&) = delete;
  PeerLife& operator=(const PeerLife&) = delete;

  // A socket that is connected to it. The caller keeps its own, and says before or right after it closes that
  // one: until then the peer doesn't see the end.
  void Connected(int connection);
  void Disconnected();
  // One system call.
  State Ask() const;

 private:
  mutable std::mutex mutex_;
  bool was_connected_ = false;
  FileDescriptor connection_;
  FileDescriptor process_;
};

// Of a unix socket's other end. Prefers the socket's own pidfd: a pid could have been reused, and means
// nothing in another namespace. `pid`: 0 when it is not known.
FileDescriptor PeerProcess(int connection, int* pid);

}  // namespace kvt
