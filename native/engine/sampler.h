#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/result.h"

namespace kvt::engine {

// How one token is chosen; the fields of NativeSampling in src/native/engine_binding.ts.
struct Sampling {
  double temperature = 0;  // 0 = greedy
  double top_p = 1;
  uint32_t top_k = 0;  // 0 = all
  double min_p = 0;
  double repetition_penalty = 1;  // of prompt and output
  double presence_penalty = 0;    // of the output only, as the next
  double frequency_penalty = 0;
  uint64_t seed = 0;
  uint64_t index = 0;             // of the token in the output
  std::vector<uint32_t> history;  // prompt, then output; may be empty when no penalty is set
  size_t prompt_tokens = 0;
  int32_t logprobs = -1;  // alternatives wanted, 0..20; -1 = none, nor the token's own
  std::vector<std::pair<uint32_t, double>> bias;
  std::vector<uint32_t> banned;
};

struct Sample {
  uint32_t token = 0;
  double logprob = 0;  // NaN without logprobs
  std::vector<uint32_t> top_tokens;
  std::vector<float> top_logprobs;
};

// Chooses a token. `logits` is changed. The order of steps: log probabilities of the untouched logits; bias;
// penalties; banned ids; temperature; min_p; top_k; top_p; draw. Every tie goes to the lower id. The draw
// depends on (seed, index) alone.
Sample SampleToken(std::span<float> logits, const Sampling& sampling);

// Why `sampling` can't be used with this vocabulary, if it can't.
MaybeFailure CheckSampling(const Sampling& sampling, uint32_t vocab);

// Uniform in [0, 1) with 53 bits, from Philox 4x32-10 (Salmon et al., SC 2011): key = seed, counter = index.
double UniformAt(uint64_t seed, uint64_t index);

}  // namespace kvt::engine
