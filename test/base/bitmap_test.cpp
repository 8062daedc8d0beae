// PageMask against std::bitset, which has the same meaning and none of the tricks.
#include "base/bitmap.h"

#include <gtest/gtest.h>

#include <bitset>
#include <utility>
#include <vector>

#include "base/random.h"

namespace ferry {
namespace {

using Model = std::bitset<block_pages>;

void expect_equal(const PageMask& mask, const Model& model) {
  for (unsigned i = 0; i < block_pages; ++i) ASSERT_EQ(mask.test(i), model.test(i)) << "bit " << i;
  EXPECT_EQ(mask.count(), model.count());
  EXPECT_EQ(mask.any(), model.any());
  EXPECT_EQ(mask.none(), model.none());
}

/// Ends of words are where ranges go wrong, so half of all numbers lie near one.
unsigned some_bit(Random& random) {
  if (random.chance(500)) return static_cast<unsigned>(random.below(block_pages));
  const std::uint64_t near = random.below(9) * 64 + random.below(3);
  return near == 0 ? 0 : static_cast<unsigned>(near - 1 < block_pages ? near - 1 : block_pages - 1);
}

TEST(PageMask, StartsEmptyAndAllIsFull) {
  EXPECT_TRUE(PageMask().none());
  EXPECT_EQ(PageMask::all().count(), block_pages);
  EXPECT_EQ(PageMask::range(0, block_pages), PageMask::all());
  EXPECT_TRUE(PageMask::range(17, 0).none());
}

TEST(PageMask, AgreesWithBitsetOverRandomChanges) {
  Random random(11);
  PageMask mask;
  Model model;
  for (int step = 0; step < 3000; ++step) {
    const unsigned first = some_bit(random);
    const unsigned count = static_cast<unsigned>(random.below(block_pages - first + 1));
    switch (random.below(4)) {
      case 0:
        mask.set_range(first, count);
        for (unsigned i = 0; i < count; ++i) model.set(first + i);
        break;
      case 1:
        mask.reset_range(first, count);
        for (unsigned i = 0; i < count; ++i) model.reset(first + i);
        break;
      case 2:
        mask.set(first);
        model.set(first);
        break;
      default:
        mask.reset(first);
        model.reset(first);
        break;
    }
    expect_equal(mask, model);
    ASSERT_FALSE(HasFatalFailure()) << "step " << step;
  }
}

TEST(PageMask, OperatorsAgreeWithBitset) {
  Random random(12);
  for (int round = 0; round < 300; ++round) {
    PageMask a;
    PageMask b;
    Model x;
    Model y;
    for (int i = 0; i < 40; ++i) {
      const unsigned p = some_bit(random);
      const unsigned q = some_bit(random);
      a.set(p);
      x.set(p);
      b.set(q);
      y.set(q);
    }
    expect_equal(a | b, x | y);
    expect_equal(a & b, x & y);
    expect_equal(~a, ~x);
    PageMask less = a;
    less.remove(b);
    expect_equal(less, x & ~y);
    EXPECT_EQ(a.intersects(b), (x & y).any());
    EXPECT_EQ(a.contains(b), (y & ~x).none());
    EXPECT_TRUE(a.contains(a & b));
    EXPECT_EQ(a == b, x == y);
  }
}

TEST(PageMask, FindsTheNextSetAndClearedBit) {
  Random random(13);
  for (int round = 0; round < 100; ++round) {
    PageMask mask;
    for (int i = 0; i < 6; ++i) {
      const unsigned first = some_bit(random);
      mask.set_range(first, static_cast<unsigned>(random.below(block_pages - first + 1)));
    }
    for (unsigned from = 0; from <= block_pages; ++from) {
      unsigned set = from;
      while (set < block_pages && !mask.test(set)) ++set;
      unsigned clear = from;
      while (clear < block_pages && mask.test(clear)) ++clear;
      ASSERT_EQ(mask.find_set(from), set);
      ASSERT_EQ(mask.find_clear(from), clear);
    }
  }
}

TEST(PageMask, WalksMaximalRuns) {
  Random random(14);
  for (int round = 0; round < 300; ++round) {
    PageMask mask;
    for (int i = 0; i < 10; ++i) mask.set(some_bit(random));
    if (random.chance(300)) mask.set_range(60, 200);
    std::vector<std::pair<unsigned, unsigned>> expected;
    for (unsigned i = 0; i < block_pages; ++i) {
      if (!mask.test(i)) continue;
      if (i == 0 || !mask.test(i - 1)) expected.emplace_back(i, 0);
      ++expected.back().second;
    }
    std::vector<std::pair<unsigned, unsigned>> runs;
    mask.for_each_run([&](unsigned first, unsigned count) { runs.emplace_back(first, count); });
    ASSERT_EQ(runs, expected);
  }
}

}  // namespace
}  // namespace ferry
