#include "nixl/library.h"

#include <dirent.h>
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <mutex>

namespace kvt::nixl {
namespace {

// A wheel without run paths needs about 30 libraries from its `.libs` folder.
constexpr size_t kPreloadsMax = 100;
constexpr const char* kPluginPrefix = "libplugin_";
// Not in any version whose prototypes we know: where it is, other functions mean something else too.
constexpr const char* kForeignMarker = "nixl_capi_mem_free";

std::string DirectoryOf(const std::string& file) {
  const size_t slash = file.rfind('/');
  return slash == std::string::npos ? "." : file.substr(0, std::max<size_t>(slash, 1));
}

std::vector<std::string> EntriesOf(const std::string& directory) {
  std::vector<std::string> names;
  DIR* open = opendir(directory.c_str());
  if (open == nullptr) return names;
  while (const dirent* entry = readdir(open)) names.emplace_back(entry->d_name);
  closedir(open);
  std::sort(names.begin(), names.end());
  return names;
}

std::string RealPath(const std::string& file) {
  char* resolved = realpath(file.c_str(), nullptr);
  if (resolved == nullptr) return "";
  std::string path = resolved;
  free(resolved);
  return path;
}

std::string LoaderError() {
  const char* text = dlerror();
  return text == nullptr ? "the loader gives no reason" : text;
}

Error Unusable(const std::string& file, const std::string& why) {
  return {ErrorCode::kNixlUnusable, file + " can't be used: " + why};
}

// "libX.so.1: cannot open shared object file: ..." names what is missing; nothing for any other failure.
std::string MissingIn(const std::string& loader_error) {
  const size_t colon = loader_error.find(": cannot open shared object file");
  if (colon == std::string::npos) return "";
  const std::string name = loader_error.substr(0, colon);
  return name.find('/') == std::string::npos ? name : "";
}

// Where the dependencies of a library without run paths lie: beside it, and in the `.libs` folders of a
// wheel.
std::string FindDependency(const std::string& library_directory, const std::string& name) {
  std::vector<std::string> places = {library_directory};
  const std::string above = DirectoryOf(library_directory);
  for (const std::string& entry : EntriesOf(above)) {
    if (entry.starts_with("nixl") && entry.ends_with(".libs")) places.push_back(above + "/" + entry);
  }
  for (const std::string& place : places) {
    std::string found = RealPath(place + "/" + name);
    if (!found.empty()) return found;
  }
  return "";
}

// Opens `file`, and first whatever it can't find by itself. A library that is loaded under the wanted name
// satisfies the need, whoever opened it.
void* OpenWithDependencies(const std::string& file, const std::string& directory, std::string* why,
                           std::vector<std::string>* preloaded) {
  for (;;) {
    void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) return handle;
    *why = LoaderError();
    const std::string missing = MissingIn(*why);
    const std::string found = missing.empty() ? "" : FindDependency(directory, missing);
    const bool again = std::find(preloaded->begin(), preloaded->end(), found) != preloaded->end();
    if (found.empty() || again || preloaded->size() >= kPreloadsMax) return nullptr;
    preloaded->push_back(found);
    if (OpenWithDependencies(found, directory, why, preloaded) == nullptr) return nullptr;
  }
}

bool IsVersion(const std::string& text) {
  int dots = 0;
  bool digit_before = false;
  for (const char letter : text) {
    const bool digit = std::isdigit(static_cast<unsigned char>(letter)) != 0;
    if (!digit && (letter != '.' || !digit_before)) return false;
    if (letter == '.') ++dots;
    digit_before = digit;
  }
  return dots == 2 && digit_before && text.size() <= 12;
}

// NIXL has no function that tells its version; libnixl_common.so holds it as a string of its own.
std::string ReadVersion(const std::string& directory) {
  std::ifstream file(directory + "/libnixl_common.so", std::ios::binary);
  if (!file) return "";
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  std::string version;
  for (size_t from = 0; from < bytes.size();) {
    const size_t end = bytes.find('\0', from);
    if (end == std::string::npos) break;
    // Far longer strings are not looked at: they can't be a version.
    if (end - from >= 5 && end - from <= 12) {
      const std::string text = bytes.substr(from, end - from);
      if (IsVersion(text)) {
        if (!version.empty() && version != text) return "";
        version = text;
      }
    }
    from = end + 1;
  }
  return version;
}

struct LoadedSearch {
  const char* part;
  std::vector<std::string> found;
};

std::vector<std::string> LoadedLike(const char* part) {
  LoadedSearch search{part, {}};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        auto* into = static_cast<LoadedSearch*>(data);
        const std::string name = info->dlpi_name == nullptr ? "" : info->dlpi_name;
        const std::string base = name.substr(name.rfind('/') + 1);
        if (base.starts_with(into->part)) into->found.push_back(name);
        return 0;
      },
      &search);
  return search.found;
}

}  // namespace

Result<std::shared_ptr<const Library>> Library::Load(const std::string& file) {
  static std::mutex mutex;
  static std::shared_ptr<const Library> loaded;
  if (!file.starts_with('/')) return Unusable(file, "it must be an absolute path");
  const std::string real = RealPath(file);
  if (real.empty()) return Unusable(file, ErrnoText("it can't be opened"));
  const std::lock_guard lock(mutex);
  if (loaded && loaded->file_ == real) return loaded;
  if (loaded) return Unusable(file, "this process has loaded " + loaded->file_ + " already");
  std::shared_ptr<Library> library(new Library());
  if (auto wrong = library->Open(real)) return *wrong;
  loaded = library;
  return loaded;
}

std::optional<Error> Library::Open(const std::string& file) {
  file_ = file;
  const std::string directory = DirectoryOf(file);
  std::string why;
  handle_ = OpenWithDependencies(file, directory, &why, &preloaded_);
  if (handle_ == nullptr) return Unusable(file, why);
  if (auto wrong = Bind()) return wrong;
  version_ = ReadVersion(directory);
  return std::nullopt;
}

std::optional<Error> Library::Bind() {
  if (dlsym(handle_, kForeignMarker) != nullptr) {
    return Unusable(file_, std::string("it has ") + kForeignMarker +
                               ", so it is of a newer C API whose functions mean something else; update "
                               "kv-transceiver, or use NIXL 0.10.1 to 1.5.1");
  }
  std::string missing;
  size_t missing_count = 0;
#define KVT_NIXL_BIND(since, type, name, parameters)                                     \
  api_.name = reinterpret_cast<decltype(api_.name)>(dlsym(handle_, "nixl_capi_" #name)); \
  if (api_.name == nullptr && Since::since == Since::k0_10 && missing_count++ < 3) {     \
    missing += (missing.empty() ? "nixl_capi_" : ", nixl_capi_") + std::string(#name);   \
  }
  KVT_NIXL_FUNCTIONS(KVT_NIXL_BIND)
#undef KVT_NIXL_BIND
  if (missing_count > 0) {
    return Unusable(file_, "it lacks " + std::to_string(missing_count) + " functions (" + missing +
                               (missing_count > 3 ? ", ..." : "") +
                               "), so it is no libnixl_capi.so of NIXL 0.10.1 to 1.5.1");
  }
  if (api_.is_stub()) {
    return Unusable(file_, "it is the stub that NIXL's Rust bindings are built against; it moves nothing");
  }
  return std::nullopt;
}

std::string Library::PluginDirectory() const {
  const char* chosen = getenv("NIXL_PLUGIN_DIR");
  if (chosen != nullptr && *chosen != '\0') return chosen;
  const auto nixl = LoadedLike("libnixl.so");
  return DirectoryOf(nixl.empty() ? file_ : RealPath(nixl.front())) + "/plugins";
}

std::string FindDependency(const Library& library, const std::string& name) {
  return FindDependency(DirectoryOf(library.file()), name);
}

PluginFinding OpenPlugin(const Library& library, const std::string& name) {
  PluginFinding finding;
  finding.name = name;
  finding.file = library.PluginDirectory() + "/" + kPluginPrefix + name + ".so";
  if (RealPath(finding.file).empty()) {
    finding.why = ErrnoText(finding.file);
    return finding;
  }
  // The real file, not the link to it: a plug-in looks for its libraries from where it lies.
  const std::string real = RealPath(finding.file);
  std::vector<std::string> preloaded;
  if (OpenWithDependencies(real, DirectoryOf(library.file()), &finding.why, &preloaded) != nullptr) {
    finding.why.clear();
  }
  return finding;
}

std::vector<std::string> PluginNames(const Library& library) {
  std::vector<std::string> names;
  const std::string prefix = kPluginPrefix;
  for (const std::string& entry : EntriesOf(library.PluginDirectory())) {
    if (!entry.starts_with(prefix) || !entry.ends_with(".so")) continue;
    names.push_back(entry.substr(prefix.size(), entry.size() - prefix.size() - 3));
  }
  return names;
}

std::vector<std::string> LoadedUcp() { return LoadedLike("libucp"); }

}  // namespace kvt::nixl
