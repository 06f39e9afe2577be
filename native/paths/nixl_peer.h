#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "layout/pair_plans.h"
#include "memory/peer_life.h"
#include "paths/nixl_staged.h"

namespace kvt {

// A peer's pool that NIXL can read. Immutable, so both threads may look into it.
struct NixlPeer {
  std::string agent;
  PairPlans plans;
  uint32_t blocks = 0;
  uint64_t address = 0;
  std::shared_ptr<const PeerLife> life;
  std::shared_ptr<const StagedSource> staged;  // its slots are read, not its pool
};

}  // namespace kvt
