#include "paths/digests.h"

#include <algorithm>
#include <utility>

namespace kvt {
namespace {

// So little is hashed on the owner's thread in less time than waking a copy thread takes (decision 015).
constexpr uint64_t kHereBytesMax = uint64_t{256} << 10;
constexpr uint64_t kSliceBytes = uint64_t{256} << 10;

struct HostTask final : CrewTask {
  void RunUnits(const UnitRange& range) override {
    const DigestRequest& request = *work->request;
    for (uint64_t index = range.first; index < range.last; ++index) {
      const TokenRange& tokens = request.ranges[index];
      work->digests[index] = DigestOf(pool->data(), *geometry, request.part, request.table,
                                      {tokens.from, tokens.to, request.sequence});
    }
  }

  std::shared_ptr<const HostPool> pool;
  std::shared_ptr<const Geometry> geometry;
  std::shared_ptr<DigestWork> work;
};

Digest CanonicalOf(uint64_t hash) {
  Digest digest;
  for (size_t index = 0; index < digest.size(); ++index) {
    digest[index] = static_cast<uint8_t>(hash >> (8 * (digest.size() - 1 - index)));
  }
  return digest;
}

}  // namespace

DigestMaker DigestsBy(CopyCrew* crew, std::shared_ptr<const HostPool> pool, const Geometry& of) {
  return [crew, pool = std::move(pool),
          geometry = std::make_shared<const Geometry>(of)](const std::shared_ptr<DigestWork>& work) {
    auto task = std::make_shared<HostTask>();
    uint64_t tokens = 0;
    for (const TokenRange& range : work->request->ranges) tokens += range.to - range.from;
    const uint64_t bytes = tokens * geometry->TokenBytes();
    task->pool = pool;
    task->geometry = geometry;
    task->units = work->request->ranges.size();
    task->unit_bytes = task->units == 0 ? 0 : bytes / task->units;
    task->units_per_slice = std::max<uint64_t>(1, kSliceBytes / std::max<uint64_t>(1, task->unit_bytes));
    work->digests.resize(task->units);
    // The crew keeps the task until it has called this.
    task->on_quiet = [work, of_task = task.get()] {
      work->complete = of_task->units_done.load(std::memory_order_relaxed) == of_task->units;
      work->took = of_task->ended - of_task->started;
      work->on_quiet();
    };
    task->work = work;
    if (bytes <= kHereBytesMax) {
      CopyCrew::RunHere(*task);
    } else {
      crew->Add(task);
    }
    return std::function<void()>([crew, task] { crew->Cancel(task); });
  };
}

DigestMaker DigestsBy(std::shared_ptr<cuda::DigestQueue> gpu) {
  return [gpu = std::move(gpu)](const std::shared_ptr<DigestWork>& work) {
    auto job = std::make_shared<cuda::DigestJob>();
    job->table = work->request->table;
    job->ranges = work->request->ranges;
    job->part = work->request->part;
    job->sequence = work->request->sequence;
    job->on_end = [work, of_job = job.get()] {
      work->complete = of_job->complete;
      work->took = of_job->took;
      for (const uint64_t hash : of_job->digests) work->digests.push_back(CanonicalOf(hash));
      work->on_quiet();
    };
    gpu->Add(job);
    return std::function<void()>([job] { job->cancelled.store(true, std::memory_order_relaxed); });
  };
}

Digests::Digests(DigestMaker maker, std::shared_ptr<const Sleeper> wake)
    : maker_(std::move(maker)), wake_(std::move(wake)), inbox_(std::make_shared<Inbox>()) {}

void Digests::Start(uint64_t id, std::unique_ptr<DigestRequest> request) {
  auto work = std::make_shared<DigestWork>();
  work->request = std::move(request);
  work->on_quiet = [inbox = inbox_, wake = wake_, id] {
    {
      const std::lock_guard lock(inbox->mutex);
      inbox->ended.push_back(id);
    }
    wake->Wake();
  };
  Running& running = running_[id];
  running.work = work;
  running.cancel = maker_(work);
}

void Digests::CancelAll() {
  cancelled_ = true;
  for (const auto& [id, running] : running_) running.cancel();
}

void Digests::Poll(std::vector<DigestEnd>* ends) {
  std::vector<uint64_t> ended;
  {
    const std::lock_guard lock(inbox_->mutex);
    ended.swap(inbox_->ended);
  }
  for (const uint64_t id : ended) {
    const auto found = running_.find(id);
    const std::shared_ptr<DigestWork> work = std::move(found->second.work);
    running_.erase(found);
    if (!work->complete && cancelled_) continue;
    {
      const std::lock_guard lock(results_mutex_);
      results_.emplace(id, work->complete ? std::move(work->digests) : std::vector<Digest>());
    }
    ends->push_back({id, work->took});
  }
}

std::vector<Digest> Digests::Take(uint64_t id) {
  const std::lock_guard lock(results_mutex_);
  auto node = results_.extract(id);
  return node.empty() ? std::vector<Digest>() : std::move(node.mapped());
}

}  // namespace kvt
