#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "layout/geometry.h"
#include "memory/host_pool.h"
#include "nixl/agent.h"
#include "paths/nixl_descriptor.h"
#include "paths/staged_copies.h"

namespace kvt {

// The staging slots of a side.
struct StagingOptions {
  uint32_t slots = 2;   // a direction
  uint64_t tokens = 0;  // in each
  BootNanos stall = 0;  // how long a slot may stay with a peer, and a job may wait for one
};

// What an agent has registered. Deregistered when this ends, before the memory goes.
class NixlMemory {
 public:
  // What peers may read: the pool, where they do so straight, and the sender's slots. To come before the
  // agent's metadata are asked for.
  std::optional<Error> Share(nixl::Agent* agent, const Geometry& geometry,
                             const std::shared_ptr<HostPool>& pool, bool direct,
                             const std::optional<StagingOptions>& staging, NixlDescriptor* own);
  // What only our own reads land in: to come after, so that no peer is told of it.
  std::optional<Error> Land(nixl::Agent* agent);

  // Null without staging.
  const std::shared_ptr<StagingMemory>& slots() const { return slots_; }
  // For warm-up reads.
  uint64_t scratch() const;

 private:
  std::optional<Error> Add(nixl::Agent* agent, uint64_t address, uint64_t bytes);
  std::optional<Error> AddSlots(nixl::Agent* agent, uint64_t address);

  std::shared_ptr<HostPool> pool_;
  std::shared_ptr<StagingMemory> slots_;
  std::vector<uint8_t> scratch_;
  std::vector<std::unique_ptr<nixl::Registration>> registered_;  // last: of the above
};

}  // namespace kvt
