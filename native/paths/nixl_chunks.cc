#include "paths/nixl_chunks.h"

#include <algorithm>
#include <utility>

namespace kvt {

NixlChunkCutter::NixlChunkCutter(std::shared_ptr<const Plan> plan, std::unique_ptr<Transfer> transfer,
                                 uint64_t own_pool, uint64_t far_pool, NixlChunkLimits limits)
    : plan_(std::move(plan)),
      transfer_(std::move(transfer)),
      own_pool_(own_pool),
      far_pool_(far_pool),
      limits_(limits),
      cursor_(*plan_, transfer_->tokens, {transfer_->source_blocks, transfer_->target_blocks},
              {0, plan_->Units(transfer_->tokens)}) {}

bool NixlChunkCutter::Next(NixlChunk* chunk) {
  *chunk = {};
  while (Load()) {
    chunk->runs += std::exchange(runs_, 0);
    const uint64_t own = own_pool_ + run_.target_offset + run_at_ * run_.target_stride + piece_at_;
    const uint64_t far = far_pool_ + run_.source_offset + run_at_ * run_.source_stride + piece_at_;
    const uint64_t left = run_.bytes - piece_at_;
    const uint64_t bytes = std::min(left, limits_.bytes - chunk->bytes);
    if (bytes == 0 || !Append(chunk, own, far, bytes)) return true;
    piece_at_ += bytes;
    if (piece_at_ == run_.bytes) {
      piece_at_ = 0;
      ++run_at_;
    }
  }
  return !chunk->own.empty();
}

// False when nothing is left to copy.
bool NixlChunkCutter::Load() {
  while (run_at_ == run_.count) {
    if (!cursor_.Next(&run_)) return false;
    run_at_ = 0;
    ++runs_;
  }
  return true;
}

// False when the chunk is full.
bool NixlChunkCutter::Append(NixlChunk* chunk, uint64_t own, uint64_t far, uint64_t bytes) const {
  auto& owns = chunk->own;
  auto& fars = chunk->far;
  const bool follows = !owns.empty() && owns.back().address + owns.back().bytes == own &&
                       fars.back().address + fars.back().bytes == far;
  if (follows) {
    owns.back().bytes += bytes;
    fars.back().bytes += bytes;
  } else {
    if (owns.size() == limits_.pieces) return false;
    owns.push_back({own, bytes, 0});
    fars.push_back({far, bytes, 0});
  }
  chunk->bytes += bytes;
  return true;
}

}  // namespace kvt
