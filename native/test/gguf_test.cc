#include "engine/gguf.h"

#include <random>

#include "check.h"
#include "engine/engine.h"
#include "gguf_builder.h"

using namespace kvt::engine;
using kvt::test::Bytes;
using kvt::test::GgufBuilder;

namespace {

const std::atomic<bool> kRunOn{false};

const Bytes& Tiny() {
  static const Bytes bytes = kvt::test::ReadFile(KVT_MODELS_DIR "/tiny.gguf");
  return bytes;
}

// An own allocation of exactly these bytes, so that the address sanitizer sees a read past their end.
Result<GgufContents> Parse(const Bytes& bytes) {
  const auto copy = std::make_unique<uint8_t[]>(bytes.size());
  std::copy(bytes.begin(), bytes.end(), copy.get());
  Result<GgufContents> contents = ParseGguf(copy.get(), bytes.size());
  if (contents) contents->tensors.clear();  // they would point into `copy`
  return contents;
}

bool FailsWith(const Bytes& bytes, Fault fault, const std::string& part) {
  Result<GgufContents> contents = Parse(bytes);
  if (contents) return false;
  const bool right =
      contents.failure().fault == fault && contents.failure().why.find(part) != std::string::npos;
  if (!right) std::printf("  said: %s\n", contents.failure().why.c_str());
  return right;
}

// Parses and loads; what loads must also compute. Answers whether it loaded.
bool Survives(const uint8_t* data, size_t size) {
  Result<GgufContents> contents = ParseGguf(data, size);
  if (!contents) {
    CHECK(!contents.failure().why.empty());
    return false;
  }
  ThreadPool threads(1);
  Result<LlamaModel> model = LlamaModel::Load(*contents, DtypeChoice::kBf16, threads, kRunOn);
  if (!model) {
    CHECK(!model.failure().why.empty());
    return false;
  }
  const LlamaConfig& config = model->config();
  const KvLayout layout = {config.layers, config.kv_heads, 4, config.head_dim, Dtype::kF32};
  const size_t block = layout.BlockBytes();
  std::vector<std::byte> pool(block);
  const KvMemory memory(layout, {{{pool.data(), block, block, 1, nullptr}, WholeOf(layout).Places(layout)}},
                        1);
  ForwardPass forward(*model, layout, kvt::ChosenVectorLevel(), threads);
  const uint32_t table[] = {0};
  const Row rows[] = {{0, 0, table}, {config.vocab - 1, 1, table}};
  std::vector<float> logits(config.vocab);
  CHECK(forward.Run(rows, memory, kRunOn));
  forward.Logits(1, 1, logits.data());
  return true;
}

}  // namespace

TEST("the tiny model's metadata and tensors are read as they are") {
  const Bytes& bytes = Tiny();
  Result<GgufContents> contents = ParseGguf(bytes.data(), bytes.size());
  CHECK(contents);
  CHECK_EQ(contents->tensors.size(), 47u);
  CHECK_EQ(std::get<std::string>(contents->metadata.at("general.architecture")), "llama");
  CHECK_EQ(std::get<uint64_t>(contents->metadata.at("llama.context_length")), 2048u);
  CHECK_EQ(std::get<std::vector<std::string>>(contents->metadata.at("tokenizer.ggml.tokens")).size(), 768u);
  const GgufTensor& embeddings = contents->tensors.at("token_embd.weight");
  CHECK_EQ(embeddings.columns, 128u);
  CHECK_EQ(embeddings.rows, 768u);
  CHECK_EQ(std::string(embeddings.type->name), "F16");
}

TEST("a file cut at any of 500 places is refused with a reason") {
  std::mt19937 random(1);
  const Bytes& bytes = Tiny();
  for (int i = 0; i < 500; ++i) {
    // Half of the cuts fall into the header, where each byte means something else.
    const size_t size = i < 10 ? i : random() % (i % 2 == 0 ? 20'000 : bytes.size());
    const auto cut = std::make_unique<uint8_t[]>(size);
    std::copy(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size), cut.get());
    CHECK(!Survives(cut.get(), size));
  }
}

TEST("a file with one byte flipped at any of 500 places is refused with a reason or still computes") {
  std::mt19937 random(2);
  Bytes bytes = Tiny();
  int loaded = 0;
  for (int i = 0; i < 500; ++i) {
    const size_t at = i < 64 ? static_cast<size_t>(i) : random() % (i % 8 == 0 ? bytes.size() : 20'000);
    const auto flip = static_cast<uint8_t>(1 + random() % 255);
    bytes[at] ^= flip;
    loaded += Survives(bytes.data(), bytes.size());
    bytes[at] ^= flip;
  }
  CHECK(loaded > 100);
  CHECK(loaded < 500);
}

TEST("random bytes behind a right header are refused") {
  std::mt19937 random(3);
  for (int i = 0; i < 500; ++i) {
    GgufBuilder file;
    file.Header(random() % 4, random() % 4);
    for (size_t n = random() % 200; n > 0; --n)
      file.Put(static_cast<uint8_t>(random() % (i % 2 == 0 ? 14 : 256)));
    const Result<GgufContents> contents = Parse(file.bytes());
    CHECK(contents || !contents.failure().why.empty());
  }
}

TEST("each broken place is named") {
  CHECK(FailsWith({}, Fault::kInvalid, "GGUF"));
  CHECK(FailsWith(GgufBuilder().Header(0, 0, 1).bytes(), Fault::kUnsupported, "version 1"));
  CHECK(FailsWith(GgufBuilder().Header(0, ~0ull).bytes(), Fault::kInvalid, "18446744073709551615 keys"));
  CHECK(FailsWith(GgufBuilder().Header(~0ull, 0).bytes(), Fault::kInvalid, "18446744073709551615 tensors"));
  CHECK(FailsWith(GgufBuilder().Header((1u << 20) + 1, 0).Zeros(48u << 20).bytes(), Fault::kInvalid,
                  "1048577 tensors"));
  CHECK(FailsWith(GgufBuilder().Header(0, 1).Put(~0ull).Zeros(40).bytes(), Fault::kInvalid, "key 0"));
  CHECK(
      FailsWith(GgufBuilder().Header(0, 1).Text("a.b").Put(13u).Zeros(9).bytes(), Fault::kInvalid, "`a.b`"));
  CHECK(
      FailsWith(GgufBuilder().Header(0, 1).Text("a.b").Put(8u).Put(~0ull).bytes(), Fault::kInvalid, "`a.b`"));
  CHECK(FailsWith(GgufBuilder().Header(0, 1).Text("list").Put(9u).Put(10u).Put(uint64_t{1} << 61).bytes(),
                  Fault::kInvalid, "2305843009213693952 values"));
  CHECK(FailsWith(GgufBuilder().Header(0, 1).Text("list").Put(9u).Put(9u).Put(uint64_t{1}).bytes(),
                  Fault::kUnsupported, "array of arrays"));
  CHECK(
      FailsWith(GgufBuilder().Header(0, 2).Key("same", 1).Key("same", 2).bytes(), Fault::kInvalid, "twice"));
}

TEST("tensors that do not fit the file are refused by name") {
  const auto one = [](const std::vector<uint64_t>& shape, uint32_t type, uint64_t offset, size_t data) {
    return GgufBuilder().Header(1, 0).Tensor("w", shape, type, offset).Pad(32).Zeros(data).bytes();
  };
  CHECK(Parse(one({32}, 0, 0, 128)));
  CHECK(Parse(one({32}, 0, 32, 160)));
  CHECK(FailsWith(one({32}, 0, 0, 127), Fault::kInvalid, "past the end"));
  CHECK(FailsWith(one({32}, 0, ~31ull, 128), Fault::kInvalid, "past the end"));
  CHECK(FailsWith(one({32}, 0, 4, 160), Fault::kInvalid, "not aligned"));
  CHECK(FailsWith(one({1u << 31, 1u << 31}, 0, 0, 128), Fault::kInvalid, "dimension 1"));
  CHECK(FailsWith(one({32, 0}, 0, 0, 128), Fault::kInvalid, "dimension 1"));
  CHECK(FailsWith(one({1, 1, 1, 1, 1}, 0, 0, 128), Fault::kInvalid, "5 dimensions"));
  CHECK(FailsWith(one({33}, 8, 0, 128), Fault::kInvalid, "whole blocks of Q8_0"));
  CHECK(FailsWith(one({256}, 12, 0, 1024), Fault::kUnsupported, "Q4_K"));
  CHECK(FailsWith(one({256}, 77, 0, 1024), Fault::kUnsupported, "unknown (77)"));
  const Bytes twice =
      GgufBuilder().Header(2, 0).Tensor("w", {1}, 0, 0).Tensor("w", {1}, 0, 0).Pad(32).Zeros(32).bytes();
  CHECK(FailsWith(twice, Fault::kInvalid, "twice"));
  const Bytes odd =
      GgufBuilder().Header(1, 1).Key("general.alignment", 24).Tensor("w", {1}, 0, 0).Zeros(99).bytes();
  CHECK(FailsWith(odd, Fault::kInvalid, "general.alignment"));
}

TEST("files that can't be a model are refused before they are mapped") {
  const auto why = [](const std::string& path) {
    Result<MappedFile> file = MappedFile::Open(path);
    return file ? std::string("opened") : file.failure().why;
  };
  CHECK_EQ(why("/nonexistent/model.gguf"), "No such file or directory");
  CHECK_EQ(why("/tmp"), "it is no regular file");
}

KVT_TEST_MAIN
