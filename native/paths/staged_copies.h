#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "layout/plan.h"
#include "memory/host_pool.h"
#include "memory/result.h"
#include "paths/copy_crew.h"
#include "paths/path.h"

namespace kvt {

// Slots of equal size, one after another: the sender's first, then the receiver's. Allocated once, when the
// path opens.
class StagingMemory {
 public:
  // Of so many slots for what is sent, and as many for what is received. STAGING_UNAVAILABLE when the system
  // has no room for them.
  static Result<std::shared_ptr<StagingMemory>> Create(uint32_t slots, uint64_t slot_bytes);
  ~StagingMemory();
  StagingMemory(const StagingMemory&) = delete;
  StagingMemory& operator=(const StagingMemory&) = delete;

  uint32_t slots() const { return slots_; }
  uint64_t slot_bytes() const { return slot_bytes_; }
  std::byte* sender_slot(uint32_t slot) const { return data_ + slot * slot_bytes_; }
  std::byte* receiver_slot(uint32_t slot) const { return data_ + (slots_ + slot) * slot_bytes_; }
  // Of one side's slots together.
  uint64_t side_bytes() const { return slots_ * slot_bytes_; }

 private:
  StagingMemory(uint32_t slots, uint64_t slot_bytes, std::byte* data)
      : slots_(slots), slot_bytes_(slot_bytes), data_(data) {}

  const uint32_t slots_;
  const uint64_t slot_bytes_;
  std::byte* const data_;
};

// Between the copies into a pool's blocks and the owner of those: when an agent does not come back, the owner
// closes the gate, and knows when nothing touches a block for that agent any more, nor ever will.
class BlockGate {
 public:
  // False: closed, so nothing may be touched. Leave() follows otherwise.
  bool Enter();
  void Leave();
  void Close();
  // Closed, and all who had entered have left.
  bool Quiet() const;

 private:
  mutable std::mutex mutex_;
  uint32_t inside_ = 0;
  bool closed_ = false;
};

// Packs and unpacks between a pool and its slots: host memory, on the copy threads of the process. Memory of
// a GPU needs another of these and nothing else of the staged path.
class StagedCopies {
 public:
  enum class Side { kPack, kUnpack };
  struct Copy {
    Side side = Side::kPack;
    uint32_t slot = 0;
    std::shared_ptr<const Plan> plan;
    std::vector<uint32_t> source_blocks;
    std::vector<uint32_t> target_blocks;
    Tokens tokens;
  };
  struct End {
    Side side = Side::kPack;
    uint32_t slot = 0;
    bool whole = false;
    uint64_t runs = 0;
    uint64_t pieces = 0;
  };

  // `wake`: any thread may call it, and does when there is an end to take.
  StagedCopies(std::shared_ptr<HostPool> pool, std::shared_ptr<StagingMemory> memory, CopyCrew* crew,
               std::shared_ptr<BlockGate> gate, std::function<void()> wake);

  // End follows, once. An unpack for which the gate is closed ends without having begun.
  void Start(Copy copy);
  void Stop(Side side, uint32_t slot);
  std::vector<End> Take();

 private:
  // Shared with copies that may still run when this has gone.
  struct Inbox {
    std::mutex mutex;
    std::vector<End> ends;
    std::function<void()> wake;
  };
  static uint64_t KeyOf(Side side, uint32_t slot) {
    return uint64_t{slot} * 2 + (side == Side::kPack ? 0 : 1);
  }

  const std::shared_ptr<HostPool> pool_;
  const std::shared_ptr<StagingMemory> memory_;
  CopyCrew* const crew_;
  const std::shared_ptr<BlockGate> gate_;
  const std::shared_ptr<Inbox> inbox_;
  std::unordered_map<uint64_t, std::shared_ptr<CopyTask>> running_;
};

}  // namespace kvt
