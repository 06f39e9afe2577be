#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "cuda/device_pool.h"
#include "dataplane/command_stack.h"
#include "dataplane/completion_ring.h"
#include "dataplane/dispatcher.h"
#include "layout/geometry.h"
#include "memory/file_descriptor.h"
#include "memory/host_pool.h"
#include "memory/result.h"
#include "memory/sleeper.h"
#include "paths/copy_crew.h"
#include "paths/digests.h"
#include "paths/nixl_agents.h"
#include "paths/nixl_worker.h"
#include "paths/path.h"

namespace kvt {

// One pool and its one owner thread (design.md section 7). The owner opens the pool, decides everything
// through the Dispatcher, and sleeps when there is nothing to do. Budget of a job: one allocation for its
// command, one wake-up of the owner, one of JavaScript; no lock is held while bytes move.
class DataPlane {
 public:
  struct Adoption {
    FileDescriptor fd;
    size_t offset = 0;
    size_t bytes = 0;
  };
  struct Nixl {
    std::string library;  // absolute path
    std::string plugin;
    bool direct = true;  // peers may read the pool itself
    std::optional<StagingOptions> staging;
  };
  struct Gpu {
    int device = 0;                // as this process counts
    unsigned multiprocessors = 0;  // that a transfer may fill
  };
  struct Options {
    Geometry geometry;
    uint32_t blocks = 0;
    // The pool lies there, and not in memory of the host. Only peers with a pool on a GPU of this host read
    // it.
    std::optional<Gpu> gpu;
    std::vector<Adoption> adopt;   // somebody else's memory, region behind region; empty: the pool is our own
    std::string socket_directory;  // empty: peers can't map this pool
    // Peers that share this host are read through a mapping of their pool; false: they are not.
    bool shared_memory = true;
    std::optional<Nixl> nixl;  // for the others
    uint64_t epoch = 0;
    CopyCrew* crew = nullptr;
    // How long the owner polls after it has done something, and when it was told that a job comes, before it
    // sleeps. A wake-up costs as much as a small job; nothing polls where no core is to spare.
    BootNanos hot = HotNanos();

    uint64_t PoolBytes() const {
      uint64_t bytes = adopt.empty() ? geometry.BlockBytes() * blocks : 0;
      for (const Adoption& region : adopt) bytes += region.bytes;
      return bytes;
    }
  };
  enum class Phase { kOpening, kOpen, kFailed, kClosed };

  // Default of Options::hot on this machine.
  static BootNanos HotNanos();

  // `notify` is called on the owner thread when the phase changed or completions lie in the ring.
  static Result<std::unique_ptr<DataPlane>> Start(Options options, std::function<void()> notify);
  // Ends everything now, whatever runs: waits for copy slices, not for whole jobs or for JavaScript.
  ~DataPlane();
  DataPlane(const DataPlane&) = delete;
  DataPlane& operator=(const DataPlane&) = delete;

  // Ends and joins the owner; idempotent. The pool stays mapped until the destructor. JS thread.
  void Stop();

  Phase phase() const { return phase_.load(std::memory_order_acquire); }
  // From kOpen on: one of the two.
  const std::shared_ptr<HostPool>& pool() const { return pool_; }
  const std::shared_ptr<cuda::DevicePool>& gpu_pool() const { return gpu_pool_; }
  std::vector<uint8_t> descriptor() const;
  // Of the NIXL agents.
  NixlAgentsReport::State nixl_report() const { return nixl_report_->Get(); }
  // At kFailed.
  const Error& error() const { return error_; }
  const Options& options() const { return options_; }

  // JS thread; never blocks. A lease or timer that is dropped, or is due later than the owner sleeps anyway,
  // costs no wake-up: each transfer has some, and almost none ever ends by itself.
  void Submit(Command command);
  // Between the two, nobody is woken for what is submitted: one wake-up, if any is due, at the end.
  void Cork() { corked_ = true; }
  void Uncork();
  size_t Take(std::span<Record> records);
  bool HasCompletions() const { return ring_.Size() > 0; }
  // After its kDigested, once.
  std::vector<Digest> TakeDigests(uint64_t id) { return digests_->Take(id); }
  const Statistics& statistics() const { return statistics_; }
  size_t RingHighWater() const { return ring_.HighWater(); }

 private:
  DataPlane(Options options, std::function<void()> notify);
  void Run();
  Result<bool> Open();
  Result<std::unique_ptr<NixlAgents>> OpenNixl(uint64_t number);
  std::optional<Error> OpenHostPool(PoolDescriptor* own);
  std::optional<Error> OpenGpuPool();
  std::optional<Error> OpenPaths(const PoolDescriptor& own, uint64_t number);
  void Serve();
  bool DrainPath(Dispatcher* dispatcher);
  void Apply(Dispatcher* dispatcher, Command command);
  bool Flush(Dispatcher* dispatcher);
  bool NeedsOwner(Command::Kind kind, BootNanos when);
  void Arm(BootNanos until);
  // Until somebody has something for the owner; false when nobody had within the time.
  bool Poll(BootNanos until) const;
  void Sleep();

  Options options_;
  const std::function<void()> notify_;
  const std::shared_ptr<Sleeper> sleeper_;
  FileDescriptor timer_;
  // When the sleeping owner wakes by itself.
  std::atomic<BootNanos> armed_{kNever};
  std::atomic<uint32_t> unsignalled_{0};
  // Of the JS thread.
  bool corked_ = false;
  bool owes_wake_ = false;
  CommandStack commands_;
  CompletionRing ring_;
  Statistics statistics_;
  std::atomic<bool> stop_{false};
  std::atomic<Phase> phase_{Phase::kOpening};
  std::shared_ptr<HostPool> pool_;
  std::shared_ptr<cuda::DevicePool> gpu_pool_;
  mutable std::mutex descriptor_mutex_;
  std::vector<uint8_t> descriptor_;
  const std::shared_ptr<NixlAgentsReport> nixl_report_ = std::make_shared<NixlAgentsReport>();
  Error error_;
  std::unique_ptr<Path> path_;
  bool told_path_to_end_ = false;
  std::unique_ptr<Digests> digests_;
  std::vector<PathEvent> events_;
  std::vector<DigestEnd> digest_ends_;
  std::thread owner_;  // last: it uses all of the above
};

}  // namespace kvt
