// What the kernel tells of a peer: its end of a connection, and its process.
#include "memory/peer_life.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "test/check.h"

namespace {

using namespace kvt;  // NOLINT: a test
using State = PeerLife::State;

struct Pair {
  Pair() { CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0); }
  ~Pair() {
    for (const int end : ends) {
      if (end >= 0) close(end);
    }
  }
  void Close(int end) {
    close(ends[end]);
    ends[end] = -1;
  }

  int ends[2];
};

}  // namespace

TEST("a peer of which nothing is known counts as alive") {
  PeerLife life;
  CHECK(life.Ask() == State::kAlive);
  life.Disconnected();
  CHECK(life.Ask() == State::kAlive);
  life.Connected(-1);
  CHECK(life.Ask() == State::kAlive);
}

TEST("the end of a connection is seen at once, also behind bytes that nobody has read") {
  PeerLife life;
  Pair pair;
  life.Connected(pair.ends[0]);
  CHECK(life.Ask() == State::kAlive);
  CHECK(write(pair.ends[1], "frame", 5) == 5);
  CHECK(life.Ask() == State::kAlive);
  pair.Close(1);
  CHECK(life.Ask() == State::kCut);
  Pair next;
  life.Connected(next.ends[0]);
  CHECK(life.Ask() == State::kAlive);
  life.Disconnected();
  CHECK(life.Ask() == State::kCut);
}

TEST("a connection that this side has given up is closed for the peer") {
  PeerLife life;
  Pair pair;
  life.Connected(pair.ends[0]);
  pair.Close(0);
  pollfd polled{pair.ends[1], POLLIN | POLLRDHUP, 0};
  CHECK(poll(&polled, 1, 0) == 0);
  life.Disconnected();
  CHECK(poll(&polled, 1, 0) == 1);
}

TEST("a process that was killed stays dead, whatever its connections") {
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // Of the abstract namespace: nothing to remove.
  const std::string name = "kvt-peer-life-" + std::to_string(getpid());
  memcpy(address.sun_path + 1, name.data(), name.size());
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  int ready[2];
  CHECK(pipe(ready) == 0);
  const pid_t child = fork();
  if (child == 0) {
    // The process that listens is the peer.
    const bool listens = bind(listener, reinterpret_cast<sockaddr*>(&address), size) == 0;
    if (!listens || listen(listener, 4) != 0 || write(ready[1], "x", 1) != 1) _exit(1);
    for (;;) pause();
  }
  char byte = 0;
  CHECK(read(ready[0], &byte, 1) == 1);
  const int own = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(connect(own, reinterpret_cast<sockaddr*>(&address), size) == 0);
  PeerLife life;
  life.Connected(own);
  CHECK(life.Ask() == State::kAlive);
  kill(child, SIGSTOP);
  CHECK(life.Ask() == State::kAlive);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  CHECK(life.Ask() == State::kDead);
  Pair pair;
  life.Disconnected();
  CHECK(life.Ask() == State::kDead);
  for (const int fd : {listener, own, ready[0], ready[1]}) close(fd);
}

int main(int argc, char** argv) { return kvt::test::RunAll(argc, argv); }
