#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "cuda/device_pool.h"
#include "cuda/digest_plan.h"
#include "cuda/kernels.h"
#include "memory/boot_clock.h"

namespace kvt::cuda {

// Digests of some tokens of the pool.
struct DigestJob {
  std::vector<uint32_t> table;
  std::vector<TokenRange> ranges;
  Part part;
  uint64_t sequence = 0;
  // Nothing more of it is launched; what was launched runs to its end, which is near.
  std::atomic<bool> cancelled{false};
  // On the queue's thread, once, when the GPU no longer reads the pool for it.
  std::function<void()> on_end;

  // When it has ended.
  bool complete = false;
  std::vector<uint64_t> digests;  // one for each range
  BootNanos took = 0;
};

// Makes digests of a pool where it lies: the gather kernel packs the bytes that are hashed in canonical
// order, and two kernels hash them (digest_input.h). On a stream and a thread of its own, one job after
// another; the thread sleeps while the GPU works. The bytes are packed into scratch memory of the GPU, as
// much at a time as that holds.
class DigestQueue {
 public:
  struct Options {
    std::shared_ptr<const DevicePool> pool;
    std::shared_ptr<const Kernels> kernels;
    Geometry geometry;
    unsigned blocks_max = 0;  // multiprocessors that it may fill
    uint64_t scratch_bytes = uint64_t{64} << 20;
  };

  static Result<std::unique_ptr<DigestQueue>> Open(Options options);
  // Cancels what waits, and waits for what runs.
  ~DigestQueue();
  DigestQueue(const DigestQueue&) = delete;
  DigestQueue& operator=(const DigestQueue&) = delete;

  void Add(std::shared_ptr<DigestJob> job);

 private:
  // Memory of the GPU, made with the first job and kept: packed bytes, then the sums, inputs and digests of
  // one turn.
  struct Scratch {
    std::unique_ptr<DeviceMemory> memory;
    uint64_t packed_bytes = 0;

    uint64_t SumsAt() const { return packed_bytes; }
    uint64_t InputsAt() const;
    uint64_t DigestsAt() const;
  };
  // Where in pinned memory a turn's parts are.
  struct Places {
    size_t segments = 0;
    size_t source_table = 0;
    size_t target_table = 0;
    size_t inputs = 0;
  };

  explicit DigestQueue(Options options) : options_(std::move(options)) {}
  void RunAll();
  std::optional<Error> Run(DigestJob* job);
  std::optional<Error> MakeScratch(uint64_t bytes);
  std::optional<Error> WidenPinned(uint64_t bytes);
  std::optional<Error> Launch(const DigestTurn& turn, const Places& places, size_t digests_at);
  const Context& context() const { return *options_.pool->context(); }

  const Options options_;
  std::unique_ptr<Stream> stream_;
  CUevent ended_ = nullptr;
  Scratch scratch_;
  std::unique_ptr<PinnedBuffer> pinned_;
  bool told_failure_ = false;
  std::mutex mutex_;
  std::condition_variable added_;
  bool stop_ = false;
  std::deque<std::shared_ptr<DigestJob>> waiting_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace kvt::cuda
