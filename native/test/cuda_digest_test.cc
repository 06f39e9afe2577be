#include <algorithm>
#include <future>

#include "check.h"
#include "cuda/digest_queue.h"
#include "cuda_rig.h"
#include "geometries.h"
#include "layout/digest.h"
#include "paths/digests.h"

using namespace kvt;

namespace {

constexpr unsigned kMultiprocessors = 8;

// A pool with its digests, by the GPU and by the processor.
struct Pool {
  Pool(const Geometry& of, uint32_t blocks, uint64_t scratch_bytes = uint64_t{64} << 20)
      : geometry(of), content(test::Pattern(of.BlockBytes() * blocks, blocks)) {
    test::OnRealGpu();
    pool = test::Needed(cuda::DevicePool::Create(0, content.size()));
    CHECK(!pool->Write(0, content));
    auto kernels = test::Needed(cuda::Kernels::Load(pool->context()));
    queue = test::Needed(
        cuda::DigestQueue::Open({pool, std::move(kernels), geometry, kMultiprocessors, scratch_bytes}));
  }

  std::shared_ptr<DigestWork> Run(const DigestRequest& request, bool cancel = false) const {
    auto work = std::make_shared<DigestWork>();
    work->request = std::make_unique<DigestRequest>(request);
    const auto quiet = std::make_shared<std::promise<void>>();
    work->on_quiet = [quiet] { quiet->set_value(); };
    const auto stop = DigestsBy(queue)(work);
    if (cancel) stop();
    quiet->get_future().wait();
    return work;
  }
  // How many of the digests are not those of the processor.
  size_t Wrong(const DigestRequest& request) const {
    const auto work = Run(request);
    CHECK(work->complete);
    CHECK_EQ(work->digests.size(), request.ranges.size());
    size_t wrong = 0;
    for (size_t index = 0; index < work->digests.size(); ++index) {
      const TokenRange& range = request.ranges[index];
      const Tokens tokens{range.from, range.to, request.sequence};
      const Digest expected = DigestOf(content.data(), geometry, request.part, request.table, tokens);
      if (work->digests[index] != expected) ++wrong;
    }
    return wrong;
  }

  Geometry geometry;
  std::vector<std::byte> content;
  std::shared_ptr<cuda::DevicePool> pool;
  std::shared_ptr<cuda::DigestQueue> queue;
};

// Blocks of the pool in a random order.
std::vector<uint32_t> Shuffled(uint32_t blocks, unsigned seed) {
  std::vector<uint32_t> table(blocks);
  for (uint32_t index = 0; index < blocks; ++index) table[index] = index;
  std::shuffle(table.begin(), table.end(), std::mt19937(seed));
  return table;
}

DigestRequest Whole(uint32_t blocks, uint64_t block_tokens, uint64_t unit) {
  DigestRequest request{Shuffled(blocks, 3), {}, test::All(), blocks * block_tokens};
  for (uint64_t from = 0; from < request.sequence; from += unit) {
    request.ranges.push_back({from, std::min(from + unit, request.sequence)});
  }
  return request;
}

// Two kinds of elements, one of them without heads and one a block; layers that don't lie at one stride.
Geometry Mixed(uint32_t tokens, uint32_t element_bytes, uint32_t window) {
  Geometry geometry = test::Hnd(3, 2, 2, tokens, element_bytes);
  const uint64_t keys = geometry.block_bytes;
  Group plain = geometry.groups[0];
  plain.replicated = true;
  plain.planes = 1;
  plain.heads = 1;
  plain.element_bytes = 24;
  plain.window = window;
  plain.token_stride = 24;
  plain.head_stride = plain.plane_stride = uint64_t{24} * tokens;
  plain.layers = {{1, 1, 1, keys, 0}};
  Group scale = plain;
  scale.per_block = true;
  scale.element_bytes = 6;
  scale.window = 0;
  scale.head_stride = scale.plane_stride = scale.token_stride = 6;
  scale.layers = {{0, 2, 2, keys + plain.plane_stride, 10}};
  geometry.block_bytes = (keys + plain.plane_stride + 20 + 63) / 64 * 64;
  geometry.groups.push_back(plain);
  geometry.groups.push_back(scale);
  for (Group& group : geometry.groups) group.block_stride = geometry.block_bytes;
  return geometry;
}

}  // namespace

TEST("inputs of every length to 2 KiB, and longer ones beside each limit, have the digest of the library") {
  std::printf("  %s\n", test::OnRealGpu() ? "on a GPU" : "on a fake of CUDA");
  // A token is a byte: a range is an input of its length, from any byte on.
  const Pool pool(test::Hnd(1, 1, 1, 64, 1), 8192);
  DigestRequest request{Shuffled(8192, 1), {}, test::All(), 8192 * 64};
  std::mt19937 random(2);
  const auto add = [&](uint64_t bytes) {
    const uint64_t from = random() % (request.sequence - bytes + 1);
    request.ranges.push_back({from, from + bytes});
  };
  for (uint64_t bytes = 1; bytes <= 2048; ++bytes) add(bytes);
  for (const uint64_t blocks : {3, 16, 17, 33, 100, 400}) {
    for (const uint64_t more : {0, 1, 8, 63, 64, 65, 128, 240, 512, 960, 961, 1023})
      add(blocks * 1024 + more);
  }
  CHECK_EQ(pool.Wrong(request), 0u);
}

TEST("tokens that all windows have left have the digest of nothing") {
  Geometry geometry = test::Hnd(2, 2, 2, 16, 32);
  geometry.groups[0].window = 20;
  const Pool pool(geometry, 8);
  const DigestRequest request{Shuffled(8, 1), {{0, 16}, {16, 100}, {96, 112}, {100, 128}}, test::All(), 128};
  CHECK_EQ(pool.Wrong(request), 0u);
}

TEST("blocks have the same digests on the GPU, in few turns and in many, whatever a unit is to the pool") {
  for (const uint64_t scratch : {uint64_t{1} << 16, uint64_t{64} << 20}) {
    for (const Geometry& geometry :
         {test::Hnd(3, 2, 4, 32, 64), test::Nhd(2, 2, 3, 32, 20), Mixed(32, 48, 0), Mixed(32, 40, 300)}) {
      const Pool pool(geometry, 24, scratch);
      for (const uint64_t unit : {16, 32, 64, 40}) {
        if (unit != 32 && geometry.groups.size() > 1) continue;  // one element a block: equal blocks
        DigestRequest request = Whole(24, 32, unit);
        CHECK_EQ(pool.Wrong(request), 0u);
        // A sample, and a pull that begins and ends inside blocks.
        std::erase_if(request.ranges, [](const TokenRange& range) { return range.from / 32 % 3 == 1; });
        request.ranges.front().from += 5;
        request.ranges.back().to -= 7;
        CHECK_EQ(pool.Wrong(request), 0u);
      }
    }
  }
}

TEST(
    "parts of the layers and heads, and tables without the first blocks, have the digests of the processor") {
  for (const Geometry& geometry : {test::Hnd(5, 2, 6, 16, 32, 2, 4), Mixed(16, 16, 100)}) {
    const Pool pool(geometry, 16);
    DigestRequest request = Whole(16, 16, 16);
    request.ranges.push_back({19, 200});
    for (const Part& part :
         {Part{3, 2, 5, 3, true}, {0, 2, 0, 5, false}, {0, 1, 1, 1, true}, {40, 1, 0, 9, true}}) {
      request.part = part;
      CHECK_EQ(pool.Wrong(request), 0u);
    }
    request.part = test::All();
    request.table.erase(request.table.begin(), request.table.begin() + 5);
    std::erase_if(request.ranges, [](const TokenRange& range) { return range.from < 80; });
    CHECK_EQ(pool.Wrong(request), 0u);
  }
}

TEST("a range that is larger than the scratch memory makes it larger") {
  const Pool pool(test::Hnd(8, 2, 8, 32, 256), 8, uint64_t{1} << 16);
  CHECK_EQ(pool.Wrong(Whole(8, 32, 32)), 0u);
  CHECK_EQ(pool.Wrong(Whole(8, 32, 256)), 0u);
}

TEST("digests that are cancelled end without any") {
  const Pool pool(test::Hnd(8, 2, 8, 32, 256), 64);
  const auto before = pool.Run(Whole(64, 32, 32), true);
  CHECK(before->complete == !before->digests.empty());
  CHECK_EQ(pool.Wrong(Whole(64, 32, 32)), 0u);
}

TEST("whatever CUDA refuses, the digests end without any, and the next ones are right") {
  if (test::OnRealGpu()) SKIP("a real GPU does not fail on demand");
  const Pool pool(test::Hnd(2, 2, 2, 32, 64), 8);
  const DigestRequest request = Whole(8, 32, 32);
  for (const char* failing : {"cuCtxSetCurrent", "cuMemCreate", "cuMemHostAlloc", "cuMemcpyHtoDAsync",
                              "cuLaunchKernel", "kvt_gather", "kvt_digest_sums", "kvt_digest_ends",
                              "cuMemcpyDtoHAsync", "cuEventRecord", "cuEventSynchronize"}) {
    setenv("KVT_FAKE_CUDA_FAILS", failing, 1);
    const auto work = pool.Run(request);
    unsetenv("KVT_FAKE_CUDA_FAILS");
    CHECK(!work->complete && work->digests.empty());
  }
  CHECK_EQ(pool.Wrong(request), 0u);
}

KVT_TEST_MAIN
