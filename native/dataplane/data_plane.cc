#include "dataplane/data_plane.h"

#include <poll.h>
#include <sched.h>
#include <sys/random.h>
#include <sys/timerfd.h>

#include <cstdio>
#include <utility>

#include "memory/pool_descriptor.h"
#include "memory/socket_directory.h"
#include "memory/thread.h"
#include "paths/cuda_peer.h"
#include "paths/nixl_agents.h"
#include "paths/nixl_path.h"
#include "paths/path_set.h"
#include "paths/shared_memory.h"

namespace kvt {
namespace {

constexpr uint32_t kUnsignalledMax = 256;
// About twice what it costs to wake the owner up, on a machine that has nothing else to do.
constexpr BootNanos kHotNanos = 50'000;
// A sender that is awake answers a PULL in less.
constexpr BootNanos kExpectedNanos = 150'000;
// What a transport gets to let go of cancelled jobs when the plane closes.
constexpr BootNanos kTransportEndNanos = 2'000 * kNanosPerMilli;
// An agent of LIBFABRIC bears 255 peers in its life, whatever it forgets of them.
constexpr uint64_t kLibfabricRemotes = 240;
// With fewer the owner would keep the core that it waits for.
constexpr unsigned kHotCores = 4;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

bool FillRandom(std::span<uint8_t> bytes) {
  return getrandom(bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size());
}

std::string SocketName(uint64_t number) {
  char name[64];
  snprintf(name, sizeof name, "%s%016llx.sock", kSocketPrefix, static_cast<unsigned long long>(number));
  return name;
}

// Layers at one distance are one entry, so only irregular places can make it long.
Error TooLong(const Geometry& geometry) {
  uint64_t entries = 0;
  for (const Group& group : geometry.groups) entries += group.layers.size();
  return {ErrorCode::kDescriptorTooLong, "its layers need " + std::to_string(entries) +
                                             " entries, a descriptor has " +
                                             std::to_string(kDescriptorBytesMax) + " bytes"};
}

}  // namespace

Result<std::unique_ptr<DataPlane>> DataPlane::Start(Options options, std::function<void()> notify) {
  std::unique_ptr<DataPlane> plane(new DataPlane(std::move(options), std::move(notify)));
  const Error exhausted{ErrorCode::kPoolUnavailable, "the system gives no more threads or file descriptors"};
  if (!plane->sleeper_->ok() || !plane->timer_.ok()) return exhausted;
  auto owner = StartThread("kvt-owner", [raw = plane.get()] { raw->Run(); });
  if (!owner) return exhausted;
  plane->owner_ = std::move(*owner);
  return plane;
}

DataPlane::DataPlane(Options options, std::function<void()> notify)
    : options_(std::move(options)),
      notify_(std::move(notify)),
      sleeper_(std::make_shared<Sleeper>()),
      timer_(timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK | TFD_CLOEXEC)) {}

DataPlane::~DataPlane() { Stop(); }

BootNanos DataPlane::HotNanos() { return std::thread::hardware_concurrency() >= kHotCores ? kHotNanos : 0; }

void DataPlane::Stop() {
  stop_.store(true, std::memory_order_release);
  sleeper_->Wake();
  if (owner_.joinable()) owner_.join();
}

void DataPlane::Submit(Command command) {
  const Command::Kind kind = command.kind;
  const BootNanos when = command.when;
  commands_.Push(std::move(command));
  // After the push: the owner looks at the commands once more after it has set armed_, so that one of the two
  // always sees the other.
  if (!NeedsOwner(kind, when)) return;
  if (corked_) {
    owes_wake_ = true;
  } else {
    sleeper_->Wake();
  }
}

void DataPlane::Uncork() {
  corked_ = false;
  if (std::exchange(owes_wake_, false)) sleeper_->Wake();
}

bool DataPlane::NeedsOwner(Command::Kind kind, BootNanos when) {
  const bool ends = kind == Command::Kind::kSetTimer || kind == Command::Kind::kGrant;
  // A transport that needs this side's work has to hear of the first lease at once.
  const bool serves = kind == Command::Kind::kGrant && options_.nixl.has_value();
  // And that the last one has gone: until then it stays awake; and others may wait for slots of that lease.
  const bool drops = kind == Command::Kind::kDropLease && !options_.nixl;
  const bool idle = kind == Command::Kind::kClearTimer || drops ||
                    (ends && !serves && when >= armed_.load(std::memory_order_seq_cst));
  // Bounded: commands that nobody takes are memory that nobody gives back.
  return !idle || unsignalled_.fetch_add(1, std::memory_order_relaxed) >= kUnsignalledMax;
}

size_t DataPlane::Take(std::span<Record> records) {
  const CompletionRing::Taken taken = ring_.Take(records);
  if (taken.starved) sleeper_->Wake();
  return taken.records;
}

void DataPlane::Run() {
  auto opened = Open();
  if (!opened.ok()) {
    error_ = opened.error();
    phase_.store(Phase::kFailed, std::memory_order_release);
    notify_();
    return;
  }
  phase_.store(Phase::kOpen, std::memory_order_release);
  notify_();
  Serve();
  path_.reset();
  digests_->Close();
  phase_.store(Phase::kClosed, std::memory_order_release);
  notify_();
}

Result<bool> DataPlane::Open() {
  PoolDescriptor own;
  own.boot_id = ReadBootId();
  own.epoch = options_.epoch;
  own.geometry = options_.geometry;
  own.blocks = options_.blocks;
  own.bytes = options_.PoolBytes();
  own.regions = {{0, 0, own.bytes}};
  own.directory = options_.socket_directory;
  if (const auto failed = options_.gpu ? OpenGpuPool() : OpenHostPool(&own)) return *failed;
  uint64_t number = 0;
  if (!FillRandom(own.nonce) || !FillRandom({reinterpret_cast<uint8_t*>(&number), sizeof number})) {
    return Error{ErrorCode::kPoolUnavailable, ErrnoText("the system gives no random bytes")};
  }
  if (!own.directory.empty()) own.socket = SocketName(number);
  if (auto wrong = OpenPaths(own, number)) return *wrong;
  if (!digests_) {
    digests_ = std::make_unique<Digests>(DigestsBy(options_.crew, pool_, options_.geometry), sleeper_);
  }
  return true;
}

std::vector<uint8_t> DataPlane::descriptor() const {
  const std::lock_guard lock(descriptor_mutex_);
  return descriptor_;
}

Result<std::unique_ptr<NixlAgents>> DataPlane::OpenNixl(uint64_t number) {
  // Peers tell agents apart by name, also those that one process had one after another.
  const auto options = [this, number](uint32_t agent) {
    char name[64];
    snprintf(name, sizeof name, "kvt-%016llx-%016llx-%u", static_cast<unsigned long long>(options_.epoch),
             static_cast<unsigned long long>(number), agent);
    return NixlPath::Options{options_.nixl->library,
                             options_.nixl->plugin,
                             name,
                             options_.geometry,
                             options_.blocks,
                             pool_,
                             sleeper_,
                             options_.nixl->direct,
                             options_.nixl->staging,
                             options_.crew,
                             options_.hot};
  };
  auto first = NixlPath::Open(options(1));
  if (!first.ok()) return first.error();
  const auto open = [options](uint32_t agent) -> std::unique_ptr<NixlAgentPath> {
    auto path = NixlPath::Start(options(agent));
    if (!path.ok()) return nullptr;
    return std::move(path.value());
  };
  const uint64_t block_bytes = options_.PoolBytes() / options_.blocks;
  NixlAgentLimits limits;
  if (options_.nixl->plugin == "LIBFABRIC") limits.remotes = kLibfabricRemotes;
  return std::make_unique<NixlAgents>(std::move(first.value()), open, block_bytes, nixl_report_, limits);
}

std::optional<Error> DataPlane::OpenHostPool(PoolDescriptor* own) {
  std::vector<MappedRegion> regions;
  for (const Adoption& region : options_.adopt)
    regions.push_back({region.fd.get(), region.offset, region.bytes});
  auto pool =
      regions.empty() ? HostPool::Create(options_.PoolBytes(), stop_) : HostPool::Adopt(regions, stop_);
  if (!pool.ok()) return pool.error();
  pool_ = std::move(pool.value());
  own->regions = pool_->regions();
  return std::nullopt;
}

std::optional<Error> DataPlane::OpenGpuPool() {
  auto pool = cuda::DevicePool::Create(options_.gpu->device, options_.PoolBytes());
  if (!pool.ok()) return pool.error();
  gpu_pool_ = std::move(pool.value());
  return std::nullopt;
}

std::optional<Error> DataPlane::OpenPaths(const PoolDescriptor& own, uint64_t number) {
  std::vector<PathSet::Entry> entries;
  if (options_.gpu) {
    auto descriptor =
        EncodeCudaDescriptor({own, gpu_pool_->context()->facts().uuid, gpu_pool_->memory().bytes()});
    if (!descriptor) return TooLong(own.geometry);
    auto kernels = cuda::Kernels::Load(gpu_pool_->context());
    if (!kernels.ok()) return kernels.error();
    auto path =
        CudaPeerPath::Open({own, gpu_pool_, kernels.value(), options_.gpu->multiprocessors, sleeper_});
    if (!path.ok()) return path.error();
    auto queue = cuda::DigestQueue::Open(
        {gpu_pool_, kernels.value(), options_.geometry, options_.gpu->multiprocessors});
    if (!queue.ok()) return queue.error();
    digests_ = std::make_unique<Digests>(DigestsBy(std::move(queue.value())), sleeper_);
    entries.push_back({PathKind::kCudaPeer, std::move(path.value()), std::move(*descriptor)});
  }
  if (options_.shared_memory) {
    auto descriptor = EncodeDescriptor(own);
    if (!descriptor) return TooLong(own.geometry);
    auto path = SharedMemoryPath::Open({own, pool_, options_.crew, sleeper_});
    if (!path.ok()) return path.error();
    entries.push_back({PathKind::kSharedMemory, std::move(path.value()), std::move(*descriptor)});
  }
  if (options_.nixl) {
    auto path = OpenNixl(number);
    if (!path.ok()) return path.error();
    std::vector<uint8_t> descriptor = path.value()->Descriptor();
    if (descriptor.size() > kDescriptorBytesMax) return TooLong(own.geometry);
    entries.push_back({PathKind::kNixlDirect, std::move(path.value()), std::move(descriptor)});
  }
  auto paths = std::make_unique<PathSet>(std::move(entries));
  descriptor_ = paths->Descriptor();
  path_ = std::move(paths);
  return std::nullopt;
}

void DataPlane::Serve() {
  Dispatcher dispatcher(path_.get(), &statistics_);
  BootNanos hot_until = 0;
  for (;;) {
    // What ended is seen before what is due: a job that is complete is not called late by a slow owner.
    // Commands come before timers, so that a timer which was cleared in time stays silent; leases look at the
    // clock themselves.
    sleeper_->Look();
    bool worked = DrainPath(&dispatcher);
    unsignalled_.store(0, std::memory_order_relaxed);
    BootNanos hot = options_.hot;
    for (Command& command : commands_.TakeAll()) {
      if (command.kind == Command::Kind::kExpect && hot > 0) hot = kExpectedNanos;
      Apply(&dispatcher, std::move(command));
      worked = true;
    }
    const bool stopping = stop_.load(std::memory_order_acquire);
    if (stopping) Apply(&dispatcher, Command{});
    // Small jobs are complete when they have been posted.
    if (worked) DrainPath(&dispatcher);
    dispatcher.Expire(BootNow());
    path_->Serve(statistics_.leases_held.load(std::memory_order_relaxed) > 0);
    if (dispatcher.closing() && !std::exchange(told_path_to_end_, true)) {
      path_->EndBy(Later(BootNow(), kTransportEndNanos));
    }
    const bool delivered = Flush(&dispatcher);
    const bool quiet = dispatcher.quiet() && digests_->quiet();
    if (dispatcher.closing() && quiet && (delivered || stopping)) return;
    Arm(std::min(dispatcher.Next(), path_->Next()));
    if (worked && hot > 0) hot_until = std::max(hot_until, BootNow() + hot);
    if (commands_.empty() && !Poll(std::max(hot_until, path_->Soon()))) Sleep();
  }
}

void DataPlane::Apply(Dispatcher* dispatcher, Command command) {
  if (command.kind == Command::Kind::kDigest) {
    if (!dispatcher->closing()) digests_->Start(command.id, std::move(command.digest));
    return;
  }
  if (command.kind == Command::Kind::kExpect) return;
  if (command.kind == Command::Kind::kClose) digests_->CancelAll();
  dispatcher->Apply(std::move(command), BootNow());
}

bool DataPlane::DrainPath(Dispatcher* dispatcher) {
  events_.clear();
  path_->Poll(&events_);
  digest_ends_.clear();
  digests_->Poll(&digest_ends_);
  if (events_.empty() && digest_ends_.empty()) return false;
  const BootNanos now = BootNow();
  for (const PathEvent& event : events_) {
    if (event.kind == PathEvent::Kind::kRenewed) {
      const std::lock_guard lock(descriptor_mutex_);
      descriptor_ = path_->Descriptor();
    }
    dispatcher->Apply(event, now);
  }
  for (const DigestEnd& end : digest_ends_) {
    Completion completion;
    completion.kind = CompletionKind::kDigested;
    completion.id = end.id;
    completion.moving_us = static_cast<double>(end.took) / 1e3;
    completion.at_ms = ToMillis(now);
    dispatcher->completions().push_back(completion);
  }
  return true;
}

// False when the ring is full: the rest waits until JavaScript has taken some.
bool DataPlane::Flush(Dispatcher* dispatcher) {
  auto& completions = dispatcher->completions();
  bool put = false;
  while (!completions.empty() && ring_.Put(ToRecord(completions.front()))) {
    completions.pop_front();
    put = true;
  }
  if (put) notify_();
  return completions.empty();
}

void DataPlane::Arm(BootNanos until) {
  if (until == armed_.load(std::memory_order_relaxed)) return;
  itimerspec when{};
  if (until != kNever) {
    // Zero would disarm the timer; what was due at zero is due now.
    const BootNanos at = until > 0 ? until : 1;
    when.it_value.tv_sec = at / 1'000'000'000;
    when.it_value.tv_nsec = at % 1'000'000'000;
  }
  timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &when, nullptr);
  armed_.store(until, std::memory_order_seq_cst);
}

bool DataPlane::Poll(BootNanos until) const {
  while (!sleeper_->told()) {
    if (BootNow() >= until) return false;
    if (options_.hot == 0) {
      // Whoever is waited for may need this core.
      sched_yield();
      continue;
    }
    for (int turn = 0; turn < 16; ++turn) Pause();
  }
  return true;
}

void DataPlane::Sleep() {
  if (!sleeper_->MaySleep()) return;
  pollfd polled[] = {{sleeper_->fd(), POLLIN, 0}, {timer_.get(), POLLIN, 0}};
  poll(polled, 2, -1);
  if (polled[0].revents != 0) sleeper_->Clear();
  if (polled[1].revents != 0) {
    uint64_t expirations = 0;
    [[maybe_unused]] const ssize_t got = read(timer_.get(), &expirations, sizeof expirations);
    armed_.store(kNever, std::memory_order_seq_cst);
  }
}

}  // namespace kvt
