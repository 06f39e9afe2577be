// What a peer that holds this side's descriptor may say to its agent: anything. Between real agents.
#include "paths/staged_wire.h"
#include "test/geometries.h"
#include "test/nixl_node.h"

namespace {

using namespace kvt;              // NOLINT: a test
using namespace kvt::nixl::test;  // NOLINT
using M = StagedMessage;

const Geometry& Shape() {
  static const Geometry geometry = kvt::test::Hnd(2, 2, 2, 32, 128);
  return geometry;
}
constexpr uint32_t kBlocks = 8;
const Tokens kAll{0, kBlocks * 32, kBlocks * 32};
const std::vector<uint32_t> kIds{0, 1, 2, 3, 4, 5, 6, 7};

// An agent that says whatever it likes, with the metadata of `node` loaded.
class Stranger {
 public:
  Stranger(const std::string& name, const Node& node) : side_(LoadLibrary(), name, 4096) {
    const auto descriptor = DecodeNixlDescriptor(node.path->Descriptor());
    good_ = side_.memory && descriptor && side_.agent->LoadRemote(descriptor->metadata).ok();
    if (!good_) return;
    to_ = descriptor->agent;
    own_ = *descriptor;
    own_.agent = name;
    auto metadata = side_.agent->LocalMetadata();
    if (metadata.ok()) own_.metadata = std::move(metadata.value());
  }

  bool good() const { return good_; }
  // As an honest receiver would describe itself, with no slot of its own behind it.
  const NixlDescriptor& own() const { return own_; }
  bool Say(std::span<const uint8_t> bytes) {
    const bool told = side_.agent->Notify(to_, bytes) == nixl::Status::kSuccess;
    // What came back is thrown away; a transport without a thread moves on only so.
    (void)side_.agent->TakeNotifications();
    return told;
  }
  void Say(const M::Any& message) { CHECK(Say(EncodeStaged(message))); }
  void Introduce() { Say(M::Introduce{*EncodeNixlDescriptor(own_)}); }

 private:
  Side side_;
  NixlDescriptor own_;
  std::string to_;
  bool good_ = false;
};

// A pair that must go on working.
struct Pair {
  explicit Pair(const std::string& name)
      : source(Shape(), kBlocks, "source-" + name, kStaged),
        target(Shape(), kBlocks, "target-" + name, kStaged) {
    good = source.path && target.path && target.Reach(1, source.path->Descriptor()) == ReachStatus::kOk;
    source.Fill(7);
  }

  // Through every slot of both sides, several times.
  void ExpectMoves() {
    for (int round = 0; round < 4; ++round) {
      ++job;
      source.path->Grant(job, {TicketOf(static_cast<uint8_t>(job)), kIds});
      CHECK(target.Post(job, 1, kIds, kIds, kAll, static_cast<uint8_t>(job)) == Path::Posted::kTaken);
      CHECK(target.Next(PathEvent::Kind::kQuiet, job).complete);
      CHECK(memcmp(target.pool->data(), source.pool->data(), source.pool->bytes()) == 0);
      source.path->EndLease(job);
    }
  }

  Node source;
  Node target;
  bool good = false;
  JobKey job = 100;
};

std::vector<M::Any> Impossible() {
  constexpr uint64_t kFar = uint64_t{1} << 62;
  std::vector<M::Any> messages;
  for (const Tokens tokens :
       {Tokens{5, 5, 64}, Tokens{64, 0, 64}, Tokens{0, kFar, kFar}, Tokens{kFar, 2 * kFar, 2 * kFar},
        Tokens{0, 32, 0}, Tokens{0, UINT64_MAX, UINT64_MAX}, Tokens{0, 9 * 32, 9 * 32}}) {
    messages.emplace_back(M::Want{1, TicketOf(1), tokens, true});
    messages.emplace_back(M::Want{2, TicketOf(1), tokens, false});
  }
  for (const uint64_t job : {uint64_t{0}, uint64_t{101}, UINT64_MAX}) {
    messages.emplace_back(M::Refused{job});
    messages.emplace_back(M::Stop{job});
    messages.emplace_back(M::ChunkDone{job, 0});
    messages.emplace_back(M::ChunkDone{job, UINT32_MAX});
    messages.emplace_back(M::Chunk{job, 0, 0, 0, 32});
    messages.emplace_back(M::Chunk{job, 1, UINT32_MAX, 0, UINT64_MAX});
  }
  messages.emplace_back(M::Introduced{});
  messages.emplace_back(M::Leave{});
  return messages;
}

}  // namespace

TEST("bytes of any length and content from a peer that is not known move and end nothing") {
  WITH_STAGED();
  Pair pair("bytes");
  Stranger stranger("bytes-stranger", pair.source);
  CHECK(pair.good && stranger.good());
  std::mt19937 random(11);
  for (int round = 0; round < 2'000; ++round) {
    std::vector<uint8_t> bytes(random() % (round % 100 == 0 ? 8'192 : 64));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    CHECK(stranger.Say(bytes));
  }
  // Each message cut short, made longer, and with changed bytes.
  for (const M::Any& message : Impossible()) {
    const std::vector<uint8_t> whole = EncodeStaged(message);
    for (size_t bytes = 0; bytes < whole.size(); bytes += 3)
      CHECK(stranger.Say(std::span(whole).first(bytes)));
    std::vector<uint8_t> longer = whole;
    longer.resize(whole.size() + 1 + random() % 64);
    CHECK(stranger.Say(longer));
    for (int round = 0; round < 8; ++round) {
      std::vector<uint8_t> changed = whole;
      changed[4 + random() % (changed.size() - 4)] ^= 1 + random() % 255;
      CHECK(stranger.Say(changed));
    }
  }
  pair.ExpectMoves();
}

TEST("a notification of 1 MiB is refused or not understood") {
  WITH_STAGED();
  Pair pair("large");
  Stranger stranger("large-stranger", pair.source);
  CHECK(pair.good && stranger.good());
  std::vector<uint8_t> large = EncodeStaged(M::Introduce{std::vector<uint8_t>((1 << 20) - 64)});
  // A transport may refuse to send it; what arrives is no descriptor.
  for (int round = 0; round < 4; ++round) (void)stranger.Say(large);
  large.assign(1 << 20, 0);
  for (int round = 0; round < 4; ++round) (void)stranger.Say(large);
  pair.ExpectMoves();
}

TEST("introductions of others, of other versions and with changed bytes are not taken") {
  WITH_STAGED();
  Pair pair("introduce");
  Stranger stranger("introduce-stranger", pair.source);
  CHECK(pair.good && stranger.good());
  const auto say = [&](auto change) {
    NixlDescriptor descriptor = stranger.own();
    change(&descriptor);
    if (const auto bytes = EncodeNixlDescriptor(descriptor)) stranger.Say(M::Introduce{*bytes});
  };
  say([&](NixlDescriptor* one) { one->agent = "target-introduce"; });
  say([](NixlDescriptor* one) { one->version = "1.0.0-other"; });
  say([](NixlDescriptor* one) { one->plugin = "OTHER"; });
  say([](NixlDescriptor* one) { one->metadata.clear(); });
  say([](NixlDescriptor* one) { one->slot_bytes = 1; });
  say([](NixlDescriptor* one) { one->slots = kStagingSlotsMax; });
  const std::vector<uint8_t> whole = *EncodeNixlDescriptor(stranger.own());
  std::mt19937 random(12);
  for (int round = 0; round < 1'000; ++round) {
    std::vector<uint8_t> changed = whole;
    changed[random() % changed.size()] ^= 1 + random() % 255;
    if (round % 4 == 0) changed.resize(random() % changed.size());
    stranger.Say(M::Introduce{changed});
  }
  pair.ExpectMoves();
}

TEST("a peer that has introduced itself gets nothing that was not granted, and takes nothing from others") {
  WITH_STAGED();
  Pair pair("known");
  Stranger stranger("known-stranger", pair.source);
  CHECK(pair.good && stranger.good());
  pair.source.path->Grant(1, {TicketOf(1), kIds});
  // Stale: a WANT of somebody who has not said who it is.
  stranger.Say(M::Want{1, TicketOf(1), kAll, true});
  stranger.Introduce();
  for (const M::Any& message : Impossible()) stranger.Say(message);
  stranger.Introduce();
  // Tickets that nobody has: more than are kept for a grant that comes later.
  for (uint64_t job = 0; job < 3'000; ++job) stranger.Say(M::Want{1'000 + job, TicketOf(255), kAll, true});
  // Words about the others' jobs and slots, while those move.
  for (uint64_t job = 100; job < 110; ++job) {
    stranger.Say(M::Stop{job});
    for (uint32_t n = 0; n < 4; ++n) stranger.Say(M::ChunkDone{job, n});
    stranger.Say(M::Chunk{job, 0, 0, 0, 32});
  }
  pair.ExpectMoves();
  // And to the receiving side.
  Stranger beside("known-beside", pair.target);
  CHECK(beside.good());
  for (const M::Any& message : Impossible()) beside.Say(message);
  for (uint64_t job = 100; job < 110; ++job) {
    beside.Say(M::Refused{job});
    beside.Say(M::Chunk{job, 0, 0, 0, 32});
  }
  pair.ExpectMoves();
}

TEST("an earlier agent's words that come after its successor's mean nothing") {
  WITH_STAGED();
  Pair pair("stale");
  Stranger before("stale-1", pair.source);
  CHECK(pair.good && before.good());
  pair.source.path->Grant(1, {TicketOf(1), kIds});
  before.Introduce();
  // Two slots are full, and wait for it.
  before.Say(M::Want{1, TicketOf(1), kAll, true});
  Stranger after("stale-2", pair.source);
  CHECK(after.good());
  after.Introduce();
  // Numbers of its predecessor's, whose slots they do not free.
  after.Say(M::ChunkDone{1, 0});
  after.Say(M::ChunkDone{1, 1});
  after.Say(M::Stop{1});
  // The lease's end does.
  pair.source.path->EndLease(1);
  before.Say(M::ChunkDone{1, 0});
  before.Say(M::Want{2, TicketOf(1), kAll, true});
  pair.ExpectMoves();
}

KVT_TEST_MAIN
