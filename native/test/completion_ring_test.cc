#include "dataplane/completion_ring.h"

#include <thread>

#include "check.h"
#include "dataplane/command_stack.h"

using namespace kvt;

namespace {

Record Numbered(size_t number) {
  Completion completion;
  completion.id = number;
  return ToRecord(completion);
}

}  // namespace

TEST("a full ring refuses, loses nothing, and tells the consumer that the producer waits") {
  CompletionRing ring;
  size_t put = 0;
  while (ring.Put(Numbered(put))) ++put;
  CHECK_EQ(put, CompletionRing::kCapacity);
  std::vector<Record> taken(10);
  const auto first = ring.Take(taken);
  CHECK_EQ(first.records, 10u);
  CHECK(first.starved);
  CHECK_EQ(taken[9][1], 9.0);
  CHECK(ring.Put(Numbered(put)));
  CHECK(!ring.Take(taken).starved);
  CHECK_EQ(ring.HighWater(), CompletionRing::kCapacity);
}

TEST("records cross from thread to thread complete and in order, also when the ring runs full") {
  constexpr size_t kRecords = 200'000;
  CompletionRing ring;
  std::atomic<bool> wake{false};
  std::thread producer([&] {
    for (size_t number = 0; number < kRecords;) {
      if (ring.Put(Numbered(number))) {
        ++number;
        continue;
      }
      // As the owner does: sleeps until the consumer says that there is room. A lost wake-up would hang here.
      while (!wake.exchange(false)) std::this_thread::yield();
    }
  });
  std::vector<Record> batch(512);
  size_t next = 0;
  bool ordered = true;
  while (next < kRecords) {
    const auto taken = ring.Take(batch);
    for (size_t index = 0; index < taken.records; ++index) {
      ordered = ordered && batch[index][1] == static_cast<double>(next++);
    }
    if (taken.starved) wake.store(true);
    if (taken.records == 0) std::this_thread::yield();
  }
  producer.join();
  CHECK(ordered);
}

TEST("commands of several threads arrive complete, each thread's in its order") {
  constexpr uint64_t kEach = 20'000;
  CommandStack stack;
  const auto push = [&](uint64_t thread) {
    for (uint64_t number = 0; number < kEach; ++number) {
      Command command;
      command.id = number;
      command.peer = thread;
      stack.Push(std::move(command));
    }
  };
  std::thread first(push, 0);
  std::thread second(push, 1);
  uint64_t next[2] = {0, 0};
  bool ordered = true;
  while (next[0] + next[1] < 2 * kEach) {
    for (const Command& command : stack.TakeAll()) {
      ordered = ordered && command.id == next[command.peer];
      ++next[command.peer];
    }
    std::this_thread::yield();
  }
  first.join();
  second.join();
  CHECK(ordered);
  CHECK(stack.empty());
  CHECK(stack.TakeAll().empty());
}

KVT_TEST_MAIN
