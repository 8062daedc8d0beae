#include <gtest/gtest.h>

#include "manager/watermark.h"

namespace ferry::manager {
namespace {

TEST(Watermark, WithoutABudgetNothingIsEverWanted) {
  Watermark none;
  EXPECT_EQ(none.want(1, 1'000'000), 0U);
}

TEST(Watermark, AsksWhenLittleIsFreeAndOnceForTheSame) {
  Watermark mark(4096, 16);
  std::uint64_t used = 0;
  while (mark.want(1, used) == 0) ASSERT_LT(++used, 4096U) << "never asked";
  EXPECT_GT(used, 4096U * 7 / 8) << "asks while there is plenty";
  EXPECT_LT(used, 4096U) << "asks only when all is used";
  EXPECT_EQ(mark.want(2, used + 16), 0U) << "what was asked for has not had its time";
  const std::uint64_t later = mark.want(10'000'000, used + 16);
  EXPECT_GT(later, 0U) << "what was asked for never came";
  EXPECT_LE(later, 4096U / 4);
}

TEST(Watermark, AsksAnewAfterThereWasEnough) {
  Watermark mark(4096, 16);
  ASSERT_NE(mark.want(1, 4090), 0U);
  ASSERT_EQ(mark.want(2, 2000), 0U);
  EXPECT_NE(mark.want(3, 4090), 0U);
}

TEST(Watermark, OfASmallBudgetItAsksForLittle) {
  Watermark mark(512, 512);
  EXPECT_EQ(mark.want(1, 400), 0U);
  const std::uint64_t wanted = mark.want(2, 512);
  EXPECT_GT(wanted, 0U);
  EXPECT_LE(wanted, 64U);
}

}  // namespace
}  // namespace ferry::manager
