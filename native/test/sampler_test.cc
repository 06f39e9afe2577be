#include "engine/sampler.h"

#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "check.h"

using namespace kvt::engine;

namespace {

uint32_t Token(std::vector<float> logits, const Sampling& sampling) {
  return SampleToken(logits, sampling).token;
}

// How often each id is drawn in `draws` draws.
std::vector<int> Counts(const std::vector<float>& logits, Sampling sampling, int draws) {
  std::vector<int> counts(logits.size());
  for (int i = 0; i < draws; ++i) {
    sampling.index = static_cast<uint64_t>(i);
    ++counts[Token(logits, sampling)];
  }
  return counts;
}

std::set<uint32_t> Drawn(const std::vector<float>& logits, const Sampling& sampling) {
  std::set<uint32_t> drawn;
  const std::vector<int> counts = Counts(logits, sampling, 3000);
  for (uint32_t id = 0; id < counts.size(); ++id) {
    if (counts[id] > 0) drawn.insert(id);
  }
  return drawn;
}

std::vector<float> LogitsOf(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

using Ids = std::set<uint32_t>;

}  // namespace

TEST("greedy takes the highest logit, and the lowest id among equals") {
  CHECK_EQ(Token({1, 3, 2}, {}), 1u);
  CHECK_EQ(Token({1, 3, 3, 3}, {}), 1u);
  CHECK_EQ(Token({0, 0}, {}), 0u);
}

TEST("the generator is Philox 4x32-10: its published first output") {
  // Random123's known answers: counter 0 and key 0 give 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
  const double expected = static_cast<double>(0x6627e8d5e169c58dull >> 11) * 0x1p-53;
  CHECK_EQ(UniformAt(0, 0), expected);
}

TEST("a draw depends on seed and index alone") {
  CHECK_EQ(UniformAt(7, 3), UniformAt(7, 3));
  std::set<double> seen;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    for (uint64_t index = 0; index < 50; ++index) {
      const double value = UniformAt(seed, index);
      CHECK(value >= 0 && value < 1);
      seen.insert(value);
    }
  }
  CHECK_EQ(seen.size(), 1000u);
  CHECK(UniformAt(uint64_t{1} << 63, 0) != UniformAt(0, 0));
  CHECK(UniformAt(0, uint64_t{1} << 40) != UniformAt(0, 0));
}

TEST("frequencies follow the softmax at a temperature") {
  const std::vector<double> p = {0.5, 0.25, 0.15, 0.07, 0.03};
  for (const double temperature : {1.0, 0.5, 2.0}) {
    Sampling sampling;
    sampling.temperature = temperature;
    sampling.seed = 42;
    constexpr int kDraws = 20000;
    const std::vector<int> counts = Counts(LogitsOf(p), sampling, kDraws);
    double total = 0;
    for (const double value : p) total += std::pow(value, 1 / temperature);
    double chi_square = 0;
    for (size_t i = 0; i < p.size(); ++i) {
      const double expected = std::pow(p[i], 1 / temperature) / total * kDraws;
      chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    CHECK(chi_square < 18.5);  // 4 degrees of freedom, p = 0.001
  }
}

TEST("top_k keeps the k best, ties to the lower ids") {
  Sampling sampling;
  sampling.temperature = 1;
  sampling.top_k = 2;
  CHECK_EQ(Drawn({0, 1, 1, 1}, sampling), (Ids{1, 2}));
  sampling.top_k = 1;
  CHECK_EQ(Drawn({2, 1, 2}, sampling), (Ids{0}));
  sampling.top_k = 99;
  CHECK_EQ(Drawn({0, 0, 0}, sampling), (Ids{0, 1, 2}));
}

TEST("top_p keeps the smallest set that reaches p, never less than one") {
  const std::vector<float> logits = LogitsOf({0.1, 0.4, 0.2, 0.3});
  Sampling sampling;
  sampling.temperature = 1;
  sampling.top_p = 0.65;
  CHECK_EQ(Drawn(logits, sampling), (Ids{1, 3}));
  sampling.top_p = 0.75;
  CHECK_EQ(Drawn(logits, sampling), (Ids{1, 2, 3}));
  sampling.top_p = 1e-9;
  CHECK_EQ(Drawn(logits, sampling), (Ids{1}));
}

TEST("top_p counts shares of what top_k left") {
  Sampling sampling;
  sampling.temperature = 1;
  sampling.top_k = 2;
  sampling.top_p = 0.55;  // 0.4 of 0.7 is 0.571
  CHECK_EQ(Drawn(LogitsOf({0.1, 0.4, 0.2, 0.3}), sampling), (Ids{1}));
}

TEST("min_p drops what is less likely than its share of the best") {
  Sampling sampling;
  sampling.temperature = 1;
  sampling.min_p = 0.6;
  CHECK_EQ(Drawn(LogitsOf({0.1, 0.4, 0.2, 0.3}), sampling), (Ids{1, 3}));
  sampling.min_p = 1;
  CHECK_EQ(Drawn(LogitsOf({0.1, 0.4, 0.2, 0.3}), sampling), (Ids{1}));
}

TEST("penalties act on prompt and output as their names say") {
  Sampling sampling;
  sampling.history = {0, 1, 1};
  sampling.prompt_tokens = 1;  // the prompt is {0}, the output {1, 1}
  sampling.repetition_penalty = 2;
  CHECK_EQ(Token({3, 3.5, 1.6f}, sampling), 1u);   // 1.5, 1.75, 1.6
  CHECK_EQ(Token({3, 3.1f, 1.6f}, sampling), 2u);  // 1.5, 1.55, 1.6
  CHECK_EQ(Token({-1, -1, -1.9f}, sampling), 2u);  // -2, -2, -1.9
  sampling.repetition_penalty = 1;
  sampling.presence_penalty = 1;
  CHECK_EQ(Token({0, 1.5f, 0.6f}, sampling), 2u);  // the prompt's token 0 keeps 0, token 1 falls to 0.5
  CHECK_EQ(Token({0.7f, 1.5f, 0.6f}, sampling), 0u);
  sampling.presence_penalty = 0;
  sampling.frequency_penalty = 1;
  CHECK_EQ(Token({0, 1.5f, -0.4f}, sampling), 0u);  // token 1 appeared twice: -0.5
}

TEST("bias and bans move the choice, but not the logprobs") {
  Sampling sampling;
  sampling.bias = {{0, 5}};
  sampling.logprobs = 2;
  std::vector<float> logits = LogitsOf({0.2, 0.5, 0.3});
  const Sample sample = SampleToken(logits, sampling);
  CHECK_EQ(sample.token, 0u);
  CHECK(std::abs(sample.logprob - std::log(0.2)) < 1e-6);
  CHECK_EQ(sample.top_tokens, (std::vector<uint32_t>{1, 2}));
  CHECK(std::abs(sample.top_logprobs[0] - std::log(0.5)) < 1e-6);
  sampling = {};
  sampling.banned = {1};
  CHECK_EQ(Token(LogitsOf({0.2, 0.5, 0.3}), sampling), 2u);
  sampling.temperature = 1;
  CHECK_EQ(Drawn(LogitsOf({0.2, 0.5, 0.3}), sampling), (Ids{0, 2}));
}

TEST("logprobs are those of the untouched distribution, alternatives best first, ties to the lower id") {
  Sampling sampling;
  sampling.temperature = 0.1;
  sampling.logprobs = 20;
  std::vector<float> logits = {1, 2, 2, 0};
  const Sample sample = SampleToken(logits, sampling);
  CHECK_EQ(sample.top_tokens, (std::vector<uint32_t>{1, 2, 0, 3}));
  double sum = 0;
  for (const float logprob : sample.top_logprobs) sum += std::exp(static_cast<double>(logprob));
  CHECK(std::abs(sum - 1) < 1e-6);
  logits = {1, 2};
  sampling.logprobs = 0;
  const Sample own = SampleToken(logits, sampling);
  CHECK(own.top_tokens.empty());
  CHECK(own.logprob < 0);
  sampling.logprobs = -1;
  CHECK(std::isnan(SampleToken(logits, sampling).logprob));
}

TEST("garbage logits still give a token") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const double temperature : {0.0, 1.0}) {
    Sampling sampling;
    sampling.temperature = temperature;
    sampling.top_p = 0.5;
    sampling.logprobs = 3;
    CHECK_EQ(Token({nan, nan, nan}, sampling), 0u);
    CHECK_EQ(Token({nan, 1, nan}, sampling), 1u);
    CHECK_EQ(Token({0, infinity, infinity}, sampling), 1u);
    CHECK_EQ(Token({-infinity, -infinity}, sampling), 0u);
    sampling.banned = {0, 1};
    CHECK_EQ(Token({1, 2}, sampling), 0u);
  }
}

TEST("settings outside their range are refused by name") {
  const auto why = [](auto change) {
    Sampling sampling;
    change(sampling);
    const MaybeFailure failure = CheckSampling(sampling, 10);
    return failure ? failure->why : std::string();
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  CHECK_EQ(why([](Sampling&) {}), "");
  CHECK(has(why([&](Sampling& s) { s.temperature = nan; }), "temperature"));
  CHECK(has(why([](Sampling& s) { s.temperature = -1; }), "temperature"));
  CHECK(has(why([](Sampling& s) { s.top_p = 0; }), "topP"));
  CHECK(has(why([](Sampling& s) { s.min_p = 2; }), "minP"));
  CHECK(has(why([](Sampling& s) { s.repetition_penalty = 0; }), "repetitionPenalty"));
  CHECK(has(why([&](Sampling& s) { s.presence_penalty = nan; }), "presencePenalty"));
  CHECK(has(why([](Sampling& s) { s.frequency_penalty = 1e9; }), "frequencyPenalty"));
  CHECK(has(why([](Sampling& s) { s.logprobs = 21; }), "logprobs"));
  CHECK(has(why([](Sampling& s) { s.history = {10}; }), "history"));
  CHECK(has(why([](Sampling& s) { s.banned = {10}; }), "banned"));
  CHECK(has(why([](Sampling& s) { s.bias = {{10, 0}}; }), "bias"));
}

KVT_TEST_MAIN
