#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace kvt {

// Descriptors as bytes: little-endian numbers, texts and blobs behind a 16-bit length.
class ByteWriter {
 public:
  template <typename T>
  void Number(T value) {
    for (size_t byte = 0; byte < sizeof(T); ++byte) {
      bytes.push_back(static_cast<uint8_t>(uint64_t{value} >> (8 * byte)));
    }
  }
  template <size_t N>
  void Raw(const std::array<uint8_t, N>& value) {
    bytes.insert(bytes.end(), value.begin(), value.end());
  }
  void Text(const std::string& text) {
    Number(static_cast<uint16_t>(text.size()));
    bytes.insert(bytes.end(), text.begin(), text.end());
  }
  void Blob(std::span<const uint8_t> blob) {
    Number(static_cast<uint16_t>(blob.size()));
    bytes.insert(bytes.end(), blob.begin(), blob.end());
  }
  std::vector<uint8_t> bytes;
};

// Reads zeros and nothing once it has met the end; Finished() tells whether all was there and nothing more.
class ByteReader {
 public:
  explicit ByteReader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  template <typename T>
  T Number() {
    if (!Take(sizeof(T))) return 0;
    uint64_t value = 0;
    for (size_t byte = 0; byte < sizeof(T); ++byte) value |= uint64_t{bytes_[at_ + byte]} << (8 * byte);
    at_ += sizeof(T);
    return static_cast<T>(value);
  }
  template <size_t N>
  std::array<uint8_t, N> Raw() {
    std::array<uint8_t, N> value{};
    if (!Take(N)) return value;
    std::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(at_), N, value.begin());
    at_ += N;
    return value;
  }
  std::vector<uint8_t> Blob() {
    const size_t size = Number<uint16_t>();
    if (!Take(size)) return {};
    const auto begin = bytes_.begin() + static_cast<std::ptrdiff_t>(at_);
    at_ += size;
    return {begin, begin + static_cast<std::ptrdiff_t>(size)};
  }
  std::string Text() {
    const std::vector<uint8_t> blob = Blob();
    return {blob.begin(), blob.end()};
  }
  bool Finished() const { return whole_ && at_ == bytes_.size(); }

 private:
  bool Take(size_t size) {
    if (size > bytes_.size() - at_) whole_ = false;
    return whole_;
  }

  std::span<const uint8_t> bytes_;
  size_t at_ = 0;
  bool whole_ = true;
};

}  // namespace kvt
