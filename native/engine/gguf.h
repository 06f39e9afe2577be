#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "engine/result.h"
#include "engine/tensor_type.h"

namespace kvt::engine {

// A metadata value; narrower integers and f32 are widened without loss.
using GgufValue =
    std::variant<uint64_t, int64_t, double, bool, std::string, std::vector<uint64_t>, std::vector<int64_t>,
                 std::vector<double>, std::vector<bool>, std::vector<std::string>>;
using GgufMetadata = std::map<std::string, GgufValue>;

struct GgufTensor {
  const TensorType* type = nullptr;
  uint64_t columns = 0;           // values of one row: contiguous
  uint64_t rows = 1;              // product of the other dimensions
  uint32_t dimensions = 0;        // as written in the file
  const uint8_t* data = nullptr;  // inside the parsed bytes: rows * columns / block_values * block_bytes

  const uint8_t* Row(uint64_t row) const {
    return data + row * (columns / type->block_values) * type->block_bytes;
  }
};

struct GgufContents {
  GgufMetadata metadata;
  std::map<std::string, GgufTensor> tensors;
};

// Reads header, metadata and tensor table of GGUF version 2 or 3. Every count, length, offset and size is
// checked against `size` before it is used, so any bytes give contents or a Failure that names the place. The
// tensors point into `data`.
Result<GgufContents> ParseGguf(const uint8_t* data, uint64_t size);

// A read-only mapping of a file. The file must not shrink while it is mapped; models are read once and
// unmapped.
class MappedFile {
 public:
  static Result<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();

  const uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }

 private:
  MappedFile(const uint8_t* data, uint64_t size) : data_(data), size_(size) {}

  const uint8_t* data_;
  uint64_t size_;
};

}  // namespace kvt::engine
