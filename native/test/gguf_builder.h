#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace kvt::test {

using Bytes = std::vector<uint8_t>;

inline Bytes ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Writes the pieces of a GGUF file, right or wrong.
class GgufBuilder {
 public:
  template <class T>
  GgufBuilder& Put(T value) {
    const size_t at = bytes_.size();
    bytes_.resize(at + sizeof value);
    std::memcpy(bytes_.data() + at, &value, sizeof value);
    return *this;
  }
  GgufBuilder& Text(const std::string& text) {
    Put(uint64_t{text.size()});
    bytes_.insert(bytes_.end(), text.begin(), text.end());
    return *this;
  }
  GgufBuilder& Header(uint64_t tensors, uint64_t keys, uint32_t version = 3) {
    return Put(uint32_t{0x46554747}).Put(version).Put(tensors).Put(keys);
  }
  GgufBuilder& Key(const std::string& key, uint32_t value) { return Text(key).Put(uint32_t{4}).Put(value); }
  GgufBuilder& Tensor(const std::string& name, const std::vector<uint64_t>& shape, uint32_t type,
                      uint64_t offset) {
    Text(name).Put(static_cast<uint32_t>(shape.size()));
    for (const uint64_t extent : shape) Put(extent);
    return Put(type).Put(offset);
  }
  GgufBuilder& Pad(size_t alignment) {
    bytes_.resize((bytes_.size() + alignment - 1) / alignment * alignment);
    return *this;
  }
  GgufBuilder& Zeros(size_t count) {
    bytes_.resize(bytes_.size() + count);
    return *this;
  }
  const Bytes& bytes() const { return bytes_; }

 private:
  Bytes bytes_;
};

}  // namespace kvt::test
