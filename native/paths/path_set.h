#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "paths/path.h"

namespace kvt {

// The paths that this side has, cheapest first, as one: a peer is reached over the first one that both sides
// have and that works, and all its jobs go there.
class PathSet final : public Path {
 public:
  struct Entry {
    PathKind kind = PathKind::kSharedMemory;
    std::unique_ptr<Path> path;
    std::vector<uint8_t> descriptor;  // what a peer needs for it
  };

  explicit PathSet(std::vector<Entry> entries);

  // Of all paths together.
  std::vector<uint8_t> Descriptor() const override;

  void Know(PeerKey peer, std::shared_ptr<const PeerLife> life) override;
  void Reach(PeerKey peer, std::vector<uint8_t> descriptor, BootNanos deadline) override;
  std::optional<double> CostMicros(PeerKey peer, uint64_t bytes, uint64_t piece_bytes) const override;
  Posted Post(std::unique_ptr<Transfer> transfer) override;
  void Cancel(JobKey job) override;
  void Poll(std::vector<PathEvent>* events) override;
  void Release(PeerKey peer) override;
  void Grant(LeaseKey lease, const StagedGrant& grant) override;
  void EndLease(LeaseKey lease) override;
  void Serve(bool leases_out) override;
  void EndBy(BootNanos deadline) override;
  BootNanos Next() const override;
  BootNanos Soon() const override;

 private:
  struct Peer {
    std::unordered_map<int, std::vector<uint8_t>> sections;  // by kind
    BootNanos deadline = 0;
    std::shared_ptr<const PeerLife> life;
    size_t entry = 0;  // that is tried, or was reached
    bool reached = false;
    bool released = false;
  };

  // Over the first entry from `from` on that the peer has too; false when there is none.
  bool TryFrom(PeerKey key, Peer* peer, size_t from);
  void OnReached(const PathEvent& event, std::vector<PathEvent>* events);

  std::vector<Entry> entries_;
  std::unordered_map<PeerKey, Peer> peers_;
  std::unordered_map<PeerKey, std::shared_ptr<const PeerLife>> lives_;  // of the next Reach
  std::unordered_map<JobKey, size_t> jobs_;
  std::vector<PathEvent> refused_;
};

}  // namespace kvt
