#include "client/heap/window_ranges.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "client/heap/size_classes.h"

namespace ferry::client {
namespace {

constexpr std::uintptr_t base = 0x2000'0000'0000;

TEST(WindowRanges, RandomTakesAndGivesAgainstAModel) {
  for (const std::uint64_t seed : {1, 2, 3, 4}) {
    constexpr std::size_t window = std::size_t{4} << 30;
    MetadataArena arena;
    WindowRanges ranges;
    ASSERT_TRUE(ranges.init(arena, base, window));
    std::mt19937_64 random(seed);
    std::map<std::uintptr_t, std::size_t> taken;
    std::size_t taken_bytes = 0;
    for (int step = 0; step < 20000; ++step) {
      if (random() % 5 < 3) {
        const std::size_t bytes = (1 + random() % (std::size_t{1} << (random() % 11))) * heap_unit_bytes;
        const std::size_t align = heap_unit_bytes << (random() % 8);
        const std::uintptr_t at = ranges.take(bytes, align);
        if (at == 0) continue;
        ASSERT_EQ(at % align, 0U);
        ASSERT_GE(at, base);
        ASSERT_LE(at + bytes, base + window);
        const auto next = taken.lower_bound(at);
        ASSERT_TRUE(next == taken.end() || at + bytes <= next->first) << "seed " << seed << " step " << step;
        ASSERT_TRUE(next == taken.begin() || std::prev(next)->first + std::prev(next)->second <= at);
        taken[at] = bytes;
        taken_bytes += bytes;
      } else if (!taken.empty()) {
        auto which = taken.lower_bound(base + random() % window);
        if (which == taken.end()) which = taken.begin();
        ranges.give(which->first, which->second);
        taken_bytes -= which->second;
        taken.erase(which);
      }
      ASSERT_EQ(ranges.free_bytes(), window - taken_bytes);
    }
    for (const auto& [at, bytes] : taken) ranges.give(at, bytes);
    // All merged again: the whole is one range.
    EXPECT_EQ(ranges.take(window, heap_unit_bytes), base) << "seed " << seed;
    EXPECT_EQ(ranges.take(heap_unit_bytes, heap_unit_bytes), 0U);
  }
}

TEST(WindowRanges, FillsToTheLastUnit) {
  MetadataArena arena;
  WindowRanges ranges;
  ASSERT_TRUE(ranges.init(arena, base, 64 * heap_unit_bytes));
  std::set<std::uintptr_t> seen;
  for (int i = 0; i < 64; ++i) seen.insert(ranges.take(heap_unit_bytes, heap_unit_bytes));
  EXPECT_EQ(seen.size(), 64U);
  EXPECT_FALSE(seen.contains(0));
  EXPECT_EQ(ranges.take(heap_unit_bytes, heap_unit_bytes), 0U);
  ranges.give(base + 5 * heap_unit_bytes, heap_unit_bytes);
  EXPECT_EQ(ranges.take(2 * heap_unit_bytes, heap_unit_bytes), 0U);
  EXPECT_EQ(ranges.take(heap_unit_bytes, heap_unit_bytes), base + 5 * heap_unit_bytes);
}

TEST(WindowRanges, FindsTheOneAlignedHoleBehindManyThatAreNot) {
  // More holes of the right size than a first look goes through, only the last one aligned.
  constexpr std::size_t holes = 200;
  constexpr std::size_t stride = 64;  // units
  MetadataArena arena;
  WindowRanges ranges;
  ASSERT_TRUE(ranges.init(arena, base, holes * stride * heap_unit_bytes));
  for (std::size_t i = 0; i < holes * stride; ++i) ASSERT_NE(ranges.take(heap_unit_bytes, heap_unit_bytes), 0U);
  const auto free_two = [&](std::size_t unit) { ranges.give(base + unit * heap_unit_bytes, 2 * heap_unit_bytes); };
  for (std::size_t i = 0; i + 1 < holes; ++i) free_two(i * stride + 1);
  free_two((holes - 1) * stride);
  EXPECT_EQ(ranges.take(2 * heap_unit_bytes, 64 * heap_unit_bytes), base + (holes - 1) * stride * heap_unit_bytes);
}

TEST(WindowRanges, ReusesTheOldestHoleFirst) {
  MetadataArena arena;
  WindowRanges ranges;
  ASSERT_TRUE(ranges.init(arena, base, std::size_t{1} << 30));
  std::uintptr_t at[6];
  for (auto& a : at) a = ranges.take(heap_unit_bytes, heap_unit_bytes);
  ranges.give(at[3], heap_unit_bytes);
  ranges.give(at[1], heap_unit_bytes);
  EXPECT_EQ(ranges.take(heap_unit_bytes, heap_unit_bytes), at[3]);
  EXPECT_EQ(ranges.take(heap_unit_bytes, heap_unit_bytes), at[1]);
}

}  // namespace
}  // namespace ferry::client
