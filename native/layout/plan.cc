#include "layout/plan.h"

#include <algorithm>

#include "layout/nest.h"

namespace kvt {
namespace {

void Compare(const std::string& field, uint64_t source, uint64_t target, std::string* why) {
  if (source == target) return;
  if (!why->empty()) *why += ", ";
  *why +=
      field + " " + std::to_string(source) + " at the source, " + std::to_string(target) + " at the target";
}

// Every field in which the two sides of a pair must agree.
void CompareSides(const Geometry& source, const Geometry& target, std::string* why) {
  Compare("groups", source.groups.size(), target.groups.size(), why);
  bool per_block = false;
  for (size_t index = 0; index < std::min(source.groups.size(), target.groups.size()); ++index) {
    const Group& from = source.groups[index];
    const Group& to = target.groups[index];
    const std::string name = target.groups.size() == 1 ? "" : "group " + std::to_string(index) + " ";
    Compare(name + "planes", from.planes, to.planes, why);
    Compare(name + "bytes of a head", from.element_bytes, to.element_bytes, why);
    Compare(name + "window", from.window, to.window, why);
    Compare(name + "per block", from.per_block ? 1 : 0, to.per_block ? 1 : 0, why);
    Compare(name + "replicated", from.replicated ? 1 : 0, to.replicated ? 1 : 0, why);
    per_block = per_block || to.per_block;
  }
  if (per_block) Compare("tokens of a block", source.tokens_per_block, target.tokens_per_block, why);
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

BandSide SideOf(const Group& group, uint64_t base, uint32_t first_head) {
  return {base + first_head * group.head_stride,
          0,
          group.plane_stride,
          group.head_stride,
          group.token_stride,
          group.block_stride};
}

struct LayerPlace {
  uint32_t layer = 0;
  uint64_t base = 0;
};

std::vector<LayerPlace> PlacesOf(const Group& group) {
  std::vector<LayerPlace> places;
  for (const LayerRun& run : group.layers) {
    for (uint32_t index = 0; index < run.count; ++index) {
      places.push_back({run.first + index * run.step, run.base + index * run.stride});
    }
  }
  return places;
}

// False where `base` does not go on at the stride that the band has, or may take as its first.
bool GoesOn(const BandSide& side, uint32_t layers, uint64_t base) {
  const uint64_t last = side.base + (layers - 1) * side.layer_stride;
  return base > last && (layers == 1 || base - last == side.layer_stride);
}

uint64_t EndBlock(uint64_t to, uint64_t tokens_per_block) {
  return (to + tokens_per_block - 1) / tokens_per_block;
}

std::string CheckTable(const char* side, std::span<const uint32_t> table, uint64_t tokens_per_block,
                       const Tokens& tokens, uint64_t pool_blocks) {
  const uint64_t lacking = Lacking(table.size(), tokens.sequence, tokens_per_block);
  const uint64_t first = tokens.from / tokens_per_block;
  const uint64_t end = EndBlock(tokens.to, tokens_per_block);
  if (first < lacking || end > lacking + table.size()) {
    return std::string("the ") + side + " table has " + std::to_string(table.size()) +
           " blocks from number " + std::to_string(lacking) + " on, " + std::to_string(first) + " to " +
           std::to_string(end - 1) + " are needed";
  }
  for (uint64_t index = first - lacking; index < end - lacking; ++index) {
    if (table[index] < pool_blocks) continue;
    return std::string("block ") + std::to_string(table[index]) + " at index " + std::to_string(index) +
           " of the " + side + " table is not one of the pool's " + std::to_string(pool_blocks);
  }
  return "";
}

uint64_t FromOf(const Band& band, const Tokens& tokens) {
  return std::max(tokens.from, WindowStart(band.window, tokens.sequence));
}

}  // namespace

std::optional<Plan> Plan::Compile(const SourceGeometry& source, const TargetGeometry& target,
                                  std::string* why, bool replicated, LayerRange layers) {
  why->clear();
  const Geometry& from = source.geometry;
  const Geometry& to = target.geometry;
  CompareSides(from, to, why);
  if (!why->empty()) return std::nullopt;
  Plan plan(from.tokens_per_block, to.tokens_per_block);
  for (size_t index = 0; index < to.groups.size(); ++index) {
    if (replicated || !to.groups[index].replicated) {
      plan.AddGroup(from.groups[index], to.groups[index], layers);
    }
  }
  if (plan.bands_.empty() && replicated && layers.Whole()) {
    *why = "no layer and head in common";
    return std::nullopt;
  }
  plan.Measure();
  return plan;
}

void Plan::AddGroup(const Group& source, const Group& target, const LayerRange& layers) {
  const Common heads = InCommon(source.first_head, source.heads, target.first_head, target.heads);
  if (heads.count == 0) return;
  const std::vector<LayerPlace> from = PlacesOf(source);
  const std::vector<LayerPlace> to = PlacesOf(target);
  bool open = false;
  for (size_t left = 0, right = 0; left < from.size() && right < to.size();) {
    if (from[left].layer != to[right].layer) {
      from[left].layer < to[right].layer ? ++left : ++right;
      continue;
    }
    if (to[right].layer < layers.from || to[right].layer >= layers.to) {
      ++left;
      ++right;
      continue;
    }
    const BandSide source_side = SideOf(source, from[left].base, heads.source);
    const BandSide target_side = SideOf(target, to[right].base, heads.target);
    ++left;
    ++right;
    Band* band = open ? &bands_.back() : nullptr;
    if (band != nullptr && GoesOn(band->source, band->layers, source_side.base) &&
        GoesOn(band->target, band->layers, target_side.base)) {
      if (band->layers == 1) {
        band->source.layer_stride = source_side.base - band->source.base;
        band->target.layer_stride = target_side.base - band->target.base;
      }
      ++band->layers;
      continue;
    }
    bands_.push_back({1, target.planes, heads.count, target.element_bytes, target.per_block, target.window,
                      source_side, target_side});
    open = true;
  }
}

void Plan::Measure() {
  double bytes = 0;
  double pieces = 0;
  const uint64_t tokens = std::min(source_tokens_, target_tokens_);
  for (const Band& band : bands_) {
    const uint64_t in_block = band.per_block ? 1 : target_tokens_;
    rows_ = std::max(rows_, band.Rows());
    unit_bytes_ = std::max(unit_bytes_, in_block * band.element_bytes);
    const RowBox all{0, band.layers, 0, band.planes, 0, band.heads};
    const Nest nest(band, all, {band.per_block ? 1 : tokens, 1, 0, 0});
    const auto per_piece = static_cast<double>(nest.piece_bytes());
    const double size = static_cast<double>(band.Rows()) * band.element_bytes *
                        static_cast<double>(band.per_block ? 1 : tokens);
    bytes += size;
    pieces += size / per_piece;
  }
  piece_bytes_ = pieces == 0 ? 0 : static_cast<uint64_t>(bytes / pieces);
}

Plan::Blocks Plan::BlocksOf(const Band& band, const Tokens& tokens) const {
  const uint64_t from = FromOf(band, tokens);
  if (tokens.to <= from) return {};
  return {from / target_tokens_, EndBlock(tokens.to, target_tokens_)};
}

uint64_t Plan::Units(const Tokens& tokens) const {
  uint64_t units = 0;
  for (const Band& band : bands_) {
    const Blocks blocks = BlocksOf(band, tokens);
    units += (blocks.end - blocks.first) * band.Rows();
  }
  return units;
}

uint64_t Plan::Bytes(const Tokens& tokens) const {
  uint64_t bytes = 0;
  for (const Band& band : bands_) {
    const Blocks blocks = BlocksOf(band, tokens);
    if (blocks.end == blocks.first) continue;
    const uint64_t elements = band.per_block ? blocks.end - blocks.first : tokens.to - FromOf(band, tokens);
    bytes += elements * band.Rows() * band.element_bytes;
  }
  return bytes;
}

std::string Plan::Check(const Tokens& tokens, const BlockTables& tables, uint64_t source_pool_blocks,
                        uint64_t target_pool_blocks) const {
  if (tokens.to < tokens.from) return "the token range ends before it starts";
  if (tokens.to > tokens.sequence) return "the token range ends after its sequence";
  uint64_t from = tokens.to;
  for (const Band& band : bands_) from = std::min(from, FromOf(band, tokens));
  if (tokens.to <= from) return "";
  const Tokens live{from, tokens.to, tokens.sequence};
  std::string wrong = CheckTable("source", tables.source, source_tokens_, live, source_pool_blocks);
  if (wrong.empty()) wrong = CheckTable("target", tables.target, target_tokens_, live, target_pool_blocks);
  return wrong;
}

}  // namespace kvt
