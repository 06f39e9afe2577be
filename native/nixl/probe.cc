#include "nixl/probe.h"

#include <algorithm>
#include <memory>

#include "memory/boot_clock.h"
#include "nixl/agent.h"

namespace kvt::nixl {
namespace {

constexpr size_t kTrialBytes = size_t{1} << 20;
constexpr BootNanos kTrialNanos = 5'000 * kNanosPerMilli;

double MillisSince(BootNanos then) { return ToMillis(BootNow() - then); }

AgentOptions TrialAgent(const std::string& name, const std::string& plugin) {
  AgentOptions options;
  options.name = name;
  options.plugin = plugin;
  options.progress_thread = plugin != "UCX";
  return options;
}

// Reads all of `far` into `own`. Both agents are polled, as the side that is read from has to work too.
std::string Read(Agent* reader, Agent* holder, const std::vector<uint8_t>& far, std::vector<uint8_t>* own) {
  auto metadata = holder->LocalMetadata();
  if (!metadata.ok()) return metadata.error().why;
  auto name = reader->LoadRemote(metadata.value());
  if (!name.ok()) return name.error().why;
  const Piece from{reinterpret_cast<uintptr_t>(far.data()), far.size(), 0};
  const Piece into{reinterpret_cast<uintptr_t>(own->data()), own->size(), 0};
  auto far_list = reader->Prepare(name.value(), MemoryKind::kDram, {&from, 1});
  if (!far_list.ok()) return far_list.error().why;
  auto own_list = reader->Prepare("", MemoryKind::kDram, {&into, 1});
  if (!own_list.ok()) return own_list.error().why;
  const int32_t first = 0;
  auto request =
      reader->Make(Operation::kRead, *own_list.value(), {&first, 1}, *far_list.value(), {&first, 1}, {});
  if (!request.ok()) return request.error().why;
  const BootNanos until = Later(BootNow(), kTrialNanos);
  Status status = request.value()->Post();
  while (status == Status::kInProgress && BootNow() < until) {
    status = request.value()->Check();
    if (auto heard = holder->TakeNotifications(); !heard.ok()) return heard.error().why;
  }
  if (status != Status::kSuccess) {
    return std::string("a READ between two agents of this process ended with ") + NameOf(status);
  }
  return *own == far ? "" : "a READ between two agents of this process brought wrong bytes";
}

PluginTrial Try(const std::shared_ptr<const Library>& library, const std::string& plugin) {
  PluginTrial trial;
  trial.plugin = plugin;
  trial.read_bytes = kTrialBytes;
  BootNanos before = BootNow();
  auto holder = Agent::Open(library, TrialAgent("kvt-probe-holder", plugin));
  if (!holder.ok()) return trial.why = holder.error().why, trial;
  trial.open_ms = MillisSince(before);
  auto reader = Agent::Open(library, TrialAgent("kvt-probe-reader", plugin));
  if (!reader.ok()) return trial.why = reader.error().why, trial;

  std::vector<uint8_t> far(kTrialBytes);
  std::vector<uint8_t> own(kTrialBytes);
  for (size_t at = 0; at < far.size(); ++at) far[at] = static_cast<uint8_t>(at * 2'654'435'761U >> 13);
  before = BootNow();
  auto far_memory =
      holder.value()->Register(MemoryKind::kDram, {{reinterpret_cast<uintptr_t>(far.data()), far.size(), 0}});
  if (!far_memory.ok()) return trial.why = far_memory.error().why, trial;
  trial.register_ms = MillisSince(before);
  auto own_memory =
      reader.value()->Register(MemoryKind::kDram, {{reinterpret_cast<uintptr_t>(own.data()), own.size(), 0}});
  if (!own_memory.ok()) return trial.why = own_memory.error().why, trial;
  if (auto blob = holder.value()->LocalMetadata(); blob.ok()) trial.metadata_bytes = blob.value().size();
  before = BootNow();
  trial.why = Read(reader.value().get(), holder.value().get(), far, &own);
  trial.read_ms = MillisSince(before);
  return trial;
}

}  // namespace

Result<ProbeReport> Probe(const ProbeOptions& options) {
  auto loaded = Library::Load(options.library);
  if (!loaded.ok()) return loaded.error();
  const std::shared_ptr<const Library>& library = loaded.value();
  ProbeReport report;
  report.file = library->file();
  report.version = library->version();
  report.memory_views = library->HasMemoryViews();
  report.plugin_directory = library->PluginDirectory();
  report.preloaded = library->preloaded();
  std::vector<std::string> names;
  if (options.all_plugins) names = PluginNames(*library);
  const bool listed = std::find(names.begin(), names.end(), options.plugin) != names.end();
  if (!options.plugin.empty() && !listed) names.insert(names.begin(), options.plugin);
  for (const std::string& name : names) report.plugins.push_back(OpenPlugin(*library, name));
  for (const PluginFinding& plugin : report.plugins) {
    if (options.fabric && plugin.name == "LIBFABRIC") report.fabric = FindFabric(*library, plugin.file);
  }
  if (!options.plugin.empty()) report.trial = Try(library, options.plugin);
  report.ucp = LoadedUcp();
  return report;
}

}  // namespace kvt::nixl
