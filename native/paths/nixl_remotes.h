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

  void AgentEnded() { agent_ = nullptr; }
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
  };

  void Recover(const std::string& agent);
  void Forget(const std::string& agent);

  const Options options_;
  nixl::Agent* agent_;
  std::unordered_map<std::string, Remote> remotes_;
  std::deque<std::string> idle_;  // the longest idle first
  uint64_t loaded_ = 0;
  std::atomic<uint64_t>* beats_ = nullptr;
};

}  // namespace kvt
