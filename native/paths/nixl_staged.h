#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "layout/pair_plans.h"
#include "layout/staged_geometry.h"
#include "memory/host_pool.h"
#include "nixl/agent.h"
#include "paths/nixl_descriptor.h"
#include "paths/nixl_wire.h"
#include "paths/path.h"
#include "paths/staged_copies.h"
#include "paths/staged_receiver.h"
#include "paths/staged_sender.h"

namespace kvt {

// How one direction between two ranks is staged. Both sides work out the same.
struct StagedPair {
  ChunkShape shape;
  uint64_t block_bytes = 0;  // of a staged block
  PairPlans plans;           // pool and slot: the sender's pack, the receiver's unpack

  // Staged blocks that hold some of the tokens.
  uint64_t BlocksOf(uint64_t from, uint64_t to) const {
    return (to + shape.block_tokens - 1) / shape.block_tokens - from / shape.block_tokens;
  }
};

// A sender as its receiver sees it.
struct StagedSource {
  StagedPair pair;
  uint64_t address = 0;  // of its first slot, in its own process
  uint64_t slot_bytes = 0;
  uint32_t slots = 0;
};

// Transfers that go through slots: pack → READ of one piece → unpack, of as many chunks at a time as there
// are slots. What happens to slots and when is decided by StagedSender and StagedReceiver; here it is done.
// All on the agent's thread.
class NixlStaged final : StagedSender::Effects, StagedReceiver::Effects {
 public:
  struct Options {
    Geometry geometry;
    uint32_t blocks = 0;
    std::shared_ptr<HostPool> pool;
    std::shared_ptr<StagingMemory> memory;
    CopyCrew* crew = nullptr;
    BootNanos stall = 0;
    std::shared_ptr<BlockGate> gate;  // the owner's
    std::function<void()> wake;       // of the agent's thread
    std::vector<uint8_t> descriptor;  // with which this side introduces itself
  };

  NixlStaged(Options options, NixlWire* wire);
  ~NixlStaged() override;
  NixlStaged(const NixlStaged&) = delete;
  NixlStaged& operator=(const NixlStaged&) = delete;

  // How `descriptor`'s side is read from here; nothing, and `why`, when the two can't be paired.
  std::optional<StagedSource> SourceOf(const NixlDescriptor& descriptor, std::string* why) const;
  // A receiver has introduced itself, and was loaded. False when the two can't be paired.
  bool Serve(const NixlDescriptor& receiver);
  // It was forgotten; only while nothing is served to it.
  void EndServe(const std::string& agent);

  void Grant(LeaseKey lease, StagedGrant grant);
  void EndLease(LeaseKey lease);
  void Post(const std::string& agent, std::shared_ptr<const StagedSource> source,
            std::unique_ptr<Transfer> transfer);
  void Cancel(JobKey job);
  // Introduce is the worker's, and Leave: it knows peers.
  void Hear(const std::string& agent, const StagedMessage::Any& message);
  // One round; true when anything moved on.
  bool Step(std::vector<PathEvent>* events, std::vector<LeaseKey>* stalled);
  // The agent is about to end: forgets reads.
  void TearDown(std::vector<PathEvent>* events);

  bool busy() const { return sender_.busy() || receiver_.busy() || !reads_.empty(); }
  // Peers that may not be forgotten now.
  bool Uses(const std::string& agent) const { return sender_.Serves(agent) || receiver_.Uses(agent); }
  // Reads of that peer are in flight.
  bool Reads(const std::string& agent) const;
  SlotBytes slots() const;

 private:
  struct Pull {
    std::shared_ptr<const StagedSource> source;
    std::unique_ptr<Transfer> transfer;
    uint64_t runs = 0;
    uint64_t pieces = 0;
    WireTelemetry wire;
  };
  struct Read {
    std::string agent;
    JobKey job = 0;
    nixl::Piece own;
    nixl::Piece far;
    std::vector<uint8_t> done;  // CHUNK_DONE
    std::optional<NixlFlight> flight;
    BootNanos cut_since = 0;  // 0: its peer was there when it was last asked
    BootNanos given_up = 0;   // 0: its job goes on
  };

  std::optional<StagedPair> PairOf(const Geometry& source, const Geometry& target, uint64_t slot_bytes,
                                   bool pack, std::string* why) const;
  nixl::Status StepRead(Read* read);
  bool Stuck(const Read& read, BootNanos now) const;
  void Say(const std::string& agent, const StagedMessage::Any& message);
  std::vector<uint32_t> SlotTable(const StagedPair& pair, const Tokens& tokens) const;

  void StartPack(uint32_t slot, const StagedSender::Session& session,
                 const StagedMessage::Chunk& chunk) override;
  void StopPack(uint32_t slot) override { copies_.Stop(StagedCopies::Side::kPack, slot); }
  void Announce(const std::string& agent, const StagedMessage::Chunk& chunk) override { Say(agent, chunk); }
  void Refuse(const std::string& agent, uint64_t job) override { Say(agent, StagedMessage::Refused{job}); }
  void TellStall(LeaseKey lease) override { stalled_.push_back(lease); }
  std::optional<ChunkShape> Judge(const std::string& agent, LeaseKey lease,
                                  const StagedMessage::Want& want) override;

  void Ask(const StagedReceiver::Job& job) override { Say(job.agent, job.want); }
  void Stop(const StagedReceiver::Job& job) override { Say(job.agent, StagedMessage::Stop{job.id}); }
  void ReturnUnread(const std::string& agent, const StagedMessage::ChunkDone& done) override {
    Say(agent, done);
  }
  void PostRead(uint32_t slot, const StagedReceiver::Job& job, const StagedMessage::Chunk& chunk) override;
  void StartUnpack(uint32_t slot, const StagedReceiver::Job& job, const StagedMessage::Chunk& chunk) override;
  void StopUnpack(uint32_t slot) override { copies_.Stop(StagedCopies::Side::kUnpack, slot); }
  void Quiet(const StagedReceiver::Job& job, bool complete) override;
  bool Fits(const StagedReceiver::Job& job, const StagedMessage::Chunk& chunk) override;

  const Options options_;
  NixlWire* const wire_;
  StagedCopies copies_;
  StagedSender sender_;
  StagedReceiver receiver_;
  std::unordered_map<LeaseKey, StagedGrant> grants_;
  std::unordered_map<std::string, StagedPair> receivers_;  // by agent, that have introduced themselves
  std::unordered_map<JobKey, Pull> pulls_;
  std::map<uint32_t, Read> reads_;                  // by own slot
  std::unordered_map<uint32_t, JobKey> unpacking_;  // by own slot
  std::vector<PathEvent> events_;
  std::vector<LeaseKey> stalled_;
  std::vector<std::string> lost_;  // agents that could not be told something
};

}  // namespace kvt
