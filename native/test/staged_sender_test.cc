// The sender's half of staged transfers by itself: what the simulation of both halves does not reach.
#include "paths/staged_sender.h"

#include "test/check.h"

namespace {

using namespace kvt;  // NOLINT: a test

Ticket TicketOf(uint8_t number) {
  Ticket ticket{};
  ticket[0] = number;
  return ticket;
}

struct Effects final : StagedSender::Effects {
  void StartPack(uint32_t, const StagedSender::Session& session, const StagedMessage::Chunk&) override {
    packed.push_back(session.job);
  }
  void StopPack(uint32_t) override {}
  void Announce(const std::string&, const StagedMessage::Chunk&) override {}
  void Refuse(const std::string& agent, uint64_t) override { refused.push_back(agent); }
  void TellStall(LeaseKey) override {}
  std::optional<ChunkShape> Judge(const std::string&, LeaseKey, const StagedMessage::Want&) override {
    return ChunkShape{32, 64};
  }

  std::vector<StagedSender::Job> packed;
  std::vector<std::string> refused;
};

constexpr BootNanos kNow = 1'000;
constexpr BootNanos kStall = 1'000'000;

StagedMessage::Want WantOf(uint64_t job, uint8_t ticket) {
  return {job, TicketOf(ticket), {0, 32, 32}, true};
}

}  // namespace

TEST("a receiver that floods with tickets nobody has granted takes no room from one whose grant comes late") {
  Effects effects;
  StagedSender sender(2, kStall, &effects);
  for (uint64_t job = 0; job < 10'000; ++job) sender.Want("flooding", WantOf(job, 255), kNow);
  CHECK(!effects.refused.empty());
  effects.refused.clear();
  sender.Want("honest", WantOf(1, 7), kNow);
  CHECK(effects.refused.empty());
  sender.Grant(1, TicketOf(7));
  sender.Expire(kNow);
  CHECK_EQ(effects.packed.size(), 1u);
  CHECK_EQ(effects.packed.front().agent, std::string("honest"));
}

TEST("a WANT whose grant does not come is refused, and one that is stopped before is not") {
  Effects effects;
  StagedSender sender(2, kStall, &effects);
  sender.Want("given-up", WantOf(1, 7), kNow);
  sender.Want("waiting", WantOf(1, 8), kNow);
  sender.Stop("given-up", 1, kNow);
  CHECK(sender.busy());
  sender.Expire(sender.Next());
  CHECK(effects.refused == std::vector<std::string>{"waiting"});
  CHECK(!sender.busy());
}

KVT_TEST_MAIN
