// What NIXL's own tests accept of two agents, through our binding: upstream's test_transfer,
// metadata_exchange, multi_threading and partial_md (spec nixl.md section 13). Both agents live in this
// process.
#include <algorithm>
#include <atomic>
#include <thread>

#include "nixl/agent.h"
#include "test/nixl_rig.h"

namespace {

using namespace kvt;              // NOLINT: a test
using namespace kvt::nixl;        // NOLINT
using namespace kvt::nixl::test;  // NOLINT

// A reader and a holder that know each other.
struct Pair {
  explicit Pair(size_t bytes, const std::string& suffix = "")
      : library(LoadLibrary()),
        reader(library, "reader" + suffix, bytes),
        holder(library, "holder" + suffix, bytes) {
    good = reader.memory && holder.memory && reader.Load(&holder) && holder.Load(&reader);
    CHECK(good);
  }

  std::unique_ptr<Request> Read(const std::vector<Piece>& own, const std::vector<Piece>& far,
                                const RequestOptions& options = {}) {
    auto own_list = reader.agent->Prepare("", MemoryKind::kDram, own);
    auto far_list = reader.agent->Prepare(holder.agent->name(), MemoryKind::kDram, far);
    if (!Side::Ok(own_list) || !Side::Ok(far_list)) return nullptr;
    const std::vector<int32_t> indices = Indices(own.size());
    auto request =
        reader.agent->Make(Operation::kRead, *own_list.value(), indices, *far_list.value(), indices, options);
    return Side::Ok(request) ? std::move(request.value()) : nullptr;
  }

  std::shared_ptr<const Library> library;
  Side reader;
  Side holder;
  bool good = false;
};

std::vector<Piece> Cut(const std::vector<uint8_t>& buffer, size_t piece, size_t stride) {
  std::vector<Piece> pieces;
  for (size_t at = 0; at + piece <= buffer.size(); at += stride) pieces.push_back(PieceOf(buffer, at, piece));
  return pieces;
}

std::string TextOf(const Notification& one) { return {one.bytes.begin(), one.bytes.end()}; }
std::vector<uint8_t> BytesOf(const std::string& text) { return {text.begin(), text.end()}; }

}  // namespace

TEST("a READ of random sizes from random places brings exactly those bytes") {
  WITH_STAGED();
  constexpr size_t kBytes = size_t{4} << 20;
  Pair pair(kBytes);
  std::mt19937 random(1);
  for (int round = 0; round < 20 && pair.good; ++round) {
    pair.holder.Fill(round);
    pair.reader.Fill(round + 1000);
    std::vector<uint8_t> expected = pair.reader.buffer;
    std::vector<Piece> own;
    std::vector<Piece> far;
    // Ascending places with gaps on both sides, so that pieces never overlap.
    for (size_t own_at = random() % 100, far_at = random() % 100;;) {
      const size_t bytes = 1 + random() % (round % 2 == 0 ? 300 : 90'000);
      if (own_at + bytes > kBytes || far_at + bytes > kBytes || own.size() == 2000) break;
      own.push_back(PieceOf(pair.reader.buffer, own_at, bytes));
      far.push_back(PieceOf(pair.holder.buffer, far_at, bytes));
      std::copy_n(pair.holder.buffer.begin() + static_cast<ptrdiff_t>(far_at), bytes,
                  expected.begin() + static_cast<ptrdiff_t>(own_at));
      own_at += bytes + random() % 64;
      far_at += bytes + random() % 64;
    }
    auto request = pair.Read(own, far);
    CHECK(request && Run(request.get(), pair.holder.agent.get()) == Status::kSuccess);
    CHECK(pair.reader.buffer == expected);
  }
}

TEST("notifications come alone, empty, to oneself, and each once") {
  WITH_STAGED();
  Pair pair(4096);
  if (!pair.good) return;
  Agent* teller = pair.reader.agent.get();
  CHECK(teller->Notify(pair.holder.agent->name(), BytesOf("alone")) == Status::kSuccess);
  CHECK(teller->Notify(pair.holder.agent->name(), {}) == Status::kSuccess);
  const auto heard = Hear(&pair.holder, 2, teller);
  CHECK_EQ(heard.size(), size_t{2});
  for (const Notification& one : heard) CHECK_EQ(one.agent, teller->name());
  CHECK(heard.size() == 2 && TextOf(heard[0]) == "alone" && heard[1].bytes.empty());
  CHECK(teller->Notify(teller->name(), BytesOf("self")) == Status::kSuccess);
  const auto own = Hear(&pair.reader, 1, nullptr);
  CHECK(own.size() == 1 && TextOf(own[0]) == "self" && own[0].agent == teller->name());
  auto more = pair.holder.agent->TakeNotifications();
  CHECK(more.ok() && more.value().empty());
}

TEST("a notification on a READ reaches the holder when its memory has been read") {
  WITH_STAGED();
  Pair pair(size_t{1} << 20);
  if (!pair.good) return;
  pair.holder.Fill(7);
  auto request = pair.Read({PieceOf(pair.reader.buffer, 0, 1 << 20)},
                           {PieceOf(pair.holder.buffer, 0, 1 << 20)}, {BytesOf("read"), true});
  std::vector<Notification> heard;
  Status status = request ? request->Post() : Status::kException;
  if (status == Status::kInProgress) status = Finish(request.get(), pair.holder.agent.get(), &heard);
  CHECK(status == Status::kSuccess);
  if (heard.empty()) heard = Hear(&pair.holder, 1, pair.reader.agent.get());
  CHECK(heard.size() == 1 && TextOf(heard[0]) == "read");
  CHECK(pair.reader.buffer == pair.holder.buffer);
}

TEST("a request that has ended is posted again and reads what is there then") {
  WITH_STAGED();
  Pair pair(100'000);
  if (!pair.good) return;
  auto request =
      pair.Read({PieceOf(pair.reader.buffer, 0, 100'000)}, {PieceOf(pair.holder.buffer, 0, 100'000)});
  for (int round = 0; round < 5 && request; ++round) {
    pair.holder.Fill(round);
    CHECK(Run(request.get(), pair.holder.agent.get()) == Status::kSuccess);
    CHECK(pair.reader.buffer == pair.holder.buffer);
  }
}

TEST(
    "a subset by index brings the same bytes with merging and without, and merging needs fewer descriptors") {
  WITH_STAGED();
  constexpr size_t kPiece = 4096;
  constexpr size_t kCount = 256;
  Pair pair(kPiece * kCount);
  if (!pair.good) return;
  auto own = pair.reader.agent->Prepare("", MemoryKind::kDram, Cut(pair.reader.buffer, kPiece, kPiece));
  auto far = pair.reader.agent->Prepare(pair.holder.agent->name(), MemoryKind::kDram,
                                        Cut(pair.holder.buffer, kPiece, kPiece));
  if (!Side::Ok(own) || !Side::Ok(far)) return;
  // Runs of eight neighbours with a hole after each.
  std::vector<int32_t> chosen;
  for (int32_t at = 0; at < static_cast<int32_t>(kCount); ++at) {
    if (at % 9 != 8) chosen.push_back(at);
  }
  uint64_t descriptors[2] = {0, 0};
  pair.holder.Fill(3);
  for (const bool merge : {false, true}) {
    std::fill(pair.reader.buffer.begin(), pair.reader.buffer.end(), uint8_t{0});
    auto request = pair.reader.agent->Make(Operation::kRead, *own.value(), chosen, *far.value(), chosen,
                                           {std::nullopt, merge});
    if (!Side::Ok(request)) return;
    CHECK(Run(request.value().get(), pair.holder.agent.get()) == Status::kSuccess);
    const auto telemetry = request.value()->Telemetry();
    CHECK(telemetry && telemetry->total_bytes == chosen.size() * kPiece);
    if (telemetry) descriptors[merge ? 1 : 0] = telemetry->descriptors;
    for (size_t at = 0; at < kCount; ++at) {
      const auto begin = pair.reader.buffer.begin() + static_cast<ptrdiff_t>(at * kPiece);
      const auto from = pair.holder.buffer.begin() + static_cast<ptrdiff_t>(at * kPiece);
      const bool same = std::equal(begin, begin + kPiece, from);
      CHECK_EQ(same, at % 9 != 8);
    }
  }
  CHECK_EQ(descriptors[0], chosen.size());
  CHECK_EQ(descriptors[1], (kCount + 8) / 9);
}

TEST("partial metadata open the regions that they name and no other") {
  WITH_STAGED();
  Pair pair(4096);
  if (!pair.good) return;
  Side other(pair.library, "other", 8192);
  std::vector<uint8_t> second(8192);
  auto memory = other.agent->Register(MemoryKind::kDram, {PieceOf(second, 0, second.size())});
  if (!Side::Ok(memory)) return;
  auto connection = other.agent->PartialMetadata(nullptr);
  if (!Side::Ok(connection)) return;
  Agent* reader = pair.reader.agent.get();
  auto name = reader->LoadRemote(connection.value());
  CHECK(name.ok() && name.value() == "other");
  const Piece in_first = PieceOf(other.buffer, 0, 4096);
  const Piece in_second = PieceOf(second, 0, 4096);
  CHECK(!reader->Prepare("other", MemoryKind::kDram, {&in_first, 1}).ok());
  auto of_second = other.agent->PartialMetadata(memory.value().get());
  if (!Side::Ok(of_second)) return;
  CHECK(reader->LoadRemote(of_second.value()).ok());
  CHECK(reader->Prepare("other", MemoryKind::kDram, {&in_second, 1}).ok());
  CHECK(!reader->Prepare("other", MemoryKind::kDram, {&in_first, 1}).ok());
  auto whole = other.agent->LocalMetadata();
  CHECK(whole.ok() && reader->LoadRemote(whole.value()).ok());
  CHECK(reader->Prepare("other", MemoryKind::kDram, {&in_first, 1}).ok());
}

TEST("wrong sizes, places, names and metadata are refused, and the agents work on") {
  WITH_STAGED();
  Pair pair(8192);
  if (!pair.good) return;
  Agent* reader = pair.reader.agent.get();
  const std::string& holder = pair.holder.agent->name();
  const Piece inside = PieceOf(pair.holder.buffer, 0, 8192);
  const Piece outside = {inside.address + 4096, 8192, 0};
  CHECK(!reader->Prepare(holder, MemoryKind::kDram, {&outside, 1}).ok());
  CHECK(!reader->Prepare("", MemoryKind::kDram, {&inside, 1}).ok());
  CHECK(!reader->Prepare("nobody", MemoryKind::kDram, {&inside, 1}).ok());
  CHECK(!reader->Prepare(holder, MemoryKind::kDram, {}).ok());
  CHECK(!reader->Register(MemoryKind::kDram, {PieceOf(pair.reader.buffer, 4096, 4096)}).ok());
  CHECK(!reader->Register(MemoryKind::kDram, {PieceOf(pair.reader.buffer, 0, 0)}).ok());
  CHECK(!reader->LoadRemote({}).ok());
  CHECK(!reader->LoadRemote(BytesOf("no metadata")).ok());
  CHECK(reader->Notify("nobody", BytesOf("x")) != Status::kSuccess);
  CHECK(reader->Forget("nobody") != Status::kSuccess);
  CHECK(!reader->Knows("nobody"));
  CHECK(reader->Knows(holder));

  const std::vector<Piece> whole = {PieceOf(pair.reader.buffer, 0, 8192)};
  const std::vector<Piece> half = {PieceOf(pair.holder.buffer, 0, 4096)};
  auto own = reader->Prepare("", MemoryKind::kDram, whole);
  auto far = reader->Prepare(holder, MemoryKind::kDram, half);
  if (!Side::Ok(own) || !Side::Ok(far)) return;
  const int32_t first[] = {0, 0};
  const int32_t beyond = 5;
  CHECK(!reader->Make(Operation::kRead, *own.value(), {first, 1}, *far.value(), {first, 1}, {}).ok());
  CHECK(!reader->Make(Operation::kRead, *own.value(), {first, 2}, *far.value(), {first, 1}, {}).ok());
  CHECK(!reader->Make(Operation::kRead, *own.value(), {&beyond, 1}, *far.value(), {first, 1}, {}).ok());

  AgentOptions nameless;
  CHECK(!Agent::Open(pair.library, nameless).ok());
  nameless.name = "unknown-plugin";
  nameless.plugin = "NOSUCH";
  auto unknown = Agent::Open(pair.library, nameless);
  CHECK(!unknown.ok() && unknown.error().why.find("libplugin_NOSUCH.so") != std::string::npos);

  auto request = pair.Read(whole, {inside});
  pair.holder.Fill(9);
  CHECK(request && Run(request.get(), pair.holder.agent.get()) == Status::kSuccess);
  CHECK(pair.reader.buffer == pair.holder.buffer);
}

TEST("regions that come later are reached after fresh metadata") {
  WITH_STAGED();
  Pair pair(4096);
  if (!pair.good) return;
  std::vector<uint8_t> later(4096, 42);
  auto memory = pair.holder.agent->Register(MemoryKind::kDram, {PieceOf(later, 0, later.size())});
  if (!Side::Ok(memory)) return;
  const Piece piece = PieceOf(later, 0, later.size());
  CHECK(!pair.reader.agent->Prepare(pair.holder.agent->name(), MemoryKind::kDram, {&piece, 1}).ok());
  CHECK(pair.reader.Load(&pair.holder));
  auto request = pair.Read({PieceOf(pair.reader.buffer, 0, 4096)}, {piece});
  CHECK(request && Run(request.get(), pair.holder.agent.get()) == Status::kSuccess);
  CHECK(pair.reader.buffer == later);
}

TEST("eight threads with a pair of agents each read at once, each its own bytes") {
  WITH_STAGED();
  constexpr size_t kBytes = size_t{1} << 20;
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int number = 0; number < 8; ++number) {
    threads.emplace_back([number, &right] {
      Pair pair(kBytes, std::to_string(number));
      for (int round = 0; round < 10 && pair.good; ++round) {
        pair.holder.Fill(number * 100 + round);
        auto request = pair.Read(Cut(pair.reader.buffer, 4096, 4096), Cut(pair.holder.buffer, 4096, 4096));
        const bool ended = request && Run(request.get(), pair.holder.agent.get()) == Status::kSuccess;
        if (ended && pair.reader.buffer == pair.holder.buffer) ++right;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(right.load(), 80);
}

KVT_TEST_MAIN
