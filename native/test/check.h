#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

// The smallest test runner that names what failed: the C++ tests must build in a fresh clone with nothing but
// a compiler.
namespace kvt::test {

struct Case {
  const char* name;
  std::function<void()> body;
};

inline std::vector<Case>& Cases() {
  static std::vector<Case> cases;
  return cases;
}

inline int& Failures() {
  static int failures = 0;
  return failures;
}

// Why the running test can't be run here; empty while it can.
inline std::string& SkipReason() {
  static std::string reason;
  return reason;
}

struct Register {
  Register(const char* name, std::function<void()> body) { Cases().push_back({name, std::move(body)}); }
};

inline int RunAll(int argc, char** argv) {
  int ran = 0;
  for (const Case& test : Cases()) {
    if (argc > 1 && std::string(test.name).find(argv[1]) == std::string::npos) continue;
    const int before = Failures();
    SkipReason().clear();
    test.body();
    ++ran;
    if (Failures() == before && !SkipReason().empty()) {
      std::printf("skip %s: %s\n", test.name, SkipReason().c_str());
    } else {
      std::printf("%s %s\n", Failures() == before ? "ok  " : "FAIL", test.name);
    }
    std::fflush(stdout);
  }
  std::printf("%d tests, %d failed checks\n", ran, Failures());
  return Failures() == 0 && ran > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace kvt::test

#define KVT_JOIN2(a, b) a##b
#define KVT_JOIN(a, b) KVT_JOIN2(a, b)
#define TEST(name)                                                                                  \
  static void KVT_JOIN(Test, __LINE__)();                                                           \
  static const ::kvt::test::Register KVT_JOIN(register_, __LINE__)(name, KVT_JOIN(Test, __LINE__)); \
  static void KVT_JOIN(Test, __LINE__)()
#define CHECK(condition)                                                 \
  do {                                                                   \
    if (!(condition)) {                                                  \
      ++::kvt::test::Failures();                                         \
      std::printf("%s:%d: CHECK(%s)\n", __FILE__, __LINE__, #condition); \
    }                                                                    \
  } while (0)
#define CHECK_EQ(left, right)                                                      \
  do {                                                                             \
    if (!((left) == (right))) {                                                    \
      ++::kvt::test::Failures();                                                   \
      std::printf("%s:%d: CHECK_EQ(%s, %s)\n", __FILE__, __LINE__, #left, #right); \
    }                                                                              \
  } while (0)
// Ends the test without a verdict; the sentence says what is missing here and how to bring it.
#define SKIP(sentence)                      \
  do {                                      \
    ::kvt::test::SkipReason() = (sentence); \
    return;                                 \
  } while (0)
#define KVT_TEST_MAIN \
  int main(int argc, char** argv) { return ::kvt::test::RunAll(argc, argv); }
