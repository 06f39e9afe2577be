#include "engine/packed_matrix.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "engine/float_formats.h"
#include "engine/kernels.h"

namespace kvt::engine {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

AlignedBytes::AlignedBytes(size_t bytes) {
  const size_t alignment = bytes >= kHugePage ? kHugePage : 64;
  const size_t rounded = (std::max<size_t>(bytes, 1) + alignment - 1) / alignment * alignment;
  auto* data = static_cast<std::byte*>(std::aligned_alloc(alignment, rounded));
  if (data == nullptr) throw std::bad_alloc();
  if (alignment == kHugePage) madvise(data, rounded, MADV_HUGEPAGE);  // advice only: may be refused
  data_.reset(data);
}

void AlignedBytes::Free::operator()(std::byte* data) const { std::free(data); }

PackedMatrix::PackedMatrix(const std::vector<const GgufTensor*>& parts, Dtype dtype, ThreadPool& threads)
    : dtype_(dtype), columns_(parts.front()->columns) {
  for (const GgufTensor* part : parts) outputs_ += part->rows;
  bytes_ = AlignedBytes(groups() * columns_ * kLanes * BytesOf(dtype));
  size_t first_group = 0;
  for (const GgufTensor* part : parts) {
    const size_t part_groups = (part->rows + kLanes - 1) / kLanes;
    threads.Split(part_groups, 2, [&](uint32_t, size_t begin, size_t end) {
      std::vector<float> rows(kLanes * columns_);
      for (size_t group = begin; group < end; ++group)
        PackGroup(*part, group * kLanes, first_group + group, rows);
    });
    first_group += part_groups;
  }
}

void PackedMatrix::PackGroup(const GgufTensor& part, size_t first_row, size_t group,
                             std::vector<float>& rows) {
  const size_t present = std::min<size_t>(kLanes, part.rows - first_row);
  std::fill(rows.begin(), rows.end(), 0.0f);
  for (size_t row = 0; row < present; ++row) {
    part.type->dequantize(part.Row(first_row + row), columns_, rows.data() + row * columns_);
  }
  const size_t start = group * columns_ * kLanes;
  for (size_t column = 0; column < columns_; ++column) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float value = rows[lane * columns_ + column];
      const size_t at = start + column * kLanes + lane;
      if (dtype_ == Dtype::kF32) {
        reinterpret_cast<float*>(bytes_.data())[at] = value;
      } else {
        reinterpret_cast<uint16_t*>(bytes_.data())[at] = Bf16FromFloat(value);
      }
    }
  }
}

void PackedMatrix::CopyRow(size_t output, float* target) const {
  const size_t start = output / kLanes * columns_ * kLanes + output % kLanes;
  for (size_t column = 0; column < columns_; ++column) {
    const size_t at = start + column * kLanes;
    target[column] = dtype_ == Dtype::kF32
                         ? reinterpret_cast<const float*>(bytes_.data())[at]
                         : FloatFromBf16(reinterpret_cast<const uint16_t*>(bytes_.data())[at]);
  }
}

}  // namespace kvt::engine
