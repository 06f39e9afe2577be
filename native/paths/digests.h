#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "cuda/device_pool.h"
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

// Digests of one pool.
struct Hasher {
  // One digest; nothing when the memory can't be read any more. Any thread.
  std::function<std::optional<Digest>(const Part& part, std::span<const uint32_t> table,
                                      const Tokens& tokens)>
      hash;
  bool waits = false;  // for a GPU, however little there is to hash
};

Hasher HasherOf(std::shared_ptr<const HostPool> pool, const Geometry& geometry);
// Of blocks that lie one after another on a GPU: they are copied to the host and hashed there.
Hasher HasherOf(std::shared_ptr<const cuda::DevicePool> pool, const Geometry& geometry);

// Digests of the own pool, computed by the copy threads. Whoever releases the blocks meanwhile gets a digest
// that means nothing, no more: a digest only reads. Start, Poll and CancelAll are for the owner thread.
class Digests {
 public:
  Digests(Hasher hasher, const Geometry& geometry, CopyCrew* crew, std::shared_ptr<const Sleeper> wake);

  void Start(uint64_t id, std::unique_ptr<DigestRequest> request);
  void CancelAll();
  // Those that have ended and were not cancelled.
  void Poll(std::vector<DigestEnd>* ends);
  bool quiet() const { return tasks_.empty(); }

  // Any thread, once, after the end was told: one digest for each range, in order.
  std::vector<Digest> Take(uint64_t id);

 private:
  struct Task;
  // Shared, as a copy thread may still be waking the owner when that has already seen the end and closes.
  struct Inbox {
    std::mutex mutex;
    std::vector<uint64_t> ended;
  };

  const Hasher hasher_;
  const uint64_t token_bytes_;
  CopyCrew* const crew_;
  const std::shared_ptr<const Sleeper> wake_;
  const std::shared_ptr<Inbox> inbox_;
  std::unordered_map<uint64_t, std::shared_ptr<Task>> tasks_;
  std::mutex results_mutex_;
  std::unordered_map<uint64_t, std::vector<Digest>> results_;
};

}  // namespace kvt
