#include <elf.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "nixl/library.h"
#include "nixl/probe.h"
#include "test/nixl_rig.h"

namespace {

using namespace kvt;        // NOLINT: a test
using namespace kvt::nixl;  // NOLINT
namespace fs = std::filesystem;

std::string ReadFile(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

// Functions with the API's prefix that an ELF file defines.
std::set<std::string> ExportsOf(const fs::path& file) {
  const std::string bytes = ReadFile(file);
  std::set<std::string> names;
  Elf64_Ehdr header{};
  if (bytes.size() < sizeof header) return names;
  memcpy(&header, bytes.data(), sizeof header);
  std::vector<Elf64_Shdr> sections(header.e_shnum);
  memcpy(sections.data(), bytes.data() + header.e_shoff, sections.size() * sizeof(Elf64_Shdr));
  for (const Elf64_Shdr& section : sections) {
    if (section.sh_type != SHT_DYNSYM) continue;
    const char* strings = bytes.data() + sections[section.sh_link].sh_offset;
    for (size_t at = 0; at < section.sh_size; at += sizeof(Elf64_Sym)) {
      Elf64_Sym symbol{};
      memcpy(&symbol, bytes.data() + section.sh_offset + at, sizeof symbol);
      const std::string name = strings + symbol.st_name;
      if (symbol.st_shndx != SHN_UNDEF && name.starts_with("nixl_capi_")) names.insert(name);
    }
  }
  return names;
}

// Takes the run paths out of a library, as distributions do that build NIXL themselves.
void CopyWithoutRunPath(const fs::path& from, const fs::path& to) {
  std::string bytes = ReadFile(from);
  Elf64_Ehdr header{};
  memcpy(&header, bytes.data(), sizeof header);
  for (size_t at = 0; at < header.e_phnum; ++at) {
    Elf64_Phdr segment{};
    memcpy(&segment, bytes.data() + header.e_phoff + at * sizeof segment, sizeof segment);
    if (segment.p_type != PT_DYNAMIC) continue;
    for (size_t offset = 0; offset < segment.p_filesz; offset += sizeof(Elf64_Dyn)) {
      Elf64_Dyn entry{};
      char* place = bytes.data() + segment.p_offset + offset;
      memcpy(&entry, place, sizeof entry);
      if (entry.d_tag != DT_RPATH && entry.d_tag != DT_RUNPATH) continue;
      entry.d_tag = DT_LOOS + 1;  // unknown, so the loader reads over it
      memcpy(place, &entry, sizeof entry);
    }
  }
  std::ofstream(to, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

struct Folder {
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "kvt-nixl-XXXXXX").string();
    path = mkdtemp(pattern.data());
  }
  ~Folder() { fs::remove_all(path); }
  fs::path path;
};

std::string WhyNot(const fs::path& file) {
  auto loaded = Library::Load(file.string());
  return loaded.ok() ? "" : loaded.error().why;
}

bool Has(const std::string& text, const std::string& part) {
  const bool has = text.find(part) != std::string::npos;
  if (!has) std::printf("  \"%s\" lacks \"%s\"\n", text.c_str(), part.c_str());
  return has;
}

fs::path Fake(const std::string& name) {
  return fs::read_symlink("/proc/self/exe").parent_path() / ("lib" + name + ".so");
}

// In a child, because a process has one library only. The exit code is 0 when `body` answers true.
template <typename Body>
bool InChild(Body body) {
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    const bool good = body();
    fflush(stdout);
    _exit(good ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

TEST("the list has 96 functions of 0.10 and eight of 1.5, each once") {
  std::set<std::string> names;
  size_t of_1_5 = 0;
  for (const FunctionName& function : kFunctions) {
    names.insert(function.symbol);
    if (function.since == Since::k1_5) ++of_1_5;
  }
  CHECK_EQ(names.size(), size_t{104});
  CHECK_EQ(std::size(kFunctions), size_t{104});
  CHECK_EQ(of_1_5, size_t{8});
}

TEST("every function that the library exports is in the list, and every required one is exported") {
  const std::string file = nixl::test::LibraryFile();
  if (file.empty()) SKIP(nixl::test::kNoNixl);
  std::set<std::string> exported = ExportsOf(file);
  CHECK(exported.size() == 96 || exported.size() == 104);
  const bool has_1_5 = exported.size() == 104;
  for (const FunctionName& function : kFunctions) {
    const bool there = exported.erase(function.symbol) == 1;
    const bool wanted = has_1_5 || function.since == Since::k0_10;
    if (there != wanted) std::printf("  %s\n", function.symbol);
    CHECK_EQ(there, wanted);
  }
  for (const std::string& unknown : exported) std::printf("  not in the list: %s\n", unknown.c_str());
  CHECK(exported.empty());
}

TEST("a library of a newer C API is refused with what to do") {
  const std::string why = WhyNot(Fake("nixl_fake_newer"));
  CHECK(Has(why, "nixl_capi_mem_free"));
  CHECK(Has(why, "update kv-transceiver"));
}

TEST("the stub of NIXL's Rust bindings is refused") {
  CHECK(Has(WhyNot(Fake("nixl_fake_stub")), "it is the stub"));
}

TEST("a library without the functions is refused, and some of the missing ones are named") {
  const std::string why = WhyNot(Fake("nixl_fake_incomplete"));
  CHECK(Has(why, "it lacks 95 functions (nixl_capi_create_configured_agent"));
  CHECK(Has(why, "NIXL 0.10.1 to 1.5.1"));
}

TEST("a file that is no library, one that is not there and a relative path are refused by name") {
  const Folder folder;
  const fs::path text = folder.path / "libnixl_capi.so";
  std::ofstream(text) << "not a library";
  CHECK(Has(WhyNot(text), "libnixl_capi.so can't be used: "));
  CHECK(Has(WhyNot(folder.path / "absent.so"), "No such file or directory"));
  CHECK(Has(WhyNot("libnixl_capi.so"), "absolute path"));
  CHECK(Has(WhyNot(folder.path), "can't be used: "));
}

TEST("the library tells its version, and loading it again gives the same") {
  if (nixl::test::LibraryFile().empty()) SKIP(nixl::test::kNoNixl);
  CHECK(InChild([] {
    const auto library = nixl::test::LoadLibrary();
    if (!library) return false;
    const auto again = Library::Load(nixl::test::LibraryFile());
    CHECK(!library->version().empty());
    CHECK(library->preloaded().empty());
    CHECK_EQ(library->HasMemoryViews(), library->version() >= "1.5");
    const std::string other = WhyNot(Fake("nixl_fake_stub"));
    CHECK(Has(other, "this process has loaded"));
    auto same = again;
    return same.ok() && same.value() == library && kvt::test::Failures() == 0;
  }));
}

TEST("a library without run paths gets its dependencies opened, from beside it and from a wheel's folder") {
  const fs::path file = nixl::test::LibraryFile();
  if (file.empty()) SKIP(nixl::test::kNoNixl);
  const Folder folder;
  const fs::path home = folder.path / "lib";
  fs::create_directory(home);
  for (const auto& entry : fs::directory_iterator(file.parent_path())) {
    const std::string name = entry.path().filename();
    if (!entry.is_regular_file()) continue;
    if (name.starts_with("libnixl") || name == "libserdes.so" || name == "libstream.so") {
      CopyWithoutRunPath(entry.path(), home / name);
    }
  }
  // A wheel's own `.libs` folder, whose libraries keep their run paths here.
  for (const auto& entry : fs::directory_iterator(file.parent_path().parent_path())) {
    const std::string name = entry.path().filename();
    if (name.starts_with("nixl") && name.ends_with(".libs")) {
      fs::create_directory_symlink(entry.path(), folder.path / name);
    }
  }
  CHECK(InChild([&home] {
    auto loaded = Library::Load((home / "libnixl_capi.so").string());
    if (!loaded.ok()) std::printf("  %s\n", loaded.error().why.c_str());
    return loaded.ok() && !loaded.value()->preloaded().empty();
  }));
}

TEST(
    "a plug-in directory without plug-ins, and a plug-in that can't be loaded, are told in the loader's "
    "words") {
  if (nixl::test::LibraryFile().empty()) SKIP(nixl::test::kNoNixl);
  const Folder folder;
  std::ofstream(folder.path / "libplugin_LIBFABRIC.so") << "not a library";
  CHECK(InChild([&folder] {
    setenv("NIXL_PLUGIN_DIR", folder.path.c_str(), 1);
    const auto library = nixl::test::LoadLibrary();
    if (!library) return false;
    CHECK_EQ(library->PluginDirectory(), folder.path.string());
    CHECK_EQ(PluginNames(*library), std::vector<std::string>{"LIBFABRIC"});
    CHECK(Has(OpenPlugin(*library, "UCX").why, "No such file or directory"));
    CHECK(Has(OpenPlugin(*library, "LIBFABRIC").why, "libplugin_LIBFABRIC.so"));
    AgentOptions options;
    options.name = "wrong-directory";
    auto agent = Agent::Open(library, options);
    CHECK(!agent.ok() && Has(agent.error().why, "plug-in UCX can't be loaded: " + folder.path.string()));
    return kvt::test::Failures() == 0;
  }));
}

TEST("what a plug-in asks for by name is read from its file, and nothing from a file that is none") {
  const std::vector<std::string> own = NeededBy("/proc/self/exe");
  CHECK(
      std::any_of(own.begin(), own.end(), [](const std::string& name) { return name.starts_with("libc."); }));
  const Folder folder;
  std::ofstream(folder.path / "text") << "not a library";
  CHECK(NeededBy((folder.path / "text").string()).empty());
  CHECK(NeededBy((folder.path / "absent").string()).empty());
  // Cut anywhere, it is read to where it ends and no further.
  const std::string whole = ReadFile(Fake("nixl_fake_stub"));
  for (size_t bytes = 0; bytes < whole.size(); bytes += 61) {
    std::ofstream(folder.path / "cut", std::ios::binary)
        .write(whole.data(), static_cast<std::streamsize>(bytes));
    CHECK(NeededBy((folder.path / "cut").string()).size() <=
          NeededBy(Fake("nixl_fake_stub").string()).size());
  }
}

TEST("a probe loads the library, names its plug-ins with the reason of each that fails, and tries a READ") {
  if (nixl::test::LibraryFile().empty()) SKIP(nixl::test::kNoNixl);
  CHECK(InChild([] {
    auto probed = Probe({nixl::test::LibraryFile(), nixl::test::PluginName(), true});
    if (!probed.ok()) return false;
    const ProbeReport& report = probed.value();
    const auto ucx = std::find_if(report.plugins.begin(), report.plugins.end(),
                                  [](const PluginFinding& plugin) { return plugin.name == "UCX"; });
    CHECK(ucx != report.plugins.end() && ucx->why.empty());
    CHECK(report.trial && report.trial->why.empty());
    if (report.trial && !report.trial->why.empty()) std::printf("  %s\n", report.trial->why.c_str());
    CHECK(report.trial && report.trial->metadata_bytes > 100);
    CHECK_EQ(report.ucp.size(), size_t{1});
    return kvt::test::Failures() == 0;
  }));
}

KVT_TEST_MAIN
