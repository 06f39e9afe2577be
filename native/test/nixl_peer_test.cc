// NIXL between two processes: the holder is this program again, started with --holder, so that it can be
// killed and stopped. It writes its metadata to standard output and works until its standard input ends.
#include <cstring>

#include "test/nixl_process.h"

namespace {

using namespace kvt;              // NOLINT: a test
using namespace kvt::nixl;        // NOLINT
using namespace kvt::nixl::test;  // NOLINT

constexpr size_t kBytes = size_t{8} << 20;
constexpr const char* kHolderName = "peer-holder";

int RunHolder(uint32_t seed) {
  const int out = TakeOutput();
  const auto library = LoadLibrary();
  if (!library) return 1;
  Side side(library, kHolderName, kBytes);
  if (!side.memory) return 1;
  side.Fill(seed);
  auto metadata = side.agent->LocalMetadata();
  if (!metadata.ok()) return 1;
  const uint64_t address = reinterpret_cast<uintptr_t>(side.buffer.data());
  if (!WriteAll(out, &address, sizeof address) || !WriteBlob(out, metadata.value())) return 1;
  while (!InputEnded(1)) {
    if (!side.agent->TakeNotifications().ok()) return 1;
  }
  return 0;
}

// The holder's process.
class Holder {
 public:
  explicit Holder(uint32_t seed) : process_(std::to_string(seed)) {
    good_ = process_.Read(&address, sizeof address) && process_.ReadBlob(&metadata);
  }

  void Kill() { process_.Kill(); }
  void Send(int signal) const { process_.Send(signal); }
  bool good() const { return good_; }

  uint64_t address = 0;
  std::vector<uint8_t> metadata;

 private:
  SelfProcess process_;
  bool good_ = false;
};

struct Reader {
  Reader() : library(LoadLibrary()), side(library, "peer-reader", kBytes) {}

  std::unique_ptr<Request> Read(const Holder& holder) {
    const Piece far{holder.address, kBytes, 0};
    const Piece own = PieceOf(side.buffer, 0, kBytes);
    auto own_list = side.agent->Prepare("", MemoryKind::kDram, {&own, 1});
    auto far_list = side.agent->Prepare(kHolderName, MemoryKind::kDram, {&far, 1});
    const int32_t first = 0;
    if (!Side::Ok(own_list) || !Side::Ok(far_list)) return nullptr;
    auto request = side.agent->Make(Operation::kRead, *own_list.value(), {&first, 1}, *far_list.value(),
                                    {&first, 1}, {});
    return Side::Ok(request) ? std::move(request.value()) : nullptr;
  }

  bool Load(const Holder& holder) {
    auto name = side.agent->LoadRemote(holder.metadata);
    return Side::Ok(name) && name.value() == kHolderName;
  }

  bool Brought(uint32_t seed) const {
    std::mt19937 random(seed);
    for (const uint8_t byte : side.buffer) {
      if (byte != static_cast<uint8_t>(random())) return false;
    }
    return true;
  }

  // False when it can't be done within the limit.
  bool ForgetUntilUnknown() {
    const BootNanos until = Later(BootNow(), kLimit);
    while (side.agent->Knows(kHolderName)) {
      if (BootNow() > until) return false;
      (void)side.agent->Forget(kHolderName);
      (void)side.agent->TakeNotifications();
    }
    return true;
  }

  std::shared_ptr<const Library> library;
  Side side;
};

}  // namespace

TEST("a READ crosses processes") {
  WITH_STAGED();
  const Holder holder(11);
  Reader reader;
  CHECK(holder.good() && reader.Load(holder));
  auto request = reader.Read(holder);
  CHECK(request && Run(request.get()) == Status::kSuccess);
  CHECK(reader.Brought(11));
}

TEST("a killed holder gives an error, and one that is started again under the same name is read") {
  WITH_STAGED();
  // A post to a dead LIBFABRIC peer never returns (spec nixl.md section 7): nixl_direct asks the peer's life
  // first.
  if (PluginName() != "UCX") SKIP("a post to a dead peer of LIBFABRIC never returns");
  Reader reader;
  for (uint32_t round = 0; round < 3; ++round) {
    Holder holder(20 + round);
    CHECK(holder.good() && reader.Load(holder));
    auto request = reader.Read(holder);
    CHECK(request && Run(request.get()) == Status::kSuccess);
    CHECK(reader.Brought(20 + round));
    holder.Kill();
    const Status after = request ? Run(request.get()) : Status::kSuccess;
    CHECK(after != Status::kSuccess && after != Status::kInProgress);
    request.reset();
    CHECK(reader.ForgetUntilUnknown());
  }
}

TEST("a stopped holder is waited for, and its bytes are right when it goes on") {
  WITH_STAGED();
  const Holder holder(31);
  Reader reader;
  CHECK(holder.good() && reader.Load(holder));
  auto request = reader.Read(holder);
  // Once before, so that the connection stands: what is tested is the transfer.
  CHECK(request && Run(request.get()) == Status::kSuccess);
  reader.side.Fill(0);
  holder.Send(SIGSTOP);
  Status status = request ? request->Post() : Status::kException;
  holder.Send(SIGCONT);
  if (status == Status::kInProgress) status = Finish(request.get());
  CHECK(status == Status::kSuccess);
  CHECK(reader.Brought(31));
}

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  if (argc == 3 && strcmp(argv[1], "--holder") == 0) {
    return RunHolder(static_cast<uint32_t>(std::stoul(argv[2])));
  }
  return kvt::test::RunAll(argc, argv);
}
