#include "base/status.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <set>
#include <string>

namespace ferry {
namespace {

TEST(Status, IsOkOnlyWithCodeOk) {
  EXPECT_TRUE(Status().ok());
  EXPECT_FALSE(Status(Code::no_space, ENOSPC).ok());
  EXPECT_EQ(Status(Code::no_space, ENOSPC).sys_errno, ENOSPC);
  EXPECT_NE(Status(Code::io_error, EIO), Status(Code::io_error, EPIPE));
}

TEST(Status, EveryCodeHasATextOfItsOwn) {
  std::set<std::string> texts;
  unsigned codes = 0;
  for (unsigned value = 0; value < 100; ++value) {
    const std::string text = to_string(static_cast<Code>(value));
    if (text == "unknown code") continue;
    ++codes;
    EXPECT_TRUE(texts.insert(text).second) << text << " stands for two codes";
  }
  EXPECT_EQ(codes, texts.size());
  EXPECT_GE(codes, 19U);
  EXPECT_STREQ(to_string(static_cast<Code>(9999)), "unknown code");
}

TEST(Result, HoldsAValueOrAStatus) {
  Result<int> good = 7;
  ASSERT_TRUE(good);
  EXPECT_EQ(good.value(), 7);
  EXPECT_TRUE(good.status().ok());
  Result<int> bad = Status(Code::no_memory, ENOMEM);
  EXPECT_FALSE(bad);
  EXPECT_EQ(bad.status(), Status(Code::no_memory, ENOMEM));
}

TEST(Result, MovesValuesThatCannotBeCopied) {
  Result<std::unique_ptr<int>> held = std::make_unique<int>(3);
  const std::unique_ptr<int> taken = std::move(held).value();
  EXPECT_EQ(*taken, 3);
}

TEST(ResultDeathTest, WrongUseStopsTheProgram) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(static_cast<void>(Result<int>(Code::no_memory).value()), "has_value_ does not hold");
  EXPECT_DEATH(static_cast<void>(Result<int>(Status())), "does not hold");
}

TEST(CheckDeathTest, PrintsValuesAndTheWayBack) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(
      {
        set_check_context("ferry sim --seed 7");
        FERRY_CHECK_EQ(1 + 1, 3);
      },
      "2 against 3(.|\n)*again with: ferry sim --seed 7");
}

}  // namespace
}  // namespace ferry
