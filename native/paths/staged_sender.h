#pragma once

#include <deque>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "memory/boot_clock.h"
#include "paths/slot_table.h"
#include "paths/staged_wire.h"

namespace kvt {

// Where chunks of one receiver may begin and end.
struct ChunkShape {
  uint64_t block_tokens = 1;  // a chunk ends at a multiple of it, or with its job
  uint64_t tokens_max = 1;    // a multiple of block_tokens
};

// The sender's half of staged transfers, without memory, transport or clock: which chunk goes into which slot
// when, and when a slot is free again. Runs SenderSlots(); the simulation of test slot_simulation_test runs
// the same code. Slots are given first come first served per chunk, so that a transfer whose receiver hangs
// holds those it has been sent and no more.
class StagedSender {
 public:
  struct Job {
    std::string agent;
    uint64_t id = 0;
    auto operator<=>(const Job&) const = default;
  };
  struct Session {
    Job job;
    LeaseKey lease = 0;
    StagedMessage::Want want;
    ChunkShape shape;
    uint64_t at = 0;    // the first token that is in no chunk yet
    uint32_t next = 0;  // number of the next chunk
    uint32_t held = 0;  // slots
  };
  class Effects {
   public:
    virtual ~Effects() = default;
    // Packed() follows exactly once, also after StopPack().
    virtual void StartPack(uint32_t slot, const Session& session, const StagedMessage::Chunk& chunk) = 0;
    virtual void StopPack(uint32_t slot) = 0;
    virtual void Announce(const std::string& agent, const StagedMessage::Chunk& chunk) = 0;
    virtual void Refuse(const std::string& agent, uint64_t job) = 0;
    // A receiver keeps a slot too long: its lease should end.
    virtual void TellStall(LeaseKey lease) = 0;
    // Whether what is wanted lies inside what was granted, and how it is cut.
    virtual std::optional<ChunkShape> Judge(const std::string& agent, LeaseKey lease,
                                            const StagedMessage::Want& want) = 0;
  };

  StagedSender(uint32_t slots, BootNanos stall, Effects* effects,
               const SenderSlotTable& table = SenderSlots())
      : effects_(effects), table_(table), stall_(stall), slots_(slots) {}

  void Grant(LeaseKey lease, const Ticket& ticket);
  // Only the lease's end, DONE, or the same receiver's word that it reads no more end a grant (invariant I2).
  void EndLease(LeaseKey lease);
  void Want(const std::string& agent, const StagedMessage::Want& want, BootNanos now);
  void Returned(const std::string& agent, const StagedMessage::ChunkDone& done, BootNanos now);
  void Stop(const std::string& agent, uint64_t job, BootNanos now);
  void Packed(uint32_t slot, BootNanos now);
  void Expire(BootNanos now);
  // When Expire() has something to do next.
  BootNanos Next() const;

  // Chunks are wanted, or slots are in use.
  bool busy() const { return !sessions_.empty() || !early_.empty(); }
  bool Serves(const std::string& agent) const;
  uint32_t free_slots() const;
  // Rows that the table does not have, met; 0 unless the code is wrong.
  uint64_t impossible() const { return impossible_; }

 private:
  struct Slot {
    SenderSlotState state = SenderSlotState::kFree;
    Job job;
    StagedMessage::Chunk chunk;
    BootNanos stalls_at = kNever;
  };
  // A WANT that came before its grant: the two take different ways.
  struct Early {
    std::string agent;
    StagedMessage::Want want;
    BootNanos until = 0;
  };

  void Dispatch(uint32_t slot, SenderSlotEvent event, BootNanos now);
  // For a grant that comes later.
  bool MayWait(const std::string& agent) const;
  void Begin(const std::string& agent, LeaseKey lease, const StagedMessage::Want& want);
  void End(const Job& job, BootNanos now);
  // Packs what is due while slots are free.
  void Fill(BootNanos now);
  std::optional<uint32_t> FreeSlot() const;

  Effects* const effects_;
  const SenderSlotTable& table_;
  const BootNanos stall_;
  std::vector<Slot> slots_;
  std::map<Ticket, LeaseKey> granted_;
  std::unordered_map<LeaseKey, Ticket> tickets_;
  std::map<Job, Session> sessions_;
  std::deque<Job> due_;  // sessions with chunks to pack, the longest waiting first
  std::deque<Early> early_;
  uint64_t impossible_ = 0;
};

}  // namespace kvt
