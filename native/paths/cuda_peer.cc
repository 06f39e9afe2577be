#include "paths/cuda_peer.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

namespace kvt {
namespace {

// Measured (design.md section 7): a launch and its end, and what 64 multiprocessors pull over NVLink. Pieces
// cost nothing of their own.
constexpr double kFixedMicros = 12;
constexpr double kBytesPerMicro = 367'000;

PathEvent EndOf(JobKey key, const cuda::GatherJob& job) {
  PathEvent event;
  event.kind = PathEvent::Kind::kQuiet;
  event.path = PathKind::kCudaPeer;
  event.key = key;
  event.complete = job.complete;
  event.bytes = job.complete ? job.plan->Bytes(job.tokens) : 0;
  event.queued = job.queued;
  event.moving = job.moving;
  event.runs = job.segments;
  const uint64_t piece = job.plan->PieceBytes();
  event.pieces = piece == 0 ? 0 : (event.bytes + piece - 1) / piece;
  return event;
}

void Warn(const std::string& what) {
  std::fprintf(stderr, "kv-transceiver: path cuda_peer: %s\n", what.c_str());
}

}  // namespace

Result<std::unique_ptr<CudaPeerPath>> CudaPeerPath::Open(Options options) {
  std::unique_ptr<CudaPeerPath> path(new CudaPeerPath(std::move(options)));
  const Options& own = path->options_;
  auto queue = cuda::GatherQueue::Open({own.pool->context(), own.kernels, own.multiprocessors});
  if (!queue.ok()) return queue.error();
  path->queue_ = std::move(queue.value());
  const PoolFiles files{{own.pool->fd()}, own.own.bytes, false, own.pool};
  auto exchange = FdExchange::Open(
      {own.own.directory, own.own, files, [inbox = path->inbox_](PeerKey peer) { inbox->PutDead(peer); }});
  if (!exchange.ok()) return exchange.error();
  path->exchange_ = std::move(exchange.value());
  AnnouncePool(own.own.nonce, own.pool);
  return path;
}

CudaPeerPath::CudaPeerPath(Options options)
    : options_(std::move(options)),
      inbox_(std::make_shared<EventInbox>(options_.wake)),
      reaches_(options_.wake) {}

CudaPeerPath::~CudaPeerPath() { WithdrawPool(options_.own.nonce); }

void CudaPeerPath::Reach(PeerKey peer, std::vector<uint8_t> descriptor, BootNanos deadline) {
  auto attempt = [this, descriptor = std::move(descriptor), deadline](const std::atomic<bool>& stop) {
    return ReachGpu(descriptor, stop, deadline);
  };
  reaches_.Start(peer, std::move(attempt), {});
}

// On a thread of its own.
CudaPeerPath::ReachedGpu CudaPeerPath::ReachGpu(const std::vector<uint8_t>& bytes,
                                                const std::atomic<bool>& stop, BootNanos deadline) const {
  ReachedGpu reached;
  const auto descriptor = DecodeCudaDescriptor(bytes);
  if (!descriptor) {
    reached.status = ReachStatus::kBadDescriptor;
    return reached;
  }
  reached.descriptor = descriptor->pool;
  const auto& context = options_.pool->context();
  context->MakeCurrent();
  if (const auto local = FindPool(descriptor->pool.nonce)) {
    auto opened = local->memory().OpenTo(*context);
    if (!opened.ok()) {
      Warn(opened.error().why);
      return reached;
    }
    reached.memory = {local->address(), local};
    reached.process.pid = getpid();
    reached.status = ReachStatus::kOk;
    return reached;
  }
  AskedPool asked = AskForPool(descriptor->pool, options_.own.directory, stop, deadline);
  reached.status = asked.status;
  if (asked.status != ReachStatus::kOk) return reached;
  auto imported = cuda::DeviceMemory::Import(context, asked.files[0].get(), descriptor->mapped_bytes);
  if (!imported.ok()) {
    Warn("the pool on " + cuda::UuidText(descriptor->device) + " can't be mapped on " +
         cuda::UuidText(context->facts().uuid) + ": " + imported.error().why);
    reached.status = ReachStatus::kMapFailed;
    return reached;
  }
  std::shared_ptr<const cuda::DeviceMemory> memory = std::move(imported.value());
  reached.memory = {memory->address(), memory};
  reached.process = std::move(asked.process);
  return reached;
}

PathEvent CudaPeerPath::EndReach(PeerKey peer, ReachedGpu reached) {
  PathEvent event;
  event.kind = PathEvent::Kind::kReached;
  event.path = PathKind::kCudaPeer;
  event.key = peer;
  if (reached.status == ReachStatus::kOk) {
    std::string why;
    const SourceGeometry source{reached.descriptor.geometry};
    const TargetGeometry target{options_.own.geometry};
    if (auto plans = PairPlans::Compile(source, target, &why)) {
      event.pid = reached.process.pid;
      if (reached.process.pidfd.ok()) exchange_->Watch(peer, std::move(reached.process.pidfd));
      peers_[peer] = {reached.descriptor.blocks, std::move(reached.memory), std::move(*plans)};
    } else {
      reached.status = ReachStatus::kBadDescriptor;
    }
  }
  event.reached = reached.status;
  return event;
}

std::optional<double> CudaPeerPath::CostMicros(PeerKey peer, uint64_t bytes, uint64_t) const {
  if (!peers_.contains(peer)) return std::nullopt;
  return kFixedMicros + static_cast<double>(bytes) / kBytesPerMicro;
}

Path::Posted CudaPeerPath::Post(std::unique_ptr<Transfer> transfer) {
  const auto found = peers_.find(transfer->peer);
  if (found == peers_.end()) return Posted::kNoPeer;
  const Peer& peer = found->second;
  auto job = std::make_shared<cuda::GatherJob>();
  job->plan = peer.plans.For(transfer->replicated);
  const BlockTables tables{transfer->source_blocks, transfer->target_blocks};
  const std::string wrong = job->plan->Check(transfer->tokens, tables, peer.blocks, options_.own.blocks);
  if (!wrong.empty()) return Posted::kBadRange;
  job->tokens = transfer->tokens;
  job->source_blocks = std::move(transfer->source_blocks);
  job->target_blocks = std::move(transfer->target_blocks);
  job->source = peer.memory.address;
  job->source_owner = peer.memory.owner;
  job->target = options_.pool->address();
  job->target_owner = options_.pool;
  job->posted = transfer->posted;
  job->on_end = [inbox = inbox_, key = transfer->job](const cuda::GatherJob& ended) {
    inbox->Put(EndOf(key, ended));
  };
  jobs_.emplace(transfer->job, job);
  queue_->Add(std::move(job));
  return Posted::kTaken;
}

void CudaPeerPath::Cancel(JobKey job) {
  const auto found = jobs_.find(job);
  if (found != jobs_.end()) found->second->cancelled.store(true, std::memory_order_relaxed);
}

void CudaPeerPath::Poll(std::vector<PathEvent>* events) {
  inbox_->Take(events, &jobs_);
  for (auto& [peer, released, reached] : reaches_.Take()) {
    if (released) {
      reached = {};
      reached.status = ReachStatus::kReleased;
    }
    events->push_back(EndReach(peer, std::move(reached)));
  }
}

// The mapping itself lives on in the jobs that use it.
void CudaPeerPath::Release(PeerKey peer) {
  exchange_->Unwatch(peer);
  peers_.erase(peer);
  reaches_.Stop(peer);
}

}  // namespace kvt
