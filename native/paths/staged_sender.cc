#include "paths/staged_sender.h"

#include <algorithm>

namespace kvt {
namespace {

// A GRANT goes over the control connection while it goes to the agent's thread: moments.
constexpr BootNanos kEarlyFor = 1'000 * kNanosPerMilli;
constexpr size_t kEarlyMax = 4'096;
// Of one receiver, so that none takes the others' room.
constexpr std::ptrdiff_t kEarlyOfOneMax = 256;
constexpr size_t kSessionsMax = 4'096;

}  // namespace

void StagedSender::Grant(LeaseKey lease, const Ticket& ticket) {
  granted_[ticket] = lease;
  tickets_[lease] = ticket;
  for (size_t at = 0; at < early_.size();) {
    if (early_[at].want.ticket != ticket) {
      ++at;
      continue;
    }
    const Early early = std::move(early_[at]);
    early_.erase(early_.begin() + static_cast<std::ptrdiff_t>(at));
    Begin(early.agent, lease, early.want);
  }
}

void StagedSender::EndLease(LeaseKey lease) {
  const auto found = tickets_.find(lease);
  if (found == tickets_.end()) return;
  granted_.erase(found->second);
  tickets_.erase(found);
  std::vector<Job> over;
  for (const auto& [job, session] : sessions_) {
    if (session.lease == lease) over.push_back(job);
  }
  for (const Job& job : over) End(job, 0);
}

void StagedSender::Want(const std::string& agent, const StagedMessage::Want& want, BootNanos now) {
  const auto granted = granted_.find(want.ticket);
  if (granted != granted_.end()) {
    Begin(agent, granted->second, want);
    Fill(now);
  } else if (MayWait(agent)) {
    early_.push_back({agent, want, Later(now, kEarlyFor)});
  } else {
    effects_->Refuse(agent, want.job);
  }
}

bool StagedSender::MayWait(const std::string& agent) const {
  if (early_.size() >= kEarlyMax) return false;
  const auto own = [&agent](const Early& early) { return early.agent == agent; };
  return std::count_if(early_.begin(), early_.end(), own) < kEarlyOfOneMax;
}

void StagedSender::Begin(const std::string& agent, LeaseKey lease, const StagedMessage::Want& want) {
  const Job job{agent, want.job};
  if (sessions_.contains(job)) return;
  const auto shape = sessions_.size() < kSessionsMax ? effects_->Judge(agent, lease, want) : std::nullopt;
  if (!shape || want.tokens.from >= want.tokens.to) {
    effects_->Refuse(agent, want.job);
    return;
  }
  sessions_[job] = {job, lease, want, *shape, want.tokens.from, 0, 0};
  due_.push_back(job);
}

void StagedSender::Returned(const std::string& agent, const StagedMessage::ChunkDone& done, BootNanos now) {
  const Job job{agent, done.job};
  for (uint32_t at = 0; at < slots_.size(); ++at) {
    const Slot& slot = slots_[at];
    const bool used = slot.state == SenderSlotState::kSent || slot.state == SenderSlotState::kPacking;
    if (used && slot.job == job && slot.chunk.n == done.n)
      return Dispatch(at, SenderSlotEvent::kReturned, now);
  }
}

void StagedSender::Stop(const std::string& agent, uint64_t job, BootNanos now) {
  std::erase_if(early_, [&](const Early& early) { return early.agent == agent && early.want.job == job; });
  End({agent, job}, now);
}

void StagedSender::Packed(uint32_t slot, BootNanos now) { Dispatch(slot, SenderSlotEvent::kPacked, now); }

void StagedSender::End(const Job& job, BootNanos now) {
  const auto found = sessions_.find(job);
  if (found == sessions_.end()) return;
  sessions_.erase(found);
  std::erase(due_, job);
  for (uint32_t at = 0; at < slots_.size(); ++at) {
    const Slot& slot = slots_[at];
    const bool used = slot.state == SenderSlotState::kSent || slot.state == SenderSlotState::kPacking;
    if (used && slot.job == job) Dispatch(at, SenderSlotEvent::kDropped, now);
  }
}

void StagedSender::Expire(BootNanos now) {
  while (!early_.empty() && early_.front().until <= now) {
    const Early early = std::move(early_.front());
    early_.pop_front();
    effects_->Refuse(early.agent, early.want.job);
  }
  for (uint32_t at = 0; at < slots_.size(); ++at) {
    if (slots_[at].state == SenderSlotState::kSent && slots_[at].stalls_at <= now) {
      Dispatch(at, SenderSlotEvent::kStalled, now);
    }
  }
  // What was granted or dropped since.
  Fill(now);
}

BootNanos StagedSender::Next() const {
  BootNanos next = early_.empty() ? kNever : early_.front().until;
  for (const Slot& slot : slots_) {
    if (slot.state == SenderSlotState::kSent) next = std::min(next, slot.stalls_at);
  }
  return next;
}

void StagedSender::Dispatch(uint32_t at, SenderSlotEvent event, BootNanos now) {
  Slot& slot = slots_[at];
  const SenderSlotTable::Row* row = table_.Find(slot.state, event);
  if (row == nullptr) {
    ++impossible_;
    return;
  }
  slot.state = row->next;
  for (const SenderSlotEffect effect : row->effects) {
    switch (effect) {
      case SenderSlotEffect::kNone:
        break;
      case SenderSlotEffect::kStartPack:
        effects_->StartPack(at, sessions_[slot.job], slot.chunk);
        break;
      case SenderSlotEffect::kStopPack:
        effects_->StopPack(at);
        break;
      case SenderSlotEffect::kAnnounce:
        slot.stalls_at = Later(now, stall_);
        effects_->Announce(slot.job.agent, slot.chunk);
        break;
      case SenderSlotEffect::kTellStall: {
        slot.stalls_at = kNever;
        const auto session = sessions_.find(slot.job);
        if (session != sessions_.end()) effects_->TellStall(session->second.lease);
        break;
      }
    }
  }
  if (row->next != SenderSlotState::kFree) return;
  const auto session = sessions_.find(slot.job);
  if (session != sessions_.end() && event == SenderSlotEvent::kReturned) {
    --session->second.held;
    const bool all = session->second.held == 0 && session->second.at == session->second.want.tokens.to;
    if (all) sessions_.erase(session);
  }
  Fill(now);
}

void StagedSender::Fill(BootNanos now) {
  while (!due_.empty()) {
    const auto slot = FreeSlot();
    if (!slot) return;
    const Job job = std::move(due_.front());
    due_.pop_front();
    Session& session = sessions_[job];
    const ChunkShape& shape = session.shape;
    const uint64_t first = session.at / shape.block_tokens * shape.block_tokens;
    const uint64_t to = std::min(session.want.tokens.to, first + shape.tokens_max);
    slots_[*slot].job = job;
    slots_[*slot].chunk = {job.id, session.next++, *slot, session.at, to};
    slots_[*slot].stalls_at = kNever;
    session.at = to;
    ++session.held;
    if (session.at < session.want.tokens.to) due_.push_back(job);
    Dispatch(*slot, SenderSlotEvent::kPack, now);
  }
}

std::optional<uint32_t> StagedSender::FreeSlot() const {
  for (uint32_t at = 0; at < slots_.size(); ++at) {
    if (slots_[at].state == SenderSlotState::kFree) return at;
  }
  return std::nullopt;
}

bool StagedSender::Serves(const std::string& agent) const {
  return std::any_of(sessions_.begin(), sessions_.end(),
                     [&agent](const auto& entry) { return entry.first.agent == agent; });
}

uint32_t StagedSender::free_slots() const {
  return static_cast<uint32_t>(std::count_if(
      slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.state == SenderSlotState::kFree; }));
}

}  // namespace kvt
