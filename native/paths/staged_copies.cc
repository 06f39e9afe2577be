#include "paths/staged_copies.h"

#include <sys/mman.h>

#include <algorithm>
#include <string>
#include <utility>

#include "memory/memory_limit.h"

namespace kvt {
namespace {

// A copy thread takes so much before it looks whether it shall stop.
constexpr uint64_t kSliceBytes = uint64_t{256} << 10;
// Less costs less than waking a copy thread.
constexpr uint64_t kHereBytesMax = uint64_t{64} << 10;

}  // namespace

Result<std::shared_ptr<StagingMemory>> StagingMemory::Create(uint32_t slots, uint64_t slot_bytes) {
  const std::string what =
      std::to_string(2 * uint64_t{slots}) + " slots of " + std::to_string(slot_bytes) + " bytes";
  const auto unavailable = [&what](const std::string& why) {
    return Error{ErrorCode::kStagingUnavailable, what + ": " + why};
  };
  const MemoryRoom room = FindMemoryRoom();
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(2 * uint64_t{slots}, slot_bytes, &bytes) || bytes > room.bytes) {
    return unavailable(room.limit + " leaves " + std::to_string(room.bytes));
  }
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return unavailable(ErrnoText("they can't be mapped"));
  return std::shared_ptr<StagingMemory>(new StagingMemory(slots, slot_bytes, static_cast<std::byte*>(data)));
}

StagingMemory::~StagingMemory() { munmap(data_, 2 * side_bytes()); }

bool BlockGate::Enter() {
  const std::lock_guard lock(mutex_);
  if (!closed_) ++inside_;
  return !closed_;
}

void BlockGate::Leave() {
  const std::lock_guard lock(mutex_);
  --inside_;
}

void BlockGate::Close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
}

bool BlockGate::Quiet() const {
  const std::lock_guard lock(mutex_);
  return closed_ && inside_ == 0;
}

StagedCopies::StagedCopies(std::shared_ptr<HostPool> pool, std::shared_ptr<StagingMemory> memory,
                           CopyCrew* crew, std::shared_ptr<BlockGate> gate, std::function<void()> wake)
    : pool_(std::move(pool)),
      memory_(std::move(memory)),
      crew_(crew),
      gate_(std::move(gate)),
      inbox_(std::make_shared<Inbox>()) {
  inbox_->wake = std::move(wake);
}

void StagedCopies::Start(Copy copy) {
  const bool pack = copy.side == Side::kPack;
  if (!pack && !gate_->Enter()) {
    const std::lock_guard lock(inbox_->mutex);
    inbox_->ends.push_back({copy.side, copy.slot, false, 0, 0});
    return;
  }
  auto transfer = std::make_unique<Transfer>();
  transfer->source_blocks = std::move(copy.source_blocks);
  transfer->target_blocks = std::move(copy.target_blocks);
  transfer->tokens = copy.tokens;
  auto task = std::make_shared<CopyTask>(std::move(copy.plan), std::move(transfer));
  task->source = pack ? pool_->data() : memory_->receiver_slot(copy.slot);
  task->target = pack ? memory_->sender_slot(copy.slot) : pool_->data();
  task->source_owner = pack ? std::shared_ptr<const void>(pool_) : memory_;
  task->target_owner = pack ? std::shared_ptr<const void>(memory_) : pool_;
  const uint64_t row = std::max<uint64_t>(1, task->plan->UnitBytes());
  const uint64_t block = std::max<uint64_t>(1, task->plan->Rows());
  task->units_per_slice = block * row <= kSliceBytes ? block * (kSliceBytes / (block * row))
                                                     : std::max<uint64_t>(1, kSliceBytes / row);
  task->on_quiet = [inbox = inbox_, gate = gate_, done = task.get(), side = copy.side, slot = copy.slot] {
    done->source_owner.reset();
    done->target_owner.reset();
    if (side == Side::kUnpack) gate->Leave();
    const bool whole = done->units_done.load(std::memory_order_relaxed) == done->units;
    {
      const std::lock_guard lock(inbox->mutex);
      inbox->ends.push_back({side, slot, whole, done->runs.load(std::memory_order_relaxed),
                             done->pieces.load(std::memory_order_relaxed)});
    }
    inbox->wake();
  };
  const uint64_t bytes = task->plan->Bytes(task->transfer->tokens);
  running_[KeyOf(copy.side, copy.slot)] = task;
  if (bytes <= kHereBytesMax) {
    CopyCrew::RunHere(*task);
  } else {
    crew_->Add(task);
  }
}

void StagedCopies::Stop(Side side, uint32_t slot) {
  const auto found = running_.find(KeyOf(side, slot));
  if (found != running_.end()) crew_->Cancel(found->second);
}

std::vector<StagedCopies::End> StagedCopies::Take() {
  std::vector<End> ends;
  {
    const std::lock_guard lock(inbox_->mutex);
    ends.swap(inbox_->ends);
  }
  for (const End& end : ends) running_.erase(KeyOf(end.side, end.slot));
  return ends;
}

}  // namespace kvt
