#pragma once

#include <memory>
#include <string>
#include <vector>

#include "memory/boot_clock.h"
#include "paths/nixl_chunks.h"
#include "paths/nixl_peer.h"
#include "paths/nixl_wire.h"
#include "paths/path.h"

namespace kvt {

// Transfers that read a peer's pool straight into ours, chunk after chunk. On the agent's thread, like
// NixlStaged.
class NixlDirect {
 public:
  NixlDirect(uint64_t own_pool, NixlWire* wire) : own_pool_(own_pool), wire_(wire) {}

  void Post(std::shared_ptr<const NixlPeer> peer, std::unique_ptr<Transfer> transfer);
  void Cancel(JobKey job);
  // Posts what may be posted, looks at what is in flight. True when anything moved on.
  bool Step(std::vector<PathEvent>* events);
  // Drops what is in flight; its jobs end by the next Step, when it can't land any more.
  void DropFlights();
  bool busy() const { return !jobs_.empty(); }
  // Reads of that peer are in flight.
  bool Reads(const std::string& agent) const;

 private:
  struct Job {
    Job(std::shared_ptr<const NixlPeer> of, std::shared_ptr<const Plan> plan,
        std::unique_ptr<Transfer> transfer, uint64_t own_pool)
        : peer(std::move(of)), cutter(std::move(plan), std::move(transfer), own_pool, peer->address) {}

    const std::shared_ptr<const NixlPeer> peer;
    NixlChunkCutter cutter;
    std::vector<NixlFlight> flights;
    bool stopped = false;  // cancelled, failed, or all is posted
    bool failed = false;
    BootNanos cut_since = 0;  // 0: its peer was there when it was last asked
    BootNanos started = 0;
    uint64_t bytes = 0;
    uint64_t runs = 0;
    uint64_t pieces = 0;
    WireTelemetry wire;
  };

  bool StepJob(Job* job);
  bool TakeEnded(Job* job);
  void PostNext(Job* job);
  // Whether the peer is there; a job whose peer stays away is failed.
  bool MayPost(Job* job);
  static PathEvent EndOf(const Job& job);

  const uint64_t own_pool_;
  NixlWire* const wire_;
  std::vector<std::unique_ptr<Job>> jobs_;
};

}  // namespace kvt
