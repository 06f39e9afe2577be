#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace kvt {

// What happens to one staging slot, as rows of spec lease-model.md (sections 2 and 3): state, event, next
// state, effects. A pair without a row is impossible: it changes nothing and is counted.
template <typename State, typename Event, typename Effect>
class SlotTable {
 public:
  struct Row {
    State from;
    Event event;
    State next;
    std::array<Effect, 2> effects{};  // Effect::kNone: no more
  };

  SlotTable(std::initializer_list<Row> rows) {
    for (const Row& row : rows) Set(row);
  }
  // Also for tests, which put a defect in a row's place.
  void Set(const Row& row) { cells_[Index(row.from)][Index(row.event)] = {true, row}; }

  const Row* Find(State state, Event event) const {
    const Cell& cell = cells_[Index(state)][Index(event)];
    return cell.known ? &cell.row : nullptr;
  }

 private:
  struct Cell {
    bool known = false;
    Row row{};
  };
  template <typename Value>
  static size_t Index(Value value) {
    return static_cast<size_t>(value);
  }

  std::array<std::array<Cell, static_cast<size_t>(Event::kCount)>, static_cast<size_t>(State::kCount)> cells_;
};

// The sender's.
enum class SenderSlotState : uint8_t {
  kFree,
  kPacking,  // copy threads write the chunk into it
  kSent,     // announced: the receiver may read it
  kOrphan,   // its session is over, its pack still runs
  kCount,
};
enum class SenderSlotEvent : uint8_t {
  kPack,      // a chunk is due
  kPacked,    // no thread writes into it any more
  kReturned,  // CHUNK_DONE that names this chunk of this session
  kDropped,   // the session is over: DONE, lease end, a HELLO without it, a higher attempt, the receiver's
              // stop
  kStalled,   // announced longer ago than the stall time
  kCount,
};
enum class SenderSlotEffect : uint8_t { kNone, kStartPack, kStopPack, kAnnounce, kTellStall };
using SenderSlotTable = SlotTable<SenderSlotState, SenderSlotEvent, SenderSlotEffect>;
const SenderSlotTable& SenderSlots();

// The receiver's.
enum class ReceiverSlotState : uint8_t {
  kFree,
  kReading,
  kUnpacking,    // copy threads read it
  kQuarantined,  // its job is over, its read has not ended
  kLeaving,      // its job is over, its unpack still runs
  kCount,
};
enum class ReceiverSlotEvent : uint8_t {
  kChunk,       // CHUNK of a live job: only now a slot is taken
  kRead,        // the read has ended well
  kReadFailed,  // it has ended otherwise
  kUnpacked,    // no thread reads it any more
  kDropped,     // the job is over: cancelled, failed, timed out
  kCount,
};
// CHUNK_DONE is no effect: it is attached to the read, and the transport sends it when that has ended.
enum class ReceiverSlotEffect : uint8_t { kNone, kPostRead, kStartUnpack, kStopUnpack, kTakeChunk, kFailJob };
using ReceiverSlotTable = SlotTable<ReceiverSlotState, ReceiverSlotEvent, ReceiverSlotEffect>;
const ReceiverSlotTable& ReceiverSlots();

}  // namespace kvt
