#include "paths/copy_kernel.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace kvt {
namespace {

// Shorter pieces are not worth the alignment work of streaming.
constexpr size_t kStreamPieceMin = 1024;
constexpr size_t kLine = 64;
// How far ahead, in the order of copying, the source is fetched; measured best from 2 to 8 KiB.
constexpr size_t kAheadLines = 64;

#if defined(__x86_64__)

// Targets are 64-byte aligned here; sources need not be. Each line also fetches one at `ahead`.
__attribute__((target("avx512f"))) void StreamLinesAvx512(std::byte* target, const std::byte* source,
                                                          size_t lines, const std::byte* ahead) {
  for (; lines >= 4; lines -= 4, source += 4 * kLine, target += 4 * kLine, ahead += 4 * kLine) {
    _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(ahead + kLine), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(ahead + 2 * kLine), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(ahead + 3 * kLine), _MM_HINT_T0);
    const __m512i a = _mm512_loadu_si512(source);
    const __m512i b = _mm512_loadu_si512(source + kLine);
    const __m512i c = _mm512_loadu_si512(source + 2 * kLine);
    const __m512i d = _mm512_loadu_si512(source + 3 * kLine);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target), a);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target + kLine), b);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target + 2 * kLine), c);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target + 3 * kLine), d);
  }
  for (; lines > 0; --lines, source += kLine, target += kLine) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target), _mm512_loadu_si512(source));
  }
}

__attribute__((target("avx2"))) void StreamLinesAvx2(std::byte* target, const std::byte* source, size_t lines,
                                                     const std::byte* ahead) {
  for (; lines > 0; --lines, source += kLine, target += kLine, ahead += kLine) {
    _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + 32));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target), low);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target + 32), high);
  }
}

#elif defined(__aarch64__)

void StreamLinesNeon(std::byte* target, const std::byte* source, size_t lines, const std::byte* ahead) {
  for (; lines > 0; --lines, source += kLine, target += kLine, ahead += kLine) {
    __builtin_prefetch(ahead, 0, 3);
    const auto* from = reinterpret_cast<const uint64_t*>(source);
    const uint64x2_t a = vld1q_u64(from);
    const uint64x2_t b = vld1q_u64(from + 2);
    const uint64x2_t c = vld1q_u64(from + 4);
    const uint64x2_t d = vld1q_u64(from + 6);
    asm volatile(
        "stnp %q1, %q2, [%0]\n"
        "stnp %q3, %q4, [%0, #32]\n" ::"r"(target),
        "w"(a), "w"(b), "w"(c), "w"(d)
        : "memory");
  }
}

#endif

void StreamLines(VectorLevel level, std::byte* target, const std::byte* source, size_t lines,
                 [[maybe_unused]] const std::byte* ahead) {
  switch (level) {
#if defined(__x86_64__)
    case VectorLevel::kAvx512:
      StreamLinesAvx512(target, source, lines, ahead);
      return;
    case VectorLevel::kAvx2:
      StreamLinesAvx2(target, source, lines, ahead);
      return;
#elif defined(__aarch64__)
    case VectorLevel::kNeon:
      StreamLinesNeon(target, source, lines, ahead);
      return;
#endif
    default:
      memcpy(target, source, lines * kLine);
  }
}

}  // namespace

void StreamPiece(VectorLevel level, std::byte* target, const std::byte* source, size_t bytes,
                 const std::byte* after) {
  const size_t misaligned = reinterpret_cast<uintptr_t>(target) % kLine;
  const size_t head = misaligned == 0 ? 0 : std::min(bytes, kLine - misaligned);
  memcpy(target, source, head);
  const size_t lines = (bytes - head) / kLine;
  // Most of a long piece fetches itself, its last lines the first ones of the next piece.
  const size_t own = lines > kAheadLines ? lines - kAheadLines : 0;
  const std::byte* from = source + head;
  std::byte* to = target + head;
  StreamLines(level, to, from, own, from + kAheadLines * kLine);
  from += own * kLine;
  to += own * kLine;
  StreamLines(level, to, from, lines - own, after != nullptr ? after : from);
  const size_t done = head + lines * kLine;
  memcpy(target + done, source + done, bytes - done);
}

void CopyRun(const Run& run, const Run* next, const std::byte* source, std::byte* target, bool stream) {
  const VectorLevel level = ChosenVectorLevel();
  const std::byte* from = source + run.source_offset;
  std::byte* to = target + run.target_offset;
  const std::byte* next_run = next != nullptr ? source + next->source_offset : nullptr;
  const bool past_caches = stream && run.bytes >= kStreamPieceMin;
  for (uint64_t piece = 1; piece <= run.count; ++piece) {
    if (past_caches) {
      StreamPiece(level, to, from, run.bytes, piece < run.count ? from + run.source_stride : next_run);
    } else {
      memcpy(to, from, run.bytes);
    }
    from += run.source_stride;
    to += run.target_stride;
  }
}

void FinishStream() {
#if defined(__x86_64__)
  _mm_sfence();
#elif defined(__aarch64__)
  asm volatile("dmb ishst" ::: "memory");
#endif
}

void WarmRun(const Run& run, const std::byte* source, std::byte* target) {
  __builtin_prefetch(source + run.source_offset, 0, 3);
  __builtin_prefetch(target + run.target_offset, 1, 3);
}

}  // namespace kvt
