#include "cuda/digest_plan.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "cuda/gather_plan.h"

namespace kvt::cuda {
namespace {

uint64_t RoundUp(uint64_t bytes) { return (bytes + 255) / 256 * 256; }

// What a request has of one group: the heads and layers that are hashed.
struct Chosen {
  uint32_t first_head = 0;
  uint32_t heads = 0;
  std::vector<uint32_t> layers;
};

std::vector<Chosen> ChosenOf(const Geometry& geometry, const Part& part) {
  std::vector<Chosen> all;
  for (const Group& group : geometry.groups) {
    Chosen chosen;
    const uint64_t first = group.replicated ? 0 : std::max(part.first_head, group.first_head);
    const uint64_t end = group.replicated ? group.heads
                                          : std::min(uint64_t{part.first_head} + part.heads,
                                                     uint64_t{group.first_head} + group.heads);
    if (end > first && (part.replicated || !group.replicated)) {
      // Heads of a group that has no head axis count from its own first one.
      chosen.first_head = static_cast<uint32_t>(group.replicated ? group.first_head : first);
      chosen.heads = static_cast<uint32_t>(end - first);
    }
    for (const LayerRun& run : group.layers) {
      for (uint32_t index = 0; index < run.count; ++index) {
        const uint64_t layer = run.first + uint64_t{index} * run.step;
        if (layer < part.first_layer || layer >= uint64_t{part.first_layer} + part.layers) continue;
        chosen.layers.push_back(static_cast<uint32_t>(layer));
      }
    }
    if (chosen.layers.empty()) chosen.heads = 0;
    all.push_back(std::move(chosen));
  }
  return all;
}

// What one group has of a range: the tokens that its window leaves, and how many elements they are.
struct Extent {
  uint64_t from = 0;
  uint64_t elements = 0;
};

Extent ExtentOf(const Group& group, uint64_t block_tokens, const TokenRange& range, uint64_t sequence) {
  const uint64_t from = std::max(range.from, WindowStart(group.window, sequence));
  if (from >= range.to) return {range.to, 0};
  if (!group.per_block) return {from, range.to - from};
  return {from, (range.to + block_tokens - 1) / block_tokens - from / block_tokens};
}

class TurnMaker {
 public:
  TurnMaker(const Geometry& geometry, const DigestRanges& wanted, const DigestRoom& room, uint32_t grid)
      : geometry_(geometry),
        wanted_(wanted),
        room_(room),
        grid_(grid),
        chosen_(ChosenOf(geometry, wanted.part)),
        unwindowed_(geometry) {
    for (Group& group : unwindowed_.groups) group.window = 0;
  }

  std::vector<DigestTurn> Make() {
    const auto& ranges = wanted_.ranges;
    for (size_t first = 0; first < ranges.size();) {
      const uint64_t bytes = BytesOf(ranges[first]);
      if (!Fits(bytes, ranges[first])) NewTurn();
      size_t last = first + 1;
      if (IsWhole(ranges[first])) {
        const uint64_t stride = RoundUp(bytes);
        const uint64_t places = std::min<uint64_t>((room_.bytes - at_) / std::max<uint64_t>(1, stride),
                                                   room_.inputs - turn_.inputs.size());
        const uint64_t tokens = ranges[first].to - ranges[first].from;
        while (last < ranges.size() && last - first < places && IsWhole(ranges[last]) &&
               ranges[last].to - ranges[last].from == tokens) {
          ++last;
        }
        AddWhole(ranges.subspan(first, last - first), tokens, bytes);
      } else {
        AddOne(ranges[first], bytes);
      }
      first = last;
    }
    NewTurn();
    return std::move(turns_);
  }

  uint64_t RoomFor(const TokenRange& range) const { return LeadOf(range) + RoundUp(BytesOf(range)); }

 private:
  uint64_t block_tokens() const { return geometry_.tokens_per_block; }

  uint64_t BytesOf(const TokenRange& range) const {
    uint64_t bytes = 0;
    for (size_t index = 0; index < chosen_.size(); ++index) {
      const Group& group = geometry_.groups[index];
      const Extent extent = ExtentOf(group, block_tokens(), range, wanted_.sequence);
      bytes += extent.elements * group.element_bytes * RowsOf(index);
    }
    return bytes;
  }
  uint64_t RowsOf(size_t index) const {
    return uint64_t{chosen_[index].heads} * chosen_[index].layers.size() * geometry_.groups[index].planes;
  }

  // A range's first row is described from the beginning of its first block on: so much of it lies before the
  // packed bytes.
  uint64_t LeadOf(const TokenRange& range) const {
    uint64_t lead = 0;
    const uint64_t origin = range.from / block_tokens() * block_tokens();
    for (size_t index = 0; index < chosen_.size(); ++index) {
      const Extent extent = ExtentOf(geometry_.groups[index], block_tokens(), range, wanted_.sequence);
      lead = std::max(lead, (extent.from - origin) * geometry_.groups[index].element_bytes);
    }
    return RoundUp(lead);
  }

  // Whole blocks of the pool in which no window ends: many such ranges are one plan.
  bool IsWhole(const TokenRange& range) const {
    const uint64_t tokens = range.to - range.from;
    if (range.from % block_tokens() != 0 || tokens % block_tokens() != 0) return false;
    for (size_t index = 0; index < chosen_.size(); ++index) {
      const Group& group = geometry_.groups[index];
      if (chosen_[index].heads == 0) continue;
      if (group.per_block && tokens != block_tokens()) return false;
      if (WindowStart(group.window, wanted_.sequence) > range.from) return false;
    }
    return true;
  }

  bool Fits(uint64_t bytes, const TokenRange& range) const {
    const uint64_t lead = IsWhole(range) ? 0 : LeadOf(range);
    return turn_.inputs.size() < room_.inputs && std::max(at_, lead) + RoundUp(bytes) <= room_.bytes;
  }

  void NewTurn() {
    if (!turn_.inputs.empty()) turns_.push_back(std::move(turn_));
    turn_ = {};
    at_ = 0;
    next_block_ = 0;
  }

  void AddInput(uint64_t bytes) {
    DigestInput input;
    input.offset = at_;
    input.bytes = bytes;
    input.first_sum = turn_.sums;
    input.sums = DigestSums(bytes);
    turn_.sums += input.sums;
    turn_.bytes += bytes;
    turn_.inputs.push_back(input);
    at_ += RoundUp(bytes);
  }

  // The packed bytes of a range as a pool would have them; `place` says where a group's rows begin, from its
  // elements and its bytes before.
  struct Shape {
    uint64_t tokens_per_block = 0;
    uint64_t whole_stride = 0;  // between ranges that are blocks; 0: the range's rows go through its blocks
    TokenRange range;           // from the beginning of its first block on
    uint64_t sequence = 0;
  };
  Geometry PackedOf(const Shape& shape) const {
    Geometry packed;
    packed.tokens_per_block = static_cast<uint32_t>(shape.tokens_per_block);
    uint64_t start = at_;
    for (size_t index = 0; index < chosen_.size(); ++index) {
      const Group& held = geometry_.groups[index];
      const Chosen& chosen = chosen_[index];
      const uint32_t window = shape.whole_stride == 0 ? held.window : 0;
      Group group = held;
      group.window = window;
      const Extent extent = ExtentOf(group, shape.tokens_per_block, shape.range, shape.sequence);
      group.first_head = chosen.first_head;
      group.heads = extent.elements == 0 ? 0 : chosen.heads;
      group.layers.clear();
      const uint64_t row = extent.elements * held.element_bytes;
      const uint64_t before = held.per_block ? extent.from / shape.tokens_per_block : extent.from;
      group.token_stride = held.element_bytes;
      group.head_stride = row;
      group.plane_stride = row * chosen.heads;
      group.block_stride = shape.whole_stride != 0 ? shape.whole_stride
                           : held.per_block        ? held.element_bytes
                                                   : shape.tokens_per_block * held.element_bytes;
      if (group.heads > 0) {
        uint64_t base = start - (shape.whole_stride != 0 ? 0 : before * held.element_bytes);
        for (const uint32_t layer : chosen.layers) {
          AddLayer(&group.layers, layer, base);
          base += group.plane_stride * held.planes;
        }
        start += row * RowsOf(index);
      }
      packed.groups.push_back(std::move(group));
    }
    return packed;
  }

  // Ranges of as many tokens each, as if they were one sequence and each a block where they are packed.
  void AddWhole(std::span<const TokenRange> ranges, uint64_t tokens, uint64_t bytes) {
    const uint64_t blocks = tokens / block_tokens();
    const uint64_t all = tokens * ranges.size();
    const Geometry packed = PackedOf({tokens, RoundUp(bytes), {0, tokens}, tokens});
    const uint64_t lacks = Lacking(wanted_.table.size(), wanted_.sequence, block_tokens());
    std::vector<uint32_t> source;
    std::vector<uint32_t> target;
    for (size_t index = 0; index < ranges.size(); ++index) {
      const uint64_t first = ranges[index].from / block_tokens() - lacks;
      for (uint64_t block = 0; block < blocks; ++block) source.push_back(wanted_.table[first + block]);
      target.push_back(static_cast<uint32_t>(index));
    }
    AddSegments(unwindowed_, packed, {0, all, all}, source, target);
    for (size_t index = 0; index < ranges.size(); ++index) AddInput(bytes);
  }

  void AddOne(const TokenRange& range, uint64_t bytes) {
    at_ = std::max(at_, LeadOf(range));
    const uint64_t first = range.from / block_tokens();
    const uint64_t origin = first * block_tokens();
    const uint64_t end = (range.to + block_tokens() - 1) / block_tokens();
    const Tokens tokens{range.from - origin, range.to - origin, wanted_.sequence - origin};
    const Geometry packed = PackedOf({block_tokens(), 0, {tokens.from, tokens.to}, tokens.sequence});
    // Blocks that windows have left may be lacking in the table; nothing reads those.
    const uint64_t lacks = Lacking(wanted_.table.size(), wanted_.sequence, block_tokens());
    std::vector<uint32_t> source;
    std::vector<uint32_t> target;
    for (uint64_t block = first; block < end; ++block) {
      source.push_back(block < lacks ? 0 : wanted_.table[block - lacks]);
      target.push_back(static_cast<uint32_t>(block - first));
    }
    AddSegments(geometry_, packed, tokens, source, target);
    AddInput(bytes);
  }

  // The tables may hold the first blocks of the sequence only: all that the tokens need.
  void AddSegments(const Geometry& from, const Geometry& to, const Tokens& tokens,
                   const std::vector<uint32_t>& source, const std::vector<uint32_t>& target) {
    std::string why;
    const auto plan = Plan::Compile({from}, {to}, &why, wanted_.part.replicated);
    if (!plan) return;  // nothing in common: the input is empty
    const std::vector<uint32_t> complete((tokens.sequence + from.tokens_per_block - 1) /
                                         from.tokens_per_block);
    const BlockTables tables{complete, complete};
    auto segments = SegmentsOf(*plan, tokens, tables, {room_.pool_alignment, 0}, grid_);
    for (GatherSegment& segment : segments) {
      // Both tables go on behind those of the segments before; what a table lacks may be less than nothing.
      segment.source.lacks -= static_cast<uint32_t>(turn_.source_table.size());
      segment.target.lacks -= static_cast<uint32_t>(turn_.target_table.size());
      const uint64_t used = (segment.vectors + uint64_t{segment.share} - 1) / segment.share;
      segment.first_block = next_block_;
      next_block_ = static_cast<uint32_t>((next_block_ + used) % grid_);
      turn_.segments.push_back(segment);
    }
    turn_.source_table.insert(turn_.source_table.end(), source.begin(), source.end());
    turn_.target_table.insert(turn_.target_table.end(), target.begin(), target.end());
  }

  const Geometry& geometry_;
  const DigestRanges& wanted_;
  const DigestRoom& room_;
  const uint32_t grid_;
  const std::vector<Chosen> chosen_;
  Geometry unwindowed_;
  std::vector<DigestTurn> turns_;
  DigestTurn turn_;
  uint64_t at_ = 0;
  uint32_t next_block_ = 0;
};

}  // namespace

uint64_t DigestRoomFor(const Geometry& geometry, const DigestRanges& wanted) {
  const TurnMaker maker(geometry, wanted, {}, 1);
  uint64_t bytes = 0;
  for (const TokenRange& range : wanted.ranges) bytes = std::max(bytes, maker.RoomFor(range));
  return bytes;
}

std::vector<DigestTurn> DigestTurnsOf(const Geometry& geometry, const DigestRanges& wanted,
                                      const DigestRoom& room, uint32_t grid) {
  return TurnMaker(geometry, wanted, room, grid).Make();
}

}  // namespace kvt::cuda
