#include "cuda/gather_queue.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <optional>
#include <utility>

#include "cuda/gather_plan.h"
#include "memory/thread.h"

namespace kvt::cuda {
namespace {

constexpr unsigned kThreadsOfBlock = 512;
// Small transfers take more multiprocessors for less time: one load a thread.
constexpr uint64_t kBytesOfBlock = uint64_t{kThreadsOfBlock} * 16;
constexpr size_t kSlotBytesMin = size_t{64} << 10;

size_t RoundUp(size_t bytes) { return (bytes + 255) / 256 * 256; }

unsigned BlocksFor(uint64_t bytes, unsigned most) {
  return static_cast<unsigned>(std::clamp<uint64_t>((bytes + kBytesOfBlock - 1) / kBytesOfBlock, 1, most));
}

}  // namespace

struct GatherQueue::Slot {
  explicit Slot(std::shared_ptr<const Context> used) : context(std::move(used)) {}
  ~Slot() {
    context->MakeCurrent();
    if (started != nullptr) context->cuda()->cuEventDestroy(started);
    if (ended != nullptr) context->cuda()->cuEventDestroy(ended);
  }

  std::shared_ptr<const Context> context;
  std::unique_ptr<PinnedBuffer> buffer;
  CUevent started = nullptr;
  CUevent ended = nullptr;
};

GatherQueue::GatherQueue(Options options) : options_(std::move(options)) {}

Result<std::unique_ptr<GatherQueue>> GatherQueue::Open(Options options) {
  std::unique_ptr<GatherQueue> queue(new GatherQueue(std::move(options)));
  auto stream = Stream::Create(queue->options_.context);
  if (!stream.ok()) return stream.error();
  queue->stream_ = std::move(stream.value());
  // The first slots cost milliseconds each: now, not in the first transfers.
  for (int index = 0; index < 2; ++index) {
    auto slot = queue->TakeSlot(kSlotBytesMin);
    if (!slot.ok()) return slot.error();
    queue->free_.insert(queue->free_.begin(), std::move(slot.value()));
  }
  auto started = queue->Start();
  if (!started.ok()) return started.error();
  return queue;
}

Result<bool> GatherQueue::Start() {
  auto launcher = StartThread("kvt-cuda", [this] { LaunchAll(); });
  if (launcher) launcher_ = std::move(*launcher);
  auto waiter = launcher ? StartThread("kvt-cuda-wait", [this] { AwaitAll(); }) : std::nullopt;
  if (waiter) waiter_ = std::move(*waiter);
  if (launcher && waiter) return true;
  return Error{ErrorCode::kPoolUnavailable, "the system gives no more threads"};
}

GatherQueue::~GatherQueue() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  added_.notify_all();
  if (launcher_.joinable()) launcher_.join();
  {
    const std::lock_guard lock(mutex_);
    launching_ended_ = true;
  }
  launched_.notify_all();
  if (waiter_.joinable()) waiter_.join();
}

void GatherQueue::Add(std::shared_ptr<GatherJob> job) {
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(job));
  }
  added_.notify_one();
}

void GatherQueue::LaunchAll() {
  options_.context->MakeCurrent();
  for (;;) {
    std::shared_ptr<GatherJob> job;
    {
      std::unique_lock lock(mutex_);
      added_.wait(lock, [this] { return stop_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      job = std::move(waiting_.front());
      waiting_.pop_front();
    }
    job->queued = BootNow() - job->posted;
    if (job->cancelled.load(std::memory_order_relaxed)) {
      End(job.get(), std::nullopt);
      continue;
    }
    const BlockTables tables{job->source_blocks, job->target_blocks};
    const uint64_t bytes = job->plan->Bytes(job->tokens);
    const unsigned blocks = BlocksFor(bytes, options_.blocks_max);
    const auto segments = SegmentsOf(*job->plan, job->tokens, tables, {job->source, job->target}, blocks);
    job->segments = static_cast<uint32_t>(segments.size());
    if (segments.empty()) {
      job->complete = true;
      End(job.get(), std::nullopt);
      continue;
    }
    const size_t needed = RoundUp(segments.size() * sizeof(GatherSegment)) +
                          RoundUp(job->source_blocks.size() * sizeof(uint32_t)) +
                          job->target_blocks.size() * sizeof(uint32_t);
    auto slot = TakeSlot(needed);
    if (!slot.ok()) {
      End(job.get(), slot.error());
      continue;
    }
    if (const auto failed = Launch(*job, segments, blocks, slot.value().get())) {
      End(job.get(), failed);
      continue;
    }
    {
      const std::lock_guard lock(mutex_);
      running_.push_back({std::move(job), std::move(slot.value())});
    }
    launched_.notify_one();
  }
}

std::optional<Error> GatherQueue::Launch(const GatherJob& job, const std::vector<GatherSegment>& segments,
                                         unsigned blocks, Slot* slot) const {
  const Driver& cuda = options_.context->cuda();
  std::byte* const data = slot->buffer->data();
  const size_t source_at = RoundUp(segments.size() * sizeof(GatherSegment));
  const size_t target_at = source_at + RoundUp(job.source_blocks.size() * sizeof(uint32_t));
  memcpy(data, segments.data(), segments.size() * sizeof(GatherSegment));
  memcpy(data + source_at, job.source_blocks.data(), job.source_blocks.size() * sizeof(uint32_t));
  memcpy(data + target_at, job.target_blocks.data(), job.target_blocks.size() * sizeof(uint32_t));
  CUdeviceptr source = job.source;
  CUdeviceptr target = job.target;
  CUdeviceptr segments_address = slot->buffer->address();
  auto count = static_cast<uint32_t>(segments.size());
  CUdeviceptr source_table = segments_address + source_at;
  CUdeviceptr target_table = segments_address + target_at;
  void* parameters[] = {&source, &target, &segments_address, &count, &source_table, &target_table};
  CUresult result = cuda->cuEventRecord(slot->started, stream_->get());
  if (result != kSuccess) return cuda.Failed("cuEventRecord", result);
  result = cuda->cuLaunchKernel(options_.kernels->gather(), blocks, 1, 1, kThreadsOfBlock, 1, 1, 0,
                                stream_->get(), parameters, nullptr);
  if (result != kSuccess) return cuda.Failed("cuLaunchKernel of kvt_gather", result);
  result = cuda->cuEventRecord(slot->ended, stream_->get());
  if (result == kSuccess) return std::nullopt;
  // The kernel runs, and nothing else tells when it has ended.
  cuda->cuStreamSynchronize(stream_->get());
  return cuda.Failed("cuEventRecord", result);
}

Result<std::unique_ptr<GatherQueue::Slot>> GatherQueue::TakeSlot(size_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    for (auto slot = free_.begin(); slot != free_.end(); ++slot) {
      if ((*slot)->buffer->bytes() < bytes) continue;
      std::unique_ptr<Slot> taken = std::move(*slot);
      free_.erase(slot);
      return taken;
    }
  }
  const Driver& cuda = options_.context->cuda();
  auto slot = std::make_unique<Slot>(options_.context);
  auto buffer = PinnedBuffer::Create(options_.context, std::max(bytes, kSlotBytesMin));
  if (!buffer.ok()) return buffer.error();
  slot->buffer = std::move(buffer.value());
  for (CUevent* event : {&slot->started, &slot->ended}) {
    const CUresult result = cuda->cuEventCreate(event, kEventBlockingSync);
    if (result != kSuccess) return cuda.Failed("cuEventCreate", result);
  }
  return slot;
}

void GatherQueue::AwaitAll() {
  options_.context->MakeCurrent();
  for (;;) {
    Launched next;
    {
      std::unique_lock lock(mutex_);
      launched_.wait(lock, [this] { return launching_ended_ || !running_.empty(); });
      if (running_.empty()) return;
      next = std::move(running_.front());
      running_.pop_front();
    }
    const auto failed = Await(*next.slot, next.job.get());
    {
      const std::lock_guard lock(mutex_);
      free_.push_back(std::move(next.slot));
    }
    End(next.job.get(), failed);
  }
}

std::optional<Error> GatherQueue::Await(const Slot& slot, GatherJob* job) const {
  const Driver& cuda = options_.context->cuda();
  CUresult result = cuda->cuEventSynchronize(slot.ended);
  if (result != kSuccess) return cuda.Failed("kvt_gather, cuEventSynchronize", result);
  float millis = 0;
  result = cuda->cuEventElapsedTime(&millis, slot.started, slot.ended);
  if (result != kSuccess) return cuda.Failed("cuEventElapsedTime", result);
  job->moving = static_cast<BootNanos>(static_cast<double>(millis) * 1e6);
  job->complete = true;
  return std::nullopt;
}

// The job's failure reaches JavaScript as a status; what CUDA said is said once, as the rest only follows
// from it.
void GatherQueue::End(GatherJob* job, const std::optional<Error>& failed) {
  if (failed) {
    const std::lock_guard lock(mutex_);
    if (!std::exchange(told_failure_, true)) {
      std::fprintf(stderr, "kv-transceiver: path cuda_peer: %s\n", failed->why.c_str());
    }
  }
  job->source_owner.reset();
  job->target_owner.reset();
  job->on_end(*job);
}

}  // namespace kvt::cuda
