#pragma once

#include <cstddef>
#include <cstdint>

#include "layout/plan.h"

namespace kvt {

enum class VectorLevel { kGeneric, kNeon, kAvx2, kAvx512 };

// The widest vectors of this processor; decided once. KVT_VECTOR_LEVEL (generic, avx2) lowers it.
VectorLevel BestVectorLevel();
const char* NameOf(VectorLevel level);

// Copies one run. `stream`: past the caches, for jobs larger than what their reader finds in a cache anyway.
// Streamed bytes are visible to other threads after FinishStream().
void CopyRun(const Run& run, const std::byte* source, std::byte* target, bool stream);
void FinishStream();

// Starts to fetch the first lines of a run's source: scattered pieces begin where no prefetcher expects them.
void PrefetchRun(const Run& run, const std::byte* source);

// One contiguous piece past the caches, at a given level; for tests and CopyRun.
void StreamPiece(VectorLevel level, std::byte* target, const std::byte* source, size_t bytes);

}  // namespace kvt
