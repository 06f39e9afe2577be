// A pool with its NIXL path, for tests.
#pragma once

#include <poll.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "paths/nixl_path.h"
#include "test/nixl_process.h"

namespace kvt::nixl::test {

struct Mode {
  const char* name;
  bool direct;
  std::optional<StagingOptions> staging;

  PathKind kind() const { return direct ? PathKind::kNixlDirect : PathKind::kNixlStaged; }
  bool works() const { return !direct || PluginName() == "UCX"; }
};
inline constexpr BootNanos kStall = 10'000 * kNanosPerMilli;
inline const Mode kDirect{"direct", true, std::nullopt};
inline const Mode kStaged{"staged", false, StagingOptions{2, 64, kStall}};
// One slot of one block, and many.
inline const Mode kNarrow{"narrow", false, StagingOptions{1, 32, kStall}};
inline const Mode kWide{"wide", false, StagingOptions{5, 2048, kStall}};
inline const std::vector<Mode> kModes{kDirect, kStaged, kNarrow, kWide};

inline Ticket TicketOf(uint8_t number) {
  Ticket ticket{};
  ticket[0] = number;
  return ticket;
}

// A pool with its path, polled in the owner's place.
struct Node {
  Node(const Geometry& of, uint32_t count, const std::string& name, const Mode& mode = kDirect)
      : geometry(of), blocks(count) {
    auto created = HostPool::Create(geometry.BlockBytes() * blocks, stop);
    pool = created.value();
    auto opened = NixlPath::Open({LibraryFile(), PluginName(), name, geometry, blocks, pool, wake,
                                  mode.direct, mode.staging, &CopyCrew::OfProcess()});
    if (opened.ok()) {
      path = std::move(opened.value());
    } else {
      ++kvt::test::Failures();
      std::printf("%s\n", opened.error().why.c_str());
    }
  }

  void Fill(uint32_t seed) const {
    std::mt19937 random(seed);
    for (size_t at = 0; at < pool->bytes(); at += 4) {
      const uint32_t word = random();
      memcpy(pool->data() + at, &word, 4);
    }
  }

  // The next event of that kind and key; the other side is served by its own thread.
  PathEvent Next(PathEvent::Kind kind, uint64_t key) {
    const BootNanos until = Later(BootNow(), kLimit);
    for (;;) {
      for (auto seen = events.begin(); seen != events.end(); ++seen) {
        if (seen->kind != kind || seen->key != key) continue;
        const PathEvent found = *seen;
        events.erase(seen);
        return found;
      }
      if (BootNow() > until) {
        ++kvt::test::Failures();
        std::printf("no event of kind %d for %d within the limit\n", static_cast<int>(kind),
                    static_cast<int>(key));
        return {};
      }
      wake->Look();
      path->Poll(&events);
      pollfd polled{wake->fd(), POLLIN, 0};
      if (events.empty() && wake->MaySleep() && poll(&polled, 1, 1'000) > 0) wake->Clear();
    }
  }

  ReachStatus Reach(PeerKey key, const std::vector<uint8_t>& descriptor, BootNanos limit = kLimit,
                    std::shared_ptr<const PeerLife> life = nullptr) {
    path->Know(key, std::move(life));
    path->Reach(key, descriptor, Later(BootNow(), limit));
    return Next(PathEvent::Kind::kReached, key).reached;
  }

  Path::Posted Post(JobKey job, PeerKey peer, std::vector<uint32_t> source, std::vector<uint32_t> target,
                    Tokens tokens, uint8_t ticket = 1) {
    auto transfer = std::make_unique<Transfer>();
    transfer->ticket = TicketOf(ticket);
    transfer->job = job;
    transfer->peer = peer;
    transfer->source_blocks = std::move(source);
    transfer->target_blocks = std::move(target);
    transfer->tokens = tokens;
    transfer->posted = BootNow();
    return path->Post(std::move(transfer));
  }

  const Geometry geometry;
  const uint32_t blocks;
  std::atomic<bool> stop{false};
  std::shared_ptr<Sleeper> wake = std::make_shared<Sleeper>();
  std::shared_ptr<HostPool> pool;
  std::unique_ptr<NixlPath> path;
  std::vector<PathEvent> events;
};

inline std::vector<uint32_t> Shuffled(uint32_t count, std::mt19937* random) {
  std::vector<uint32_t> ids(count);
  for (uint32_t at = 0; at < count; ++at) ids[at] = at;
  std::shuffle(ids.begin(), ids.end(), *random);
  return ids;
}

// What the plan says should lie in the target pool.
inline std::vector<uint8_t> Expected(const Node& source, const Node& target,
                                     const std::vector<uint32_t>& from, const std::vector<uint32_t>& to,
                                     Tokens tokens) {
  std::string why;
  const auto plan = Plan::Compile({source.geometry}, {target.geometry}, &why);
  const auto* begin = reinterpret_cast<const uint8_t*>(target.pool->data());
  std::vector<uint8_t> bytes(begin, begin + target.pool->bytes());
  const BlockTables tables{from, to};
  RunCursor cursor(*plan, tokens, tables, {0, plan->Units(tokens)});
  for (kvt::Run run; cursor.Next(&run);) {
    for (uint64_t piece = 0; piece < run.count; ++piece) {
      memcpy(bytes.data() + run.target_offset + piece * run.target_stride,
             source.pool->data() + run.source_offset + piece * run.source_stride, run.bytes);
    }
  }
  return bytes;
}

inline bool Holds(const Node& node, const std::vector<uint8_t>& bytes) {
  return memcmp(node.pool->data(), bytes.data(), bytes.size()) == 0;
}

}  // namespace kvt::nixl::test
