#pragma once

#include <optional>
#include <string>
#include <vector>

#include "memory/result.h"
#include "nixl/library.h"
#include "nixl/needs.h"

namespace kvt::nixl {

struct ProbeOptions {
  std::string library;       // absolute path
  std::string plugin;        // tried with a transfer; empty: none is
  bool all_plugins = false;  // open every plug-in file, not only that one
  bool fabric = false;       // look at what plug-in LIBFABRIC needs, and at libfabric's providers
};

// What one plug-in did between two agents of this process.
struct PluginTrial {
  std::string plugin;
  std::string why;  // empty: both agents opened, and a READ brought the right bytes
  double open_ms = 0;
  double register_ms = 0;
  double read_ms = 0;
  size_t read_bytes = 0;
  size_t metadata_bytes = 0;
};

struct ProbeReport {
  std::string file;
  std::string version;  // empty: unknown
  bool memory_views = false;
  std::string plugin_directory;
  std::vector<std::string> preloaded;
  std::vector<PluginFinding> plugins;
  std::optional<FabricFinding> fabric;
  std::vector<std::string> ucp;  // files of libucp in the process
  std::optional<PluginTrial> trial;
};

// Loads the library and tries what is asked. For a child process: a broken library may crash or hang it.
Result<ProbeReport> Probe(const ProbeOptions& options);

}  // namespace kvt::nixl
