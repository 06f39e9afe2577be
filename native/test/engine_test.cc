#include "engine/engine.h"

#include <cstring>
#include <fstream>
#include <thread>

#include "check.h"
#include "engine/engine_thread.h"
#include "gguf_builder.h"

using namespace kvt;
using namespace kvt::engine;

namespace {

constexpr const char* kTiny = KVT_MODELS_DIR "/tiny.gguf";
constexpr uint32_t kBlocks = 8;
const std::atomic<bool> kRunOn{false};

// The tiny model over a pool whose surroundings are watched.
struct Fixture {
  explicit Fixture(uint32_t threads = 1) {
    EngineOptions options;
    options.threads = threads;
    engine = std::move(*Engine::Load(kTiny, options, kRunOn));
    const size_t block = engine->layout().BlockBytes();
    memory = AlignedBytes((kBlocks + 2) * block);
    std::fill(memory.data(), memory.data() + (kBlocks + 2) * block, std::byte{0x5a});
    const std::vector<RankPool> pools = {{{memory.data() + block, kBlocks * block, block, kBlocks, nullptr},
                                          WholeOf(engine->layout()).Places(engine->layout())}};
    CHECK(!engine->CheckPools(pools, kBlocks));
    engine->Attach(pools, kBlocks);
  }

  bool SurroundingsUntouched() const {
    const size_t block = engine->layout().BlockBytes();
    for (size_t i = 0; i < block; ++i) {
      if (memory.data()[i] != std::byte{0x5a} || memory.data()[(kBlocks + 1) * block + i] != std::byte{0x5a})
        return false;
    }
    return true;
  }

  std::string PrefillFailure(const std::vector<uint32_t>& tokens, uint32_t start,
                             const std::vector<uint32_t>& table, const Sampling& sampling = {}) {
    auto result = engine->Prefill(tokens, start, table, &sampling, kRunOn);
    return result ? "" : result.failure().why;
  }

  AlignedBytes memory;
  std::unique_ptr<Engine> engine;
};

bool Has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST("tokens, positions and blocks out of range are refused and touch nothing") {
  Fixture f;
  const std::vector<uint32_t> table = {0, 1, 2};
  CHECK_EQ(f.PrefillFailure({1, 2, 3}, 0, table), "");
  CHECK(Has(f.PrefillFailure({768}, 0, table), "token 768"));
  CHECK(Has(f.PrefillFailure({4294967295u}, 0, table), "token 4294967295"));
  CHECK(Has(f.PrefillFailure({}, 0, table), "no tokens"));
  CHECK(Has(f.PrefillFailure({1}, 96, table), "3 blocks"));
  CHECK(Has(f.PrefillFailure({1}, 2048, table), "position 2048"));
  CHECK(Has(f.PrefillFailure({1}, 4294967295u, table), "position 4294967295"));
  CHECK(Has(f.PrefillFailure({1}, 40, {0, 8}), "block 8"));
  CHECK(Has(f.PrefillFailure({1}, 40, {4294967295u, 0}), "block 4294967295"));
  Sampling bad;
  bad.banned = {768};
  CHECK(Has(f.PrefillFailure({1}, 0, table, bad), "banned"));
  DecodeRow row;
  row.token = 1;
  row.position = 32;
  row.table = {7};
  const DecodeRow rows[] = {row};
  CHECK(Has(f.engine->Decode(rows, kRunOn).failure().why, "1 blocks"));
  CHECK(f.SurroundingsUntouched());
}

TEST("a full pool, first and last block included, is written inside its bounds") {
  Fixture f;
  std::vector<uint32_t> tokens(kBlocks * 32);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<uint32_t>(i * 7 % 768);
  CHECK_EQ(f.PrefillFailure(tokens, 0, {7, 0, 6, 1, 5, 2, 4, 3}), "");
  CHECK(f.SurroundingsUntouched());
}

TEST("a call is cancelled between layers and the next one is not") {
  Fixture f;
  const std::atomic<bool> cancelled{true};
  const std::vector<uint32_t> tokens = {1, 2, 3};
  auto result = f.engine->Prefill(tokens, 0, {0}, nullptr, cancelled);
  CHECK(!result);
  CHECK(result.failure().fault == Fault::kCancelled);
  CHECK_EQ(f.PrefillFailure(tokens, 0, {0}), "");
}

TEST("garbage in the blocks gives garbage tokens of the vocabulary") {
  Fixture f;
  const size_t block = f.engine->layout().BlockBytes();
  std::fill(f.memory.data() + block, f.memory.data() + 2 * block, std::byte{0xff});  // NaN
  DecodeRow row;
  row.token = 5;
  row.position = 20;
  row.table = {0};
  row.sampling.temperature = 1;
  const DecodeRow rows[] = {row};
  auto samples = f.engine->Decode(rows, kRunOn);
  CHECK(samples);
  CHECK((*samples)[0].token < 768);
}

TEST("a pool with other blocks, too few or unaligned, is refused") {
  Fixture f;
  const size_t block = f.engine->layout().BlockBytes();
  const kvt::PoolSpan right = {f.memory.data(), kBlocks * block, block, kBlocks, nullptr};
  const auto refused = [&](kvt::PoolSpan span, uint32_t blocks) {
    const RankPool pool = {span, WholeOf(f.engine->layout()).Places(f.engine->layout())};
    return f.engine->CheckPools({&pool, 1}, blocks).has_value();
  };
  CHECK(!refused(right, kBlocks));
  CHECK(refused(right, kBlocks + 1));
  CHECK(refused(right, 0));
  kvt::PoolSpan other = right;
  other.block_bytes += 64;
  CHECK(refused(other, 1));
  other = right;
  other.bytes = block;
  CHECK(refused(other, 2));
  other = right;
  other.data += 4;
  CHECK(refused(other, 1));
  other.data = nullptr;
  CHECK(refused(other, 1));
}

namespace {

// Pools of `shards` with kBlocks blocks each, attached to an engine of the tiny model.
struct RankedFixture {
  RankedFixture(std::vector<KvShard> held, DtypeChoice kv) : shards(std::move(held)) {
    EngineOptions options;
    options.kv = kv;
    engine = std::move(*Engine::Load(kTiny, options, kRunOn));
    std::vector<RankPool> pools;
    for (const KvShard& shard : shards) {
      const size_t block = shard.BlockBytes(engine->layout());
      AlignedBytes& bytes = memory.emplace_back(kBlocks * block);
      std::fill(bytes.data(), bytes.data() + kBlocks * block, std::byte{0x5a});
      pools.push_back(
          {{bytes.data(), kBlocks * block, block, kBlocks, nullptr}, shard.Places(engine->layout())});
    }
    CHECK(!engine->CheckPools(pools, kBlocks));
    engine->Attach(pools, kBlocks);
  }

  // The row of one head of one plane (0 keys, 1 values) in one block of one rank's pool.
  const std::byte* Row(size_t rank, uint32_t block, uint32_t layer, uint32_t plane, uint32_t head) const {
    const KvLayout& layout = engine->layout();
    const KvShard& shard = shards[rank];
    const size_t rows =
        (size_t{layer - shard.first_layer} * 2 + plane) * shard.heads + head - shard.first_head;
    return memory[rank].data() + block * shard.BlockBytes(layout) + rows * layout.RowBytes();
  }

  std::vector<KvShard> shards;
  std::vector<AlignedBytes> memory;
  std::unique_ptr<Engine> engine;
};

}  // namespace

TEST("KV over rank pools has the bytes, and gives the logits, of one pool that holds everything") {
  const std::vector<std::vector<KvShard>> shardings = {
      {{0, 5, 0, 1}, {0, 5, 1, 1}},                              // TP 2
      {{0, 3, 0, 2}, {3, 2, 0, 2}},                              // PP 2, uneven
      {{0, 3, 0, 1}, {0, 3, 1, 1}, {3, 2, 0, 1}, {3, 2, 1, 1}},  // both
      {{0, 5, 0, 1}, {0, 5, 0, 1}, {0, 5, 1, 1}, {0, 5, 1, 1}},  // TP 4: more ranks than heads
      {{0, 1, 0, 2}, {1, 1, 0, 2}, {2, 1, 0, 2}, {3, 1, 0, 2}, {4, 1, 0, 2}},
      {{0, 5, 0, 2}, {1, 3, 1, 1}},  // overlapping in part
  };
  std::vector<uint32_t> tokens(150);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<uint32_t>(i * 7 % 768);
  const std::vector<uint32_t> table = {6, 1, 7, 0, 3};
  for (const DtypeChoice kv : {DtypeChoice::kF32, DtypeChoice::kBf16}) {
    const RankedFixture whole({{0, 5, 0, 2}}, kv);
    auto wanted = whole.engine->Logits(tokens, 0, table, kRunOn);
    CHECK(wanted);
    for (const std::vector<KvShard>& shards : shardings) {
      const RankedFixture ranked(shards, kv);
      auto logits = ranked.engine->Logits(tokens, 0, table, kRunOn);
      CHECK(logits);
      CHECK(*logits == *wanted);
      const size_t row_bytes = whole.engine->layout().RowBytes();
      for (size_t rank = 0; rank < shards.size(); ++rank) {
        const KvShard& shard = shards[rank];
        bool same = true;
        for (uint32_t block = 0; block < kBlocks; ++block) {
          for (uint32_t layer = shard.first_layer; layer < shard.first_layer + shard.layers; ++layer) {
            for (uint32_t head = shard.first_head; head < shard.first_head + shard.heads; ++head) {
              for (uint32_t plane = 0; plane < 2; ++plane) {
                same = same && std::memcmp(ranked.Row(rank, block, layer, plane, head),
                                           whole.Row(0, block, layer, plane, head), row_bytes) == 0;
              }
            }
          }
        }
        CHECK(same);
      }
    }
  }
}

TEST("rank pools that leave a head out, or hold what the model does not have, are refused by name") {
  Fixture f;
  const auto why = [&](const std::vector<KvShard>& shards) {
    std::vector<RankPool> pools;
    for (const KvShard& shard : shards) {
      const size_t block = shard.BlockBytes(f.engine->layout());
      pools.push_back({{f.memory.data(), block, block, 1, nullptr}, shard.Places(f.engine->layout())});
    }
    const MaybeFailure failure = f.engine->CheckPools(pools, 1);
    return failure ? failure->why : "";
  };
  CHECK_EQ(why({{0, 5, 0, 1}, {0, 5, 1, 1}}), "");
  CHECK(Has(why({}), "KV head 0 of layer 0"));
  CHECK(Has(why({{0, 5, 0, 1}, {0, 4, 1, 1}}), "KV head 1 of layer 4"));
  CHECK(Has(why({{0, 5, 0, 2}, {0, 5, 2, 1}}), "pool 1"));
  CHECK(Has(why({{0, 6, 0, 2}}), "5 layers"));
  CHECK(Has(why({{4294967295u, 2, 0, 2}}), "5 layers"));
  CHECK(Has(why({{0, 5, 0, 0}, {0, 5, 0, 2}}), "pool 0"));
}

TEST("calls before a pool is attached are refused") {
  auto engine = std::move(*Engine::Load(kTiny, {}, kRunOn));
  auto result = engine->Prefill(std::vector<uint32_t>{1}, 0, {0}, nullptr, kRunOn);
  CHECK(Has(result.failure().why, "no pool"));
}

TEST("a load is cancelled between layers") {
  const std::atomic<bool> cancelled{true};
  CHECK(Engine::Load(kTiny, {}, cancelled).failure().fault == Fault::kCancelled);
}

TEST("every level but the generic one gives the same logits and KV bits, that one nearly the same") {
  Result<MappedFile> file = MappedFile::Open(kTiny);
  Result<GgufContents> contents = ParseGguf(file->data(), file->size());
  ThreadPool threads(1);
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    const DtypeChoice choice = dtype == Dtype::kF32 ? DtypeChoice::kF32 : DtypeChoice::kBf16;
    Result<LlamaModel> model = LlamaModel::Load(*contents, choice, threads, kRunOn);
    const LlamaConfig& config = model->config();
    const KvLayout layout = {config.layers, config.kv_heads, 32, config.head_dim, dtype};
    const std::vector<uint32_t> table = {2, 0, 1};
    std::vector<Row> rows;
    for (uint32_t i = 0; i < 90; ++i) rows.push_back({i * 5 % config.vocab, i, table.data()});
    struct Outcome {
      std::vector<std::byte> pool;
      std::vector<float> logits;
    };
    const auto run = [&](VectorLevel level) {
      const size_t block = layout.BlockBytes();
      Outcome outcome{std::vector<std::byte>(3 * block), std::vector<float>(config.vocab)};
      const KvMemory memory(
          layout, {{{outcome.pool.data(), 3 * block, block, 3, nullptr}, WholeOf(layout).Places(layout)}}, 3);
      ForwardPass forward(*model, layout, level, threads);
      CHECK(forward.Run(rows, memory, kRunOn));
      forward.Logits(89, 1, outcome.logits.data());
      return outcome;
    };
    const std::vector<VectorLevel> levels = VectorLevelsHere();
    const Outcome right = run(levels.back());
    for (size_t i = 1; i + 1 < levels.size(); ++i) {
      const Outcome other = run(levels[i]);
      CHECK(other.pool == right.pool);
      CHECK(other.logits == right.logits);
    }
    const Outcome generic = run(VectorLevel::kGeneric);
    float distance = 0;
    for (size_t i = 0; i < right.logits.size(); ++i) {
      distance = std::max(distance, std::abs(generic.logits[i] - right.logits[i]));
    }
    CHECK(distance < (dtype == Dtype::kF32 ? 0.01f : 0.5f));
  }
}

TEST("options out of range are refused") {
  EngineOptions options;
  options.threads = 0;
  CHECK(Has(Engine::Load(kTiny, options, kRunOn).failure().why, "threads"));
  options = {};
  options.tokens_per_block = 0;
  CHECK(Has(Engine::Load(kTiny, options, kRunOn).failure().why, "tokensPerBlock"));
}

TEST("what would change the numbers and is not implemented is refused by name") {
  using kvt::test::GgufBuilder;
  const auto why = [](const GgufBuilder& file) {
    Result<GgufContents> contents = ParseGguf(file.bytes().data(), file.bytes().size());
    CHECK(contents);
    return ReadLlamaConfig(*contents).failure().why;
  };
  const auto architecture = [](const char* name, uint64_t keys) {
    return GgufBuilder().Header(0, keys).Text("general.architecture").Put(8u).Text(name);
  };
  CHECK(Has(why(architecture("qwen2", 1)), "`qwen2`"));
  CHECK(Has(why(architecture("llama", 2).Text("llama.rope.scaling.type").Put(8u).Text("yarn")), "`yarn`"));
  CHECK(Has(why(architecture("llama", 2).Key("llama.expert_count", 8)), "llama.expert_count"));
  CHECK(Has(why(architecture("llama", 2).Key("llama.attention.sliding_window", 4096)), "sliding_window"));
  CHECK(Has(why(architecture("llama", 2).Key("llama.block_count", 0)), "llama.block_count"));
  CHECK(Has(why(architecture("llama", 1)), "llama.block_count"));
}

TEST("the thread pool covers every item once, whatever the count") {
  for (const uint32_t threads : {1u, 2u, 5u}) {
    ThreadPool pool(threads);
    for (size_t count = 0; count < 40; ++count) {
      std::vector<int> seen(count);
      pool.Split(count, 1, [&](uint32_t, size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) ++seen[i];
      });
      CHECK_EQ(seen, std::vector<int>(count, 1));
    }
  }
}

TEST("the engine's thread runs tasks in order and drops those that wait when it stops") {
  EngineThread thread;
  std::vector<int> order;
  std::atomic<bool> started{false};
  std::atomic<bool> released{false};
  thread.Post([&] { order.push_back(1); });
  thread.Post([&] {
    started = true;
    started.notify_one();
    released.wait(false);
    order.push_back(2);
  });
  started.wait(false);
  std::thread stopper([&] { thread.Stop(); });
  while (thread.Post([&] { order.push_back(3); })) std::this_thread::yield();
  released = true;
  released.notify_one();
  stopper.join();
  CHECK_EQ(order, (std::vector<int>{1, 2}));
}

KVT_TEST_MAIN
