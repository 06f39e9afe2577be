// What ratio_memcpy compares with: glibc's memcpy on THREADS threads between two touched buffers of BYTES each.
// memcpy_baseline BYTES THREADS; then a line "N" on stdin copies N bytes, from a place that moves on each time,
// and answers the nanoseconds on stdout.
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

char* Buffer(size_t bytes) {
  // Shared memory, as our pools are.
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) exit(2);
  memset(data, 7, bytes);
  return static_cast<char*>(data);
}

class Crew {
 public:
  Crew(char* target, const char* source, unsigned threads) : target_(target), source_(source), threads_(threads) {
    for (unsigned index = 0; index < threads; ++index) {
      std::thread([this, index] { Run(index); }).detach();
    }
  }

  // From the moment the work is given to the last thread's end, as our movingUs is.
  long long Copy(size_t offset, size_t bytes) {
    offset_ = offset;
    bytes_ = bytes;
    finished_.store(0);
    const auto start = Clock::now();
    round_.fetch_add(1);
    round_.notify_all();
    for (unsigned done = finished_.load(); done < threads_; done = finished_.load()) finished_.wait(done);
    return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
  }

 private:
  [[noreturn]] void Run(unsigned index) {
    for (unsigned round = 0;; ++round) {
      round_.wait(round);
      const size_t share = bytes_ / threads_;
      const size_t from = offset_ + index * share;
      memcpy(target_ + from, source_ + from, index + 1 == threads_ ? bytes_ - index * share : share);
      finished_.fetch_add(1);
      finished_.notify_all();
    }
  }

  char* const target_;
  const char* const source_;
  const unsigned threads_;
  size_t offset_ = 0;
  size_t bytes_ = 0;
  std::atomic<unsigned> round_{0};
  std::atomic<unsigned> finished_{0};
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const size_t size = strtoull(argv[1], nullptr, 10);
  const auto threads = static_cast<unsigned>(strtoul(argv[2], nullptr, 10));
  Crew crew(Buffer(size), Buffer(size), threads);
  size_t offset = 0;
  size_t bytes = 0;
  printf("ready\n");
  fflush(stdout);
  while (scanf("%zu", &bytes) == 1) {
    if (offset + bytes > size) offset = 0;
    printf("%lld\n", crew.Copy(offset, bytes));
    fflush(stdout);
    offset += bytes;
  }
  // Without destructors: the threads wait for ever.
  _Exit(0);
}
