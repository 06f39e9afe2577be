// The slot tables of staged transfers, explored in seeded worlds (spec lease-model.md): credits that are
// lost, readers that hang, leases that end; and whether defects put in their place are found.
#include "test/check.h"
#include "test/slot_world.h"

namespace {

using namespace kvt;        // NOLINT: a test
using namespace kvt::test;  // NOLINT

constexpr uint64_t kSeeds = 3'000;

struct Found {
  uint64_t worlds = 0;  // with something wrong
  uint64_t seed = 0;    // of the first
  std::set<std::string> what;
  std::map<std::string, uint64_t> seen;
};

Found Explore(Defect defect, bool faults, uint64_t seeds = kSeeds) {
  Found found;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    SlotWorld world({seed, faults, defect});
    const auto wrong = world.Run();
    for (const auto& [what, count] : world.seen) found.seen[what] += count;
    if (wrong.empty()) continue;
    if (found.worlds++ == 0) found.seed = seed;
    found.what.insert(wrong.begin(), wrong.end());
  }
  return found;
}

void Print(const Found& found) {
  std::printf("  wrong in %llu worlds", static_cast<unsigned long long>(found.worlds));
  if (found.worlds > 0) std::printf(", first with seed %llu", static_cast<unsigned long long>(found.seed));
  for (const std::string& what : found.what) std::printf("; %s", what.c_str());
  std::printf("\n");
}

// Only in worlds with that defect, and with that finding.
void Catches(Defect defect, const char* finding, bool faults = true) {
  const Found found = Explore(defect, faults);
  Print(found);
  CHECK(found.what.contains(finding));
}

}  // namespace

TEST("without a fault every transfer is accepted, with the right bytes") {
  const Found found = Explore(Defect::kNone, false);
  Print(found);
  CHECK(found.worlds == 0);
  CHECK(found.seen.at("accepted") > kSeeds && !found.seen.contains("failed"));
}

TEST(
    "whatever is lost, hangs, fails or ends early: right bytes or none, every slot comes back, all comes to "
    "rest") {
  const Found found = Explore(Defect::kNone, true);
  Print(found);
  CHECK(found.worlds == 0);
  for (const char* what : {"accepted", "failed", "late", "cancels", "cuts", "messages lost", "hung reads",
                           "stalls", "packs stopped", "unpacks stopped", "wedges"}) {
    const auto seen = found.seen.find(what);
    std::printf("  %s: %llu\n", what,
                static_cast<unsigned long long>(seen == found.seen.end() ? 0 : seen->second));
    CHECK(seen != found.seen.end());
  }
}

TEST("defect 3, a slot reused while its pack runs, is found") {
  Catches(Defect::kReuseWhilePacking, "two packs write into one slot");
  Catches(Defect::kReuseWhilePacking, "wrong bytes");
}

TEST("defect 13, CHUNK_DONE when the read is posted, is found") {
  Catches(Defect::kDoneWhenPosted, "wrong bytes", false);
}

TEST("defect 14, CHUNK before the pack is terminal, is found") {
  Catches(Defect::kChunkBeforePacked, "wrong bytes", false);
}

TEST("defect 18, a receiver's slot taken before CHUNK, is found") {
  Catches(Defect::kSlotBeforeChunk, "a transfer fails without a fault", false);
}

TEST("defect 21, slots of an ended transfer that are not returned, is found") {
  Catches(Defect::kSlotsNotReturned, "sender slots are not returned");
}

TEST("a stalled slot that nobody is told of is found") {
  Catches(Defect::kStallNotTold, "it does not come to rest");
}

int main(int argc, char** argv) { return kvt::test::RunAll(argc, argv); }
