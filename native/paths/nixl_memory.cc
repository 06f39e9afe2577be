#include "paths/nixl_memory.h"

#include <sys/resource.h>

#include <string>
#include <utility>

#include "layout/staged_geometry.h"

namespace kvt {
namespace {

constexpr size_t kScratchBytes = 4096;

uint64_t AddressOf(const void* data) { return reinterpret_cast<uintptr_t>(data); }

// RDMA devices lock what they register; NIXL itself says no more than BACKEND.
Error Explained(Error error, uint64_t bytes) {
  error.why += " (" + std::to_string(bytes) + " bytes";
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    error.why += "; this process may lock " + std::to_string(limit.rlim_cur);
  }
  error.why += ")";
  return error;
}

}  // namespace

std::optional<Error> NixlMemory::Share(nixl::Agent* agent, const Geometry& geometry,
                                       const std::shared_ptr<HostPool>& pool, bool direct,
                                       const std::optional<StagingOptions>& staging, NixlDescriptor* own) {
  pool_ = pool;
  own->bytes = pool->bytes();
  if (direct) {
    own->address = AddressOf(pool->data());
    if (auto wrong = Add(agent, own->address, own->bytes)) return wrong;
  }
  if (!staging) return std::nullopt;
  own->slots = staging->slots;
  own->slot_bytes = StagingSlotBytes(geometry, staging->tokens);
  auto slots = StagingMemory::Create(own->slots, own->slot_bytes);
  if (!slots.ok()) return slots.error();
  slots_ = std::move(slots.value());
  own->slots_address = AddressOf(slots_->sender_slot(0));
  return AddSlots(agent, own->slots_address);
}

std::optional<Error> NixlMemory::Land(nixl::Agent* agent) {
  scratch_.resize(kScratchBytes);
  auto wrong = Add(agent, scratch(), kScratchBytes);
  if (wrong || !slots_) return wrong;
  return AddSlots(agent, AddressOf(slots_->receiver_slot(0)));
}

std::optional<Error> NixlMemory::AddSlots(nixl::Agent* agent, uint64_t address) {
  auto wrong = Add(agent, address, slots_->side_bytes());
  if (wrong) wrong->code = ErrorCode::kStagingUnavailable;
  return wrong;
}

uint64_t NixlMemory::scratch() const { return AddressOf(scratch_.data()); }

std::optional<Error> NixlMemory::Add(nixl::Agent* agent, uint64_t address, uint64_t bytes) {
  auto registration = agent->Register(nixl::MemoryKind::kDram, {{address, bytes, 0}});
  if (!registration.ok()) return Explained(registration.error(), bytes);
  registered_.push_back(std::move(registration.value()));
  return std::nullopt;
}

}  // namespace kvt
