#include "layout/nest.h"

namespace kvt {

Nest::Nest(const Band& band, const RowBox& box, const Stretches& stretches)
    : piece_bytes_(band.element_bytes) {
  const auto add = [this](uint64_t extent, uint64_t source, uint64_t target) {
    if (extent > 1) walked_[dimensions_++] = {extent, source, target};
  };
  if (!band.per_block) add(stretches.tokens, band.source.token_stride, band.target.token_stride);
  add(box.heads, band.source.head_stride, band.target.head_stride);
  add(box.planes, band.source.plane_stride, band.target.plane_stride);
  add(box.layers, band.source.layer_stride, band.target.layer_stride);
  add(stretches.count, stretches.source_stride, stretches.target_stride);
  Absorb();
  Fuse();
  ChooseRun();
}

void Nest::Absorb() {
  for (size_t index = 0; index < dimensions_;) {
    const Dimension& dimension = walked_[index];
    if (dimension.source != piece_bytes_ || dimension.target != piece_bytes_) {
      ++index;
      continue;
    }
    piece_bytes_ *= dimension.extent;
    for (size_t next = index + 1; next < dimensions_; ++next) walked_[next - 1] = walked_[next];
    --dimensions_;
    index = 0;
  }
}

void Nest::Fuse() {
  for (size_t inner = 0; inner < dimensions_; ++inner) {
    for (size_t outer = 0; outer < dimensions_;) {
      Dimension& into = walked_[inner];
      const Dimension& dimension = walked_[outer];
      if (outer == inner || dimension.source != into.source * into.extent ||
          dimension.target != into.target * into.extent) {
        ++outer;
        continue;
      }
      into.extent *= dimension.extent;
      for (size_t next = outer + 1; next < dimensions_; ++next) walked_[next - 1] = walked_[next];
      --dimensions_;
      if (outer < inner) --inner;
      outer = 0;
    }
  }
}

void Nest::ChooseRun() {
  if (dimensions_ == 0) return;
  size_t longest = 0;
  for (size_t index = 1; index < dimensions_; ++index) {
    if (walked_[index].extent > walked_[longest].extent) longest = index;
  }
  run_ = walked_[longest];
  for (size_t next = longest + 1; next < dimensions_; ++next) walked_[next - 1] = walked_[next];
  --dimensions_;
}

void Nest::Start(uint64_t source_offset, uint64_t target_offset) {
  source_ = source_offset;
  target_ = target_offset;
  for (size_t index = 0; index < dimensions_; ++index) at_[index] = 0;
  more_ = true;
}

bool Nest::Next(Run* run) {
  if (!more_) return false;
  *run = {source_, target_, run_.extent, piece_bytes_, run_.source, run_.target};
  for (size_t index = 0; index < dimensions_; ++index) {
    const Dimension& dimension = walked_[index];
    source_ += dimension.source;
    target_ += dimension.target;
    if (++at_[index] < dimension.extent) return true;
    source_ -= dimension.source * dimension.extent;
    target_ -= dimension.target * dimension.extent;
    at_[index] = 0;
  }
  more_ = false;
  return true;
}

}  // namespace kvt
