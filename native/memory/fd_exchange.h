#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "memory/boot_clock.h"
#include "memory/event_fd.h"
#include "memory/file_descriptor.h"
#include "memory/host_pool.h"
#include "memory/pool_descriptor.h"
#include "memory/result.h"

namespace kvt {

// How an attempt to reach a peer's pool ended: reachStatus of src/native/plane_binding.ts.
enum class ReachStatus {
  kOk = 0,
  kOtherHost = 1,
  kNoSocket = 2,
  kRefused = 3,
  kNotSealed = 4,
  kMapFailed = 5,
  kTimedOut = 6,
  kBadDescriptor = 7,
  kReleased = 8,
  kNoCommonPath = 9,
  kNixlVersions = 10,
  kNixlFailed = 11,
};

// What the exchange hands over: the files of a pool. `owner` keeps them open.
struct PoolFiles {
  std::vector<int> files;
  uint64_t bytes = 0;  // of the pool
  // Peers get descriptors of their own that can't write. Not for what aren't memfds.
  bool read_only_views = true;
  std::shared_ptr<const void> owner;

  static PoolFiles Of(const std::shared_ptr<const HostPool>& pool) {
    PoolFiles all{{}, pool->bytes(), true, pool};
    for (const FileDescriptor& file : pool->files()) all.files.push_back(file.get());
    return all;
  }
};

// Hands this process's pool to peers of the same uid that know nonce and epoch, and watches the processes of
// mapped peers. One thread, asleep unless somebody connects or dies. Limits: 16 connections, 1 s each.
// Without a directory it only watches.
class FdExchange {
 public:
  struct Options {
    std::string directory;
    PoolDescriptor descriptor;  // nonce and epoch that a peer must present
    PoolFiles pool;
    // Called on the exchange's thread.
    std::function<void(uint64_t key)> on_death;
  };

  static Result<std::unique_ptr<FdExchange>> Open(Options options);
  ~FdExchange();
  FdExchange(const FdExchange&) = delete;
  FdExchange& operator=(const FdExchange&) = delete;

  // `key` comes back once at on_death. Any thread.
  void Watch(uint64_t key, FileDescriptor pidfd);
  void Unwatch(uint64_t key);

 private:
  struct Connection {
    FileDescriptor fd;
    BootNanos deadline = 0;
  };

  FdExchange(Options options, FileDescriptor listener);
  bool Start();
  void Run();
  void Accept();
  void Serve(int fd) const;
  void ReportDeaths();

  const Options options_;
  const std::string socket_path_;
  FileDescriptor listener_;
  EventFd wake_;
  std::atomic<bool> stop_{false};
  std::vector<Connection> connections_;
  std::mutex watched_mutex_;
  std::unordered_map<uint64_t, FileDescriptor> watched_;
  std::thread thread_;  // last: it uses all of the above
};

// The process at the other end of an exchange.
struct PeerIdentity {
  FileDescriptor pidfd;  // not ok when the kernel can't name it
  int64_t pid = 0;       // as this process's namespace names it, 0 when unknown
};

// A peer's pool, mapped read-only for as long as this lives.
struct PeerPool {
  PoolDescriptor descriptor;
  Mapping mapping;
  PeerIdentity process;

  const std::byte* data() const { return mapping.data(); }
};

struct Reached {
  ReachStatus status = ReachStatus::kOk;
  std::shared_ptr<PeerPool> pool;
};

// What a peer gave for its descriptor.
struct AskedPool {
  ReachStatus status = ReachStatus::kOk;
  std::vector<FileDescriptor> files;  // as many as the descriptor's regions are in
  PeerIdentity process;
};

// Asks for the files of the peer's pool. Blocks as ReachPool does.
AskedPool AskForPool(const PoolDescriptor& descriptor, const std::string& own_directory,
                     const std::atomic<bool>& stop, BootNanos deadline);

// Asks for the peer's pool and maps it. Blocks, at most until the deadline or `stop`: for threads of its own.
// `own_directory` is looked into before the one that the descriptor names; may be empty.
Reached ReachPool(std::span<const uint8_t> descriptor, const std::string& own_directory,
                  const std::atomic<bool>& stop, BootNanos deadline);

}  // namespace kvt
