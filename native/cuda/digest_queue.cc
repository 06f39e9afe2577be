#include "cuda/digest_queue.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "memory/thread.h"

namespace kvt::cuda {
namespace {

constexpr unsigned kThreadsOfBlock = 512;
constexpr uint32_t kInputsOfTurn = 8192;
constexpr uint64_t kScratchBytesMin = uint64_t{2} << 20;
constexpr uint64_t kSumBytes = kXxh3Accumulators * sizeof(uint64_t);

uint64_t RoundUp(uint64_t bytes) { return (bytes + 255) / 256 * 256; }

unsigned BlocksFor(uint64_t threads, unsigned most) {
  return static_cast<unsigned>(
      std::clamp<uint64_t>((threads + kThreadsOfBlock - 1) / kThreadsOfBlock, 1, most));
}

template <typename Item>
size_t Put(std::byte* to, size_t* at, const std::vector<Item>& items) {
  const size_t place = *at;
  if (!items.empty()) memcpy(to + place, items.data(), items.size() * sizeof(Item));
  *at += RoundUp(items.size() * sizeof(Item));
  return place;
}

template <typename Item>
uint64_t Rounded(const std::vector<Item>& items) {
  return RoundUp(items.size() * sizeof(Item));
}

}  // namespace

// One sum for each whole block of 1,024 bytes, and one more an input.
uint64_t DigestQueue::Scratch::InputsAt() const {
  return SumsAt() + RoundUp((packed_bytes / kXxh3BlockBytes + kInputsOfTurn) * kSumBytes);
}

uint64_t DigestQueue::Scratch::DigestsAt() const {
  return InputsAt() + RoundUp(kInputsOfTurn * sizeof(DigestInput));
}

Result<std::unique_ptr<DigestQueue>> DigestQueue::Open(Options options) {
  std::unique_ptr<DigestQueue> queue(new DigestQueue(std::move(options)));
  const Driver& cuda = queue->context().cuda();
  auto stream = Stream::Create(queue->options_.pool->context());
  if (!stream.ok()) return stream.error();
  queue->stream_ = std::move(stream.value());
  const CUresult result = cuda->cuEventCreate(&queue->ended_, kEventBlockingSync | kEventDisableTiming);
  if (result != kSuccess) {
    queue->ended_ = nullptr;
    return cuda.Failed("cuEventCreate", result);
  }
  auto thread = StartThread("kvt-cuda-digest", [made = queue.get()] { made->RunAll(); });
  if (!thread) return Error{ErrorCode::kPoolUnavailable, "the system gives no more threads"};
  queue->thread_ = std::move(*thread);
  return queue;
}

DigestQueue::~DigestQueue() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    for (const auto& job : waiting_) job->cancelled.store(true, std::memory_order_relaxed);
  }
  added_.notify_all();
  if (thread_.joinable()) thread_.join();
  context().MakeCurrent();
  if (ended_ != nullptr) context().cuda()->cuEventDestroy(ended_);
}

void DigestQueue::Add(std::shared_ptr<DigestJob> job) {
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(job));
  }
  added_.notify_one();
}

void DigestQueue::RunAll() {
  for (;;) {
    std::shared_ptr<DigestJob> job;
    {
      std::unique_lock lock(mutex_);
      added_.wait(lock, [this] { return stop_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      job = std::move(waiting_.front());
      waiting_.pop_front();
    }
    const BootNanos started = BootNow();
    if (!job->cancelled.load(std::memory_order_relaxed)) {
      const auto failed = Run(job.get());
      // As for transfers: the rest only follows from what CUDA said first.
      if (failed && !std::exchange(told_failure_, true)) {
        std::fprintf(stderr, "kv-transceiver: digests on %s: %s\n", context().facts().name.c_str(),
                     failed->why.c_str());
      }
    }
    job->took = BootNow() - started;
    job->on_end();
  }
}

std::optional<Error> DigestQueue::Run(DigestJob* job) {
  const Driver& cuda = context().cuda();
  CUresult result = context().MakeCurrent();
  if (result != kSuccess) return cuda.Failed("cuCtxSetCurrent", result);
  const DigestRanges wanted{job->table, job->ranges, job->part, job->sequence};
  const uint64_t needed = DigestRoomFor(options_.geometry, wanted);
  if (auto failed = MakeScratch(needed)) return failed;
  const DigestRoom room{scratch_.packed_bytes, kInputsOfTurn, options_.pool->address() % 16};
  const auto turns = DigestTurnsOf(options_.geometry, wanted, room, options_.blocks_max);
  const size_t digests_bytes = RoundUp(job->ranges.size() * sizeof(uint64_t));
  uint64_t pinned = digests_bytes;
  for (const DigestTurn& turn : turns) {
    pinned += Rounded(turn.segments) + Rounded(turn.source_table) + Rounded(turn.target_table) +
              Rounded(turn.inputs);
  }
  if (auto failed = WidenPinned(pinned)) return failed;
  // All turns are launched at once; the stream keeps their order, so one may use the other's scratch.
  size_t at = digests_bytes;
  size_t digests_at = 0;
  std::optional<Error> failed;
  for (const DigestTurn& turn : turns) {
    if (job->cancelled.load(std::memory_order_relaxed)) break;
    std::byte* const data = pinned_->data();
    Places places;
    places.segments = Put(data, &at, turn.segments);
    places.source_table = Put(data, &at, turn.source_table);
    places.target_table = Put(data, &at, turn.target_table);
    places.inputs = Put(data, &at, turn.inputs);
    failed = Launch(turn, places, digests_at);
    if (failed) break;
    digests_at += turn.inputs.size() * sizeof(uint64_t);
  }
  if (!failed) {
    result = cuda->cuEventRecord(ended_, stream_->get());
    if (result != kSuccess) failed = cuda.Failed("cuEventRecord", result);
  }
  if (failed) {
    // What was launched still runs, and reads the pool.
    cuda->cuStreamSynchronize(stream_->get());
    return failed;
  }
  result = cuda->cuEventSynchronize(ended_);
  if (result != kSuccess) return cuda.Failed("kvt_digest_ends, cuEventSynchronize", result);
  if (digests_at != job->ranges.size() * sizeof(uint64_t)) return std::nullopt;
  job->digests.resize(job->ranges.size());
  memcpy(job->digests.data(), pinned_->data(), digests_at);
  job->complete = true;
  return std::nullopt;
}

std::optional<Error> DigestQueue::Launch(const DigestTurn& turn, const Places& places, size_t digests_at) {
  const Driver& cuda = context().cuda();
  const CUdeviceptr pinned = pinned_->address();
  const CUdeviceptr scratch = scratch_.memory->address();
  CUdeviceptr pool = options_.pool->address();
  CUdeviceptr packed = scratch;
  CUdeviceptr sums = scratch + scratch_.SumsAt();
  CUdeviceptr inputs = scratch + scratch_.InputsAt();
  CUdeviceptr digests = scratch + scratch_.DigestsAt();
  CUdeviceptr segments = pinned + places.segments;
  CUdeviceptr source_table = pinned + places.source_table;
  CUdeviceptr target_table = pinned + places.target_table;
  auto segment_count = static_cast<uint32_t>(turn.segments.size());
  auto count = static_cast<uint32_t>(turn.inputs.size());
  uint32_t sum_count = turn.sums;
  const auto launch = [&](const char* name, CUfunction kernel, unsigned blocks,
                          void** parameters) -> std::optional<Error> {
    const CUresult launched = cuda->cuLaunchKernel(kernel, blocks, 1, 1, kThreadsOfBlock, 1, 1, 0,
                                                   stream_->get(), parameters, nullptr);
    if (launched == kSuccess) return std::nullopt;
    return cuda.Failed(std::string("cuLaunchKernel of ") + name, launched);
  };
  CUresult result = cuda->cuMemcpyHtoDAsync(inputs, pinned_->data() + places.inputs,
                                            turn.inputs.size() * sizeof(DigestInput), stream_->get());
  if (result != kSuccess) return cuda.Failed("cuMemcpyHtoDAsync", result);
  if (segment_count > 0) {
    void* parameters[] = {&pool, &packed, &segments, &segment_count, &source_table, &target_table};
    // The segments were laid out for a grid of that size.
    if (auto failed = launch("kvt_gather", options_.kernels->gather(), options_.blocks_max, parameters)) {
      return failed;
    }
  }
  if (sum_count > 0) {
    void* parameters[] = {&packed, &inputs, &count, &sum_count, &sums};
    const unsigned blocks = BlocksFor(uint64_t{sum_count} * kDigestLanes, options_.blocks_max);
    if (auto failed = launch("kvt_digest_sums", options_.kernels->digest_sums(), blocks, parameters)) {
      return failed;
    }
  }
  void* parameters[] = {&packed, &inputs, &count, &sums, &digests};
  const unsigned blocks = BlocksFor(uint64_t{count} * kDigestLanes, options_.blocks_max);
  if (auto failed = launch("kvt_digest_ends", options_.kernels->digest_ends(), blocks, parameters)) {
    return failed;
  }
  result = cuda->cuMemcpyDtoHAsync(pinned_->data() + digests_at, digests,
                                   turn.inputs.size() * sizeof(uint64_t), stream_->get());
  if (result != kSuccess) return cuda.Failed("cuMemcpyDtoHAsync", result);
  return std::nullopt;
}

// An engine may have left little memory on the GPU: half as much is taken then, down to what the largest
// range needs.
std::optional<Error> DigestQueue::MakeScratch(uint64_t bytes) {
  if (scratch_.memory != nullptr && scratch_.packed_bytes >= bytes) return std::nullopt;
  scratch_ = {};
  const uint64_t least = RoundUp(std::max(bytes, std::min(kScratchBytesMin, options_.scratch_bytes)));
  for (uint64_t size = std::max(RoundUp(options_.scratch_bytes), least);;) {
    Scratch scratch;
    scratch.packed_bytes = size;
    auto memory = DeviceMemory::Create(options_.pool->context(),
                                       scratch.DigestsAt() + kInputsOfTurn * sizeof(uint64_t));
    if (memory.ok()) {
      scratch.memory = std::move(memory.value());
      scratch_ = std::move(scratch);
      return std::nullopt;
    }
    if (size == least) return memory.error();
    size = std::max(RoundUp(size / 2), least);
  }
}

std::optional<Error> DigestQueue::WidenPinned(uint64_t bytes) {
  if (pinned_ != nullptr && pinned_->bytes() >= bytes) return std::nullopt;
  pinned_.reset();
  auto wider = PinnedBuffer::Create(options_.pool->context(), std::max<uint64_t>(bytes, 256 << 10));
  if (!wider.ok()) return wider.error();
  pinned_ = std::move(wider.value());
  return std::nullopt;
}

}  // namespace kvt::cuda
