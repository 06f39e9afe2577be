#include "paths/copy_crew.h"

#include <numeric>
#include <random>

#include "check.h"
#include "geometries.h"
#include "paths/copy_kernel.h"

using namespace kvt;

namespace {

// A pool of bytes whose first block starts on a cache line, as in real pools.
struct Pool {
  explicit Pool(size_t bytes) : storage(bytes + 64) {
    data = storage.data() + (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64) % 64;
  }
  std::vector<std::byte> storage;
  std::byte* data;
};

struct Ending {
  std::mutex mutex;
  std::condition_variable changed;
  int quiets = 0;

  void Wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return quiets > 0; });
  }
};

struct Job {
  Job(const Geometry& geometry, uint32_t blocks)
      : source(geometry.BlockBytes() * blocks), target(source.storage.size()) {
    auto transfer = std::make_unique<Transfer>();
    transfer->source_blocks.resize(blocks);
    std::iota(transfer->source_blocks.rbegin(), transfer->source_blocks.rend(), 0);
    transfer->target_blocks = transfer->source_blocks;
    const uint64_t tokens = uint64_t{blocks} * geometry.tokens_per_block;
    transfer->tokens = {0, tokens, tokens};
    std::mt19937 random(1);
    for (size_t index = 0; index < geometry.BlockBytes() * blocks; ++index) {
      source.data[index] = static_cast<std::byte>(random());
    }
    std::string why;
    task = std::make_shared<CopyTask>(
        std::make_shared<const Plan>(*Plan::Compile({geometry}, {geometry}, &why)), std::move(transfer));
    task->source = source.data;
    task->target = target.data;
    task->units_per_slice = 16;
    task->stream = true;
    task->on_quiet = [this] {
      const std::lock_guard lock(ending.mutex);
      ++ending.quiets;
      ending.changed.notify_all();
    };
  }

  bool Same() const { return memcmp(source.data, target.data, source.storage.size() - 64) == 0; }

  Pool source;
  Pool target;
  Ending ending;
  std::shared_ptr<CopyTask> task;
};

const Geometry kGeometry = test::Hnd(4, 2, 2, 16, 64);

}  // namespace

TEST("each vector level copies any length between any alignments exactly") {
  std::vector<std::byte> source(20'000);
  std::mt19937 random(3);
  for (std::byte& byte : source) byte = static_cast<std::byte>(random());
  for (const VectorLevel level : VectorLevelsHere()) {
    for (int round = 0; round < 2000; ++round) {
      const size_t from = random() % 300;
      const size_t to = random() % 300;
      const size_t bytes = random() % (round % 2 == 0 ? 600 : 19'000);
      std::vector<std::byte> target(20'000, std::byte{0x5a});
      StreamPiece(level, target.data() + to, source.data() + from, bytes,
                  round % 3 == 0 ? nullptr : source.data());
      FinishStream();
      bool right = memcmp(target.data() + to, source.data() + from, bytes) == 0;
      for (size_t index = 0; index < target.size(); ++index) {
        const bool outside = index < to || index >= to + bytes;
        right = right && (!outside || target[index] == std::byte{0x5a});
      }
      CHECK(right);
      if (!right) return;
    }
  }
}

TEST("several threads share one task: every byte arrives and the task is quiet once") {
  CopyCrew crew(4);
  Job job(kGeometry, 200);
  crew.Add(job.task);
  job.ending.Wait();
  CHECK(job.Same());
  CHECK_EQ(job.task->units_done.load(), job.task->units);
  // No block is its neighbour's neighbour here, and equal layouts copy a whole block at once.
  CHECK_EQ(job.task->pieces.load(), 200U);
  CHECK(job.task->runs.load() >= 1 && job.task->runs.load() <= 200);
  CHECK_EQ(job.ending.quiets, 1);
}

TEST("many tasks at once all complete on a single thread") {
  CopyCrew crew(1);
  std::vector<std::unique_ptr<Job>> jobs;
  for (uint32_t number = 0; number < 30; ++number) {
    jobs.push_back(std::make_unique<Job>(kGeometry, 1 + number % 40));
    crew.Add(jobs.back()->task);
  }
  for (const auto& job : jobs) {
    job->ending.Wait();
    CHECK(job->Same());
  }
}

TEST("a cancelled task is quiet exactly once, and nothing is written after that") {
  CopyCrew crew(3);
  for (int round = 0; round < 200; ++round) {
    Job job(kGeometry, 40);
    crew.Add(job.task);
    if (round % 3 != 0) std::this_thread::yield();
    crew.Cancel(job.task);
    job.ending.Wait();
    // A late write would be a race that ThreadSanitizer reports here, and a change that this compares.
    std::fill_n(job.target.data, kGeometry.BlockBytes() * 40, std::byte{0x11});
    crew.Cancel(job.task);
    const std::lock_guard lock(job.ending.mutex);
    CHECK_EQ(job.ending.quiets, 1);
    CHECK(job.target.data[0] == std::byte{0x11});
  }
}

TEST("a small task runs on the caller's thread and is quiet on return") {
  Job job(kGeometry, 3);
  CopyCrew::RunHere(*job.task);
  CHECK_EQ(job.ending.quiets, 1);
  CHECK(job.Same());
}

KVT_TEST_MAIN
