#include <gtest/gtest.h>

#include "manager/command.h"

namespace ferry::manager {
namespace {

TEST(Commands, NumbersAreBelievedOnlyWhileAlive) {
  CommandPool pool;
  std::uint32_t found = 0;
  EXPECT_FALSE(pool.find(0, found));
  EXPECT_FALSE(pool.find(1, found));
  const std::uint32_t a = pool.make();
  const std::uint32_t b = pool.make();
  const std::uint64_t wire_a = pool.wire_id(a);
  ASSERT_TRUE(pool.find(wire_a, found));
  EXPECT_EQ(found, a);
  EXPECT_NE(wire_a, pool.wire_id(b));
  EXPECT_EQ(pool.live(), 2U);
  pool.release(a);
  EXPECT_FALSE(pool.find(wire_a, found)) << "answered twice";
  const std::uint32_t c = pool.make();
  EXPECT_EQ(c, a) << "the place is used again";
  EXPECT_FALSE(pool.find(wire_a, found)) << "an answer to the earlier one";
  EXPECT_TRUE(pool.find(pool.wire_id(c), found));
  EXPECT_FALSE(pool.find(pool.wire_id(c) ^ (std::uint64_t{1} << 40), found));
  EXPECT_FALSE(pool.find(~std::uint64_t{0}, found));
}

}  // namespace
}  // namespace ferry::manager
