// Belady's MIN against an exhaustive search, against sequences worked out by hand, and the recorder that feeds it.
#include "belady.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

namespace ferry::bench {
namespace {

std::vector<GranuleAccess> reads(const std::vector<std::uint32_t>& granules) {
  std::vector<GranuleAccess> accesses;
  for (const std::uint32_t granule : granules) accesses.push_back({.granule = granule, .is_write = false});
  return accesses;
}

struct Cost {
  std::uint64_t loads = UINT64_MAX;
  std::uint64_t moved = UINT64_MAX;
};

/// Every schedule there is, by trying every victim: the fewest loads of any, and the fewest granules moved of any.
/// Granules are 0..7; memory and dirty are bit sets.
Cost exhaustive(const std::vector<GranuleAccess>& accesses, std::size_t at, std::size_t capacity, unsigned memory,
                unsigned dirty) {
  if (at == accesses.size()) return {.loads = 0, .moved = 0};
  const unsigned bit = 1U << accesses[at].granule;
  const unsigned dirty_after = accesses[at].is_write ? bit : 0;
  if ((memory & bit) != 0) return exhaustive(accesses, at + 1, capacity, memory, dirty | dirty_after);
  Cost best;
  const auto consider = [&](unsigned kept, unsigned kept_dirty, std::uint64_t write_backs) {
    const Cost rest = exhaustive(accesses, at + 1, capacity, kept | bit, kept_dirty | dirty_after);
    best.loads = std::min(best.loads, rest.loads + 1);
    best.moved = std::min(best.moved, rest.moved + 1 + write_backs);
  };
  if (static_cast<std::size_t>(__builtin_popcount(memory)) < capacity) {
    consider(memory, dirty, 0);
    return best;
  }
  for (unsigned victim = 0; victim < 8; ++victim) {
    const unsigned victim_bit = 1U << victim;
    if ((memory & victim_bit) == 0) continue;
    consider(memory & ~victim_bit, dirty & ~victim_bit, (dirty & victim_bit) != 0 ? 1 : 0);
  }
  return best;
}

TEST(BeladyMin, NothingMovesTwiceWhenAllFits) {
  const MinResult result = belady_min(reads({0, 1, 2, 0, 1, 2, 2, 1, 0}), 3);
  EXPECT_EQ(result.loads, 3U);
  EXPECT_EQ(result.write_backs, 0U);
}

TEST(BeladyMin, TextbookSequence) {
  // Silberschatz's page reference string with three frames: nine faults under the optimal policy.
  const MinResult result = belady_min(reads({7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1}), 3);
  EXPECT_EQ(result.loads, 9U);
}

TEST(BeladyMin, CyclicScanKeepsAllButOne) {
  // Four granules over and over in a memory of three, where least-recently-used would miss every time.
  std::vector<std::uint32_t> sequence;
  for (int lap = 0; lap < 30; ++lap) {
    for (std::uint32_t granule = 0; granule < 4; ++granule) sequence.push_back(granule);
  }
  const MinResult result = belady_min(reads(sequence), 3);
  // After the three cold loads, one miss in every three accesses.
  EXPECT_EQ(result.loads, 3U + (sequence.size() - 3 + 2) / 3);
}

TEST(BeladyMin, WrittenGranulesAreWrittenBackOnceAnEviction) {
  const std::vector<GranuleAccess> accesses = {{0, true}, {0, true}, {1, false}, {0, false}, {1, true}, {1, false}};
  const MinResult result = belady_min(accesses, 1);
  EXPECT_EQ(result.loads, 4U);
  // 0 was dirty at its first eviction and clean at its second; 1 was clean at its first and is dirty, unevicted, at the end.
  EXPECT_EQ(result.write_backs, 1U);
}

TEST(BeladyMin, OfGranulesNeverUsedAgainACleanOneGoesFirst) {
  const std::vector<GranuleAccess> accesses = {{0, true}, {1, false}, {2, false}};
  const MinResult result = belady_min(accesses, 2);
  EXPECT_EQ(result.loads, 3U);
  EXPECT_EQ(result.write_backs, 0U);
}

TEST(BeladyMin, LoadsAreTheMinimumOverAllSchedules) {
  std::mt19937 random(20);
  std::uint64_t writes_seen = 0;
  for (int round = 0; round < 300; ++round) {
    std::vector<GranuleAccess> accesses(4 + random() % 10);
    const std::uint64_t granules = 2 + random() % 5;
    for (GranuleAccess& access : accesses)
      access = {.granule = static_cast<std::uint32_t>(random() % granules), .is_write = random() % 3 == 0};
    for (std::size_t capacity = 1; capacity <= 4; ++capacity) {
      const MinResult result = belady_min(accesses, capacity);
      const Cost best = exhaustive(accesses, 0, capacity, 0, 0);
      ASSERT_EQ(result.loads, best.loads) << "round " << round << " capacity " << capacity;
      // One schedule among all: it cannot move less than the best of them.
      ASSERT_GE(result.moved(), best.moved) << "round " << round << " capacity " << capacity;
      writes_seen += result.write_backs;
    }
  }
  EXPECT_GT(writes_seen, 0U);
}

TEST(BeladyMin, RefusesAMemoryOfNothing) { EXPECT_THROW((void)belady_min(reads({0}), 0), std::invalid_argument); }

TEST(AccessRecorder, KeepsAGranuleOnceAWaveAndJoinsItsWrites) {
  alignas(4096) static char memory[3 * 4096];
  AccessRecorder recorder(4096);
  recorder.touch(memory, 8, false);
  recorder.touch(memory + 4096, 8, false);
  recorder.touch(memory + 8, 8, true);
  recorder.end_wave();
  recorder.touch(memory + 16, 8, false);
  recorder.end_wave();
  const std::vector<GranuleAccess> expected = {{0, true}, {1, false}, {0, false}};
  EXPECT_EQ(recorder.accesses(), expected);
  EXPECT_EQ(recorder.granules(), 2U);
}

TEST(AccessRecorder, AnAccessOverAGranulesEdgeTouchesBoth) {
  alignas(4096) static char memory[2 * 4096];
  AccessRecorder recorder(4096);
  recorder.touch(memory + 4092, 8, true);
  recorder.end_wave();
  const std::vector<GranuleAccess> expected = {{0, true}, {1, true}};
  EXPECT_EQ(recorder.accesses(), expected);
}

TEST(AccessRecorder, RefusesAGranuleThatIsNoPowerOfTwo) { EXPECT_THROW(AccessRecorder(3000), std::invalid_argument); }

}  // namespace
}  // namespace ferry::bench
