#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "paths/staged_receiver.h"
#include "paths/staged_sender.h"

// One sender and a few receivers in virtual time: the real StagedSender and StagedReceiver with their tables,
// over a network that delays and cuts, memory that remembers who wrote it, and leases as spec lease-model.md
// has them (section 4). A seed gives one world.
namespace kvt::test {

constexpr BootNanos kTick = 1'000'000;
constexpr BootNanos kLease = 100 * kTick;
constexpr BootNanos kView = 95 * kTick;
constexpr BootNanos kSlotStall = 2 * kLease;

// Put where the right code is, to see that the world finds them; numbers of lease-model.md section 6.
enum class Defect {
  kNone = 0,
  kReuseWhilePacking = 3,
  kDoneWhenPosted = 13,
  kChunkBeforePacked = 14,
  kSlotBeforeChunk = 18,
  kSlotsNotReturned = 21,
  kStallNotTold = 100,
};

struct WorldOptions {
  uint64_t seed = 0;
  bool faults = true;
  Defect defect = Defect::kNone;
};

class SlotWorld {
 public:
  explicit SlotWorld(const WorldOptions& options) : options_(options), random_(options.seed) {
    sender_ = std::make_unique<Sender>(this, static_cast<uint32_t>(Random(1, 3)));
    const size_t receivers = Random(1, 3);
    for (size_t at = 0; at < receivers; ++at) {
      receivers_.push_back(std::make_unique<Receiver>(this, at, static_cast<uint32_t>(Random(1, 3))));
    }
  }
  SlotWorld(const SlotWorld&) = delete;
  SlotWorld& operator=(const SlotWorld&) = delete;

  // Until nothing happens any more. What was wrong; empty: nothing.
  std::set<std::string> Run() {
    const uint64_t pulls = Random(1, 8);
    for (uint64_t pull = 0; pull < pulls; ++pull) {
      const size_t receiver = Random(0, receivers_.size() - 1);
      After(Random(0, 60) * kTick, [this, receiver] { Start(receiver); });
    }
    if (options_.faults) {
      if (Chance(20)) {
        const size_t receiver = Random(0, receivers_.size() - 1);
        After(Random(1, 100) * kTick, [this, receiver] {
          Receiver& end = *receivers_[receiver];
          if (end.half.free_slots() == end.contents.size()) return;
          ++seen["wedges"];
          end.wedged = true;
        });
      }
      for (uint64_t cut = Random(0, 2); cut > 0; --cut) {
        const size_t receiver = Random(0, receivers_.size() - 1);
        After(Random(1, 300) * kTick, [this, receiver] { Cut(receiver); });
      }
    }
    const BootNanos limit = now_ + 40 * kSlotStall;
    while (!events_.empty()) {
      const Event event = events_.top();
      events_.pop();
      now_ = event.at;
      if (now_ > limit) {
        wrong_.insert("it does not come to rest");
        break;
      }
      event.run();
      // Timers of both halves, as the agent's thread looks at them in every round.
      sender_->half.Expire(now_);
      for (const auto& receiver : receivers_) {
        if (!receiver->wedged) receiver->half.Expire(now_);
      }
    }
    for (const auto& [job, pull] : pulls_) {
      if (!pull.over) wrong_.insert("a transfer never ends");
    }
    for (const auto& [id, lease] : leases_) {
      if (lease.held) wrong_.insert("a lease never ends");
    }
    if (sender_->half.free_slots() != sender_->contents.size())
      wrong_.insert("sender slots are not returned");
    uint64_t impossible = sender_->half.impossible();
    for (const auto& receiver : receivers_) {
      const uint32_t quarantined = receiver->half.quarantined();
      if (!receiver->wedged && quarantined > receiver->hung)
        wrong_.insert("slots are in quarantine although their reads have ended");
      receiver->half.TearDown(now_);
      if (receiver->half.free_slots() != receiver->contents.size()) {
        wrong_.insert("receiver slots are not returned");
      }
      impossible += receiver->half.impossible();
    }
    if (impossible > 0) wrong_.insert("a row is met that the table has not");
    return wrong_;
  }

  // How often something has happened: whether worlds are rich enough.
  std::map<std::string, uint64_t> seen;

 private:
  // What lies in a slot: tokens of one lease's blocks as they were when it was written.
  struct Content {
    uint64_t lease = 0;
    uint64_t version = 0;
    uint64_t from = 0;
    uint64_t to = 0;
    uint64_t writes = 0;  // of this slot, so that a read sees when it was torn
  };
  struct Lease {
    BootNanos end = 0;
    bool held = false;
    bool ending = false;   // the sender wants it to end: no more renewals
    uint64_t version = 0;  // of its blocks, which somebody else has once it has ended
  };
  struct Pull {
    size_t receiver = 0;
    uint64_t lease = 0;
    uint64_t tokens = 0;
    BootNanos base = 0;  // of the receiver's view
    bool over = false;
    std::vector<Content> unpacked;
  };
  struct Event {
    BootNanos at = 0;
    uint64_t order = 0;
    std::function<void()> run;
    bool operator<(const Event& other) const { return at != other.at ? at > other.at : order > other.order; }
  };

  static Ticket TicketOf(uint64_t lease) {
    Ticket ticket{};
    for (size_t byte = 0; byte < 8; ++byte) ticket[byte] = static_cast<uint8_t>(lease >> (8 * byte));
    return ticket;
  }

  struct Sender final : StagedSender::Effects {
    Sender(SlotWorld* of, uint32_t slots)
        : world(of),
          table(TableOf(of->options_.defect)),
          contents(slots),
          packs(slots),
          half(slots, kSlotStall, this, table) {}

    static SenderSlotTable TableOf(Defect defect) {
      using S = SenderSlotState;
      using E = SenderSlotEvent;
      using F = SenderSlotEffect;
      SenderSlotTable table = SenderSlots();
      if (defect == Defect::kReuseWhilePacking) {
        table.Set({S::kPacking, E::kDropped, S::kFree, {F::kStopPack}});
        table.Set({S::kFree, E::kPacked, S::kFree});
        table.Set({S::kSent, E::kPacked, S::kSent});
      }
      if (defect == Defect::kChunkBeforePacked) {
        table.Set({S::kFree, E::kPack, S::kSent, {F::kStartPack, F::kAnnounce}});
        table.Set({S::kSent, E::kPacked, S::kSent});
        table.Set({S::kFree, E::kPacked, S::kFree});
      }
      if (defect == Defect::kSlotsNotReturned) table.Set({S::kSent, E::kDropped, S::kSent});
      if (defect == Defect::kStallNotTold) table.Set({S::kSent, E::kStalled, S::kSent});
      return table;
    }

    // The content is whole at the pack's end; until then it is neither the old nor the new.
    void StartPack(uint32_t slot, const StagedSender::Session& session,
                   const StagedMessage::Chunk& chunk) override {
      if (packs[slot]++ > 0) world->wrong_.insert("two packs write into one slot");
      contents[slot] = {0, 0, 0, 0, contents[slot].writes + 1};
      const uint64_t lease = session.lease;
      world->After(world->Random(1, 12) * kTick, [this, slot, lease, chunk] {
        --packs[slot];
        contents[slot] = {lease, world->leases_[lease].version, chunk.from, chunk.to,
                          contents[slot].writes + 1};
        half.Packed(slot, world->now_);
      });
    }
    void StopPack(uint32_t) override { ++world->seen["packs stopped"]; }
    void Announce(const std::string& agent, const StagedMessage::Chunk& chunk) override {
      const size_t to = world->IndexOf(agent);
      world->Deliver(to, [world = world, to, chunk] { world->receivers_[to]->Hear(chunk); });
    }
    void Refuse(const std::string& agent, uint64_t job) override {
      const size_t to = world->IndexOf(agent);
      world->Deliver(
          to, [world = world, to, job] { world->receivers_[to]->half.Refused("sender", job, world->now_); });
    }
    void TellStall(LeaseKey lease) override {
      ++world->seen["stalls"];
      world->leases_[lease].ending = true;
    }
    std::optional<ChunkShape> Judge(const std::string&, LeaseKey, const StagedMessage::Want&) override {
      return ChunkShape{4, 4 * static_cast<uint64_t>(world->Random(1, 3))};
    }

    SlotWorld* const world;
    const SenderSlotTable table;
    std::vector<Content> contents;
    std::vector<int> packs;  // that run
    StagedSender half;
  };

  struct Receiver final : StagedReceiver::Effects {
    Receiver(SlotWorld* of, size_t number, uint32_t slots)
        : world(of),
          index(number),
          name("receiver" + std::to_string(number)),
          contents(slots),
          half(slots, kSlotStall, this) {}

    void Ask(const StagedReceiver::Job& job) override {
      const StagedMessage::Want want = job.want;
      world->Deliver(index, [this, want] { world->sender_->half.Want(name, want, world->now_); });
      if (world->options_.defect == Defect::kSlotBeforeChunk && reserved.size() < contents.size()) {
        reserved.insert(job.id);
      }
    }
    // With the defect, a chunk waits until its job has a slot: those who asked first hold them all.
    void Hear(const StagedMessage::Chunk& chunk) {
      if (wedged) return;
      const bool waits = world->options_.defect == Defect::kSlotBeforeChunk && !reserved.contains(chunk.job);
      if (waits) {
        withheld.push_back(chunk);
      } else {
        half.Chunk("sender", chunk, world->now_);
      }
    }
    void Stop(const StagedReceiver::Job& job) override {
      const uint64_t id = job.id;
      world->Deliver(index, [this, id] { world->sender_->half.Stop(name, id, world->now_); });
    }
    void ReturnUnread(const std::string&, const StagedMessage::ChunkDone& done) override {
      world->Deliver(index, [this, done] { world->sender_->half.Returned(name, done, world->now_); });
    }
    void PostRead(uint32_t slot, const StagedReceiver::Job& job, const StagedMessage::Chunk& chunk) override {
      const StagedMessage::ChunkDone done{chunk.job, chunk.n};
      const bool early = world->options_.defect == Defect::kDoneWhenPosted;
      if (early) ReturnUnread("sender", done);
      if (world->Chance(2)) {
        ++hung;
        ++world->seen["hung reads"];
        return;
      }
      const bool fails = world->Chance(3);
      const uint64_t ticks = world->Chance(4) ? world->Random(50, 300) : world->Random(1, 12);
      const uint32_t far = chunk.slot;
      const Content before = world->sender_->contents[far];
      (void)job;
      world->After(static_cast<BootNanos>(ticks) * kTick,
                   [this, slot, far, before, done, early, fails, torn = torn_down] {
                     // Of a torn down agent; one that hangs sees no end.
                     if (wedged || torn_down != torn) return;
                     const Content& now = world->sender_->contents[far];
                     contents[slot] = now.writes == before.writes ? now : Content{};
                     // Attached to the read: it leaves when that has ended well.
                     if (!early && !fails) ReturnUnread("sender", done);
                     half.Read(slot, !fails, world->now_);
                   });
    }
    void StartUnpack(uint32_t slot, const StagedReceiver::Job& job, const StagedMessage::Chunk&) override {
      const uint64_t id = job.id;
      world->After(static_cast<BootNanos>(world->Random(1, 8)) * kTick, [this, slot, id] {
        Pull& pull = world->pulls_[id];
        if (pull.over) world->wrong_.insert("blocks are written after the transfer was told to be quiet");
        pull.unpacked.push_back(contents[slot]);
        half.Unpacked(slot, true, world->now_);
      });
    }
    void StopUnpack(uint32_t) override { ++world->seen["unpacks stopped"]; }
    void Quiet(const StagedReceiver::Job& job, bool complete) override {
      reserved.erase(job.id);
      world->EndPull(job.id, complete);
      if (!withheld.empty() && reserved.size() < contents.size()) {
        const uint64_t next = withheld.front().job;
        reserved.insert(next);
        std::vector<StagedMessage::Chunk> kept;
        for (const auto& chunk : std::exchange(withheld, {})) {
          if (chunk.job != next) kept.push_back(chunk);
          if (chunk.job == next) world->After(1, [this, chunk] { half.Chunk("sender", chunk, world->now_); });
        }
        withheld = std::move(kept);
      }
    }
    bool Fits(const StagedReceiver::Job&, const StagedMessage::Chunk&) override { return true; }

    SlotWorld* const world;
    const size_t index;
    const std::string name;
    std::vector<Content> contents;
    uint32_t hung = 0;
    uint32_t torn_down = 0;
    bool wedged = false;  // its agent's thread does not come back; its control connection lives
    BootNanos cut_until = 0;
    BootNanos last_arrival = 0;
    std::set<uint64_t> reserved;  // jobs, with the defect
    std::vector<StagedMessage::Chunk> withheld;
    StagedReceiver half;
  };

  BootNanos Random(uint64_t from, uint64_t to) {
    return static_cast<BootNanos>(from + random_() % (to - from + 1));
  }
  bool Chance(uint64_t percent) { return options_.faults && random_() % 100 < percent; }
  size_t IndexOf(const std::string& agent) const { return agent.back() - '0'; }
  void After(BootNanos delay, std::function<void()> run) {
    events_.push({now_ + delay, ++order_, std::move(run)});
  }

  // Between the sender and that receiver, either way: lost while they are cut off, in order otherwise.
  void Deliver(size_t receiver, std::function<void()> run) {
    Receiver& end = *receivers_[receiver];
    if (now_ < end.cut_until) {
      ++seen["messages lost"];
      return;
    }
    const BootNanos at = std::max(end.last_arrival, now_ + Random(1, 5) * kTick);
    end.last_arrival = at;
    After(at - now_, std::move(run));
  }

  // PULL and GRANT have gone over the control connection: the lease begins, and the job is posted, in any
  // order.
  void Start(size_t receiver) {
    const uint64_t id = ++last_id_;
    Pull& pull = pulls_[id];
    pull.receiver = receiver;
    pull.lease = id;
    pull.tokens = static_cast<uint64_t>(Random(1, 40));
    pull.base = now_;
    leases_[id].held = true;
    leases_[id].end = now_ + kLease + 20 * kTick;
    After(Random(0, 10) * kTick, [this, id] {
      if (!leases_[id].held) return;
      leases_[id].end = now_ + kLease;
      sender_->half.Grant(id, TicketOf(id));
      Expire(id);
    });
    const StagedMessage::Want want{id, TicketOf(id), {0, pull.tokens, pull.tokens}, true};
    After(Random(0, 10) * kTick,
          [this, receiver, want] { receivers_[receiver]->half.Start("sender", want, now_); });
    After(kView / 4, [this, id] { Renew(id); });
    if (Chance(20)) {
      After(Random(5, 120) * kTick, [this, receiver, id] {
        if (receivers_[receiver]->wedged) return;
        ++seen["cancels"];
        receivers_[receiver]->half.Cancel(id, now_);
      });
    }
  }

  // RENEW and RENEWED: the receiver counts from when it wrote.
  void Renew(uint64_t id) {
    const Pull& pull = pulls_[id];
    if (pull.over) return;
    const BootNanos written = now_;
    Deliver(pull.receiver, [this, id, written] {
      Lease& lease = leases_[id];
      if (!lease.held) return Deliver(pulls_[id].receiver, [this, id] { Lose(id); });
      if (lease.ending || now_ >= lease.end) return;
      lease.end = now_ + kLease;
      Deliver(pulls_[id].receiver,
              [this, id, written] { pulls_[id].base = std::max(pulls_[id].base, written); });
    });
    After(kView / 4, [this, id] { Renew(id); });
  }

  // RENEWED does not name it any more. An agent that does not come back is torn down for it.
  void Lose(uint64_t id) {
    Receiver& receiver = *receivers_[pulls_[id].receiver];
    if (std::exchange(receiver.wedged, false)) {
      receiver.hung = 0;
      ++receiver.torn_down;
      receiver.half.TearDown(now_);
    }
    receiver.half.Cancel(id, now_);
  }

  void Expire(uint64_t id) {
    const Lease& lease = leases_[id];
    if (!lease.held) return;
    if (now_ >= lease.end) return EndLease(id);
    After(lease.end - now_, [this, id] { Expire(id); });
  }

  // Its blocks are somebody else's at once.
  void EndLease(uint64_t id) {
    Lease& lease = leases_[id];
    if (!lease.held) return;
    lease.held = false;
    ++lease.version;
    sender_->half.EndLease(id);
  }

  void EndPull(uint64_t id, bool complete) {
    Pull& pull = pulls_[id];
    if (std::exchange(pull.over, true)) wrong_.insert("a transfer ends twice");
    const bool accepted = complete && now_ < pull.base + kView;
    if (complete && !accepted) ++seen["late"];
    if (accepted) Accept(pull);
    if (!accepted) {
      ++seen["failed"];
      if (!options_.faults) wrong_.insert("a transfer fails without a fault");
    }
    // DONE; where it is lost, the lease ends by itself.
    Deliver(pull.receiver, [this, id] { EndLease(id); });
  }

  void Accept(const Pull& pull) {
    ++seen["accepted"];
    uint64_t tokens = 0;
    for (const Content& content : pull.unpacked) {
      tokens += content.to - content.from;
      if (content.lease != pull.lease || content.version != 0) wrong_.insert("wrong bytes");
    }
    if (tokens != pull.tokens) wrong_.insert("wrong bytes");
  }

  void Cut(size_t receiver) {
    ++seen["cuts"];
    Receiver& end = *receivers_[receiver];
    end.cut_until = now_ + Random(5, 150) * kTick;
    // Found out by whoever wants to say something; its jobs end, and another attempt would begin.
    if (!end.wedged && random_() % 2 == 0) end.half.Lost("sender", now_);
  }

  const WorldOptions options_;
  std::mt19937_64 random_;
  BootNanos now_ = kTick;
  uint64_t order_ = 0;
  std::priority_queue<Event> events_;
  std::map<uint64_t, Lease> leases_;
  std::map<uint64_t, Pull> pulls_;
  uint64_t last_id_ = 0;
  std::set<std::string> wrong_;
  std::unique_ptr<Sender> sender_;
  std::vector<std::unique_ptr<Receiver>> receivers_;
};

}  // namespace kvt::test
