#include "paths/nixl_descriptor.h"

#include <iterator>
#include <random>

#include "layout/pair_plans.h"
#include "layout/staged_geometry.h"
#include "paths/nixl_chunks.h"
#include "test/check.h"
#include "test/geometries.h"

namespace {

using namespace kvt;  // NOLINT: a test

NixlDescriptor Sample() {
  NixlDescriptor descriptor;
  descriptor.version = "1.5.1";
  descriptor.plugin = "UCX";
  descriptor.agent = "kvt-0123456789abcdef";
  descriptor.geometry = kvt::test::Hnd(2, 2, 3, 32, 128);
  descriptor.blocks = 77;
  descriptor.bytes = descriptor.geometry.BlockBytes() * 77;
  descriptor.address = 0x7f00'0000'0000;
  descriptor.metadata.resize(463);
  for (size_t at = 0; at < descriptor.metadata.size(); ++at)
    descriptor.metadata[at] = static_cast<uint8_t>(at);
  return descriptor;
}

// Pieces of `bytes`, far from each other on the source side and in order here.
std::unique_ptr<Transfer> TransferOf(std::vector<uint32_t> source, std::vector<uint32_t> target,
                                     Tokens tokens) {
  auto transfer = std::make_unique<Transfer>();
  transfer->source_blocks = std::move(source);
  transfer->target_blocks = std::move(target);
  transfer->tokens = tokens;
  return transfer;
}

// Moves every piece of every chunk from one buffer to the other, as NIXL would.
std::vector<uint8_t> Move(NixlChunkCutter* cutter, const std::vector<uint8_t>& source, size_t target_bytes,
                          const NixlChunkLimits& limits, size_t* posts) {
  std::vector<uint8_t> target(target_bytes);
  NixlChunk chunk;
  uint64_t moved = 0;
  while (cutter->Next(&chunk)) {
    ++*posts;
    CHECK_EQ(chunk.own.size(), chunk.far.size());
    CHECK(chunk.own.size() <= limits.pieces && chunk.bytes <= limits.bytes);
    uint64_t bytes = 0;
    for (size_t at = 0; at < chunk.own.size(); ++at) {
      CHECK_EQ(chunk.own[at].bytes, chunk.far[at].bytes);
      bytes += chunk.own[at].bytes;
      for (size_t byte = 0; byte < chunk.own[at].bytes; ++byte) {
        target[chunk.own[at].address + byte] = source[chunk.far[at].address + byte];
      }
    }
    CHECK_EQ(bytes, chunk.bytes);
    moved += bytes;
  }
  CHECK_EQ(moved, cutter->Bytes());
  return target;
}

}  // namespace

TEST("a NIXL descriptor is read as it was written") {
  const NixlDescriptor before = Sample();
  const auto bytes = EncodeNixlDescriptor(before);
  const auto after = bytes ? DecodeNixlDescriptor(*bytes) : std::nullopt;
  CHECK(after.has_value());
  if (!after) return;
  CHECK_EQ(after->version, before.version);
  CHECK_EQ(after->plugin, before.plugin);
  CHECK_EQ(after->agent, before.agent);
  CHECK(after->geometry.groups == before.geometry.groups);
  CHECK_EQ(after->blocks, before.blocks);
  CHECK_EQ(after->address, before.address);
  CHECK_EQ(after->bytes, before.bytes);
  CHECK(after->metadata == before.metadata);
}

TEST("of 100,000 changed descriptors none is read") {
  const auto bytes = EncodeNixlDescriptor(Sample());
  if (!bytes) return;
  std::mt19937 random(1);
  size_t accepted = 0;
  for (int round = 0; round < 100'000; ++round) {
    std::vector<uint8_t> changed = *bytes;
    const size_t changes = 1 + random() % 4;
    for (size_t at = 0; at < changes; ++at) changed[random() % changed.size()] ^= 1 + random() % 255;
    if (random() % 4 == 0) changed.resize(random() % (changed.size() + 8));
    if (changed != *bytes && DecodeNixlDescriptor(changed)) ++accepted;
  }
  CHECK_EQ(accepted, size_t{0});
  CHECK(!DecodeNixlDescriptor({}).has_value());
}

TEST("a descriptor with an impossible pool is refused although its checksum is right") {
  const auto refused = [](auto change) {
    NixlDescriptor descriptor = Sample();
    change(&descriptor);
    const auto bytes = EncodeNixlDescriptor(descriptor);
    return bytes && !DecodeNixlDescriptor(*bytes);
  };
  CHECK(refused([](NixlDescriptor* one) { one->address = 0; }));
  CHECK(refused([](NixlDescriptor* one) { one->address = UINT64_MAX - 100; }));
  CHECK(refused([](NixlDescriptor* one) { one->blocks = 0; }));
  CHECK(refused([](NixlDescriptor* one) { one->blocks = UINT32_MAX; }));
  CHECK(refused([](NixlDescriptor* one) { one->bytes = one->geometry.BlockBytes() * 76; }));
  CHECK(refused([](NixlDescriptor* one) { one->geometry.groups[0].head_stride = UINT64_MAX / 2; }));
  CHECK(refused([](NixlDescriptor* one) { one->agent.clear(); }));
  NixlDescriptor large = Sample();
  large.metadata.resize(kNixlMetadataBytesMax + 1);
  CHECK(!EncodeNixlDescriptor(large).has_value());
}

TEST(
    "100,000 descriptors with changed fields and a right checksum are refused, or lie inside what they say") {
  const uint64_t extremes[] = {
      0, 1, 2, 63, 64, 4096, 0xffff, 0x7fff'ffff, 0xffff'ffff, uint64_t{1} << 46, INT64_MAX, UINT64_MAX};
  std::mt19937 random(3);
  const auto any = [&]() -> uint64_t {
    return random() % 2 == 0 ? extremes[random() % std::size(extremes)] : random() >> random() % 32;
  };
  const Geometry own = Sample().geometry;
  size_t accepted = 0;
  for (int round = 0; round < 100'000; ++round) {
    NixlDescriptor changed = Sample();
    Group& group = changed.geometry.groups[0];
    for (size_t at = 1 + random() % 3; at > 0; --at) {
      switch (random() % 16) {
        case 0:
          changed.blocks = static_cast<uint32_t>(any());
          break;
        case 1:
          changed.address = any();
          break;
        case 2:
          changed.bytes = any();
          break;
        case 3:
          changed.slots = static_cast<uint32_t>(any());
          break;
        case 4:
          changed.slots_address = any();
          break;
        case 5:
          changed.slot_bytes = any();
          break;
        case 6:
          changed.geometry.tokens_per_block = static_cast<uint32_t>(any());
          break;
        case 7:
          changed.geometry.block_bytes = any();
          break;
        case 8:
          group.planes = static_cast<uint32_t>(any());
          break;
        case 9:
          group.heads = static_cast<uint32_t>(any());
          break;
        case 10:
          group.element_bytes = static_cast<uint32_t>(any());
          break;
        case 11:
          group.block_stride = any();
          break;
        case 12:
          group.head_stride = any();
          break;
        case 13:
          group.layers[0].count = static_cast<uint32_t>(any());
          break;
        case 14:
          group.layers[0].stride = any();
          break;
        case 15:
          group.window = static_cast<uint32_t>(any());
          break;
      }
    }
    const auto bytes = EncodeNixlDescriptor(changed);
    const auto read = bytes ? DecodeNixlDescriptor(*bytes) : std::nullopt;
    if (!read) continue;
    ++accepted;
    CHECK(read->geometry.OutOfBounds(read->blocks, read->bytes).empty());
    CHECK(read->address + read->bytes < uint64_t{1} << 48);
    CHECK(read->slots_address + uint64_t{read->slots} * read->slot_bytes < uint64_t{1} << 48);
    // What a reach does next.
    std::string why;
    const auto plans = PairPlans::Compile({read->geometry}, {own}, &why);
    CHECK(plans.has_value() || !why.empty());
    if (!plans || read->slots == 0) continue;
    (void)StagedGeometry({read->geometry}, {own}, read->slot_bytes);
  }
  // Both happen.
  CHECK(accepted > 1'000 && accepted < 99'000);
}

TEST("versions pair where both directions were seen to work") {
  for (const char* one : {"1.4.1", "1.5.0", "1.5.1"}) {
    for (const char* other : {"1.4.0", "1.4.1", "1.5.1"}) CHECK(NixlVersionsPair(one, other));
    for (const char* other : {"1.3.0", "1.0.1", "0.10.1", "1.6.0", "2.0.0", ""})
      CHECK(!NixlVersionsPair(one, other));
  }
  CHECK(NixlVersionsPair("0.10.1", "1.3.0"));
  CHECK(NixlVersionsPair("1.6.0", "1.6.0"));
  CHECK(!NixlVersionsPair("1.6.0", "1.7.0"));
  CHECK(!NixlVersionsPair("", ""));
}

TEST("chunks bring each byte of the plan once, whatever the limits, and neighbours as one piece") {
  const Geometry geometry = kvt::test::Hnd(2, 2, 2, 8, 16);
  std::string why;
  auto compiled = Plan::Compile({geometry}, {geometry}, &why);
  if (!compiled) return;
  const auto plan = std::make_shared<const Plan>(std::move(*compiled));
  const size_t pool = geometry.BlockBytes() * 16;
  std::vector<uint8_t> source(pool);
  std::mt19937 random(2);
  for (uint8_t& byte : source) byte = static_cast<uint8_t>(random());
  const std::vector<uint32_t> from = {3, 4, 5, 9, 1, 0};
  const std::vector<uint32_t> to = {7, 8, 9, 2, 15, 4};
  for (const Tokens tokens : {Tokens{0, 48, 48}, Tokens{5, 43, 48}, Tokens{8, 16, 48}, Tokens{1, 2, 48}}) {
    std::vector<uint8_t> expected;
    for (const NixlChunkLimits limits : {NixlChunkLimits{}, NixlChunkLimits{1, 1 << 20},
                                         NixlChunkLimits{7, 100}, NixlChunkLimits{256, 16}}) {
      NixlChunkCutter cutter(plan, TransferOf(from, to, tokens), 0, 0, limits);
      size_t posts = 0;
      const std::vector<uint8_t> moved = Move(&cutter, source, pool, limits, &posts);
      if (expected.empty()) expected = moved;
      CHECK(moved == expected);
    }
    // Against the plan itself.
    std::vector<uint8_t> planned(pool);
    const BlockTables tables{from, to};
    RunCursor cursor(*plan, tokens, tables, {0, plan->Units(tokens)});
    for (Run run; cursor.Next(&run);) {
      for (uint64_t piece = 0; piece < run.count; ++piece) {
        std::copy_n(source.begin() + static_cast<ptrdiff_t>(run.source_offset + piece * run.source_stride),
                    run.bytes,
                    planned.begin() + static_cast<ptrdiff_t>(run.target_offset + piece * run.target_stride));
      }
    }
    CHECK(expected == planned);
  }
  // Blocks 3, 4, 5 go to 7, 8, 9: one piece. Three more blocks: one each.
  NixlChunkCutter cutter(plan, TransferOf(from, to, {0, 48, 48}), 0, 0);
  NixlChunk chunk;
  CHECK(cutter.Next(&chunk));
  CHECK_EQ(chunk.own.size(), size_t{4});
  CHECK(!cutter.Next(&chunk));
}

KVT_TEST_MAIN
