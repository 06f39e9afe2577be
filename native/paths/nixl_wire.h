#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "memory/peer_life.h"
#include "nixl/agent.h"
#include "paths/path.h"

namespace kvt {

// A posted READ.
struct NixlFlight {
  std::shared_ptr<const nixl::PreparedList> own;
  std::shared_ptr<const nixl::PreparedList> far;
  std::unique_ptr<nixl::Request> request;  // goes before its lists
  uint64_t bytes = 0;
  bool landed = false;  // by its post

  nixl::Status Check() const { return landed ? nixl::Status::kSuccess : request->Check(); }
};

// Of a post that has succeeded, as NIXL itself measured it.
inline WireTelemetry TelemetryOf(const NixlFlight& flight) {
  const auto said = flight.request->Telemetry();
  if (!said) return {};
  return {1, said->post_us, said->transfer_us, said->descriptors, said->total_bytes};
}

// How long a read that was given up may go on before its agent is retired, which ends it.
struct StuckReadLimits {
  BootNanos dead = 1'000 * kNanosPerMilli;  // its peer's process has ended
  BootNanos cut = 10'000 * kNanosPerMilli;
  BootNanos alive = 60'000 * kNanosPerMilli;

  BootNanos Of(PeerLife::State state) const {
    if (state == PeerLife::State::kDead) return dead;
    return state == PeerLife::State::kCut ? cut : alive;
  }
};

// Staging slots of an agent.
struct SlotBytes {
  uint64_t all = 0;          // of both directions
  uint64_t quarantined = 0;  // under reads that were given up and have not ended
  bool stuck = false;        // one of these goes on for too long
};

// The agent as transfers use it. Its thread.
class NixlWire {
 public:
  virtual ~NixlWire() = default;
  // To be asked before each read: a post to a dead peer may never return.
  virtual PeerLife::State Life(const std::string& agent) const = 0;
  // False when the peer can't be told.
  virtual bool Notify(const std::string& agent, std::span<const uint8_t> bytes) = 0;
  // Reads far[i] into own[i]; the notification leaves when that has ended. Nothing when NIXL refuses.
  virtual std::optional<NixlFlight> Fly(const std::string& agent, const std::vector<nixl::Piece>& own,
                                        const std::vector<nixl::Piece>& far,
                                        std::optional<std::vector<uint8_t>> notification) = 0;
  // A read has failed: the next one gets a new connection.
  virtual void Break(const std::string& agent) = 0;
};

}  // namespace kvt
