#include "paths/nixl_path.h"

#include <poll.h>
#include <sched.h>

#include <utility>

#include "memory/thread.h"

namespace kvt {
namespace {

constexpr BootNanos kMicro = 1'000;
// The ladder: hot after progress, then ever longer naps. Only a nap ends at once for new orders.
constexpr BootNanos kHot = 50 * kMicro;
constexpr BootNanos kWarm = 5'000 * kMicro;
constexpr BootNanos kShortNap = 50 * kMicro;
constexpr BootNanos kLongNap = 1'000 * kMicro;
// A round without work takes 2 µs. NIXL does not say whether bytes have moved, but then its calls took
// longer.
constexpr BootNanos kWorked = 20 * kMicro;
// A peer that reads over tcp needs this side's work. It says so when it reaches us, and then leases are out.
constexpr BootNanos kHeardFor = 1'000'000 * kMicro;
constexpr BootNanos kServingNap = 100 * kMicro;
// Nobody can say anything to a thread that never looks: this is how often it does, 1 in 1,000 of a core.
constexpr BootNanos kIdleNap = 10'000 * kMicro;

constexpr double kFixedMicros = 20;
// What ends soon is polled for, so long.
constexpr double kSoonMicrosMax = 40;
constexpr BootNanos kSoon = 60 * kMicro;
constexpr double kStagedFixedMicros = 150;
constexpr double kStagedBytesPerMicro = 2'000;
constexpr double kPieceMicros = 4;
constexpr double kBytesPerMicro = 3'500;

}  // namespace

Result<std::unique_ptr<NixlPath>> NixlPath::Open(Options options) {
  auto started = Start(std::move(options));
  if (!started.ok()) return started;
  NixlPath* const path = started.value().get();
  std::unique_lock lock(path->mutex_);
  path->started_.wait(lock, [path] { return path->phase() != Phase::kOpening; });
  if (path->error_) return *path->error_;
  return started;
}

Result<std::unique_ptr<NixlPath>> NixlPath::Start(Options options) {
  if (options.plugin == "LIBFABRIC" && options.direct) {
    return Error{ErrorCode::kNixlFailed,
                 "path nixl_direct does not go with plug-in LIBFABRIC, whose reads of a dead peer never end: "
                 "they must go to staging slots; use path nixl_staged, or plug-in UCX"};
  }
  std::unique_ptr<NixlPath> path(new NixlPath(std::move(options)));
  auto thread = StartThread("kvt-nixl", [raw = path.get()] { raw->Run(); });
  if (!thread) return Error{ErrorCode::kPoolUnavailable, "the system gives no more threads"};
  path->thread_ = std::move(*thread);
  return path;
}

std::vector<uint8_t> NixlPath::Descriptor() const {
  const std::lock_guard lock(mutex_);
  return descriptor_;
}

NixlPath::~NixlPath() {
  stop_.store(true, std::memory_order_release);
  sleeper_->Wake();
  if (thread_.joinable()) thread_.join();
}

void NixlPath::Give(Order order) {
  {
    const std::lock_guard lock(mutex_);
    orders_.push_back(std::move(order));
  }
  sleeper_->Wake();
}

void NixlPath::Know(PeerKey peer, std::shared_ptr<const PeerLife> life) { lives_[peer] = std::move(life); }

void NixlPath::Reach(PeerKey peer, std::vector<uint8_t> descriptor, BootNanos deadline) {
  Order order;
  order.kind = Order::Kind::kReach;
  order.key = peer;
  order.descriptor = std::move(descriptor);
  order.deadline = deadline;
  const auto life = lives_.find(peer);
  if (life != lives_.end()) {
    order.life = std::move(life->second);
    lives_.erase(life);
  }
  Give(std::move(order));
}

std::optional<double> NixlPath::CostMicros(PeerKey peer, uint64_t bytes, uint64_t piece_bytes) const {
  const auto found = peers_.find(peer);
  if (found == peers_.end()) return std::nullopt;
  const auto size = static_cast<double>(bytes);
  if (found->second->staged) return kStagedFixedMicros + size / kStagedBytesPerMicro;
  const double pieces = piece_bytes == 0 ? 0 : size / static_cast<double>(piece_bytes);
  return kFixedMicros + pieces * kPieceMicros + size / kBytesPerMicro;
}

Path::Posted NixlPath::Post(std::unique_ptr<Transfer> transfer) {
  const auto found = peers_.find(transfer->peer);
  if (found == peers_.end()) return Posted::kNoPeer;
  if (!transfer->layers.Whole()) return Posted::kBadRange;
  const BlockTables tables{transfer->source_blocks, transfer->target_blocks};
  const Plan& plan = *found->second->plans.For(transfer->replicated);
  const std::string wrong = plan.Check(transfer->tokens, tables, found->second->blocks, options_.blocks);
  if (!wrong.empty()) return Posted::kBadRange;
  const auto micros = CostMicros(transfer->peer, plan.Bytes(transfer->tokens), plan.PieceBytes());
  if (micros && *micros <= kSoonMicrosMax) soon_ = Later(BootNow(), kSoon);
  Order order;
  order.kind = Order::Kind::kPost;
  order.peer = found->second;
  order.transfer = std::move(transfer);
  Give(std::move(order));
  return Posted::kTaken;
}

void NixlPath::Cancel(JobKey job) {
  Order order;
  order.kind = Order::Kind::kCancel;
  order.key = job;
  Give(std::move(order));
}

void NixlPath::Release(PeerKey peer) {
  peers_.erase(peer);
  Order order;
  order.kind = Order::Kind::kRelease;
  order.key = peer;
  Give(std::move(order));
}

void NixlPath::Grant(LeaseKey lease, const StagedGrant& grant) {
  if (!options_.staging) return;
  Order order;
  order.kind = Order::Kind::kGrant;
  order.key = lease;
  order.grant = grant;
  Give(std::move(order));
}

void NixlPath::EndLease(LeaseKey lease) {
  if (!options_.staging) return;
  Order order;
  order.kind = Order::Kind::kEndLease;
  order.key = lease;
  Give(std::move(order));
}

void NixlPath::Serve(bool leases_out) {
  if (leases_out_.exchange(leases_out) != leases_out && leases_out) sleeper_->Wake();
}

void NixlPath::EndBy(BootNanos deadline) {
  end_by_.store(deadline, std::memory_order_relaxed);
  sleeper_->Wake();
}

bool NixlPath::Abandon() {
  gate_->Close();
  return gate_->Quiet();
}

void NixlPath::Poll(std::vector<PathEvent>* events) {
  std::vector<NixlWorker::Reached> reached;
  {
    const std::lock_guard lock(mutex_);
    if (!events_.empty()) soon_ = 0;
    events->insert(events->end(), events_.begin(), events_.end());
    events_.clear();
    reached.swap(reached_);
  }
  for (NixlWorker::Reached& one : reached) {
    PathEvent event;
    event.kind = PathEvent::Kind::kReached;
    event.path = one.found && one.found->staged ? PathKind::kNixlStaged : PathKind::kNixlDirect;
    event.key = one.peer;
    event.reached = one.status;
    if (one.found) peers_[one.peer] = std::move(one.found);
    events->push_back(event);
  }
}

void NixlPath::Run() {
  auto library = nixl::Library::Load(options_.library);
  std::optional<Error> wrong;
  std::unique_ptr<NixlWorker> worker;
  if (library.ok()) {
    auto opened = NixlWorker::Open({library.value(), options_.plugin, options_.agent, options_.geometry,
                                    options_.blocks, options_.pool, options_.direct, options_.staging,
                                    options_.crew, gate_, [sleeper = sleeper_] { sleeper->Wake(); }});
    if (opened.ok()) worker = std::move(opened.value());
    if (!opened.ok()) wrong = opened.error();
  } else {
    wrong = library.error();
  }
  {
    const std::lock_guard lock(mutex_);
    if (worker) descriptor_ = worker->descriptor();
    error_ = std::move(wrong);
    phase_.store(worker ? Phase::kOpen : Phase::kFailed, std::memory_order_release);
  }
  started_.notify_all();
  options_.wake->Wake();
  if (worker) Work(worker.get());
}

void NixlPath::Work(NixlWorker* worker) {
  BootNanos moved = BootNow();
  std::vector<PathEvent> events;
  std::vector<NixlWorker::Reached> reached;
  worker->CountIn(&beats_);
  for (;;) {
    beats_.fetch_add(1, std::memory_order_relaxed);
    sleeper_->Look();
    const BootNanos began = BootNow();
    const bool ordered = TakeOrders(worker);
    remotes_loaded_.store(worker->remotes_loaded(), std::memory_order_relaxed);
    bool progress = worker->Step(&events, &reached);
    TellSlots(*worker);
    if (worker->busy() && BootNow() >= end_by_.load(std::memory_order_relaxed)) {
      worker->TearDown(&events, &reached);
      progress = true;
    }
    if (!events.empty() || !reached.empty()) {
      {
        const std::lock_guard lock(mutex_);
        events_.insert(events_.end(), events.begin(), events.end());
        for (NixlWorker::Reached& one : reached) reached_.push_back(std::move(one));
      }
      events.clear();
      reached.clear();
      options_.wake->Wake();
    }
    // The owner has waited for all jobs before it destroys us.
    if (stop_.load(std::memory_order_acquire)) return;
    const BootNanos now = BootNow();
    if (ordered || progress || now - began > kWorked) moved = now;
    Rest(*worker, now - moved);
  }
}

// Work runs on at once while it moves.
void NixlPath::Rest(const NixlWorker& worker, BootNanos still) const {
  if (worker.busy()) {
    if (still > kHot) return Nap(still > kWarm ? kLongNap : kShortNap);
    // A peer on this machine may need the core to move.
    if (still > 0) sched_yield();
    return;
  }
  if (still == 0 || still < options_.hot) return;
  const bool serves =
      leases_out_.load(std::memory_order_relaxed) || BootNow() - worker.last_heard() < kHeardFor;
  Nap(serves ? kServingNap : kIdleNap);
}

// The owner looks when it is woken.
void NixlPath::TellSlots(const NixlWorker& worker) {
  const SlotBytes now = worker.slots();
  const SlotBytes before = slots();
  slot_bytes_.store(now.all, std::memory_order_relaxed);
  quarantined_bytes_.store(now.quarantined, std::memory_order_relaxed);
  stuck_.store(now.stuck, std::memory_order_relaxed);
  if (now.quarantined != before.quarantined || now.stuck != before.stuck) options_.wake->Wake();
}

bool NixlPath::TakeOrders(NixlWorker* worker) {
  std::vector<Order> orders;
  {
    const std::lock_guard lock(mutex_);
    orders.swap(orders_);
  }
  for (Order& order : orders) {
    switch (order.kind) {
      case Order::Kind::kReach:
        worker->Reach(order.key, order.descriptor, order.deadline, std::move(order.life));
        break;
      case Order::Kind::kPost:
        worker->Post(std::move(order.peer), std::move(order.transfer));
        break;
      case Order::Kind::kCancel:
        worker->Cancel(order.key);
        break;
      case Order::Kind::kRelease:
        worker->Release(order.key);
        break;
      case Order::Kind::kGrant:
        worker->Grant(order.key, std::move(order.grant));
        break;
      case Order::Kind::kEndLease:
        worker->EndLease(order.key);
        break;
    }
  }
  return !orders.empty();
}

void NixlPath::Nap(BootNanos nanos) const {
  if (!sleeper_->MaySleep()) return;
  pollfd polled{sleeper_->fd(), POLLIN, 0};
  const timespec time{0, static_cast<long>(nanos)};
  if (ppoll(&polled, 1, &time, nullptr) > 0) sleeper_->Clear();
}

}  // namespace kvt
