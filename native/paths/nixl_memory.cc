#include "paths/nixl_memory.h"

#include <string>
#include <utility>

#include "layout/staged_geometry.h"

namespace kvt {
namespace {

constexpr size_t kScratchBytes = 4096;

uint64_t AddressOf(const void* data) { return reinterpret_cast<uintptr_t>(data); }

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
  slots_ = StagingMemory::Create(own->slots, own->slot_bytes);
  if (!slots_) {
    return Error{ErrorCode::kPoolUnavailable,
                 "the system gives no memory for " + std::to_string(2 * own->slots) + " staging slots of " +
                     std::to_string(own->slot_bytes) + " bytes; lower max_tokens_in_buffer"};
  }
  own->slots_address = AddressOf(slots_->sender_slot(0));
  return Add(agent, own->slots_address, slots_->side_bytes());
}

std::optional<Error> NixlMemory::Land(nixl::Agent* agent) {
  scratch_.resize(kScratchBytes);
  auto wrong = Add(agent, scratch(), kScratchBytes);
  if (wrong || !slots_) return wrong;
  return Add(agent, AddressOf(slots_->receiver_slot(0)), slots_->side_bytes());
}

uint64_t NixlMemory::scratch() const { return AddressOf(scratch_.data()); }

std::optional<Error> NixlMemory::Add(nixl::Agent* agent, uint64_t address, uint64_t bytes) {
  auto registration = agent->Register(nixl::MemoryKind::kDram, {{address, bytes, 0}});
  if (!registration.ok()) return registration.error();
  registered_.push_back(std::move(registration.value()));
  return std::nullopt;
}

}  // namespace kvt
