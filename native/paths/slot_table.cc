#include "paths/slot_table.h"

namespace kvt {

const SenderSlotTable& SenderSlots() {
  using S = SenderSlotState;
  using E = SenderSlotEvent;
  using F = SenderSlotEffect;
  static const SenderSlotTable table{
      {S::kFree, E::kPack, S::kPacking, {F::kStartPack}},
      {S::kPacking, E::kPacked, S::kSent, {F::kAnnounce}},
      {S::kPacking, E::kReturned, S::kPacking},  // a peer says so of what it was never told
      {S::kPacking, E::kDropped, S::kOrphan, {F::kStopPack}},
      {S::kSent, E::kReturned, S::kFree},
      {S::kSent, E::kDropped, S::kFree},
      {S::kSent, E::kStalled, S::kSent, {F::kTellStall}},
      {S::kOrphan, E::kPacked, S::kFree},
  };
  return table;
}

const ReceiverSlotTable& ReceiverSlots() {
  using S = ReceiverSlotState;
  using E = ReceiverSlotEvent;
  using F = ReceiverSlotEffect;
  static const ReceiverSlotTable table{
      {S::kFree, E::kChunk, S::kReading, {F::kPostRead}},
      {S::kReading, E::kRead, S::kUnpacking, {F::kStartUnpack}},
      {S::kReading, E::kReadFailed, S::kFree, {F::kFailJob}},
      {S::kReading, E::kDropped, S::kQuarantined},
      {S::kUnpacking, E::kUnpacked, S::kFree, {F::kTakeChunk}},
      {S::kUnpacking, E::kDropped, S::kLeaving, {F::kStopUnpack}},
      {S::kQuarantined, E::kRead, S::kFree},
      {S::kQuarantined, E::kReadFailed, S::kFree},
      {S::kLeaving, E::kUnpacked, S::kFree},
  };
  return table;
}

}  // namespace kvt
