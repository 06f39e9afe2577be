#pragma once

#include <pthread.h>

#include <csignal>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

namespace kvt {

// A named thread that takes no signals: they belong to Node's own threads. Nothing when the system gives no
// more threads.
template <typename Body>
std::optional<std::thread> StartThread(const char* name, Body body) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::optional<std::thread> thread;
  try {
    thread.emplace([name, run = std::move(body)]() mutable {
      pthread_setname_np(pthread_self(), name);
      run();
    });
  } catch (const std::system_error&) {
    thread.reset();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

}  // namespace kvt
