#pragma once

#include <cstddef>
#include <cstdint>

#include "layout/nest.h"
#include "memory/vector_level.h"

namespace kvt {

// Copies one run. `stream`: past the caches, for jobs larger than what their reader finds in a cache anyway.
// `next` (or null) is the run that will be copied after it: scattered pieces begin where no prefetcher of the
// processor expects them, so the end of each piece fetches the start of the one after it. Streamed bytes are
// visible to other threads after FinishStream().
void CopyRun(const Run& run, const Run* next, const std::byte* source, std::byte* target, bool stream);
void FinishStream();

// Makes the translations of a later run's first pages known, so that its start waits for no page walk.
void WarmRun(const Run& run, const std::byte* source, std::byte* target);

// One contiguous piece past the caches, at a given level; `after` (or null) is where the next piece's source
// begins. For tests and CopyRun.
void StreamPiece(VectorLevel level, std::byte* target, const std::byte* source, size_t bytes,
                 const std::byte* after);

}  // namespace kvt
