#include "nixl/agent.h"

#include <algorithm>
#include <cstdlib>
#include <limits>

namespace kvt::nixl {
namespace {

constexpr uint64_t kProgressDelayUs = 2'000;  // 0 would burn one core an agent, 1,000 more than 2 % of one

Status ToStatus(CStatus status) { return static_cast<Status>(status); }
bool Succeeded(CStatus status) { return ToStatus(status) == Status::kSuccess; }

Error Failed(const std::string& agent, const std::string& what, CStatus status) {
  return {ErrorCode::kNixlFailed, "NIXL agent " + agent + ": " + what + " ended with " +
                                      NameOf(ToStatus(status)) + " (" + std::to_string(status) + ")"};
}

Error Refused(const std::string& agent, const std::string& why) {
  return {ErrorCode::kNixlFailed, "NIXL agent " + agent + ": " + why};
}

// Owns one C handle of a call's duration.
template <typename Handle>
class Held {
 public:
  explicit Held(CStatus (*destroy)(Handle*)) : destroy_(destroy) {}
  ~Held() {
    if (handle_ != nullptr) destroy_(handle_);
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

  Handle* get() const { return handle_; }
  Handle** out() { return &handle_; }
  Handle* release() { return std::exchange(handle_, nullptr); }

 private:
  CStatus (*const destroy_)(Handle*);
  Handle* handle_ = nullptr;
};

bool Overlap(const Piece& one, const Piece& other) {
  return one.device == other.device && one.address < other.address + other.bytes &&
         other.address < one.address + one.bytes;
}

}  // namespace

const char* NameOf(Status status) {
  switch (status) {
    case Status::kSuccess:
      return "SUCCESS";
    case Status::kInProgress:
      return "IN_PROG";
    case Status::kInvalidParam:
      return "INVALID_PARAM";
    case Status::kBackend:
      return "BACKEND";
    case Status::kInvalidState:
      return "INVALID_STATE";
    case Status::kException:
      return "EXCEPTION";
    case Status::kNoTelemetry:
      return "NO_TELEMETRY";
    case Status::kNotFound:
      return "NOT_FOUND";
  }
  return "an unknown status";
}

// The C handles of one agent, destroyed when the last thing that was made from it has gone.
class AgentCore {
 public:
  AgentCore(std::shared_ptr<const Library> library, std::string name)
      : library_(std::move(library)), name_(std::move(name)) {}
  ~AgentCore() {
    const Api& api = library_->api();
    if (notifications != nullptr) api.destroy_notif_map(notifications);
    if (backend_options != nullptr) api.destroy_opt_args(backend_options);
    if (backend != nullptr) api.destroy_backend(backend);
    if (agent != nullptr) api.destroy_agent(agent);
  }
  AgentCore(const AgentCore&) = delete;
  AgentCore& operator=(const AgentCore&) = delete;

  const Api& api() const { return library_->api(); }
  const std::string& name() const { return name_; }

  std::optional<Error> Open(const AgentOptions& options);

  CAgent* agent = nullptr;
  CBackend* backend = nullptr;
  COptions* backend_options = nullptr;  // name the backend and nothing else
  CNotifications* notifications = nullptr;
  std::vector<Piece> registered;

 private:
  std::optional<Error> CreateBackend(const AgentOptions& options);

  const std::shared_ptr<const Library> library_;
  const std::string name_;
};

std::optional<Error> AgentCore::Open(const AgentOptions& options) {
  if (name_.empty()) return Refused("\"\"", "an agent needs a name");
  const PluginFinding plugin = OpenPlugin(*library_, options.plugin);
  if (!plugin.why.empty()) {
    return Refused(name_, "plug-in " + options.plugin + " can't be loaded: " + plugin.why);
  }
  CAgentConfig config;
  config.enable_progress_thread = options.progress_thread;
  config.progress_delay_us = kProgressDelayUs;
  config.thread_sync = options.progress_thread ? ThreadSync::kStrict : ThreadSync::kNone;
  config.capture_telemetry = options.telemetry;
  CStatus status = api().create_configured_agent(name_.c_str(), &config, &agent);
  if (!Succeeded(status)) return Failed(name_, "creating the agent", status);
  if (auto wrong = CreateBackend(options)) return wrong;
  status = api().create_opt_args(&backend_options);
  if (Succeeded(status)) status = api().opt_args_add_backend(backend_options, backend);
  if (Succeeded(status)) status = api().create_notif_map(&notifications);
  if (!Succeeded(status)) return Failed(name_, "preparing the agent", status);
  return std::nullopt;
}

std::optional<Error> AgentCore::CreateBackend(const AgentOptions& options) {
  Held<CParams> parameters(api().destroy_params);
  CStatus status = api().create_params(parameters.out());
  for (const auto& [key, value] : options.parameters) {
    if (Succeeded(status)) status = api().params_add(parameters.get(), key.c_str(), value.c_str());
  }
  if (Succeeded(status)) {
    status = api().create_backend(agent, options.plugin.c_str(), parameters.get(), &backend);
  }
  if (Succeeded(status)) return std::nullopt;
  return Failed(name_, "creating a backend of plug-in " + options.plugin, status);
}

Registration::Registration(std::shared_ptr<AgentCore> core, CRegistrationList* list,
                           std::vector<Piece> pieces)
    : core_(std::move(core)), list_(list), pieces_(std::move(pieces)) {}

Registration::~Registration() {
  core_->api().deregister_mem(core_->agent, list_, core_->backend_options);
  core_->api().destroy_reg_dlist(list_);
  auto& registered = core_->registered;
  for (const Piece& piece : pieces_) {
    const auto found = std::find_if(registered.begin(), registered.end(),
                                    [&piece](const Piece& other) { return Overlap(piece, other); });
    if (found != registered.end()) registered.erase(found);
  }
}

PreparedList::PreparedList(std::shared_ptr<AgentCore> core, CPreparedList* handle, size_t count)
    : core_(std::move(core)), handle_(handle), count_(count) {}

PreparedList::~PreparedList() { core_->api().release_xfer_dlist_handle(core_->agent, handle_); }

Request::Request(std::shared_ptr<AgentCore> core, CRequest* handle)
    : core_(std::move(core)), handle_(handle) {}

Request::~Request() {
  if (Succeeded(core_->api().release_xfer_req(core_->agent, handle_))) core_->api().destroy_xfer_req(handle_);
}

Status Request::Post() { return ToStatus(core_->api().post_xfer_req(core_->agent, handle_, nullptr)); }

Status Request::Check() { return ToStatus(core_->api().get_xfer_status(core_->agent, handle_)); }

std::optional<CTelemetry> Request::Telemetry() {
  CTelemetry telemetry;
  if (!Succeeded(core_->api().get_xfer_telemetry(core_->agent, handle_, &telemetry))) return std::nullopt;
  return telemetry;
}

Agent::Agent(std::shared_ptr<AgentCore> core) : core_(std::move(core)) {}
Agent::~Agent() = default;

const std::string& Agent::name() const { return core_->name(); }

Result<std::unique_ptr<Agent>> Agent::Open(std::shared_ptr<const Library> library, AgentOptions options) {
  auto core = std::make_shared<AgentCore>(std::move(library), options.name);
  if (auto wrong = core->Open(options)) return *wrong;
  return std::unique_ptr<Agent>(new Agent(std::move(core)));
}

Result<std::unique_ptr<Registration>> Agent::Register(MemoryKind kind, std::vector<Piece> regions) {
  const Api& api = core_->api();
  Held<CRegistrationList> list(api.destroy_reg_dlist);
  CStatus status = api.create_reg_dlist(kind, list.out());
  std::vector<Piece> taken = core_->registered;
  for (const Piece& region : regions) {
    const bool overlaps = std::any_of(taken.begin(), taken.end(),
                                      [&region](const Piece& other) { return Overlap(region, other); });
    if (overlaps) return Refused(name(), "a region overlaps one that is registered already");
    if (region.bytes == 0 || region.address == 0) return Refused(name(), "a region to register is empty");
    taken.push_back(region);
    if (Succeeded(status)) {
      status = api.reg_dlist_add_desc(list.get(), region.address, region.bytes, region.device, nullptr, 0);
    }
  }
  if (Succeeded(status)) status = api.register_mem(core_->agent, list.get(), core_->backend_options);
  if (!Succeeded(status)) return Failed(name(), "registering memory", status);
  core_->registered = std::move(taken);
  return std::make_unique<Registration>(core_, list.release(), std::move(regions));
}

Result<std::vector<uint8_t>> Agent::TakeBlob(const char* what, CStatus status, void* data,
                                             size_t bytes) const {
  if (!Succeeded(status)) return Failed(name(), what, status);
  const auto* from = static_cast<const uint8_t*>(data);
  std::vector<uint8_t> blob(from, from + bytes);
  free(data);
  return blob;
}

Result<std::vector<uint8_t>> Agent::LocalMetadata() {
  void* data = nullptr;
  size_t bytes = 0;
  const CStatus status = core_->api().get_local_md(core_->agent, &data, &bytes);
  return TakeBlob("reading its metadata", status, data, bytes);
}

Result<std::vector<uint8_t>> Agent::PartialMetadata(const Registration* some) {
  const Api& api = core_->api();
  Held<CRegistrationList> none(api.destroy_reg_dlist);
  CStatus status = some == nullptr ? api.create_reg_dlist(MemoryKind::kDram, none.out()) : 0;
  CRegistrationList* list = some == nullptr ? none.get() : some->list();
  void* data = nullptr;
  size_t bytes = 0;
  if (Succeeded(status)) {
    status = api.get_local_partial_md(core_->agent, list, &data, &bytes, core_->backend_options);
  }
  return TakeBlob("reading partial metadata", status, data, bytes);
}

Result<std::string> Agent::LoadRemote(std::span<const uint8_t> metadata) {
  if (metadata.empty()) return Refused(name(), "the peer's metadata are empty");
  char* remote = nullptr;
  const CStatus status = core_->api().load_remote_md(core_->agent, metadata.data(), metadata.size(), &remote);
  if (!Succeeded(status)) return Failed(name(), "loading a peer's metadata", status);
  std::string loaded = remote == nullptr ? "" : remote;
  free(remote);
  return loaded;
}

Status Agent::Forget(const std::string& remote) {
  return ToStatus(core_->api().invalidate_remote_md(core_->agent, remote.c_str()));
}

bool Agent::Knows(const std::string& remote) {
  return Succeeded(core_->api().check_remote_md(core_->agent, remote.c_str(), nullptr));
}

Result<std::unique_ptr<PreparedList>> Agent::Prepare(const std::string& remote, MemoryKind kind,
                                                     std::span<const Piece> pieces) {
  const Api& api = core_->api();
  // Indices of NIXL are int32.
  if (pieces.empty() || pieces.size() > std::numeric_limits<int32_t>::max()) {
    return Refused(name(), "a list of " + std::to_string(pieces.size()) + " pieces can't be prepared");
  }
  Held<CTransferList> list(api.destroy_xfer_dlist);
  CStatus status = api.create_xfer_dlist(kind, list.out());
  for (const Piece& piece : pieces) {
    if (!Succeeded(status)) break;
    status = api.xfer_dlist_add_desc(list.get(), piece.address, piece.bytes, piece.device);
  }
  CPreparedList* handle = nullptr;
  if (Succeeded(status)) {
    status = api.prep_xfer_dlist(core_->agent, remote.c_str(), list.get(), &handle, core_->backend_options);
  }
  if (Succeeded(status)) return std::make_unique<PreparedList>(core_, handle, pieces.size());
  return Failed(name(), "preparing pieces of " + (remote.empty() ? "this side" : remote), status);
}

Result<std::unique_ptr<Request>> Agent::Make(Operation operation, const PreparedList& own_list,
                                             std::span<const int32_t> own, const PreparedList& far_list,
                                             std::span<const int32_t> far, const RequestOptions& options) {
  const Api& api = core_->api();
  Held<COptions> chosen(api.destroy_opt_args);
  CStatus status = api.create_opt_args(chosen.out());
  if (Succeeded(status)) status = api.opt_args_add_backend(chosen.get(), core_->backend);
  if (Succeeded(status)) status = api.opt_args_set_skip_desc_merge(chosen.get(), !options.merge);
  if (options.notification) {
    const auto& message = *options.notification;
    const void* data = message.empty() ? nullptr : message.data();
    if (Succeeded(status)) status = api.opt_args_set_notif_msg(chosen.get(), data, message.size());
    if (Succeeded(status)) status = api.opt_args_set_has_notif(chosen.get(), true);
  }
  CRequest* handle = nullptr;
  if (Succeeded(status)) {
    status = api.make_xfer_req(core_->agent, operation, own_list.handle(), own.data(), own.size(),
                               far_list.handle(), far.data(), far.size(), &handle, chosen.get());
  }
  if (!Succeeded(status)) return Failed(name(), "making a request", status);
  return std::make_unique<Request>(core_, handle);
}

Status Agent::Notify(const std::string& remote, std::span<const uint8_t> bytes) {
  const void* data = bytes.empty() ? nullptr : bytes.data();
  return ToStatus(
      core_->api().gen_notif(core_->agent, remote.c_str(), data, bytes.size(), core_->backend_options));
}

Result<std::vector<Notification>> Agent::TakeNotifications() {
  const Api& api = core_->api();
  CNotifications* map = core_->notifications;
  CStatus status = api.get_notifs(core_->agent, map, core_->backend_options);
  if (!Succeeded(status)) return Failed(name(), "reading notifications", status);
  std::vector<Notification> taken;
  size_t agents = 0;
  status = api.notif_map_size(map, &agents);
  for (size_t index = 0; index < agents && Succeeded(status); ++index) {
    const char* agent = nullptr;
    size_t count = 0;
    status = api.notif_map_get_agent_at(map, index, &agent);
    if (Succeeded(status)) status = api.notif_map_get_notifs_size(map, agent, &count);
    for (size_t at = 0; at < count && Succeeded(status); ++at) {
      const void* data = nullptr;
      size_t bytes = 0;
      status = api.notif_map_get_notif(map, agent, at, &data, &bytes);
      if (!Succeeded(status)) break;
      const auto* from = static_cast<const uint8_t*>(data);
      taken.push_back({agent, std::vector<uint8_t>(from, from + bytes)});
    }
  }
  if (agents > 0) api.notif_map_clear(map);
  if (!Succeeded(status)) return Failed(name(), "reading notifications", status);
  return taken;
}

}  // namespace kvt::nixl
