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
  const auto remote = remotes_.find(agent);
  if (remote == remotes_.end()) return std::nullopt;
  NixlFlight flight;
  const nixl::RequestOptions options{std::move(notification), true};
  if (!MakeOfCells(remote->second, own, far, options, &flight) &&
      !MakeOfPieces(agent, own, far, options, &flight)) {
    return std::nullopt;
  }
  for (const nixl::Piece& piece : own) flight.bytes += piece.bytes;
  const nixl::Status posted = flight.request->Post();
  if (beats_ != nullptr) beats_->fetch_add(1, std::memory_order_relaxed);
  if (posted != nixl::Status::kSuccess && posted != nixl::Status::kInProgress) return std::nullopt;
  flight.landed = posted == nixl::Status::kSuccess;
  return flight;
}

bool NixlRemotes::MakeOfCells(const Remote& remote, const std::vector<nixl::Piece>& own,
                              const std::vector<nixl::Piece>& far, const nixl::RequestOptions& options,
                              NixlFlight* flight) {
  if (!remote.far || !remote.grid->Cells(own, far, &own_indices_, &far_indices_)) return false;
  auto request =
      agent_->Make(nixl::Operation::kRead, *remote.own, own_indices_, *remote.far, far_indices_, options);
  if (!request.ok()) return false;
  flight->own = remote.own;
  flight->far = remote.far;
  flight->request = std::move(request.value());
  return true;
}

bool NixlRemotes::MakeOfPieces(const std::string& agent, const std::vector<nixl::Piece>& own,
                               const std::vector<nixl::Piece>& far, nixl::RequestOptions options,
                               NixlFlight* flight) {
  auto own_list = agent_->Prepare("", nixl::MemoryKind::kDram, own);
  if (!own_list.ok()) return false;
  auto far_list = agent_->Prepare(agent, nixl::MemoryKind::kDram, far);
  if (!far_list.ok()) return false;
  const std::vector<int32_t> indices = FirstIndices(own.size());
  options.merge = false;
  auto request =
      agent_->Make(nixl::Operation::kRead, *own_list.value(), indices, *far_list.value(), indices, options);
  if (!request.ok()) return false;
  flight->own = std::move(own_list.value());
  flight->far = std::move(far_list.value());
  flight->request = std::move(request.value());
  return true;
}

void NixlRemotes::SetGrid(const std::string& agent, const NixlGrid& grid) {
  Remote& remote = remotes_[agent];
  if (remote.grid == grid && remote.far) return;
  remote.grid = grid;
  PrepareGrid(agent, &remote);
}

// Without lists each post makes its own.
void NixlRemotes::PrepareGrid(const std::string& agent, Remote* remote) {
  remote->own.reset();
  remote->far.reset();
  if (!remote->grid) return;
  const NixlGrid& grid = *remote->grid;
  auto far = agent_->Prepare(agent, nixl::MemoryKind::kDram, grid.FarCells());
  if (!far.ok()) return;
  std::weak_ptr<const nixl::PreparedList>& shared = own_lists_[grid.cell];
  remote->own = shared.lock();
  if (!remote->own) {
    auto own = agent_->Prepare("", nixl::MemoryKind::kDram, grid.OwnCells());
    if (!own.ok()) return;
    remote->own = std::move(own.value());
    shared = remote->own;
  }
  remote->far = std::move(far.value());
}

void NixlRemotes::AgentEnded() {
  for (auto& [name, remote] : remotes_) {
    remote.own.reset();
    remote.far.reset();
  }
  agent_ = nullptr;
}

void NixlRemotes::Break(const std::string& agent) {
  const auto found = remotes_.find(agent);
  if (found != remotes_.end()) found->second.broken = true;
}

// A connection that was cut is made anew for the next job; a peer that has died gives the next error.
void NixlRemotes::Recover(const std::string& agent) {
  const auto found = remotes_.find(agent);
  if (found == remotes_.end() || !found->second.broken || options_.flying(agent)) return;
  Remote& remote = found->second;
  // Its lists are of the connection that goes.
  remote.far.reset();
  (void)agent_->Forget(agent);
  remote.broken = !agent_->LoadRemote(remote.metadata).ok();
  if (!remote.broken) PrepareGrid(agent, &remote);
}

void NixlRemotes::Unuse(const std::string& agent) {
  const auto found = remotes_.find(agent);
  if (found == remotes_.end() || --found->second.users > 0) return;
  if (found->second.broken) return Forget(agent);
  found->second.own.reset();
  found->second.far.reset();
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
  // Its lists go first.
  remotes_.erase(agent);
  if (agent_ != nullptr) (void)agent_->Forget(agent);
}

}  // namespace kvt
