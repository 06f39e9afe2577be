#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "cuda/digest_queue.h"
#include "layout/digest.h"
#include "memory/host_pool.h"
#include "memory/sleeper.h"
#include "paths/copy_crew.h"

namespace kvt {

struct DigestRequest {
  std::vector<uint32_t> table;
  std::vector<TokenRange> ranges;
  Part part;
  uint64_t sequence = 0;  // tokens
};

struct DigestEnd {
  uint64_t id = 0;
  BootNanos took = 0;  // from the first byte to the last
};

// One request on its way.
struct DigestWork {
  std::unique_ptr<const DigestRequest> request;
  std::function<void()> on_quiet;  // any thread, once: nothing reads the pool for it any more

  // Then:
  bool complete = false;
  std::vector<Digest> digests;
  BootNanos took = 0;  // from the first byte to the last
};

// Starts to compute what is asked of one pool, and gives the way to end that early. Either way on_quiet is
// called.
using DigestMaker = std::function<std::function<void()>(const std::shared_ptr<DigestWork>& work)>;

// By the copy threads.
DigestMaker DigestsBy(CopyCrew* crew, std::shared_ptr<const HostPool> pool, const Geometry& geometry);
DigestMaker DigestsBy(std::shared_ptr<cuda::DigestQueue> gpu);

// Digests of the own pool. Whoever releases the blocks meanwhile gets a digest that means nothing, no more: a
// digest only reads. Start, Poll and CancelAll are for the owner thread.
class Digests {
 public:
  Digests(DigestMaker maker, std::shared_ptr<const Sleeper> wake);

  void Start(uint64_t id, std::unique_ptr<DigestRequest> request);
  void CancelAll();
  // Those that have ended, unless all were cancelled.
  void Poll(std::vector<DigestEnd>* ends);
  bool quiet() const { return running_.empty(); }
  // When it is quiet, for good: lets go of the pool and of what computes. What was computed may still be
  // taken.
  void Close() { maker_ = nullptr; }

  // Any thread, once, after the end was told: one digest for each range, in order; none when they could not
  // be computed.
  std::vector<Digest> Take(uint64_t id);

 private:
  struct Running {
    std::shared_ptr<DigestWork> work;
    std::function<void()> cancel;
  };
  // Shared, as a thread may still be waking the owner when that has already seen the end and closes.
  struct Inbox {
    std::mutex mutex;
    std::vector<uint64_t> ended;
  };

  DigestMaker maker_;
  const std::shared_ptr<const Sleeper> wake_;
  const std::shared_ptr<Inbox> inbox_;
  bool cancelled_ = false;
  std::unordered_map<uint64_t, Running> running_;
  std::mutex results_mutex_;
  std::unordered_map<uint64_t, std::vector<Digest>> results_;
};

}  // namespace kvt
