#pragma once

#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "memory/boot_clock.h"
#include "nixl/agent.h"
#include "test/check.h"

// What the NIXL tests share: the library that KVT_NIXL_LIBRARY names, and agents with a buffer each.
namespace kvt::nixl::test {

constexpr const char* kNoNixl =
    "KVT_NIXL_LIBRARY names no libnixl_capi.so; `node scripts/nixl.mjs` brings one and runs this";
constexpr const char* kUcxOnly =
    "pools are read straight over UCX only, and LIBFABRIC is chosen, whose reads always go to staging slots; "
    "unset KVT_NIXL_TEST_PLUGIN to run it";
constexpr BootNanos kLimit = 20'000 * kNanosPerMilli;

// What a test needs: any plug-in for staged transfers, UCX for direct ones.
#define WITH_STAGED() \
  if (LibraryFile().empty()) SKIP(kNoNixl)
#define WITH_NIXL() \
  WITH_STAGED();    \
  if (PluginName() != "UCX") SKIP(kUcxOnly)

inline std::string LibraryFile() {
  const char* file = getenv("KVT_NIXL_LIBRARY");
  return file == nullptr ? "" : file;
}

// LIBFABRIC where KVT_NIXL_TEST_PLUGIN says so.
inline std::string PluginName() {
  const char* name = getenv("KVT_NIXL_TEST_PLUGIN");
  return name == nullptr ? "UCX" : name;
}

inline std::shared_ptr<const Library> LoadLibrary() {
  auto loaded = Library::Load(LibraryFile());
  if (loaded.ok()) return loaded.value();
  ++kvt::test::Failures();
  std::printf("%s\n", loaded.error().why.c_str());
  return nullptr;
}

inline Piece PieceOf(const std::vector<uint8_t>& buffer, size_t from, size_t bytes) {
  return {reinterpret_cast<uintptr_t>(buffer.data()) + from, bytes, 0};
}

// An agent and one registered buffer.
struct Side {
  Side(const std::shared_ptr<const Library>& library, const std::string& name, size_t bytes) : buffer(bytes) {
    AgentOptions options;
    options.name = name;
    options.plugin = PluginName();
    options.progress_thread = options.plugin != "UCX";
    auto opened = Agent::Open(library, options);
    if (!Ok(opened)) return;
    agent = std::move(opened.value());
    auto registered = agent->Register(MemoryKind::kDram, {PieceOf(buffer, 0, bytes)});
    if (Ok(registered)) memory = std::move(registered.value());
  }

  template <typename T>
  static bool Ok(Result<T>& result) {
    if (result.ok()) return true;
    ++kvt::test::Failures();
    std::printf("%s\n", result.error().why.c_str());
    return false;
  }

  bool Load(Side* other) {
    auto metadata = other->agent->LocalMetadata();
    if (!Ok(metadata)) return false;
    auto name = agent->LoadRemote(metadata.value());
    return Ok(name) && name.value() == other->agent->name();
  }

  void Fill(uint32_t seed) {
    std::mt19937 random(seed);
    for (uint8_t& byte : buffer) byte = static_cast<uint8_t>(random());
  }

  std::vector<uint8_t> buffer;
  std::unique_ptr<Agent> agent;
  std::unique_ptr<Registration> memory;
};

// Polls until it has ended. The other side, where it lives in this process, has to work too.
inline Status Finish(Request* request, Agent* other = nullptr, std::vector<Notification>* heard = nullptr) {
  const BootNanos until = Later(BootNow(), kLimit);
  Status status = request->Check();
  while (status == Status::kInProgress && BootNow() < until) {
    if (other != nullptr) {
      auto taken = other->TakeNotifications();
      if (taken.ok() && heard != nullptr) {
        for (Notification& one : taken.value()) heard->push_back(std::move(one));
      }
    }
    status = request->Check();
  }
  return status;
}

inline Status Run(Request* request, Agent* other = nullptr) {
  const Status posted = request->Post();
  return posted == Status::kInProgress ? Finish(request, other) : posted;
}

// What `side` hears, until it has heard `count` things.
inline std::vector<Notification> Hear(Side* side, size_t count, Agent* teller) {
  std::vector<Notification> heard;
  const BootNanos until = Later(BootNow(), kLimit);
  while (heard.size() < count && BootNow() < until) {
    auto taken = side->agent->TakeNotifications();
    if (!taken.ok()) break;
    for (Notification& one : taken.value()) heard.push_back(std::move(one));
    if (teller != nullptr) (void)teller->TakeNotifications();
  }
  return heard;
}

inline std::vector<int32_t> Indices(size_t count) {
  std::vector<int32_t> indices(count);
  for (size_t at = 0; at < count; ++at) indices[at] = static_cast<int32_t>(at);
  return indices;
}

}  // namespace kvt::nixl::test
