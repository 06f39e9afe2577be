#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "memory/result.h"
#include "nixl/capi_functions.h"

namespace kvt::nixl {

// libnixl_capi.so, loaded at run time and never unloaded: its threads and atexit handlers outlive any close.
// One a process, because two copies of UCX in one process have hung. Any thread may load and use it.
class Library {
 public:
  // `file` is an absolute path. Loading may take 0.1 s and runs foreign initialisers, so it was tried in a
  // child process first (src/nixl/probe.ts). Fails with NIXL_UNUSABLE and a sentence that names the file and
  // what is wrong with it; loading the same file again gives the same library.
  static Result<std::shared_ptr<const Library>> Load(const std::string& file);

  const Api& api() const { return api_; }
  // Links resolved.
  const std::string& file() const { return file_; }
  // From the library's own bytes, as "1.5.1"; empty when they name no version or several.
  const std::string& version() const { return version_; }
  // Dependencies that the library could not find by itself and that we opened for it.
  const std::vector<std::string>& preloaded() const { return preloaded_; }
  // The functions of 1.5 are there.
  bool HasMemoryViews() const { return api_.prep_mem_view_local != nullptr; }
  // Where NIXL looks for plug-ins: NIXL_PLUGIN_DIR, which replaces `plugins` beside libnixl.so.
  std::string PluginDirectory() const;

 private:
  Library() = default;
  std::optional<Error> Open(const std::string& file);
  std::optional<Error> Bind();

  Api api_;
  void* handle_ = nullptr;
  std::string file_;
  std::string version_;
  std::vector<std::string> preloaded_;
};

struct PluginFinding {
  std::string name;  // "UCX"
  std::string file;
  std::string why;  // the loader's own words; empty: it can be loaded
};

// Opens a plug-in's file as NIXL would, which itself says no more than BACKEND when that fails. After it the
// file stays loaded, and NIXL's own open finds it.
PluginFinding OpenPlugin(const Library& library, const std::string& name);
// A dependency that the loader does not find by itself: its file beside the library or in a `.libs` folder of
// its wheel; empty when it is in none.
std::string FindDependency(const Library& library, const std::string& name);
// Every plug-in file in the plug-in directory, by name; telemetry exporters and the like are left out.
std::vector<std::string> PluginNames(const Library& library);
// Files of libucp in this process: more than one is a known cause of hangs.
std::vector<std::string> LoadedUcp();

}  // namespace kvt::nixl
