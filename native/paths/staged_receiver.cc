#include "paths/staged_receiver.h"

#include <algorithm>
#include <iterator>

namespace kvt {

void StagedReceiver::Start(const std::string& agent, const StagedMessage::Want& want, BootNanos now) {
  Job& job = jobs_[want.job];
  job.id = want.job;
  job.agent = agent;
  job.want = want;
  job.stalls_at = Later(now, 2 * stall_);
  if (want.tokens.from >= want.tokens.to) {
    job.over = true;
    return QuietIfDone(want.job);
  }
  effects_->Ask(job);
}

void StagedReceiver::Cancel(uint64_t id, BootNanos now) {
  const auto job = jobs_.find(id);
  if (job != jobs_.end()) End(&job->second, true, now);
}

void StagedReceiver::Chunk(const std::string& agent, const StagedMessage::Chunk& chunk, BootNanos now) {
  const auto found = jobs_.find(chunk.job);
  const bool live = found != jobs_.end() && found->second.agent == agent && !found->second.over;
  // Also of a job that is over: its sender may have announced it before it heard so.
  if (!live) return effects_->ReturnUnread(agent, {chunk.job, chunk.n});
  Job& job = found->second;
  if (!Announce(&job, chunk)) {
    effects_->ReturnUnread(agent, {chunk.job, chunk.n});
    return End(&job, true, now);
  }
  job.stalls_at = Later(now, stall_);
  if (job.first_chunk == 0) job.first_chunk = now;
  waiting_.push_back(chunk);
  Fill(now);
}

// In any order: of two packs at a time either may end first. Each token once.
bool StagedReceiver::Announce(Job* job, const StagedMessage::Chunk& chunk) {
  const Tokens& wanted = job->want.tokens;
  if (chunk.from < wanted.from || chunk.to > wanted.to || chunk.from >= chunk.to) return false;
  const auto after = job->ranges.lower_bound(chunk.from);
  if (after != job->ranges.end() && after->first < chunk.to) return false;
  if (after != job->ranges.begin() && std::prev(after)->second > chunk.from) return false;
  if (!effects_->Fits(*job, chunk)) return false;
  job->ranges[chunk.from] = chunk.to;
  job->announced += chunk.to - chunk.from;
  return true;
}

void StagedReceiver::Refused(const std::string& agent, uint64_t id, BootNanos now) {
  const auto job = jobs_.find(id);
  if (job != jobs_.end() && job->second.agent == agent) End(&job->second, true, now);
}

void StagedReceiver::Lost(const std::string& agent, BootNanos now) {
  std::vector<uint64_t> ids;
  for (const auto& [id, job] : jobs_) {
    if (job.agent == agent) ids.push_back(id);
  }
  for (const uint64_t id : ids) Cancel(id, now);
}

void StagedReceiver::Read(uint32_t slot, bool ok, BootNanos now) {
  Dispatch(slot, ok ? ReceiverSlotEvent::kRead : ReceiverSlotEvent::kReadFailed, now);
}

void StagedReceiver::Unpacked(uint32_t at, bool whole, BootNanos now) {
  const uint64_t id = slots_[at].job;
  const auto job = jobs_.find(id);
  if (job != jobs_.end()) {
    --job->second.unpacks;
    if (!whole && !job->second.over) End(&job->second, true, now);
  }
  Dispatch(at, ReceiverSlotEvent::kUnpacked, now);
  QuietIfDone(id);
}

// The sender hears of it where it has something to hear: after a failure of its own it may be gone.
void StagedReceiver::End(Job* job, bool failed, BootNanos now) {
  if (job->over) return;
  job->over = true;
  job->failed = failed;
  job->stalls_at = kNever;
  const uint64_t id = job->id;
  std::erase_if(waiting_, [&](const StagedMessage::Chunk& chunk) {
    if (chunk.job != id) return false;
    effects_->ReturnUnread(job->agent, {chunk.job, chunk.n});
    return true;
  });
  if (failed) effects_->Stop(*job);
  for (uint32_t at = 0; at < slots_.size(); ++at) {
    const Slot& slot = slots_[at];
    const bool used =
        slot.state == ReceiverSlotState::kReading || slot.state == ReceiverSlotState::kUnpacking;
    if (used && slot.job == id) Dispatch(at, ReceiverSlotEvent::kDropped, now);
  }
  QuietIfDone(id);
}

void StagedReceiver::QuietIfDone(uint64_t id) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end() || !found->second.over || found->second.unpacks > 0) return;
  const Job job = std::move(found->second);
  jobs_.erase(found);
  effects_->Quiet(job, !job.failed && job.unpacked == job.want.tokens.to - job.want.tokens.from);
}

void StagedReceiver::Expire(BootNanos now) {
  std::vector<uint64_t> stalled;
  for (const auto& [id, job] : jobs_) {
    if (job.stalls_at <= now) stalled.push_back(id);
  }
  for (const uint64_t id : stalled) Cancel(id, now);
}

BootNanos StagedReceiver::Next() const {
  BootNanos next = kNever;
  for (const auto& [id, job] : jobs_) next = std::min(next, job.stalls_at);
  return next;
}

// Jobs first, so that no slot that comes free is read into again.
void StagedReceiver::TearDown(BootNanos now) {
  std::vector<uint64_t> ids;
  for (const auto& [id, job] : jobs_) ids.push_back(id);
  for (const uint64_t id : ids) Cancel(id, now);
  for (uint32_t at = 0; at < slots_.size(); ++at) {
    if (slots_[at].state == ReceiverSlotState::kQuarantined) Read(at, false, now);
  }
}

void StagedReceiver::Dispatch(uint32_t at, ReceiverSlotEvent event, BootNanos now) {
  Slot& slot = slots_[at];
  const ReceiverSlotTable::Row* row = table_.Find(slot.state, event);
  if (row == nullptr) {
    ++impossible_;
    return;
  }
  slot.state = row->next;
  const auto found = jobs_.find(slot.job);
  Job* job = found == jobs_.end() ? nullptr : &found->second;
  for (const ReceiverSlotEffect effect : row->effects) {
    switch (effect) {
      case ReceiverSlotEffect::kNone:
        break;
      case ReceiverSlotEffect::kPostRead:
        effects_->PostRead(at, *job, slot.chunk);
        break;
      case ReceiverSlotEffect::kStartUnpack:
        ++job->unpacks;
        job->stalls_at = Later(now, stall_);
        effects_->StartUnpack(at, *job, slot.chunk);
        break;
      case ReceiverSlotEffect::kStopUnpack:
        effects_->StopUnpack(at);
        break;
      case ReceiverSlotEffect::kTakeChunk:
        job->unpacked += slot.chunk.to - slot.chunk.from;
        job->stalls_at = Later(now, job->unpacked == job->announced ? 2 * stall_ : stall_);
        if (job->unpacked == job->want.tokens.to - job->want.tokens.from) job->over = true;
        break;
      case ReceiverSlotEffect::kFailJob:
        End(job, true, now);
        break;
    }
  }
  if (slot.state == ReceiverSlotState::kFree) Fill(now);
}

void StagedReceiver::Fill(BootNanos now) {
  for (uint32_t at = 0; at < slots_.size() && !waiting_.empty(); ++at) {
    Slot& slot = slots_[at];
    if (slot.state != ReceiverSlotState::kFree) continue;
    slot.chunk = waiting_.front();
    slot.job = slot.chunk.job;
    waiting_.pop_front();
    Dispatch(at, ReceiverSlotEvent::kChunk, now);
  }
}

bool StagedReceiver::Uses(const std::string& agent) const {
  return std::any_of(jobs_.begin(), jobs_.end(),
                     [&agent](const auto& entry) { return entry.second.agent == agent; });
}

const StagedReceiver::Job* StagedReceiver::Find(uint64_t job) const {
  const auto found = jobs_.find(job);
  return found == jobs_.end() ? nullptr : &found->second;
}

uint32_t StagedReceiver::Count(ReceiverSlotState state) const {
  return static_cast<uint32_t>(
      std::count_if(slots_.begin(), slots_.end(), [state](const Slot& slot) { return slot.state == state; }));
}

uint32_t StagedReceiver::quarantined() const { return Count(ReceiverSlotState::kQuarantined); }
uint32_t StagedReceiver::free_slots() const { return Count(ReceiverSlotState::kFree); }

}  // namespace kvt
