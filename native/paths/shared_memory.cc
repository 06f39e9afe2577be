#include "paths/shared_memory.h"

#include <algorithm>
#include <utility>

namespace kvt {
namespace {

// Cancelling waits for one slice a thread: about 30 µs.
constexpr uint64_t kSliceBytes = uint64_t{256} << 10;
// Larger jobs don't fit the caches of whoever reads them next, so they are written past them.
constexpr uint64_t kStreamBytesMin = uint64_t{4} << 20;
// Cheaper jobs run on the owner's thread: waking a copy thread costs as much
// (docs/decisions/015-small-jobs.md).
constexpr double kHereMicrosMax = 40;

constexpr size_t kLayerPlansMax = 1024;

constexpr double kFixedMicros = 2;
constexpr double kPieceMicros = 0.05;
constexpr double kBytesPerMicro = 8'000;

// Lets go of both sides first: whoever sees the event may count on it that nothing keeps them mapped.
PathEvent EndOf(CopyTask& done) {
  done.source_owner.reset();
  done.target_owner.reset();
  PathEvent event;
  event.kind = PathEvent::Kind::kQuiet;
  event.key = done.transfer->job;
  event.complete = done.units_done.load(std::memory_order_relaxed) == done.units;
  event.bytes = event.complete ? done.plan->Bytes(done.transfer->tokens) : 0;
  const bool ran = done.started != 0 && done.ended != 0;
  event.queued = (done.started != 0 ? done.started : BootNow()) - done.transfer->posted;
  event.moving = ran ? done.ended - done.started : 0;
  event.runs = done.runs.load(std::memory_order_relaxed);
  event.pieces = done.pieces.load(std::memory_order_relaxed);
  return event;
}

}  // namespace

Result<std::unique_ptr<SharedMemoryPath>> SharedMemoryPath::Open(Options options) {
  std::unique_ptr<SharedMemoryPath> path(new SharedMemoryPath(std::move(options)));
  const Options& own = path->options_;
  auto exchange = FdExchange::Open({own.own.directory, own.own, PoolFiles::Of(own.pool),
                                    [inbox = path->inbox_](PeerKey peer) { inbox->PutDead(peer); }});
  if (!exchange.ok()) return exchange.error();
  path->exchange_ = std::move(exchange.value());
  return path;
}

SharedMemoryPath::SharedMemoryPath(Options options)
    : options_(std::move(options)),
      inbox_(std::make_shared<EventInbox>(options_.wake)),
      reaches_(options_.wake) {}

void SharedMemoryPath::Reach(PeerKey peer, std::vector<uint8_t> descriptor, BootNanos deadline) {
  auto attempt = [this, descriptor = std::move(descriptor), deadline](const std::atomic<bool>& stop) {
    return ReachPool(descriptor, options_.own.directory, stop, deadline);
  };
  reaches_.Start(peer, std::move(attempt), {ReachStatus::kMapFailed, nullptr});
}

void SharedMemoryPath::EndReach(PeerKey peer, Reached reached, std::vector<PathEvent>* events) {
  PathEvent event;
  event.kind = PathEvent::Kind::kReached;
  event.key = peer;
  std::string why;
  std::optional<PairPlans> plans;
  if (reached.status == ReachStatus::kOk) {
    const SourceGeometry source{reached.pool->descriptor.geometry};
    const TargetGeometry target{options_.own.geometry};
    plans = PairPlans::Compile(source, target, &why);
    if (!plans) reached.status = ReachStatus::kBadDescriptor;
  }
  event.reached = reached.status;
  if (reached.status == ReachStatus::kOk) {
    event.pid = reached.pool->process.pid;
    if (reached.pool->process.pidfd.ok()) exchange_->Watch(peer, std::move(reached.pool->process.pidfd));
    peers_[peer] = {std::move(reached.pool), std::move(*plans), {}};
  }
  events->push_back(event);
}

std::optional<double> SharedMemoryPath::CostMicros(PeerKey peer, uint64_t bytes, uint64_t piece_bytes) const {
  if (!peers_.contains(peer)) return std::nullopt;
  const auto size = static_cast<double>(bytes);
  const double pieces = piece_bytes == 0 ? 0 : size / static_cast<double>(piece_bytes);
  return kFixedMicros + pieces * kPieceMicros + size / kBytesPerMicro;
}

std::shared_ptr<const Plan> SharedMemoryPath::PlanFor(Peer* peer, const Transfer& transfer) const {
  const auto& [from, to] = transfer.layers;
  if (transfer.layers.Whole()) return peer->plans.For(transfer.replicated);
  // A few for each layer, as what falls together varies; compiling one takes some microseconds.
  if (peer->of_layers.size() > kLayerPlansMax) peer->of_layers.clear();
  auto& plan = peer->of_layers[{from, to, transfer.replicated}];
  if (!plan) {
    std::string why;
    const SourceGeometry source{peer->pool->descriptor.geometry};
    const TargetGeometry target{options_.own.geometry};
    auto compiled = Plan::Compile(source, target, &why, transfer.replicated, transfer.layers);
    // Whole, it was compiled before.
    plan = compiled ? std::make_shared<const Plan>(std::move(*compiled)) : peer->plans.all;
  }
  return plan;
}

std::shared_ptr<CopyTask> SharedMemoryPath::MakeTask(const Peer& peer, std::shared_ptr<const Plan> plan,
                                                     std::unique_ptr<Transfer> transfer) const {
  auto task = std::make_shared<CopyTask>(std::move(plan), std::move(transfer));
  const Tokens& tokens = task->transfer->tokens;
  task->source = peer.pool->data();
  task->target = options_.pool->data();
  task->source_owner = peer.pool;
  task->target_owner = options_.pool;
  // Slices of whole blocks where blocks are small, so that neighbours still merge.
  const uint64_t row = std::max<uint64_t>(1, task->plan->UnitBytes());
  const uint64_t block = std::max<uint64_t>(1, task->plan->Rows() * row);
  task->units_per_slice = block <= kSliceBytes
                              ? std::max<uint64_t>(1, task->plan->Rows()) * (kSliceBytes / block)
                              : std::max<uint64_t>(1, kSliceBytes / row);
  task->stream = task->plan->Bytes(tokens) >= kStreamBytesMin;
  return task;
}

Path::Posted SharedMemoryPath::Post(std::unique_ptr<Transfer> transfer) {
  const auto found = peers_.find(transfer->peer);
  if (found == peers_.end()) return Posted::kNoPeer;
  Peer& peer = found->second;
  std::shared_ptr<const Plan> plan = PlanFor(&peer, *transfer);
  const BlockTables tables{transfer->source_blocks, transfer->target_blocks};
  const std::string wrong =
      plan->Check(transfer->tokens, tables, peer.pool->descriptor.blocks, options_.own.blocks);
  if (!wrong.empty()) return Posted::kBadRange;
  auto task = MakeTask(peer, std::move(plan), std::move(transfer));
  task->on_quiet = [inbox = inbox_, done = task.get()] { inbox->Put(EndOf(*done)); };
  tasks_.emplace(task->transfer->job, task);
  const uint64_t bytes = task->plan->Bytes(task->transfer->tokens);
  const auto cost = CostMicros(task->transfer->peer, bytes, task->plan->PieceBytes());
  if (cost && *cost <= kHereMicrosMax) {
    CopyCrew::RunHere(*task);
  } else {
    options_.crew->Add(task);
  }
  return Posted::kTaken;
}

void SharedMemoryPath::Cancel(JobKey job) {
  const auto found = tasks_.find(job);
  if (found != tasks_.end()) options_.crew->Cancel(found->second);
}

void SharedMemoryPath::Poll(std::vector<PathEvent>* events) {
  inbox_->Take(events, &tasks_);
  for (auto& [peer, released, reached] : reaches_.Take()) {
    if (released) reached = {ReachStatus::kReleased, nullptr};
    EndReach(peer, std::move(reached), events);
  }
}

// The mapping itself lives on in the tasks that use it.
void SharedMemoryPath::Release(PeerKey peer) {
  exchange_->Unwatch(peer);
  peers_.erase(peer);
  reaches_.Stop(peer);
}

}  // namespace kvt
