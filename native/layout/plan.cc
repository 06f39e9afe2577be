#include "layout/plan.h"

#include <algorithm>

namespace kvt {
namespace {

void Compare(const char* field, uint64_t source, uint64_t target, std::string* why) {
  if (source == target) return;
  if (!why->empty()) *why += ", ";
  *why += std::string(field) + " " + std::to_string(source) + " at the source, " + std::to_string(target) +
          " at the target";
}

uint64_t FirstBlock(const TokenRange& tokens, const Geometry& geometry) {
  return tokens.from / geometry.tokens_per_block;
}

uint64_t EndBlock(const TokenRange& tokens, const Geometry& geometry) {
  return (tokens.to + geometry.tokens_per_block - 1) / geometry.tokens_per_block;
}

std::string CheckTable(const char* side, std::span<const uint32_t> table, uint64_t first, uint64_t end,
                       uint64_t pool_blocks) {
  if (table.size() < end) {
    return std::string("the ") + side + " table has " + std::to_string(table.size()) + " blocks, " +
           std::to_string(end) + " are needed";
  }
  for (uint64_t index = first; index < end; ++index) {
    if (table[index] < pool_blocks) continue;
    return std::string("block ") + std::to_string(table[index]) + " at index " + std::to_string(index) +
           " of the " + side + " table is not one of the pool's " + std::to_string(pool_blocks);
  }
  return "";
}

}  // namespace

std::optional<Plan> Plan::Compile(const SourceGeometry& source, const TargetGeometry& target,
                                  std::string* why) {
  why->clear();
  const Geometry& from = source.geometry;
  const Geometry& to = target.geometry;
  Compare("layers", from.layers, to.layers, why);
  Compare("planes", from.planes, to.planes, why);
  Compare("heads", from.heads, to.heads, why);
  Compare("tokens per block", from.tokens_per_block, to.tokens_per_block, why);
  Compare("bytes of a head", from.head_bytes, to.head_bytes, why);
  if (to.PayloadBytes() == 0) *why += "an empty block";
  if (!why->empty()) return std::nullopt;
  return Plan(to);
}

uint64_t Plan::Units(const TokenRange& tokens) const {
  if (tokens.to <= tokens.from) return 0;
  return (EndBlock(tokens, target_) - FirstBlock(tokens, target_)) * target_.Rows();
}

std::string Plan::Check(const TokenRange& tokens, const BlockTables& tables, uint64_t source_pool_blocks,
                        uint64_t target_pool_blocks) const {
  if (tokens.to < tokens.from) return "the token range ends before it starts";
  if (tokens.to == tokens.from) return "";
  const uint64_t first = FirstBlock(tokens, target_);
  const uint64_t end = EndBlock(tokens, target_);
  std::string wrong = CheckTable("source", tables.source, first, end, source_pool_blocks);
  if (wrong.empty()) wrong = CheckTable("target", tables.target, first, end, target_pool_blocks);
  return wrong;
}

RunCursor::RunCursor(const Plan& plan, const TokenRange& tokens, const BlockTables& tables,
                     const UnitRange& units)
    : source_(plan.source_),
      target_(plan.target_),
      tokens_(tokens),
      tables_(tables),
      rows_(plan.target_.Rows()),
      units_left_(units.last - units.first),
      block_(FirstBlock(tokens, plan.target_) + units.first / rows_),
      row_(units.first % rows_) {}

bool RunCursor::Next(Run* run) {
  if (units_left_ == 0) return false;
  const uint64_t block_tokens = target_.tokens_per_block;
  const uint64_t start = block_ * block_tokens;
  const uint64_t first_token = tokens_.from > start ? tokens_.from - start : 0;
  const uint64_t last_token = std::min(block_tokens, tokens_.to - start);
  if (first_token == 0 && last_token == block_tokens) {
    NextWhole(block_, tokens_.to / block_tokens, run);
  } else {
    NextPartial(block_, first_token, last_token, run);
  }
  return true;
}

void RunCursor::NextPartial(uint64_t block, uint64_t first_token, uint64_t last_token, Run* run) {
  const uint64_t rows = std::min(rows_ - row_, units_left_);
  run->source_offset = tables_.source[block] * source_.BlockBytes() + row_ * source_.RowBytes() +
                       first_token * source_.head_bytes;
  run->target_offset = tables_.target[block] * target_.BlockBytes() + row_ * target_.RowBytes() +
                       first_token * target_.head_bytes;
  run->count = rows;
  run->bytes = (last_token - first_token) * target_.head_bytes;
  run->source_stride = source_.RowBytes();
  run->target_stride = target_.RowBytes();
  units_left_ -= rows;
  row_ += rows;
  if (row_ == rows_) {
    row_ = 0;
    ++block_;
  }
}

void RunCursor::NextWhole(uint64_t block, uint64_t last_whole_block, Run* run) {
  const uint64_t rows = std::min(rows_ - row_, units_left_);
  const uint64_t block_bytes = target_.BlockBytes();
  const uint64_t payload = target_.PayloadBytes();
  run->source_offset = tables_.source[block] * source_.BlockBytes() + row_ * source_.RowBytes();
  run->target_offset = tables_.target[block] * block_bytes + row_ * target_.RowBytes();
  run->count = 1;
  run->bytes = rows * target_.RowBytes();
  run->source_stride = source_.BlockBytes();
  run->target_stride = block_bytes;
  units_left_ -= rows;
  row_ += rows;
  if (row_ < rows_) return;
  row_ = 0;
  ++block_;
  if (rows < rows_) return;
  while (units_left_ >= rows_ && block_ < last_whole_block &&
         tables_.source[block_] == tables_.source[block_ - 1] + 1 &&
         tables_.target[block_] == tables_.target[block_ - 1] + 1) {
    // Padding between blocks is never read or written, so padded neighbours become a strided run.
    if (payload == block_bytes) {
      run->bytes += payload;
    } else {
      ++run->count;
    }
    units_left_ -= rows_;
    ++block_;
  }
}

}  // namespace kvt
