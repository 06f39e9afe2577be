#include "layout/run_cursor.h"

#include <algorithm>

namespace kvt {

RunCursor::RunCursor(const Plan& plan, const Tokens& tokens, const BlockTables& tables,
                     const UnitRange& units)
    : plan_(plan),
      tokens_(tokens),
      tables_(tables),
      units_left_(units.last - units.first),
      source_lacks_(Lacking(tables.source.size(), tokens.sequence, plan.source_tokens_per_block())),
      target_lacks_(Lacking(tables.target.size(), tokens.sequence, plan.target_tokens_per_block())) {
  uint64_t skip = units.first;
  for (const Band& band : plan.bands()) {
    const Plan::Blocks blocks = plan.BlocksOf(band, tokens);
    const uint64_t rows = band.Rows();
    const uint64_t all = (blocks.end - blocks.first) * rows;
    if (skip < all) {
      band_ = &band;
      block_ = blocks.first + skip / rows;
      block_end_ = blocks.end;
      row_ = skip % rows;
      break;
    }
    skip -= all;
    ++band_index_;
  }
  if (band_ == nullptr) units_left_ = 0;
}

bool RunCursor::NextBox() {
  if (units_left_ == 0) return false;
  while (block_ == block_end_) {
    if (++band_index_ == plan_.bands().size()) return false;
    band_ = &plan_.bands()[band_index_];
    const Plan::Blocks blocks = plan_.BlocksOf(*band_, tokens_);
    block_ = blocks.first;
    block_end_ = blocks.end;
  }
  const Band& band = *band_;
  const uint64_t rows = band.Rows();
  const uint64_t first_block = block_;
  uint64_t blocks = 1;
  box_ = {0, band.layers, 0, band.planes, 0, band.heads};
  if (row_ == 0 && units_left_ >= rows) {
    blocks = std::min(units_left_ / rows, block_end_ - block_);
    units_left_ -= blocks * rows;
    block_ += blocks;
  } else {
    // A slice begins or ends inside this block: the heads to the end of a plane, planes to the end of a
    // layer, or whole layers.
    const uint64_t left = std::min(rows - row_, units_left_);
    const auto head = static_cast<uint32_t>(row_ % band.heads);
    const auto plane = static_cast<uint32_t>(row_ / band.heads % band.planes);
    const auto layer = static_cast<uint32_t>(row_ / band.heads / band.planes);
    const uint64_t planes = left / band.heads;
    const auto upto = [](uint64_t wanted, uint32_t most) {
      return static_cast<uint32_t>(std::min<uint64_t>(wanted, most));
    };
    if (head > 0 || planes == 0) {
      box_ = {layer, 1, plane, 1, head, upto(left, band.heads - head)};
    } else if (plane > 0 || planes < band.planes) {
      box_ = {layer, 1, plane, upto(planes, band.planes - plane), 0, band.heads};
    } else {
      box_ = {layer, static_cast<uint32_t>(planes / band.planes), 0, band.planes, 0, band.heads};
    }
    const uint64_t done = uint64_t{box_.layers} * box_.planes * box_.heads;
    units_left_ -= done;
    row_ += done;
    if (row_ == rows) {
      row_ = 0;
      ++block_;
    }
  }
  const uint64_t block_tokens = plan_.target_tokens_per_block();
  const uint64_t from =
      std::max({tokens_.from, WindowStart(band.window, tokens_.sequence), first_block * block_tokens});
  const uint64_t to = std::min(tokens_.to, (first_block + blocks) * block_tokens);
  const uint64_t source_tokens = plan_.source_tokens_per_block();
  at_ = {from / source_tokens - source_lacks_, from % source_tokens, from / block_tokens - target_lacks_,
         from % block_tokens, to - from};
  source_start_ = band.source.base + box_.first_layer * band.source.layer_stride +
                  box_.first_plane * band.source.plane_stride + box_.first_head * band.source.head_stride;
  target_start_ = band.target.base + box_.first_layer * band.target.layer_stride +
                  box_.first_plane * band.target.plane_stride + box_.first_head * band.target.head_stride;
  shape_ = {};
  return true;
}

uint64_t RunCursor::StretchAt(const Position& at) const {
  return std::min({plan_.source_tokens_per_block() - at.source_token,
                   plan_.target_tokens_per_block() - at.target_token, at.left});
}

void RunCursor::Advance(Position* at, uint64_t tokens) const {
  at->left -= tokens;
  at->source_token += tokens;
  if (at->source_token == plan_.source_tokens_per_block()) {
    at->source_token = 0;
    ++at->source_index;
  }
  at->target_token += tokens;
  if (at->target_token == plan_.target_tokens_per_block()) {
    at->target_token = 0;
    ++at->target_index;
  }
}

uint64_t RunCursor::SourceOffset(const Position& at) const {
  const uint64_t token = band_->per_block ? 0 : at.source_token;
  return tables_.source[at.source_index] * band_->source.block_stride + token * band_->source.token_stride;
}

uint64_t RunCursor::TargetOffset(const Position& at) const {
  const uint64_t token = band_->per_block ? 0 : at.target_token;
  return tables_.target[at.target_index] * band_->target.block_stride + token * band_->target.token_stride;
}

bool RunCursor::Neighbours(const Position& at, const Position& next) const {
  const auto follow = [](std::span<const uint32_t> table, uint64_t left, uint64_t right) {
    return left == right || uint64_t{table[left]} + 1 == table[right];
  };
  return follow(tables_.source, at.source_index, next.source_index) &&
         follow(tables_.target, at.target_index, next.target_index);
}

bool RunCursor::NextStretches() {
  if (at_.left == 0 && !NextBox()) return false;
  Stretches stretches;
  const uint64_t source = SourceOffset(at_);
  const uint64_t target = TargetOffset(at_);
  const uint64_t length = StretchAt(at_);
  stretches.tokens = length;
  stretches.count = 1;
  Position last = at_;
  Position next = at_;
  Advance(&next, length);
  uint64_t source_last = source;
  uint64_t target_last = target;
  while (next.left > 0 && Neighbours(last, next)) {
    // What begins inside a block, or ends there, has its own length, except as one element a block.
    if (!band_->per_block && StretchAt(next) != length) break;
    const uint64_t source_next = SourceOffset(next);
    const uint64_t target_next = TargetOffset(next);
    if (source_next <= source_last || target_next <= target_last) break;
    const uint64_t source_stride = source_next - source_last;
    const uint64_t target_stride = target_next - target_last;
    if (stretches.count > 1 &&
        (source_stride != stretches.source_stride || target_stride != stretches.target_stride)) {
      break;
    }
    stretches.source_stride = source_stride;
    stretches.target_stride = target_stride;
    ++stretches.count;
    source_last = source_next;
    target_last = target_next;
    last = next;
    Advance(&next, band_->per_block ? StretchAt(next) : length);
  }
  at_ = next;
  if (stretches != shape_) {
    shape_ = stretches;
    nest_ = Nest(*band_, box_, stretches);
  }
  nest_.Start(source_start_ + source, target_start_ + target);
  return true;
}

}  // namespace kvt
