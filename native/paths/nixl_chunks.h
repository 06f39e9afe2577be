#pragma once

#include <memory>
#include <vector>

#include "layout/plan.h"
#include "layout/run_cursor.h"
#include "nixl/agent.h"
#include "paths/path.h"

namespace kvt {

// One post: own[i] gets the bytes of far[i], equally long.
struct NixlChunk {
  std::vector<nixl::Piece> own;
  std::vector<nixl::Piece> far;
  uint64_t bytes = 0;
  uint64_t runs = 0;  // of the plan, that begin in it
};

struct NixlChunkLimits {
  // A post copies inline on shared memory and tcp, 4 µs a piece and 0.3 ns a byte: 4 ms at most.
  size_t pieces = 256;
  uint64_t bytes = uint64_t{8} << 20;
};

// Cuts a transfer into posts. Neighbours on both sides become one piece, because a piece costs 4 µs whatever
// its size.
class NixlChunkCutter {
 public:
  // Addresses of the pools' first bytes, the far one in the peer's process.
  NixlChunkCutter(std::shared_ptr<const Plan> plan, std::unique_ptr<Transfer> transfer, uint64_t own_pool,
                  uint64_t far_pool, NixlChunkLimits limits = {});
  NixlChunkCutter(const NixlChunkCutter&) = delete;
  NixlChunkCutter& operator=(const NixlChunkCutter&) = delete;

  const Transfer& transfer() const { return *transfer_; }
  uint64_t Bytes() const { return plan_->Bytes(transfer_->tokens); }
  // False at the end.
  bool Next(NixlChunk* chunk);
  bool AtEnd() { return !Load(); }

 private:
  bool Load();
  bool Append(NixlChunk* chunk, uint64_t own, uint64_t far, uint64_t bytes) const;

  const std::shared_ptr<const Plan> plan_;
  const std::unique_ptr<Transfer> transfer_;
  const uint64_t own_pool_;
  const uint64_t far_pool_;
  const NixlChunkLimits limits_;
  RunCursor cursor_;  // last: it looks into the above
  Run run_;
  uint64_t runs_ = 0;      // loaded, and in no chunk yet
  uint64_t run_at_ = 0;    // of its pieces, the next one
  uint64_t piece_at_ = 0;  // of its bytes, the next one
};

}  // namespace kvt
