#include "paths/digests.h"

#include <algorithm>
#include <utility>

namespace kvt {
namespace {

// So little is hashed on the owner's thread in less time than waking a copy thread takes (decision 015).
constexpr uint64_t kHereBytesMax = uint64_t{256} << 10;
constexpr uint64_t kSliceBytes = uint64_t{256} << 10;

}  // namespace

struct Digests::Task final : CrewTask {
  void RunUnits(const UnitRange& range) override {
    for (uint64_t index = range.first; index < range.last; ++index) {
      const TokenRange& tokens = request->ranges[index];
      const auto digest =
          hasher.hash(request->part, request->table, {tokens.from, tokens.to, request->sequence});
      if (digest) digests[index] = *digest;
    }
  }

  Hasher hasher;
  std::unique_ptr<const DigestRequest> request;
  std::vector<Digest> digests;
};

Hasher HasherOf(std::shared_ptr<const HostPool> pool, const Geometry& geometry) {
  return {[pool = std::move(pool), geometry = std::make_shared<const Geometry>(geometry)](
              const Part& part, std::span<const uint32_t> table, const Tokens& tokens) {
            return std::optional<Digest>(DigestOf(pool->data(), *geometry, part, table, tokens));
          },
          false};
}

Hasher HasherOf(std::shared_ptr<const cuda::DevicePool> pool, const Geometry& geometry) {
  return {[pool = std::move(pool), geometry = std::make_shared<const Geometry>(geometry)](
              const Part& part, std::span<const uint32_t> table, const Tokens& tokens) {
            // The blocks that hold the tokens get the first places of a small pool; no other entry is looked
            // at.
            const uint64_t in_block = geometry->tokens_per_block;
            const uint64_t lacks = Lacking(table.size(), tokens.sequence, in_block);
            const uint64_t first = std::max(lacks, tokens.from / in_block);
            const uint64_t end = (tokens.to + in_block - 1) / in_block;
            std::vector<uint32_t> places(table.size(), 0);
            std::vector<cuda::ByteRange> blocks;
            for (uint64_t block = first; block < end; ++block) {
              places[block - lacks] = static_cast<uint32_t>(blocks.size());
              blocks.push_back({table[block - lacks] * geometry->block_bytes, geometry->block_bytes});
            }
            std::optional<Digest> digest;
            pool->Read(blocks, [&](const std::byte* copied) {
              digest = DigestOf(copied, *geometry, part, places, tokens);
            });
            return digest;
          },
          true};
}

Digests::Digests(Hasher hasher, const Geometry& geometry, CopyCrew* crew, std::shared_ptr<const Sleeper> wake)
    : hasher_(std::move(hasher)),
      token_bytes_(geometry.TokenBytes()),
      crew_(crew),
      wake_(std::move(wake)),
      inbox_(std::make_shared<Inbox>()) {}

void Digests::Start(uint64_t id, std::unique_ptr<DigestRequest> request) {
  auto task = std::make_shared<Task>();
  uint64_t tokens = 0;
  for (const TokenRange& range : request->ranges) tokens += range.to - range.from;
  const uint64_t bytes = tokens * token_bytes_;
  task->hasher = hasher_;
  task->units = request->ranges.size();
  task->unit_bytes = task->units == 0 ? 0 : bytes / task->units;
  task->units_per_slice = std::max<uint64_t>(1, kSliceBytes / std::max<uint64_t>(1, task->unit_bytes));
  task->digests.resize(task->units);
  task->request = std::move(request);
  task->on_quiet = [inbox = inbox_, wake = wake_, id] {
    {
      const std::lock_guard lock(inbox->mutex);
      inbox->ended.push_back(id);
    }
    wake->Wake();
  };
  tasks_.emplace(id, task);
  if (bytes <= kHereBytesMax && !hasher_.waits) {
    CopyCrew::RunHere(*task);
  } else {
    crew_->Add(task);
  }
}

void Digests::CancelAll() {
  for (const auto& [id, task] : tasks_) crew_->Cancel(task);
}

void Digests::Poll(std::vector<DigestEnd>* ends) {
  std::vector<uint64_t> ended;
  {
    const std::lock_guard lock(inbox_->mutex);
    ended.swap(inbox_->ended);
  }
  for (const uint64_t id : ended) {
    const auto found = tasks_.find(id);
    const std::shared_ptr<Task> task = std::move(found->second);
    tasks_.erase(found);
    if (task->units_done.load(std::memory_order_relaxed) != task->units) continue;
    {
      const std::lock_guard lock(results_mutex_);
      results_.emplace(id, std::move(task->digests));
    }
    ends->push_back({id, task->ended - task->started});
  }
}

std::vector<Digest> Digests::Take(uint64_t id) {
  const std::lock_guard lock(results_mutex_);
  auto node = results_.extract(id);
  return node.empty() ? std::vector<Digest>() : std::move(node.mapped());
}

}  // namespace kvt
