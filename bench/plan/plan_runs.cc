// How fast plans become runs: plan_runs prints `case runs blocks ns` a line, the median of some rounds. What
// a run says is added up, so that nothing is optimised away.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

#include "layout/run_cursor.h"
#include "test/geometries.h"

using namespace kvt;
using test::Hnd;
using test::Nhd;

namespace {

constexpr uint32_t kTokens = 1 << 17;
constexpr int kRounds = 15;

// A permutation in which neighbours are rare, or none at all.
std::vector<uint32_t> Table(uint32_t blocks, unsigned seed) {
  std::vector<uint32_t> table(blocks);
  std::iota(table.begin(), table.end(), 0);
  if (seed > 0) std::shuffle(table.begin(), table.end(), std::mt19937(seed));
  return table;
}

void Measure(const char* name, const Geometry& source, const Geometry& target, bool scattered = true) {
  std::string why;
  const auto plan = Plan::Compile({source}, {target}, &why);
  if (!plan) {
    std::fprintf(stderr, "%s: %s\n", name, why.c_str());
    std::exit(1);
  }
  const auto from = Table(kTokens / source.tokens_per_block, scattered ? 1 : 0);
  const auto to = Table(kTokens / target.tokens_per_block, scattered ? 2 : 0);
  const Tokens tokens{0, kTokens, kTokens};
  std::vector<double> nanos;
  uint64_t runs = 0;
  uint64_t sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    runs = 0;
    const auto start = std::chrono::steady_clock::now();
    RunCursor cursor(*plan, tokens, {from, to}, {0, plan->Units(tokens)});
    Run run;
    while (cursor.Next(&run)) {
      sum += run.source_offset ^ run.target_offset ^ run.count;
      ++runs;
    }
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
    nanos.push_back(took.count());
  }
  std::sort(nanos.begin(), nanos.end());
  std::printf("%s %llu %zu %.0f %llu\n", name, static_cast<unsigned long long>(runs), to.size(),
              nanos[kRounds / 2], static_cast<unsigned long long>(sum % 10));
}

}  // namespace

// Ranks of a model of 32 layers and 8 KV heads of 128 bf16 numbers, 32 tokens a block.
int main() {
  const auto rank = [](auto make, uint32_t tp, uint32_t tokens) {
    return make(32, 2, 8 / tp, tokens, 256, 0, 0);
  };
  Measure("tp2-to-tp4", rank(Hnd, 2, 32), rank(Hnd, 4, 32));
  Measure("tp2-to-tp4-nhd", rank(Nhd, 2, 32), rank(Nhd, 4, 32));
  Measure("hnd-to-nhd", rank(Hnd, 4, 32), rank(Nhd, 4, 32));
  Measure("blocks-32-to-16", rank(Hnd, 1, 32), rank(Hnd, 1, 16));
  Measure("equal", rank(Hnd, 1, 32), rank(Hnd, 1, 32));
  Measure("tp2-to-tp4-adjacent", rank(Hnd, 2, 32), rank(Hnd, 4, 32), false);
  return 0;
}
