#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nixl/library.h"

namespace kvt::nixl {

struct AgentOptions {
  std::string name;  // of this process start: a restarted peer has another, or NIXL mixes the two up
  std::string plugin = "UCX";
  std::vector<std::pair<std::string, std::string>> parameters;
  // LIBFABRIC hangs without; UCX is polled by the agent's thread and is 2 to 5 times slower with.
  bool progress_thread = false;
  bool telemetry = true;
};

// A NIXL descriptor.
struct Piece {
  uintptr_t address = 0;
  size_t bytes = 0;
  uint64_t device = 0;  // CUDA ordinal of VRAM
};

struct Notification {
  std::string agent;
  std::vector<uint8_t> bytes;
};

class AgentCore;

// Registered memory; deregistered when it ends. Ends before the memory does.
class Registration {
 public:
  Registration(std::shared_ptr<AgentCore> core, CRegistrationList* list, std::vector<Piece> pieces);
  ~Registration();
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;

  CRegistrationList* list() const { return list_; }
  const std::vector<Piece>& pieces() const { return pieces_; }

 private:
  const std::shared_ptr<AgentCore> core_;
  CRegistrationList* const list_;
  const std::vector<Piece> pieces_;
};

// Descriptors that were checked once, so that requests name them by index.
class PreparedList {
 public:
  PreparedList(std::shared_ptr<AgentCore> core, CPreparedList* handle, size_t count);
  ~PreparedList();
  PreparedList(const PreparedList&) = delete;
  PreparedList& operator=(const PreparedList&) = delete;

  CPreparedList* handle() const { return handle_; }
  size_t count() const { return count_; }

 private:
  const std::shared_ptr<AgentCore> core_;
  CPreparedList* const handle_;
  const size_t count_;
};

// One transfer. It may be posted again after it has ended. Destroying one that is in progress aborts nothing:
// NIXL forgets it, and its bytes may still land.
class Request {
 public:
  Request(std::shared_ptr<AgentCore> core, CRequest* handle);
  ~Request();
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;

  // kSuccess, kInProgress or what went wrong. May block for the whole copy, or for ever (capi_functions.h).
  Status Post();
  // Drives progress, and sends the notification after the end: to be called until it is not kInProgress.
  Status Check();
  // After success only.
  std::optional<CTelemetry> Telemetry();

 private:
  const std::shared_ptr<AgentCore> core_;
  CRequest* const handle_;
};

struct RequestOptions {
  std::optional<std::vector<uint8_t>> notification;  // may be empty, which is a notification too
  bool merge = true;                                 // neighbours in both lists become one NIXL descriptor
};

// One NIXL identity with one backend. All calls of an agent and of what it made come from one thread. What it
// made keeps the agent alive and may be destroyed in any order.
class Agent {
 public:
  // Fails with NIXL_FAILED; where the plug-in can't be loaded, with the loader's own words.
  static Result<std::unique_ptr<Agent>> Open(std::shared_ptr<const Library> library, AgentOptions options);
  ~Agent();
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;

  const std::string& name() const;

  // Regions may not overlap any that is registered, which NIXL would free twice.
  Result<std::unique_ptr<Registration>> Register(MemoryKind kind, std::vector<Piece> regions);

  // What a peer loads to reach all that is registered. Opaque; holds addresses and keys.
  Result<std::vector<uint8_t>> LocalMetadata();
  // The same for some regions, or with null for the connection alone.
  Result<std::vector<uint8_t>> PartialMetadata(const Registration* some);
  // The name of the agent that the metadata are of. NIXL refuses what has not its form, but UCX ends the
  // process on some damaged addresses (measured, 1.4.1 and 1.5.1: one in 1,000 mutated blobs), so only bytes
  // whose checksum is right may come here.
  Result<std::string> LoadRemote(std::span<const uint8_t> metadata);
  Status Forget(const std::string& remote);
  bool Knows(const std::string& remote);

  // `remote` empty: of this side. Every piece must lie in registered memory.
  Result<std::unique_ptr<PreparedList>> Prepare(const std::string& remote, MemoryKind kind,
                                                std::span<const Piece> pieces);
  // Pieces own[i] of `own` with remote[i] of `far`, which have equal lengths.
  Result<std::unique_ptr<Request>> Make(Operation operation, const PreparedList& own_list,
                                        std::span<const int32_t> own, const PreparedList& far_list,
                                        std::span<const int32_t> far, const RequestOptions& options);

  Status Notify(const std::string& remote, std::span<const uint8_t> bytes);
  // All that came since the last call, in the order of arrival from each agent. Drives progress.
  Result<std::vector<Notification>> TakeNotifications();

 private:
  explicit Agent(std::shared_ptr<AgentCore> core);
  Result<std::vector<uint8_t>> TakeBlob(const char* what, CStatus status, void* data, size_t bytes) const;

  const std::shared_ptr<AgentCore> core_;
};

const char* NameOf(Status status);

}  // namespace kvt::nixl
