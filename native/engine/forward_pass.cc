#include "engine/forward_pass.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "engine/float_formats.h"

namespace kvt::engine {
namespace {

// Multiplications below which waking another thread costs more than it saves (about 20 us).
constexpr size_t kWorthMultiplications = 256 * 1024;

// Smallest number of items, each of `cost` multiplications, that is worth a second thread.
size_t Worth(size_t cost) { return kWorthMultiplications / std::max<size_t>(cost, 1) + 1; }

}  // namespace

ForwardPass::ForwardPass(const LlamaModel& model, KvLayout layout, VectorLevel level, ThreadPool& threads)
    : model_(model),
      config_(model.config()),
      layout_(std::move(layout)),
      kernels_(KernelsFor(level)),
      threads_(threads),
      scores_(threads.threads()) {
  for (uint32_t i = 0; i < config_.head_dim / 2; ++i) {
    frequencies_.push_back(std::pow(config_.rope_base, -2.0 * i / config_.head_dim));
  }
}

bool ForwardPass::Run(std::span<const Row> rows, const KvMemory& memory, const std::atomic<bool>& cancelled,
                      const LayersWritten& written) {
  const size_t count = rows.size();
  hidden_.resize(count * config_.width);
  normed_.resize(count * config_.width);
  query_key_value_.resize(count * (config_.QueryWidth() + 2 * config_.KvWidth()));
  attended_.resize(count * config_.QueryWidth());
  gate_up_.resize(count * 2 * config_.feed_forward);
  activated_.resize(count * config_.feed_forward);
  PrepareRotation(rows);
  for (size_t i = 0; i < count; ++i) {
    model_.embeddings().CopyRow(rows[i].token, hidden_.data() + i * config_.width);
  }
  for (uint32_t layer = 0; layer < config_.layers; ++layer) {
    if (cancelled.load(std::memory_order_relaxed)) return false;
    const LlamaLayer& weights = model_.layers()[layer];
    Norm(hidden_.data(), weights.attention_norm, normed_.data(), count);
    Multiply(normed_.data(), count, weights.query_key_value, query_key_value_.data(), false);
    Rotate(rows);
    StoreKeysAndValues(rows, layer, memory);
    if (written) written(layer + 1);
    Attend(rows, layer, memory);
    Multiply(attended_.data(), count, weights.attention_output, hidden_.data(), true);
    Norm(hidden_.data(), weights.feed_forward_norm, normed_.data(), count);
    Multiply(normed_.data(), count, weights.gate_up, gate_up_.data(), false);
    Activate(count);
    Multiply(activated_.data(), count, weights.down, hidden_.data(), true);
  }
  return true;
}

void ForwardPass::Logits(size_t first, size_t count, float* logits) {
  Norm(hidden_.data() + first * config_.width, model_.output_norm(), normed_.data(), count);
  Multiply(normed_.data(), count, model_.output(), logits, false);
}

// In double, so that the angle of a far position keeps its digits and every C library rounds to the same f32.
void ForwardPass::PrepareRotation(std::span<const Row> rows) {
  const size_t pairs = frequencies_.size();
  cosines_.resize(rows.size() * pairs);
  sines_.resize(rows.size() * pairs);
  for (size_t i = 0; i < rows.size(); ++i) {
    for (size_t pair = 0; pair < pairs; ++pair) {
      const double angle = rows[i].position * frequencies_[pair];
      cosines_[i * pairs + pair] = static_cast<float>(std::cos(angle));
      sines_[i * pairs + pair] = static_cast<float>(std::sin(angle));
    }
  }
}

// Pairs (2i, 2i + 1) of every query and key head: the order of Q and K rows in Llama GGUF files.
void ForwardPass::Rotate(std::span<const Row> rows) {
  const size_t stride = config_.QueryWidth() + 2 * config_.KvWidth();
  const size_t pairs = frequencies_.size();
  threads_.Split(rows.size(), Worth(stride * 4), [&](uint32_t, size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const float* cosines = cosines_.data() + i * pairs;
      const float* sines = sines_.data() + i * pairs;
      float* head = query_key_value_.data() + i * stride;
      for (uint32_t h = 0; h < config_.heads + config_.kv_heads; ++h, head += config_.head_dim) {
        for (size_t pair = 0; pair < pairs; ++pair) {
          const float even = head[2 * pair];
          const float odd = head[2 * pair + 1];
          head[2 * pair] = even * cosines[pair] - odd * sines[pair];
          head[2 * pair + 1] = even * sines[pair] + odd * cosines[pair];
        }
      }
    }
  });
}

void ForwardPass::StoreKeysAndValues(std::span<const Row> rows, uint32_t layer, const KvMemory& memory) {
  const size_t stride = config_.QueryWidth() + 2 * config_.KvWidth();
  for (size_t i = 0; i < rows.size(); ++i) {
    const uint32_t in_block = rows[i].position % layout_.tokens_per_block;
    const uint32_t block = rows[i].table[rows[i].position / layout_.tokens_per_block];
    const float* keys = query_key_value_.data() + i * stride + config_.QueryWidth();
    for (uint32_t head = 0; head < config_.kv_heads; ++head, keys += config_.head_dim) {
      for (const HeadPlace& place : memory.Places(layer, head)) {
        uint8_t* target = place.pool + block * place.block_stride + in_block * place.token_stride;
        Store(keys, target + place.key_offset);
        Store(keys + config_.KvWidth(), target + place.value_offset);
      }
    }
  }
}

void ForwardPass::Store(const float* source, uint8_t* target) const {
  if (layout_.dtype == Dtype::kF32) {
    std::memcpy(target, source, layout_.head_dim * sizeof(float));
    return;
  }
  auto* halves = reinterpret_cast<uint16_t*>(target);
  for (uint32_t d = 0; d < layout_.head_dim; ++d) halves[d] = Bf16FromFloat(source[d]);
}

void ForwardPass::Attend(std::span<const Row> rows, uint32_t layer, const KvMemory& memory) {
  const size_t stride = config_.QueryWidth() + 2 * config_.KvWidth();
  const uint32_t share = config_.heads / config_.kv_heads;
  const auto attend = layout_.dtype == Dtype::kF32 ? kernels_.attend_f32 : kernels_.attend_bf16;
  const uint32_t window = layout_.WindowOf(layer);
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  size_t last = 0;
  for (const Row& row : rows) last = std::max<size_t>(last, row.position);
  const size_t units = rows.size() * config_.heads;
  const size_t parts = threads_.threads();
  const bool worth = units >= Worth((last + 1) * config_.head_dim * 2);
  // Late rows of a prompt see more keys: unit u goes to part u mod parts, which spreads them.
  threads_.Split(parts, worth ? 1 : parts + 1, [&](uint32_t thread, size_t begin, size_t end) {
    std::vector<float>& scores = scores_[thread];
    if (scores.size() < last + 1 + kLanes) scores.resize(last + 1 + kLanes);
    for (size_t part = begin; part < end; ++part) {
      for (size_t unit = part; unit < units; unit += parts) {
        const size_t i = unit / config_.heads;
        const auto head = static_cast<uint32_t>(unit % config_.heads);
        const HeadPlace& place = memory.Places(layer, head / share).front();
        attend({
            .query = query_key_value_.data() + i * stride + head * config_.head_dim,
            .out = attended_.data() + i * config_.QueryWidth() + head * config_.head_dim,
            .pool = place.pool,
            .block_stride = place.block_stride,
            .token_stride = place.token_stride,
            .key_offset = place.key_offset,
            .value_offset = place.value_offset,
            .table = rows[i].table,
            .tokens_per_block = layout_.tokens_per_block,
            .first = window == 0 || rows[i].position < window ? 0 : rows[i].position + 1 - window,
            .position = rows[i].position,
            .head_dim = config_.head_dim,
            .scale = scale,
            .scores = scores.data(),
        });
      }
    }
  });
}

void ForwardPass::Norm(const float* x, const std::vector<float>& weight, float* y, size_t rows) {
  const size_t width = config_.width;
  threads_.Split(rows, Worth(width * 4), [&](uint32_t, size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      kernels_.rms_norm(x + i * width, weight.data(), y + i * width, width, config_.rms_epsilon);
    }
  });
}

void ForwardPass::Multiply(const float* x, size_t rows, const PackedMatrix& w, float* y, bool accumulate) {
  const auto gemm = w.dtype() == Dtype::kF32 ? kernels_.gemm_f32 : kernels_.gemm_bf16;
  threads_.Split(w.groups(), Worth(rows * w.columns() * kLanes), [&](uint32_t, size_t begin, size_t end) {
    gemm({
        .x = x,
        .rows = rows,
        .columns = w.columns(),
        .w = w.data(),
        .group_begin = begin,
        .group_end = end,
        .y = y,
        .stride = w.outputs(),
        .outputs = w.outputs(),
        .accumulate = accumulate,
    });
  });
}

void ForwardPass::Activate(size_t rows) {
  const size_t width = config_.feed_forward;
  threads_.Split(rows, Worth(width * 16), [&](uint32_t, size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const float* gate = gate_up_.data() + i * 2 * width;
      kernels_.silu_mul(gate, gate + width, activated_.data() + i * width, width);
    }
  });
}

}  // namespace kvt::engine
