// A fork as the core sees it: no device reaches a page when it is answered, and nothing has moved.
#include <gtest/gtest.h>

#include "machine.h"

namespace ferry::core::test {
namespace {

constexpr PageSpan four_blocks{0, 4 * block_pages};

TEST(Fork, of_a_client_without_device_pages_is_answered_at_once) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, four_blocks, Placement::automatic).ok());
  ASSERT_TRUE(m.core.client_fork(2, 1, {7}).ok());
  m.take();
  EXPECT_TRUE(m.open.empty());
  ASSERT_TRUE(m.replied(7).has_value());
  EXPECT_TRUE(m.replied(7)->ok());
}

TEST(Fork, takes_pages_out_of_the_devices_reach_and_leaves_them_where_they_are) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, {0, 2 * block_pages}, Placement::automatic).ok());
  ASSERT_TRUE(m.core.alloc(1, 1, {2 * block_pages, 2 * block_pages}, Placement::system).ok());
  m.fault(1, Access::write);
  m.settle();
  m.fault(2 * block_pages, Access::write);
  m.settle();
  ASSERT_TRUE(m.at(1).dirty);
  ASSERT_NE(m.at(2 * block_pages).device_mapped, 0);
  ASSERT_TRUE(m.core.client_fork(++m.now, 1, {7}).ok());
  m.take();
  EXPECT_EQ(m.open_count(Verb::revoke_device), 2U);
  EXPECT_FALSE(m.replied(7).has_value()) << "the device still reaches pages";
  m.settle();
  ASSERT_TRUE(m.replied(7).has_value());
  EXPECT_EQ(m.at(1).device_mapped, 0);
  EXPECT_EQ(m.at(2 * block_pages).device_mapped, 0);
  EXPECT_TRUE(m.at(1).dirty) << "VRAM has the newest bytes as before";
  EXPECT_EQ(m.core.stats().pages_to_system, 0U);
  // Served again afterwards, without a copy.
  const std::uint64_t copied = m.core.stats().pages_to_vram;
  m.fault(1, Access::write, 50);
  m.settle();
  EXPECT_TRUE(m.went_on(50));
  EXPECT_EQ(m.core.stats().pages_to_vram, copied);
}

TEST(Fork, does_not_wait_for_freed_pages_that_a_pin_keeps_mapped) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, four_blocks, Placement::automatic).ok());
  m.fault(1, Access::write);
  m.settle();
  ASSERT_TRUE(m.core.pin(++m.now, 1, {3, 1}, 0, {5}).ok());
  m.settle();
  m.fault(3, Access::write);
  m.settle();
  ASSERT_NE(m.at(3).device_mapped, 0);
  ASSERT_TRUE(m.core.free(++m.now, 1, {3, 1}, {6}).ok());
  m.settle();
  ASSERT_FALSE(m.replied(6).has_value()) << "the pin keeps it";
  ASSERT_TRUE(m.core.client_fork(++m.now, 1, {7}).ok());
  m.settle();
  ASSERT_TRUE(m.replied(7).has_value());
  EXPECT_EQ(m.at(1).device_mapped, 0);
  ASSERT_TRUE(m.core.unpin(++m.now, 1, {3, 1}).ok());
  m.settle();
  EXPECT_TRUE(m.replied(6).has_value());
}

TEST(Fork, waits_for_what_is_under_way_and_looks_again) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, four_blocks, Placement::automatic).ok());
  m.fault(1, Access::write);
  ASSERT_TRUE(m.core.client_fork(++m.now, 1, {7}).ok());
  while (!m.replied(7).has_value() && !m.open.empty()) {
    ASSERT_TRUE(m.answer(m.open.front().verb));
    if (m.replied(7).has_value()) {
      for (Page p = 0; p < four_blocks.end(); p += 64) {
        EXPECT_EQ(m.at(p).device_mapped, 0) << p;
      }
      EXPECT_EQ(m.open_count(Verb::map_device), 0U);
    }
  }
  EXPECT_TRUE(m.replied(7).has_value());
  m.settle();
}

TEST(Fork, a_client_that_ends_meanwhile_gets_no_answer) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, four_blocks, Placement::automatic).ok());
  m.fault(1, Access::write);
  m.settle();
  ASSERT_TRUE(m.core.client_fork(++m.now, 1, {7}).ok());
  m.core.device_gone(++m.now, 1, 0);
  m.core.client_gone(++m.now, 1, {8});
  m.settle();
  EXPECT_FALSE(m.replied(7).has_value());
  EXPECT_TRUE(m.replied(8).has_value());
  EXPECT_EQ(m.core.client_fork(++m.now, 1, {9}).code, Code::client_gone);
}

}  // namespace
}  // namespace ferry::core::test
