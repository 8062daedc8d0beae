#include "base/random.h"

#include <gtest/gtest.h>

#include <array>

namespace ferry {
namespace {

/// xoshiro256** by its published definition, for a state that its authors' splitmix64 fills.
struct Reference {
  std::array<std::uint64_t, 4> s{};
  explicit Reference(std::uint64_t x) {
    for (auto& word : s) {
      std::uint64_t z = (x += 0x9e3779b97f4a7c15U);
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
      word = z ^ (z >> 31);
    }
  }
  static std::uint64_t left(std::uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }
  std::uint64_t next() {
    const std::uint64_t result = left(s[1] * 5, 7) * 9;
    const std::uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = left(s[3], 45);
    return result;
  }
};

TEST(Random, IsThePublishedAlgorithm) {
  for (const std::uint64_t seed : {0ULL, 1ULL, 42ULL, ~0ULL}) {
    Random random(seed);
    Reference reference(seed);
    for (int i = 0; i < 1000; ++i) ASSERT_EQ(random.next(), reference.next()) << "seed " << seed << ", number " << i;
  }
}

TEST(Random, SplitmixMatchesItsTestVector) {
  // First output of splitmix64 for seed 0, as published with it.
  EXPECT_EQ(Reference(0).s[0], 0xe220a8397b1dcdafU);
}

TEST(Random, SeedsGiveOtherNumbers) { EXPECT_NE(Random(1).next(), Random(2).next()); }

TEST(Random, BelowStaysBelowAndReachesEveryValue) {
  Random random(3);
  std::array<int, 7> seen{};
  for (int i = 0; i < 7000; ++i) {
    const std::uint64_t value = random.below(7);
    ASSERT_LT(value, 7U);
    ++seen[value];
  }
  // 1000 expected each; 800 is seven standard deviations away.
  for (const int count : seen) EXPECT_GT(count, 800);
  EXPECT_EQ(random.below(1), 0U);
  for (int i = 0; i < 100; ++i) ASSERT_LT(random.below(~std::uint64_t{0}), ~std::uint64_t{0});
}

TEST(Random, ChanceIsInThousandths) {
  Random random(4);
  int hits = 0;
  for (int i = 0; i < 10000; ++i) hits += random.chance(250) ? 1 : 0;
  EXPECT_NEAR(hits, 2500, 300);
  for (int i = 0; i < 100; ++i) {
    ASSERT_FALSE(random.chance(0));
    ASSERT_TRUE(random.chance(1000));
  }
}

}  // namespace
}  // namespace ferry
