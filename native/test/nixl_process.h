#pragma once

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "memory/file_descriptor.h"
#include "test/nixl_rig.h"

// A test program that starts itself again as the other side, so that it can be killed and stopped. What it
// has to say comes over its standard output; it works until its standard input ends.
namespace kvt::nixl::test {

inline bool WriteAll(int fd, const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t count = write(fd, at, bytes);
    if (count <= 0) return false;
    at += count;
    bytes -= static_cast<size_t>(count);
  }
  return true;
}

inline bool ReadAll(int fd, void* data, size_t bytes) {
  char* at = static_cast<char*>(data);
  while (bytes > 0) {
    pollfd polled{fd, POLLIN, 0};
    if (poll(&polled, 1, static_cast<int>(kLimit / kNanosPerMilli)) <= 0) return false;
    const ssize_t count = read(fd, at, bytes);
    if (count <= 0) return false;
    at += count;
    bytes -= static_cast<size_t>(count);
  }
  return true;
}

class SelfProcess {
 public:
  explicit SelfProcess(const std::string& argument) {
    int to[2];
    int from[2];
    if (pipe(to) != 0 || pipe(from) != 0) return;
    FileDescriptor child_in(to[0]);
    FileDescriptor child_out(from[1]);
    in_ = FileDescriptor(to[1]);
    out_ = FileDescriptor(from[0]);
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      dup2(child_in.get(), STDIN_FILENO);
      dup2(child_out.get(), STDOUT_FILENO);
      in_.Reset();
      out_.Reset();
      execl("/proc/self/exe", "nixl_test", "--holder", argument.c_str(), nullptr);
      _exit(127);
    }
  }
  ~SelfProcess() { Kill(); }
  SelfProcess(const SelfProcess&) = delete;
  SelfProcess& operator=(const SelfProcess&) = delete;

  bool Read(void* data, size_t bytes) const { return ReadAll(out_.get(), data, bytes); }
  // A blob behind its length.
  bool ReadBlob(std::vector<uint8_t>* blob) const {
    uint64_t bytes = 0;
    if (!Read(&bytes, sizeof bytes) || bytes > 65536) return false;
    blob->resize(bytes);
    return Read(blob->data(), bytes);
  }
  void Send(int signal) const { kill(pid_, signal); }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

 private:
  FileDescriptor in_;
  FileDescriptor out_;
  pid_t pid_ = 0;
};

// In the other side: where to say something. NIXL and UCX write to standard output at times.
inline int TakeOutput() {
  const int out = dup(STDOUT_FILENO);
  dup2(STDERR_FILENO, STDOUT_FILENO);
  return out;
}

inline bool WriteBlob(int fd, const std::vector<uint8_t>& blob) {
  const uint64_t bytes = blob.size();
  return WriteAll(fd, &bytes, sizeof bytes) && WriteAll(fd, blob.data(), bytes);
}

// Until standard input ends; false when nothing came within `millis`.
inline bool InputEnded(int millis) {
  pollfd polled{STDIN_FILENO, POLLIN, 0};
  return poll(&polled, 1, millis) > 0;
}

}  // namespace kvt::nixl::test
