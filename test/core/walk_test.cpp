// Walks over spans as large as a window can be: they look at a bounded number of granules before others have their turn,
// begin a bounded number of operations, and leave nothing behind where they found nothing to do.
#include <gtest/gtest.h>

#include <vector>

#include "machine.h"

namespace ferry::core::test {
namespace {

constexpr std::uint64_t huge_pages = std::uint64_t{1} << 24;  // 64 GiB, 32768 blocks
constexpr PageSpan huge{0, huge_pages};

Config counted_config() {
  Config config = plain_config();
  config.system_pages = 64 * block_pages;
  config.store_pages = 64 * block_pages;
  return config;
}

/// Lets the walk go on until it is answered, and nothing else. How often it rested.
unsigned rests_until_replied(Machine& m, std::uint64_t cookie) {
  unsigned rests = 0;
  for (m.take(); !m.replied(cookie); ++rests) {
    EXPECT_TRUE(m.open.empty());
    EXPECT_TRUE(m.go_on()) << "nothing is under way, and it is not answered";
    if (rests > huge_pages / block_pages) break;
  }
  return rests;
}

TEST(Walk, a_move_of_what_nobody_touched_rests_and_ends) {
  Machine m(counted_config());
  ASSERT_TRUE(m.core.alloc(1, 1, huge, Placement::automatic).ok());
  ASSERT_TRUE(m.core.alloc(1, 1, {huge_pages, huge_pages}, Placement::automatic).ok());
  ASSERT_TRUE(m.core.change(++m.now, 1, Change::move, huge, huge_pages, 0, {7}).ok());
  EXPECT_FALSE(m.core.quiescent());
  EXPECT_GE(rests_until_replied(m, 7), 10U);
  EXPECT_TRUE(m.replied(7)->ok());
  EXPECT_TRUE(m.core.quiescent());
  EXPECT_EQ(m.core.next_tick_ns(), ~std::uint64_t{0});
}

TEST(Walk, a_move_finds_the_one_page_that_was_written) {
  for (const bool counted : {false, true}) {
    Machine m(counted ? counted_config() : plain_config());
    ASSERT_TRUE(m.core.alloc(1, 1, {0, huge_pages / 16}, Placement::automatic).ok());
    ASSERT_TRUE(m.core.alloc(1, 1, {huge_pages, huge_pages / 16}, Placement::automatic).ok());
    const Page page = huge_pages / 32 + 5;
    m.fault(page, Access::write);
    m.settle();
    ASSERT_TRUE(m.core.change(++m.now, 1, Change::move, {0, huge_pages / 16}, huge_pages, 0, {7}).ok());
    std::size_t most = 0;
    for (m.take(); !m.open.empty() || m.go_on(); m.take()) {
      most = std::max(most, m.open.size());
      if (m.open.empty()) continue;
      const Action action = m.open.back();
      m.open.pop_back();
      m.core.action_done(++m.now, action.id, {});
    }
    EXPECT_LE(most, 64U);
    ASSERT_TRUE(m.replied(7) && m.replied(7)->ok());
    EXPECT_TRUE(m.at(huge_pages + page).dirty);
    EXPECT_EQ(m.at(page).vram_device, no_device);
    m.core.verify();
  }
}

TEST(Walk, a_discard_begins_a_bounded_number_of_operations) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, {0, huge_pages / 16}, Placement::automatic).ok());
  const Page page = huge_pages / 32 + 5;
  m.fault(page, Access::write);
  m.settle();
  ASSERT_TRUE(m.core.change(++m.now, 1, Change::discard, {0, huge_pages / 16}, 0, 0, {7}).ok());
  std::uint64_t discarded = 0;
  std::size_t most = 0;
  for (m.take(); !m.open.empty() || m.go_on(); m.take()) {
    most = std::max(most, m.open.size());
    if (m.open.empty()) continue;
    const Action action = m.open.back();
    m.open.pop_back();
    discarded += action.verb == Verb::discard_system ? action.pages.count_pages : 0;
    EXPECT_FALSE(m.replied(7).has_value());
    m.core.action_done(++m.now, action.id, {});
  }
  EXPECT_LE(most, 128U);
  EXPECT_EQ(discarded, huge_pages / 16) << "each page once";
  ASSERT_TRUE(m.replied(7) && m.replied(7)->ok());
  EXPECT_EQ(m.at(page).vram_device, no_device);
  m.core.verify();
}

TEST(Walk, a_discard_is_not_about_what_is_allocated_while_it_rests) {
  // Blocks enough for it to rest, each with a page.
  constexpr std::uint64_t blocks = 40;
  Config config = counted_config();
  config.granularity_pages = 1;
  Machine m(config);
  ASSERT_TRUE(m.core.alloc(1, 1, {0, blocks * block_pages}, Placement::automatic).ok());
  for (std::uint64_t b = 0; b < blocks; ++b) m.cpu(b * block_pages);
  m.settle();
  ASSERT_TRUE(m.core.change(++m.now, 1, Change::discard, {0, blocks * block_pages}, 0, 0, {7}).ok());
  m.take();
  ASSERT_FALSE(m.replied(7).has_value());
  const Page last = (blocks - 1) * block_pages;
  ASSERT_TRUE(m.core.free(++m.now, 1, {last, 1}, {8}).ok());
  for (m.take(); !m.replied(8); m.take()) {
    const auto it = std::find_if(m.open.begin(), m.open.end(), [last](const Action& a) {
      return a.pages.overlaps({last, 1});
    });
    ASSERT_NE(it, m.open.end());
    const Action action = *it;
    m.open.erase(it);
    m.core.action_done(++m.now, action.id, {});
  }
  ASSERT_TRUE(m.core.alloc(++m.now, 1, {last, 1}, Placement::automatic).ok());
  m.cpu(last);
  m.settle();
  ASSERT_TRUE(m.replied(7) && m.replied(7)->ok());
  EXPECT_TRUE(m.at(last).held) << "the new page keeps what was written";
  EXPECT_FALSE(m.at(last - block_pages).held);
}

TEST(Walk, what_is_always_mapped_needs_nothing_where_no_device_is) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, huge, Placement::automatic).ok());
  m.core.device_gone(++m.now, 1, 0);
  m.settle();
  unsigned wrong = 0;
  ASSERT_TRUE(
      m.core.svm_set(++m.now, 1, huge, {{AttributeType::set_flags, no_device, svm_always_mapped}}, {7}, wrong).ok());
  m.take();
  ASSERT_TRUE(m.replied(7) && m.replied(7)->ok());
}

TEST(Walk, what_is_always_mapped_and_out_of_reach_is_passed_over_in_parts) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, huge, Placement::automatic).ok());
  unsigned wrong = 0;
  ASSERT_TRUE(m.core
                  .svm_set(++m.now, 1, huge,
                           {{AttributeType::access, 0, 0}, {AttributeType::set_flags, no_device, svm_always_mapped}},
                           {7}, wrong)
                  .ok());
  EXPECT_GE(rests_until_replied(m, 7), 10U);
  EXPECT_TRUE(m.replied(7)->ok());
  m.core.verify();
}

TEST(Walk, a_client_that_ends_while_its_walks_rest_leaves_nothing) {
  for (const bool moves : {false, true}) {
    Machine m(counted_config());
    ASSERT_TRUE(m.core.alloc(1, 1, huge, Placement::automatic).ok());
    ASSERT_TRUE(m.core.alloc(1, 1, {huge_pages, huge_pages}, Placement::automatic).ok());
    unsigned wrong = 0;
    ASSERT_TRUE(m.core.svm_set(++m.now, 1, huge, {{AttributeType::access, 0, 0}}, {5}, wrong).ok());
    m.settle();
    if (moves) {
      ASSERT_TRUE(m.core.change(++m.now, 1, Change::move, huge, huge_pages, 0, {7}).ok());
    } else {
      ASSERT_TRUE(m.core.migrate(++m.now, 1, huge, 0, 77).ok());
    }
    m.take();
    ASSERT_FALSE(m.core.quiescent());
    m.core.device_gone(++m.now, 1, 0);
    m.core.client_gone(++m.now, 1, {99});
    m.settle();
    EXPECT_TRUE(m.replied(99).has_value());
    EXPECT_FALSE(m.replied(7).has_value());
    EXPECT_TRUE(m.core.quiescent());
  }
}

}  // namespace
}  // namespace ferry::core::test
