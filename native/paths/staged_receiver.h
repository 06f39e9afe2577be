#pragma once

#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "memory/boot_clock.h"
#include "paths/slot_table.h"
#include "paths/staged_wire.h"

namespace kvt {

// The receiver's half of staged transfers, without memory, transport or clock: asks for chunks, reads each
// into a slot of its own, and has it unpacked. Runs ReceiverSlots(). A job becomes quiet when no unpack of it
// runs, whatever its reads do: those end in slots, never in blocks.
class StagedReceiver {
 public:
  struct Job {
    uint64_t id = 0;
    std::string agent;
    StagedMessage::Want want;
    std::map<uint64_t, uint64_t> ranges;  // of tokens that chunks have announced, from and to
    uint64_t announced = 0;               // tokens
    uint64_t unpacked = 0;
    uint32_t unpacks = 0;  // that run
    bool over = false;     // ended, or told to: it only waits to be quiet
    bool failed = false;
    BootNanos first_chunk = 0;
    BootNanos stalls_at = kNever;
  };
  class Effects {
   public:
    virtual ~Effects() = default;
    virtual void Ask(const Job& job) = 0;
    virtual void Stop(const Job& job) = 0;
    // Of a chunk that is not read.
    virtual void ReturnUnread(const std::string& agent, const StagedMessage::ChunkDone& done) = 0;
    // Read() follows exactly once, unless the transport never ends it.
    virtual void PostRead(uint32_t slot, const Job& job, const StagedMessage::Chunk& chunk) = 0;
    // Unpacked() follows exactly once, also after StopUnpack().
    virtual void StartUnpack(uint32_t slot, const Job& job, const StagedMessage::Chunk& chunk) = 0;
    virtual void StopUnpack(uint32_t slot) = 0;
    // Once a job: nothing touches its blocks any more.
    virtual void Quiet(const Job& job, bool complete) = 0;
    // Whether a chunk of that size has room in a slot.
    virtual bool Fits(const Job& job, const StagedMessage::Chunk& chunk) = 0;
  };

  // `stall`: how long a job may go on without an end of what it reads; and twice that without a new chunk,
  // because one that waits for the sender's slots waits for readers that may stall.
  StagedReceiver(uint32_t slots, BootNanos stall, Effects* effects,
                 const ReceiverSlotTable& table = ReceiverSlots())
      : effects_(effects), table_(table), stall_(stall), slots_(slots) {}

  void Start(const std::string& agent, const StagedMessage::Want& want, BootNanos now);
  void Cancel(uint64_t job, BootNanos now);
  void Chunk(const std::string& agent, const StagedMessage::Chunk& chunk, BootNanos now);
  void Refused(const std::string& agent, uint64_t job, BootNanos now);
  // Nothing more comes from that agent.
  void Lost(const std::string& agent, BootNanos now);
  void Read(uint32_t slot, bool ok, BootNanos now);
  // `whole`: not stopped early.
  void Unpacked(uint32_t slot, bool whole, BootNanos now);
  void Expire(BootNanos now);
  BootNanos Next() const;
  // The transport was torn down: no read lands any more. Ends every job.
  void TearDown(BootNanos now);

  bool busy() const { return !jobs_.empty(); }
  bool Uses(const std::string& agent) const;
  const Job* Find(uint64_t job) const;
  // Slots whose reads have not ended although their jobs have.
  uint32_t quarantined() const;
  bool IsQuarantined(uint32_t slot) const { return slots_[slot].state == ReceiverSlotState::kQuarantined; }
  uint32_t free_slots() const;
  uint64_t impossible() const { return impossible_; }

 private:
  struct Slot {
    ReceiverSlotState state = ReceiverSlotState::kFree;
    uint64_t job = 0;
    StagedMessage::Chunk chunk;
  };

  void Dispatch(uint32_t slot, ReceiverSlotEvent event, BootNanos now);
  void End(Job* job, bool failed, BootNanos now);
  void QuietIfDone(uint64_t job);
  bool Announce(Job* job, const StagedMessage::Chunk& chunk);
  // Reads what is announced while slots are free.
  void Fill(BootNanos now);
  uint32_t Count(ReceiverSlotState state) const;

  Effects* const effects_;
  const ReceiverSlotTable& table_;
  const BootNanos stall_;
  std::vector<Slot> slots_;
  std::map<uint64_t, Job> jobs_;
  std::deque<StagedMessage::Chunk> waiting_;  // announced, of live jobs, the oldest first
  uint64_t impossible_ = 0;
};

}  // namespace kvt
