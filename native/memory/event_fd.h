#pragma once

#include <sys/eventfd.h>

#include <cstdint>

#include "memory/file_descriptor.h"

namespace kvt {

// Wakes a thread that sleeps in poll(). Signal() is cheap, never blocks, and may come from any thread.
class EventFd {
 public:
  EventFd() : fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

  int get() const { return fd_.get(); }
  bool ok() const { return fd_.ok(); }

  void Signal() const {
    const uint64_t one = 1;
    // A full counter (EAGAIN) is a signal that is already there.
    [[maybe_unused]] const ssize_t written = write(fd_.get(), &one, sizeof one);
  }
  void Clear() const {
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t got = read(fd_.get(), &count, sizeof count);
  }

 private:
  FileDescriptor fd_;
};

}  // namespace kvt
