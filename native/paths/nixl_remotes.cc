#include "paths/nixl_remotes.h"

#include <utility>

namespace kvt {
namespace {

// A peer that comes back within a while needs no new connection.
constexpr size_t kIdleMax = 32;

std::vector<int32_t> FirstIndices(size_t count) {
  std::vector<int32_t> indices(count);
  for (size_t at = 0; at < count; ++at) indices[at] = static_cast<int32_t>(at);
  return indices;
}

}  // namespace

ReachStatus NixlRemotes::Load(const NixlDescriptor& descriptor) {
  const bool pair =
      descriptor.plugin == options_.plugin && NixlVersionsPair(descriptor.version, options_.version);
  if (!pair) return ReachStatus::kNixlVersions;
  const auto known = remotes_.find(descriptor.agent);
  if (known != remotes_.end()) {
    Remote& remote = known->second;
    if (remote.broken) Recover(descriptor.agent);
    if (remote.broken) return ReachStatus::kNixlFailed;
    if (remote.metadata == descriptor.metadata) return ReachStatus::kOk;
  }
  ++loaded_;
  auto name = agent_->LoadRemote(descriptor.metadata);
  // Metadata that name another agent than their descriptor does are nobody's we know.
  if (!name.ok() || name.value() != descriptor.agent) return ReachStatus::kNixlFailed;
  remotes_[descriptor.agent].metadata = descriptor.metadata;
  return ReachStatus::kOk;
}

void NixlRemotes::SetLife(const std::string& agent, std::shared_ptr<const PeerLife> life) {
  remotes_[agent].life = std::move(life);
}

PeerLife::State NixlRemotes::Life(const std::string& agent) const {
  const auto found = remotes_.find(agent);
  if (found == remotes_.end()) return PeerLife::State::kDead;
  return found->second.life ? found->second.life->Ask() : PeerLife::State::kAlive;
}

bool NixlRemotes::Notify(const std::string& agent, std::span<const uint8_t> bytes) {
  if (agent_ == nullptr || Life(agent) != PeerLife::State::kAlive) return false;
  Recover(agent);
  const bool told = agent_->Notify(agent, bytes) == nixl::Status::kSuccess;
  if (!told) Break(agent);
  return told;
}

std::optional<NixlFlight> NixlRemotes::Fly(const std::string& agent, const std::vector<nixl::Piece>& own,
                                           const std::vector<nixl::Piece>& far,
                                           std::optional<std::vector<uint8_t>> notification) {
  if (agent_ == nullptr) return std::nullopt;
  Recover(agent);
  NixlFlight flight;
  auto own_list = agent_->Prepare("", nixl::MemoryKind::kDram, own);
  if (!own_list.ok()) return std::nullopt;
  auto far_list = agent_->Prepare(agent, nixl::MemoryKind::kDram, far);
  if (!far_list.ok()) return std::nullopt;
  const std::vector<int32_t> indices = FirstIndices(own.size());
  auto request = agent_->Make(nixl::Operation::kRead, *own_list.value(), indices, *far_list.value(), indices,
                              {std::move(notification), false});
  if (!request.ok()) return std::nullopt;
  flight.own = std::move(own_list.value());
  flight.far = std::move(far_list.value());
  flight.request = std::move(request.value());
  for (const nixl::Piece& piece : own) flight.bytes += piece.bytes;
  const nixl::Status posted = flight.request->Post();
  if (beats_ != nullptr) beats_->fetch_add(1, std::memory_order_relaxed);
  if (posted != nixl::Status::kSuccess && posted != nixl::Status::kInProgress) return std::nullopt;
  return flight;
}

void NixlRemotes::Break(const std::string& agent) {
  const auto found = remotes_.find(agent);
  if (found != remotes_.end()) found->second.broken = true;
}

// A connection that was cut is made anew for the next job; a peer that has died gives the next error.
void NixlRemotes::Recover(const std::string& agent) {
  const auto found = remotes_.find(agent);
  if (found == remotes_.end() || !found->second.broken || options_.flying(agent)) return;
  (void)agent_->Forget(agent);
  found->second.broken = !agent_->LoadRemote(found->second.metadata).ok();
}

void NixlRemotes::Unuse(const std::string& agent) {
  const auto found = remotes_.find(agent);
  if (found == remotes_.end() || --found->second.users > 0) return;
  if (found->second.broken) return Forget(agent);
  idle_.push_back(agent);
  while (idle_.size() > kIdleMax) {
    const std::string oldest = idle_.front();
    idle_.pop_front();
    const auto remote = remotes_.find(oldest);
    if (remote != remotes_.end() && remote->second.users == 0) Forget(oldest);
  }
}

void NixlRemotes::Forget(const std::string& agent) {
  // Only those that we have reached know us as a reader. Of one that has reached us nothing is known, and a
  // word to a dead one may never return.
  const Remote& remote = remotes_[agent];
  if (!options_.leave.empty() && remote.life && !remote.broken) (void)Notify(agent, options_.leave);
  if (agent_ != nullptr) (void)agent_->Forget(agent);
  remotes_.erase(agent);
}

}  // namespace kvt
