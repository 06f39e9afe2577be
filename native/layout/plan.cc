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

// A range that two others share: how long, and where it begins in each.
struct Common {
  uint32_t count = 0;
  uint32_t source = 0;
  uint32_t target = 0;
};

Common InCommon(uint64_t source_first, uint64_t source_count, uint64_t target_first, uint64_t target_count) {
  const uint64_t first = std::max(source_first, target_first);
  const uint64_t end = std::min(source_first + source_count, target_first + target_count);
  if (end <= first) return {};
  return {static_cast<uint32_t>(end - first), static_cast<uint32_t>(first - source_first),
          static_cast<uint32_t>(first - target_first)};
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
  Compare("planes", from.planes, to.planes, why);
  Compare("bytes of a head", from.head_bytes, to.head_bytes, why);
  if (from.PayloadBytes() == 0 || to.PayloadBytes() == 0) *why += "an empty block";
  if (!why->empty()) return std::nullopt;
  const Common layers = InCommon(from.first_layer, from.layers, to.first_layer, to.layers);
  const Common heads = InCommon(from.first_head, from.heads, to.first_head, to.heads);
  if (layers.count == 0 || heads.count == 0) {
    *why = layers.count == 0 ? "no layer in common" : "no head in common";
    return std::nullopt;
  }
  Plan plan(from, to);
  plan.equal_ = from == to;
  plan.planes_ = layers.count * to.planes;
  plan.heads_ = heads.count;
  plan.source_plane_ = layers.source * to.planes;
  plan.target_plane_ = layers.target * to.planes;
  plan.source_head_ = heads.source;
  plan.target_head_ = heads.target;
  return plan;
}

uint64_t Plan::Units(const TokenRange& tokens) const {
  if (tokens.to <= tokens.from) return 0;
  return (EndBlock(tokens, target_) - FirstBlock(tokens, target_)) * Rows();
}

uint64_t Plan::PieceBytes() const {
  if (equal_) return target_.PayloadBytes();
  const uint64_t row = std::min(source_.RowBytes(), target_.RowBytes());
  return source_.tokens_per_block == target_.tokens_per_block ? heads_ * row : row;
}

std::string Plan::Check(const TokenRange& tokens, const BlockTables& tables, uint64_t source_pool_blocks,
                        uint64_t target_pool_blocks) const {
  if (tokens.to < tokens.from) return "the token range ends before it starts";
  if (tokens.to == tokens.from) return "";
  std::string wrong = CheckTable("source", tables.source, FirstBlock(tokens, source_),
                                 EndBlock(tokens, source_), source_pool_blocks);
  if (wrong.empty()) {
    wrong = CheckTable("target", tables.target, FirstBlock(tokens, target_), EndBlock(tokens, target_),
                       target_pool_blocks);
  }
  return wrong;
}

RunCursor::RunCursor(const Plan& plan, const TokenRange& tokens, const BlockTables& tables,
                     const UnitRange& units)
    : plan_(plan),
      source_(plan.source_),
      target_(plan.target_),
      tokens_(tokens),
      tables_(tables),
      rows_(plan.Rows()),
      units_left_(units.last - units.first),
      block_(FirstBlock(tokens, plan.target_) + units.first / rows_),
      row_(units.first % rows_) {}

bool RunCursor::Next(Run* run) {
  if (!plan_.equal_) {
    while (next_filled_ == filled_.size()) {
      if (units_left_ == 0) return false;
      FillBlock();
    }
    *run = filled_[next_filled_++];
    return true;
  }
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

// A target block's tokens lie in one or more source blocks: each of them is a segment of its own.
void RunCursor::FillBlock() {
  filled_.clear();
  next_filled_ = 0;
  const uint64_t rows = std::min(rows_ - row_, units_left_);
  const uint64_t start = block_ * target_.tokens_per_block;
  const uint64_t end = std::min(tokens_.to, start + target_.tokens_per_block);
  for (uint64_t token = std::max(tokens_.from, start); token < end;) {
    const uint64_t source_end = (token / source_.tokens_per_block + 1) * source_.tokens_per_block;
    const uint64_t last = std::min(end, source_end);
    AddSegment(token, last, rows);
    token = last;
  }
  units_left_ -= rows;
  row_ += rows;
  if (row_ < rows_) return;
  row_ = 0;
  ++block_;
}

// Tokens of one source block and one target block, `rows` rows from row_ on. Rows of a plane are neighbours
// on both sides, and so are planes.
void RunCursor::AddSegment(uint64_t first_token, uint64_t last_token, uint64_t rows) {
  const uint64_t bytes = (last_token - first_token) * target_.head_bytes;
  const uint64_t source_row = source_.RowBytes();
  const uint64_t target_row = target_.RowBytes();
  const uint64_t source_plane = source_.heads * source_row;
  const uint64_t target_plane = target_.heads * target_row;
  const uint64_t source_base = tables_.source[first_token / source_.tokens_per_block] * source_.BlockBytes() +
                               first_token % source_.tokens_per_block * target_.head_bytes +
                               plan_.source_plane_ * source_plane + plan_.source_head_ * source_row;
  const uint64_t target_base = tables_.target[first_token / target_.tokens_per_block] * target_.BlockBytes() +
                               first_token % target_.tokens_per_block * target_.head_bytes +
                               plan_.target_plane_ * target_plane + plan_.target_head_ * target_row;
  const uint64_t heads = plan_.heads_;
  const bool whole_rows = bytes == source_row && bytes == target_row;
  const bool whole_planes = heads == source_.heads && heads == target_.heads;
  const auto add = [&](uint64_t plane, uint64_t head, uint64_t count, uint64_t piece, bool by_plane) {
    filled_.push_back({source_base + plane * source_plane + head * source_row,
                       target_base + plane * target_plane + head * target_row, count, piece,
                       by_plane ? source_plane : source_row, by_plane ? target_plane : target_row});
  };
  for (uint64_t row = row_, left = rows; left > 0;) {
    const uint64_t plane = row / heads;
    const uint64_t head = row % heads;
    uint64_t done = std::min(left, heads - head);
    if (head > 0 || done < heads) {
      // A slice begins or ends inside this plane.
      add(plane, head, whole_rows ? 1 : done, whole_rows ? done * bytes : bytes, false);
    } else {
      const uint64_t planes = left / heads;
      done = planes * heads;
      if (whole_rows && whole_planes) {
        add(plane, 0, 1, done * bytes, true);
      } else if (whole_rows) {
        add(plane, 0, planes, heads * bytes, true);
      } else if (whole_planes) {
        add(plane, 0, done, bytes, false);
      } else if (planes >= heads) {
        for (uint64_t each = 0; each < heads; ++each) add(plane, each, planes, bytes, true);
      } else {
        for (uint64_t each = 0; each < planes; ++each) add(plane + each, 0, heads, bytes, false);
      }
    }
    row += done;
    left -= done;
  }
}

}  // namespace kvt
