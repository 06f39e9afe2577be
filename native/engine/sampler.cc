#include "engine/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_map>

namespace kvt::engine {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr int32_t kMaxAlternatives = 20;

// The order of every choice: higher logit first, then lower id.
auto Better(std::span<const float> logits) {
  return
      [logits](uint32_t a, uint32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
}

uint32_t Best(std::span<const float> logits) {
  uint32_t best = 0;
  for (uint32_t id = 1; id < logits.size(); ++id) {
    if (logits[id] > logits[best]) best = id;
  }
  return best;
}

// log of the sum of exp(logits): what turns a logit into a log probability.
double LogSumExp(std::span<const float> logits) {
  const double highest = logits[Best(logits)];
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - highest);
  return highest + std::log(sum);
}

void AddAlternatives(std::span<const float> logits, double log_sum, int32_t count, Sample& sample) {
  std::vector<uint32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0u);
  const size_t wanted = std::min<size_t>(static_cast<size_t>(count), ids.size());
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(wanted), ids.end(),
                    Better(logits));
  for (size_t i = 0; i < wanted; ++i) {
    sample.top_tokens.push_back(ids[i]);
    sample.top_logprobs.push_back(static_cast<float>(logits[ids[i]] - log_sum));
  }
}

bool HasPenalty(const Sampling& sampling) {
  return sampling.repetition_penalty != 1 || sampling.presence_penalty != 0 ||
         sampling.frequency_penalty != 0;
}

void ApplyPenalties(std::span<float> logits, const Sampling& sampling) {
  std::unordered_map<uint32_t, uint32_t> output_counts;  // 0 for tokens of the prompt only
  for (size_t i = 0; i < sampling.history.size(); ++i) {
    output_counts[sampling.history[i]] += i >= sampling.prompt_tokens ? 1 : 0;
  }
  for (const auto& [token, count] : output_counts) {
    double logit = logits[token];
    logit = logit > 0 ? logit / sampling.repetition_penalty : logit * sampling.repetition_penalty;
    if (count > 0) logit -= sampling.presence_penalty + sampling.frequency_penalty * count;
    logits[token] = static_cast<float>(logit);
  }
}

// Ids in the order in which the draw walks them, with their weights exp((logit - highest) / temperature).
struct Candidates {
  std::vector<uint32_t> ids;
  std::vector<double> weights;
  double total = 0;

  void Add(uint32_t id, double weight) {
    ids.push_back(id);
    weights.push_back(weight);
    total += weight;
  }
};

Candidates Filter(std::span<const float> logits, const Sampling& sampling) {
  const double highest = logits[Best(logits)];
  const auto weight = [&](uint32_t id) { return std::exp((logits[id] - highest) / sampling.temperature); };
  Candidates kept;
  for (uint32_t id = 0; id < logits.size(); ++id) {
    if (logits[id] == kNever) continue;
    const double own = weight(id);
    if (own >= sampling.min_p) kept.Add(id, own);  // the best has weight 1
  }
  const bool all = (sampling.top_k == 0 || sampling.top_k >= kept.ids.size()) && sampling.top_p >= 1;
  if (all) return kept;

  std::vector<uint32_t>& heap = kept.ids;
  const auto worse = [better = Better(logits)](uint32_t a, uint32_t b) { return better(b, a); };
  std::make_heap(heap.begin(), heap.end(), worse);
  const size_t limit = sampling.top_k == 0 ? heap.size() : std::min<size_t>(sampling.top_k, heap.size());
  // With top_k, top_p counts shares of what top_k left.
  Candidates best;
  double share_of = kept.total;
  if (limit < heap.size()) {
    std::vector<uint32_t> rest = heap;
    share_of = 0;
    for (size_t i = 0; i < limit; ++i) {
      std::pop_heap(rest.begin(), rest.end(), worse);
      share_of += weight(rest.back());
      rest.pop_back();
    }
  }
  while (best.ids.size() < limit && (best.ids.empty() || best.total < sampling.top_p * share_of)) {
    std::pop_heap(heap.begin(), heap.end(), worse);
    best.Add(heap.back(), weight(heap.back()));
    heap.pop_back();
  }
  return best;
}

uint32_t Draw(const Candidates& candidates, const Sampling& sampling) {
  const double aim = UniformAt(sampling.seed, sampling.index) * candidates.total;
  double passed = 0;
  for (size_t i = 0; i < candidates.ids.size(); ++i) {
    passed += candidates.weights[i];
    if (aim < passed) return candidates.ids[i];
  }
  return candidates.ids.back();
}

bool AllInside(std::span<const uint32_t> ids, uint32_t vocab) {
  return std::all_of(ids.begin(), ids.end(), [vocab](uint32_t id) { return id < vocab; });
}

}  // namespace

double UniformAt(uint64_t seed, uint64_t index) {
  std::array<uint32_t, 4> counter = {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0};
  std::array<uint32_t, 2> key = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t even = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t odd = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(odd >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(odd),
               static_cast<uint32_t>(even >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(even)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  const uint64_t bits = (uint64_t{counter[0]} << 32) | counter[1];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

MaybeFailure CheckSampling(const Sampling& sampling, uint32_t vocab) {
  const auto wrong = [](const std::string& why) { return Failure{Fault::kArgument, "sampling: " + why}; };
  // Written so that NaN fails.
  if (!(sampling.temperature >= 0 && sampling.temperature <= 1e6))
    return wrong("temperature is not in 0 .. 1e6");
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) return wrong("topP is not in (0, 1]");
  if (!(sampling.min_p >= 0 && sampling.min_p <= 1)) return wrong("minP is not in 0 .. 1");
  if (!(sampling.repetition_penalty > 0 && sampling.repetition_penalty <= 1e6)) {
    return wrong("repetitionPenalty is not in (0, 1e6]");
  }
  if (!(std::abs(sampling.presence_penalty) <= 1e6)) return wrong("presencePenalty is no number up to 1e6");
  if (!(std::abs(sampling.frequency_penalty) <= 1e6)) return wrong("frequencyPenalty is no number up to 1e6");
  if (sampling.logprobs < -1 || sampling.logprobs > kMaxAlternatives)
    return wrong("logprobs is not in -1 .. 20");
  if (!AllInside(sampling.history, vocab)) return wrong("history holds an id outside the vocabulary");
  if (!AllInside(sampling.banned, vocab)) return wrong("banned holds an id outside the vocabulary");
  for (const auto& [token, bias] : sampling.bias) {
    if (token >= vocab) return wrong("bias holds an id outside the vocabulary");
    if (!(std::abs(bias) <= 1e6)) return wrong("a bias is no number up to 1e6");
  }
  return std::nullopt;
}

Sample SampleToken(std::span<float> logits, const Sampling& sampling) {
  // Blocks hold what a peer sent: even NaN must give a token.
  for (float& logit : logits) {
    if (std::isnan(logit)) logit = kNever;
  }
  Sample sample;
  std::vector<float> untouched;
  double log_sum = 0;
  if (sampling.logprobs >= 0) {
    untouched.assign(logits.begin(), logits.end());
    log_sum = LogSumExp(untouched);
    AddAlternatives(untouched, log_sum, sampling.logprobs, sample);
  }
  for (const auto& [token, bias] : sampling.bias) logits[token] += static_cast<float>(bias);
  if (HasPenalty(sampling)) ApplyPenalties(logits, sampling);
  for (const uint32_t token : sampling.banned) logits[token] = kNever;

  // No finite logit may be left (a peer's blocks held garbage, or everything is banned). One row's trouble
  // must not fail the batch that it shares, so it gets the best id by the same order.
  const uint32_t best = Best(logits);
  const bool draw = sampling.temperature > 0 && std::isfinite(logits[best]);
  sample.token = draw ? Draw(Filter(logits, sampling), sampling) : best;
  sample.logprob =
      sampling.logprobs >= 0 ? untouched[sample.token] - log_sum : std::numeric_limits<double>::quiet_NaN();
  return sample;
}

}  // namespace kvt::engine
