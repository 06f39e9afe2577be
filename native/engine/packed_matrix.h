#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/gguf.h"
#include "engine/thread_pool.h"

namespace kvt::engine {

enum class Dtype { kF32, kBf16 };

inline size_t BytesOf(Dtype dtype) { return dtype == Dtype::kF32 ? 4 : 2; }

// Uninitialised memory on 64-byte lines, in huge pages where the system gives them.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(size_t bytes);

  std::byte* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte[], Free> data_;
};

// A weight matrix as the kernels read it: [outputs / 16][columns][16], so that 16 outputs are summed side by
// side and no sum is ever split. Missing outputs of the last group are zero. Several tensors over the same
// input make one matrix.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  // All parts have equally many columns; all but the last have a multiple of 16 rows.
  PackedMatrix(const std::vector<const GgufTensor*>& parts, Dtype dtype, ThreadPool& threads);

  size_t outputs() const { return outputs_; }
  size_t columns() const { return columns_; }
  size_t groups() const { return (outputs_ + 15) / 16; }
  Dtype dtype() const { return dtype_; }
  const void* data() const { return bytes_.data(); }

  // One output's weights as f32: an embedding.
  void CopyRow(size_t output, float* target) const;

 private:
  void PackGroup(const GgufTensor& part, size_t first_row, size_t group, std::vector<float>& rows);

  Dtype dtype_ = Dtype::kF32;
  size_t outputs_ = 0;
  size_t columns_ = 0;
  AlignedBytes bytes_;
};

}  // namespace kvt::engine
