// A side that meets more peers than one agent bears (LIBFABRIC: 255 in its life): real agents on both sides,
// and the limit that NixlAgents keeps. By hand with the real number, in half a minute:
//   KVT_NIXL_TEST_REMOTES=300 node scripts/nixl.mjs 1.4.1
#include <cstdlib>

#include "paths/nixl_agents.h"
#include "test/geometries.h"
#include "test/nixl_node.h"

namespace {

using namespace kvt;              // NOLINT: a test
using namespace kvt::nixl::test;  // NOLINT

constexpr uint32_t kBlocks = 4;
const Tokens kAll{0, kBlocks * 32, kBlocks * 32};
const std::vector<uint32_t> kIds{0, 1, 2, 3};

// As the data plane keeps it for LIBFABRIC.
constexpr uint64_t kRealLimit = 240;

// A pool whose agents follow one another, polled in the owner's place.
class Reader {
 public:
  explicit Reader(uint64_t remotes) : geometry_(kvt::test::Hnd(2, 2, 2, 32, 128)) {
    pool_ = HostPool::Create(geometry_.BlockBytes() * kBlocks, stop_).value();
    auto first = NixlPath::Open(Options(1));
    if (!first.ok()) {
      ++kvt::test::Failures();
      std::printf("%s\n", first.error().why.c_str());
      return;
    }
    NixlAgentLimits limits;
    limits.remotes = remotes;
    const auto open = [this](uint32_t number) -> std::unique_ptr<NixlAgentPath> {
      auto path = NixlPath::Start(Options(number));
      if (!path.ok()) return nullptr;
      return std::move(path.value());
    };
    agents_ =
        std::make_unique<NixlAgents>(std::move(first.value()), open, geometry_.BlockBytes(), report_, limits);
  }

  const Geometry& geometry() const { return geometry_; }
  bool good() const { return agents_ != nullptr; }
  NixlAgentsReport::State report() const { return report_->Get(); }
  const HostPool& pool() const { return *pool_; }

  // Reaches the node, fetches its whole pool, and lets it go.
  bool Fetch(const Node& from, uint64_t key) {
    agents_->Reach(key, from.path->Descriptor(), Later(BootNow(), kLimit));
    if (Next(PathEvent::Kind::kReached, key).reached != ReachStatus::kOk) return false;
    from.path->Grant(key, {TicketOf(1), kIds});
    auto transfer = std::make_unique<Transfer>();
    transfer->ticket = TicketOf(1);
    transfer->job = key;
    transfer->peer = key;
    transfer->source_blocks = kIds;
    transfer->target_blocks = kIds;
    transfer->tokens = kAll;
    transfer->posted = BootNow();
    if (agents_->Post(std::move(transfer)) != Path::Posted::kTaken) return false;
    const bool complete = Next(PathEvent::Kind::kQuiet, key).complete;
    from.path->EndLease(key);
    agents_->Release(key);
    return complete;
  }

 private:
  NixlPath::Options Options(uint32_t number) {
    return {LibraryFile(),
            PluginName(),
            "remotes-reader-" + std::to_string(number),
            geometry_,
            kBlocks,
            pool_,
            wake_,
            false,
            kStaged.staging,
            &CopyCrew::OfProcess()};
  }

  PathEvent Next(PathEvent::Kind kind, uint64_t key) {
    const BootNanos until = Later(BootNow(), kLimit);
    std::vector<PathEvent> events;
    while (BootNow() < until) {
      wake_->Look();
      events.clear();
      agents_->Poll(&events);
      for (const PathEvent& event : events) {
        if (event.kind == kind && event.key == key) return event;
      }
      pollfd polled{wake_->fd(), POLLIN, 0};
      if (events.empty() && wake_->MaySleep() && poll(&polled, 1, 100) > 0) wake_->Clear();
    }
    return {};
  }

  const Geometry geometry_;
  std::atomic<bool> stop_{false};
  std::shared_ptr<Sleeper> wake_ = std::make_shared<Sleeper>();
  std::shared_ptr<HostPool> pool_;
  const std::shared_ptr<NixlAgentsReport> report_ = std::make_shared<NixlAgentsReport>();
  std::unique_ptr<NixlAgents> agents_;
};

}  // namespace

TEST("more peers than one agent bears are read, one after another, by agents that follow each other") {
  WITH_STAGED();
  const char* asked = getenv("KVT_NIXL_TEST_REMOTES");
  // More than an agent keeps idle connections to, so that some are forgotten after their end.
  const uint64_t peers = asked == nullptr ? 40 : strtoull(asked, nullptr, 10);
  const uint64_t limit = asked == nullptr ? 36 : kRealLimit;
  Reader reader(limit);
  CHECK(reader.good());
  if (!reader.good()) return;
  for (uint64_t peer = 1; peer <= peers; ++peer) {
    // Each a new agent, as of a worker that was started anew; the one before it has ended.
    Node source(reader.geometry(), kBlocks, "remotes-source-" + std::to_string(peer), kStaged);
    source.Fill(static_cast<uint32_t>(peer));
    CHECK(source.path && reader.Fetch(source, peer));
    CHECK(memcmp(reader.pool().data(), source.pool->data(), source.pool->bytes()) == 0);
  }
  const auto state = reader.report();
  CHECK_EQ(uint64_t{state.retired}, (peers - 1) / limit);
  CHECK(state.wedged.empty() && state.replaced == 0 && !state.exhausted);
}

KVT_TEST_MAIN
