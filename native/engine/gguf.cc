#include "engine/gguf.h"

#include <cstring>
#include <limits>

#include "engine/float_formats.h"

namespace kvt::engine {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kMaxTensors = uint64_t{1} << 20;
constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMaxTensorNameBytes = 64;
constexpr uint32_t kMaxDimensions = 4;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;
// What a key takes at least: length, type and one byte of value. A tensor: name length, dimensions, one size,
// type, offset.
constexpr uint64_t kMinKeyBytes = 8 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 4 + 8 + 4 + 8;

enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};

Failure Invalid(std::string why) { return Failure{Fault::kInvalid, std::move(why)}; }

// Reads forward inside [data, data + size); after a failed read nothing may be used.
class Cursor {
 public:
  Cursor(const uint8_t* data, uint64_t size) : data_(data), size_(size) {}

  template <class T>
  bool Read(T& value) {
    if (size_ - at_ < sizeof(T)) return false;
    value = LoadUnaligned<T>(data_ + at_);
    at_ += sizeof(T);
    return true;
  }

  bool ReadString(std::string& text, uint64_t max_bytes) {
    uint64_t length = 0;
    if (!Read(length) || length > size_ - at_ || length > max_bytes) return false;
    text.assign(reinterpret_cast<const char*>(data_ + at_), length);
    at_ += length;
    return true;
  }

  uint64_t at() const { return at_; }
  uint64_t left() const { return size_ - at_; }

 private:
  const uint8_t* data_;
  uint64_t size_;
  uint64_t at_ = 0;
};

template <class Stored, class Wide>
bool ReadAs(Cursor& cursor, Wide& value) {
  Stored stored;
  if (!cursor.Read(stored)) return false;
  value = static_cast<Wide>(stored);
  return true;
}

template <class Stored, class Wide>
bool ReadScalar(Cursor& cursor, GgufValue& value) {
  Wide wide;
  if (!ReadAs<Stored>(cursor, wide)) return false;
  value = wide;
  return true;
}

template <class Stored, class Wide>
bool ReadArray(Cursor& cursor, uint64_t count, GgufValue& value) {
  if (count > cursor.left() / sizeof(Stored)) return false;
  std::vector<Wide> values(count);
  for (uint64_t i = 0; i < count; ++i) {
    Wide wide{};
    if (!ReadAs<Stored>(cursor, wide)) return false;
    values[i] = wide;
  }
  value = std::move(values);
  return true;
}

bool ReadStrings(Cursor& cursor, uint64_t count, GgufValue& value) {
  if (count > cursor.left() / sizeof(uint64_t)) return false;
  std::vector<std::string> texts(count);
  for (std::string& text : texts) {
    if (!cursor.ReadString(text, std::numeric_limits<uint64_t>::max())) return false;
  }
  value = std::move(texts);
  return true;
}

bool ReadText(Cursor& cursor, GgufValue& value) {
  std::string text;
  if (!cursor.ReadString(text, std::numeric_limits<uint64_t>::max())) return false;
  value = std::move(text);
  return true;
}

// Any byte but 0 is true, as in llama.cpp; a bool must not be copied from raw bytes.
bool ReadBool(Cursor& cursor, GgufValue& value) { return ReadScalar<uint8_t, bool>(cursor, value); }

bool ReadElement(Cursor& cursor, uint32_t type, GgufValue& value) {
  switch (type) {
    case kU8:
      return ReadScalar<uint8_t, uint64_t>(cursor, value);
    case kI8:
      return ReadScalar<int8_t, int64_t>(cursor, value);
    case kU16:
      return ReadScalar<uint16_t, uint64_t>(cursor, value);
    case kI16:
      return ReadScalar<int16_t, int64_t>(cursor, value);
    case kU32:
      return ReadScalar<uint32_t, uint64_t>(cursor, value);
    case kI32:
      return ReadScalar<int32_t, int64_t>(cursor, value);
    case kU64:
      return ReadScalar<uint64_t, uint64_t>(cursor, value);
    case kI64:
      return ReadScalar<int64_t, int64_t>(cursor, value);
    case kF32:
      return ReadScalar<float, double>(cursor, value);
    case kF64:
      return ReadScalar<double, double>(cursor, value);
    case kBool:
      return ReadBool(cursor, value);
    default:
      return ReadText(cursor, value);
  }
}

bool ReadElements(Cursor& cursor, uint32_t type, uint64_t count, GgufValue& value) {
  switch (type) {
    case kU8:
      return ReadArray<uint8_t, uint64_t>(cursor, count, value);
    case kI8:
      return ReadArray<int8_t, int64_t>(cursor, count, value);
    case kU16:
      return ReadArray<uint16_t, uint64_t>(cursor, count, value);
    case kI16:
      return ReadArray<int16_t, int64_t>(cursor, count, value);
    case kU32:
      return ReadArray<uint32_t, uint64_t>(cursor, count, value);
    case kI32:
      return ReadArray<int32_t, int64_t>(cursor, count, value);
    case kU64:
      return ReadArray<uint64_t, uint64_t>(cursor, count, value);
    case kI64:
      return ReadArray<int64_t, int64_t>(cursor, count, value);
    case kF32:
      return ReadArray<float, double>(cursor, count, value);
    case kF64:
      return ReadArray<double, double>(cursor, count, value);
    case kBool:
      return ReadArray<uint8_t, bool>(cursor, count, value);
    default:
      return ReadStrings(cursor, count, value);
  }
}

MaybeFailure ReadValue(Cursor& cursor, const std::string& key, GgufValue& value) {
  const std::string where = "key `" + key + "` at byte " + std::to_string(cursor.at());
  uint32_t type = 0;
  if (!cursor.Read(type)) return Invalid(where + ": the file ends before its type");
  if (type > kF64) return Invalid(where + ": no value type has the number " + std::to_string(type));
  if (type != kArray) {
    if (!ReadElement(cursor, type, value)) return Invalid(where + ": its value is longer than the file");
    return std::nullopt;
  }
  uint32_t element = 0;
  uint64_t count = 0;
  if (!cursor.Read(element) || !cursor.Read(count))
    return Invalid(where + ": the file ends inside its array");
  if (element == kArray) return Failure{Fault::kUnsupported, where + ": it is an array of arrays"};
  if (element > kF64) return Invalid(where + ": no value type has the number " + std::to_string(element));
  if (!ReadElements(cursor, element, count, value)) {
    return Invalid(where + ": its array of " + std::to_string(count) + " values is longer than the file");
  }
  return std::nullopt;
}

MaybeFailure ReadMetadata(Cursor& cursor, uint64_t count, GgufMetadata& metadata) {
  if (count > cursor.left() / kMinKeyBytes) {
    return Invalid("the header names " + std::to_string(count) + " keys, more than the file can hold");
  }
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t at = cursor.at();
    std::string key;
    if (!cursor.ReadString(key, kMaxKeyBytes)) {
      return Invalid("key " + std::to_string(i) + " at byte " + std::to_string(at) +
                     ": its name is longer than the file or than 65535 bytes");
    }
    GgufValue value;
    if (MaybeFailure failure = ReadValue(cursor, key, value)) return failure;
    if (!metadata.emplace(key, std::move(value)).second) return Invalid("key `" + key + "` appears twice");
  }
  return std::nullopt;
}

struct TensorEntry {
  GgufTensor tensor;
  uint64_t offset = 0;  // from the start of the data section
  uint64_t bytes = 0;
};

MaybeFailure ReadTensorEntry(Cursor& cursor, uint64_t index, std::string& name, TensorEntry& entry) {
  const std::string place = "tensor " + std::to_string(index) + " at byte " + std::to_string(cursor.at());
  if (!cursor.ReadString(name, kMaxTensorNameBytes)) {
    return Invalid(place + ": its name is longer than the file or than 64 bytes");
  }
  const std::string where = "tensor `" + name + "`";
  uint32_t dimensions = 0;
  if (!cursor.Read(dimensions)) return Invalid(where + ": the file ends inside its description");
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    return Invalid(where + " has " + std::to_string(dimensions) + " dimensions; 1 to 4 are possible");
  }
  uint64_t values = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    uint64_t extent = 0;
    if (!cursor.Read(extent)) return Invalid(where + ": the file ends inside its description");
    // 2^48 values leave room for every later product of sizes in 64 bits.
    if (extent == 0 || extent > (uint64_t{1} << 48) / values) {
      return Invalid(where + ": dimension " + std::to_string(i) + " of size " + std::to_string(extent) +
                     " makes it empty or larger than 2^48 values");
    }
    values *= extent;
    if (i == 0) entry.tensor.columns = extent;
  }
  uint32_t type = 0;
  if (!cursor.Read(type) || !cursor.Read(entry.offset)) {
    return Invalid(where + ": the file ends inside its description");
  }
  entry.tensor.type = FindTensorType(type);
  if (entry.tensor.type == nullptr) {
    return Failure{Fault::kUnsupported,
                   where + " has type " + TensorTypeName(type) + " (" + std::to_string(type) + ")"};
  }
  if (entry.tensor.columns % entry.tensor.type->block_values != 0) {
    return Invalid(where + ": its rows of " + std::to_string(entry.tensor.columns) +
                   " values are not whole blocks of " + entry.tensor.type->name);
  }
  entry.tensor.dimensions = dimensions;
  entry.tensor.rows = values / entry.tensor.columns;
  entry.bytes = values / entry.tensor.type->block_values * entry.tensor.type->block_bytes;
  return std::nullopt;
}

Result<uint64_t> AlignmentOf(const GgufMetadata& metadata) {
  const auto found = metadata.find("general.alignment");
  if (found == metadata.end()) return uint64_t{32};
  const uint64_t* alignment = std::get_if<uint64_t>(&found->second);
  if (alignment == nullptr || *alignment == 0 || *alignment > kMaxAlignment ||
      (*alignment & (*alignment - 1)) != 0) {
    return Invalid("key `general.alignment` is no power of two up to 2^20");
  }
  return *alignment;
}

MaybeFailure ReadTensors(Cursor& cursor, uint64_t count, const uint8_t* data, uint64_t size,
                         GgufContents& contents) {
  if (count > kMaxTensors || count > cursor.left() / kMinTensorBytes) {
    return Invalid("the header names " + std::to_string(count) +
                   " tensors, more than 2^20 or than the file can hold");
  }
  std::map<std::string, TensorEntry> entries;
  for (uint64_t i = 0; i < count; ++i) {
    std::string name;
    TensorEntry entry;
    if (MaybeFailure failure = ReadTensorEntry(cursor, i, name, entry)) return failure;
    if (!entries.emplace(name, entry).second) return Invalid("tensor `" + name + "` appears twice");
  }
  Result<uint64_t> alignment = AlignmentOf(contents.metadata);
  if (!alignment) return alignment.failure();
  // cursor.at() <= size, so rounding up can't overflow; it may pass the end, and then no tensor fits.
  const uint64_t start = (cursor.at() + *alignment - 1) / *alignment * *alignment;
  const uint64_t room = start <= size ? size - start : 0;
  for (auto& [name, entry] : entries) {
    if (entry.offset % *alignment != 0) {
      return Invalid("tensor `" + name + "`: its offset " + std::to_string(entry.offset) +
                     " is not aligned to " + std::to_string(*alignment));
    }
    if (entry.offset > room || entry.bytes > room - entry.offset) {
      return Invalid("tensor `" + name + "`: its " + std::to_string(entry.bytes) + " bytes at offset " +
                     std::to_string(entry.offset) + " reach past the end of the file (" +
                     std::to_string(size) + " bytes)");
    }
    entry.tensor.data = data + start + entry.offset;
    contents.tensors.emplace(name, entry.tensor);
  }
  return std::nullopt;
}

}  // namespace

Result<GgufContents> ParseGguf(const uint8_t* data, uint64_t size) {
  Cursor cursor(data, size);
  uint32_t magic = 0;
  uint32_t version = 0;
  uint64_t tensors = 0;
  uint64_t keys = 0;
  if (!cursor.Read(magic) || magic != kMagic) return Invalid("it does not start with \"GGUF\"");
  if (!cursor.Read(version)) return Invalid("the file ends inside its header");
  if (version != 2 && version != 3) {
    return Failure{Fault::kUnsupported, "GGUF version " + std::to_string(version) +
                                            " (2 and 3 are read; a huge number means big-endian)"};
  }
  if (!cursor.Read(tensors) || !cursor.Read(keys)) return Invalid("the file ends inside its header");
  GgufContents contents;
  if (MaybeFailure failure = ReadMetadata(cursor, keys, contents.metadata)) return *failure;
  if (MaybeFailure failure = ReadTensors(cursor, tensors, data, size, contents)) return *failure;
  return contents;
}

}  // namespace kvt::engine
