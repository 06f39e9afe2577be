#pragma once

#include <cstdint>
#include <vector>

#include "cuda/gather_segment.h"
#include "layout/plan.h"

namespace kvt::cuda {

// Where the two pools begin modulo 16: how wide the kernel may read and write depends on it.
struct PoolAlignment {
  uint64_t source = 0;
  uint64_t target = 0;
};

Division DivisionBy(uint32_t divisor);

// A plan applied to tokens as the kernel takes it, whatever the tables say: some segments for each band,
// those of the whole grains and of the parts at both ends. `grid`: blocks of threads. Budget: no work a
// block of the pool.
std::vector<GatherSegment> SegmentsOf(const Plan& plan, const Tokens& tokens, const BlockTables& tables,
                                      const PoolAlignment& pools, uint32_t grid);

}  // namespace kvt::cuda
