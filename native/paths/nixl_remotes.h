#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "memory/boot_clock.h"
#include "paths/nixl_descriptor.h"
#include "paths/nixl_grid.h"
#include "paths/nixl_wire.h"

namespace kvt {

// The agents of other processes that ours has loaded, and the connection to each.
class NixlRemotes final : public NixlWire {
 public:
  struct Options {
    std::string version;
    std::string plugin;
    std::vector<uint8_t> leave;                      // what one is told before it is forgotten; may be empty
    std::function<bool(const std::string&)> flying;  // reads of that agent are in flight
  };

  // Without the agent nothing is told and nothing flies.
  NixlRemotes(Options options, nixl::Agent* agent) : options_(std::move(options)), agent_(agent) {}

  ReachStatus Load(const NixlDescriptor& descriptor);
  // Of a loaded one; null: it has reached us, not we it.
  void SetLife(const std::string& agent, std::shared_ptr<const PeerLife> life);
  // Reads of that agent will mostly be of cells of this grid: its lists are prepared for all of them.
  void SetGrid(const std::string& agent, const NixlGrid& grid);
  void Use(const std::string& agent) { ++remotes_[agent].users; }
  // When that agent was last told who we are: for whoever tells it.
  BootNanos& Told(const std::string& agent) { return remotes_[agent].told; }
  // The last user's word lets it be forgotten, after a while.
  void Unuse(const std::string& agent);

  PeerLife::State Life(const std::string& agent) const override;
  bool Notify(const std::string& agent, std::span<const uint8_t> bytes) override;
  std::optional<NixlFlight> Fly(const std::string& agent, const std::vector<nixl::Piece>& own,
                                const std::vector<nixl::Piece>& far,
                                std::optional<std::vector<uint8_t>> notification) override;
  void Break(const std::string& agent) override;

  void AgentEnded();
  void CountIn(std::atomic<uint64_t>* beats) { beats_ = beats; }
  // Ever.
  uint64_t loaded() const { return loaded_; }

 private:
  struct Remote {
    uint32_t users = 0;
    std::vector<uint8_t> metadata;
    bool broken = false;
    BootNanos told = 0;
    std::shared_ptr<const PeerLife> life;
    std::optional<NixlGrid> grid;
    std::shared_ptr<const nixl::PreparedList> own;  // of the grid's cells; null: none are prepared
    std::shared_ptr<const nixl::PreparedList> far;
  };

  // From lists that are prepared, or from fresh ones.
  bool MakeOfCells(const Remote& remote, const std::vector<nixl::Piece>& own,
                   const std::vector<nixl::Piece>& far, const nixl::RequestOptions& options,
                   NixlFlight* flight);
  bool MakeOfPieces(const std::string& agent, const std::vector<nixl::Piece>& own,
                    const std::vector<nixl::Piece>& far, nixl::RequestOptions options, NixlFlight* flight);
  void PrepareGrid(const std::string& agent, Remote* remote);
  void Recover(const std::string& agent);
  void Forget(const std::string& agent);

  const Options options_;
  nixl::Agent* agent_;
  std::unordered_map<std::string, Remote> remotes_;
  // Own lists by cell size, which peers of one layout share.
  std::unordered_map<uint64_t, std::weak_ptr<const nixl::PreparedList>> own_lists_;
  std::vector<int32_t> own_indices_;
  std::vector<int32_t> far_indices_;
  std::deque<std::string> idle_;  // the longest idle first
  uint64_t loaded_ = 0;
  std::atomic<uint64_t>* beats_ = nullptr;
};

}  // namespace kvt
