// mremap: pages have another address and lie where they lay.
#include <gtest/gtest.h>

#include "machine.h"

namespace ferry::core::test {
namespace {

constexpr PageSpan old_span{0, block_pages};
constexpr Page target = 4 * block_pages;
constexpr PageSpan new_span{target, block_pages};

struct Moved : Machine {
  explicit Moved(const Config& config = plain_config()) : Machine(config) {
    EXPECT_TRUE(core.alloc(1, 1, old_span, Placement::automatic).ok());
    EXPECT_TRUE(core.alloc(1, 1, new_span, Placement::automatic).ok());
  }
  Status move(PageSpan span, Page to, std::uint64_t cookie) {
    const Status status = core.change(++now, 1, Change::move, span, to, 0, {cookie});
    take();
    return status;
  }
};

TEST(Move, what_lies_in_vram_stays_there) {
  Moved m;
  m.fault(5, Access::write);
  m.settle();
  ASSERT_TRUE(m.at(5).dirty);
  const VramPage place = m.at(5).vram_page;
  const Stats before = m.core.stats();
  m.history.clear();
  ASSERT_TRUE(m.move(old_span, target, 7).ok());
  EXPECT_FALSE(m.replied(7).has_value()) << "the device still reaches it";
  m.settle();
  ASSERT_TRUE(m.replied(7) && m.replied(7)->ok());
  EXPECT_EQ(m.at(target + 5).vram_page, place);
  EXPECT_TRUE(m.at(target + 5).dirty);
  EXPECT_TRUE(m.at(5).allocated && m.at(5).system_current);
  EXPECT_EQ(m.at(5).vram_device, no_device);
  EXPECT_EQ(m.core.stats().pages_carried, before.pages_carried + block_pages);
  EXPECT_EQ(m.core.stats().pages_to_system, before.pages_to_system);
  EXPECT_EQ(m.core.stats().pages_to_vram, before.pages_to_vram);
  for (const Verb verb : m.history) EXPECT_TRUE(verb != Verb::copy && verb != Verb::copy_system) << to_string(verb);
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Move, what_cannot_keep_its_place_is_copied_inside_vram) {
  Moved m;
  m.fault(5, Access::write);
  m.settle();
  ASSERT_TRUE(m.move({3, 100}, target + 50, 7).ok());
  m.settle();
  ASSERT_TRUE(m.replied(7) && m.replied(7)->ok());
  EXPECT_EQ(m.core.stats().pages_copied_in_vram, 100U);
  EXPECT_EQ(m.core.stats().pages_to_system, 0U);
  EXPECT_TRUE(m.at(target + 50).dirty && m.at(target + 149).dirty);
  EXPECT_EQ(m.at(target + 49).vram_device, no_device);
  EXPECT_TRUE(m.at(2).dirty && m.at(103).dirty) << "the rest stays";
  EXPECT_EQ(m.at(3).vram_device, no_device);
}

TEST(Move, what_lies_in_system_memory_is_copied_there) {
  Moved m;
  ASSERT_TRUE(m.move({10, 4}, target + 10, 7).ok());
  EXPECT_EQ(m.open_count(Verb::copy_system), 0U) << "threads reach both";
  while (m.answer(Verb::revoke_cpu)) {}
  ASSERT_EQ(m.open_count(Verb::copy_system), 1U);
  EXPECT_FALSE(m.replied(7).has_value());
  m.settle();
  ASSERT_TRUE(m.replied(7) && m.replied(7)->ok());
  EXPECT_EQ(m.core.stats().pages_copied_in_system, 4U);
}

TEST(Move, what_cannot_be_copied_stays) {
  Moved m;
  ASSERT_TRUE(m.move({10, 4}, target + 10, 7).ok());
  while (m.answer(Verb::revoke_cpu)) {}
  for (unsigned i = 0; i <= plain_config().copy_retries; ++i) ASSERT_TRUE(m.answer(Verb::copy_system, Code::io_error));
  EXPECT_EQ(m.open_count(Verb::copy_system), 0U);
  const bool given = std::any_of(m.open.begin(), m.open.end(), [](const Action& a) {
    return a.verb == Verb::discard_system && a.pages.overlaps({10, 4});
  });
  EXPECT_FALSE(given) << "the only copy";
  m.settle();
  ASSERT_TRUE(m.replied(7).has_value());
  EXPECT_EQ(m.replied(7)->code, Code::io_error);
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Move, bad_requests_change_nothing) {
  Moved m;
  EXPECT_EQ(m.move({0, 0}, target, 1).code, Code::bad_range);
  EXPECT_EQ(m.move({0, 8}, ~std::uint64_t{0} - 2, 2).code, Code::bad_range);
  EXPECT_EQ(m.move({0, 8}, 9 * block_pages, 3).code, Code::not_allocated);
  EXPECT_EQ(m.move({0, block_pages + 1}, target, 4).code, Code::not_allocated);
  EXPECT_EQ(m.move({0, 8}, 100, 5).code, Code::unsupported) << "one block has pages of both";
  ASSERT_TRUE(m.core.pin(++m.now, 1, {20, 1}, no_device, {6}).ok());
  m.settle();
  EXPECT_EQ(m.move(old_span, target, 8).code, Code::in_use);
  EXPECT_EQ(m.move(new_span, 0, 9).code, Code::in_use);
  ASSERT_TRUE(m.core.unpin(++m.now, 1, {20, 1}).ok());
  ASSERT_TRUE(m.move(old_span, target, 10).ok());
  EXPECT_EQ(m.move({100, 5}, target, 11).code, Code::in_use) << "another is under way";
  EXPECT_EQ(m.core.pin(++m.now, 1, {20, 1}, no_device, {12}).code, Code::in_use);
  m.settle();
  EXPECT_TRUE(m.replied(10) && m.replied(10)->ok());
}

TEST(Move, waits_for_the_operation_under_way_and_a_fork_waits_for_it) {
  Moved m;
  m.fault(5, Access::write, 50);
  ASSERT_TRUE(m.move(old_span, target, 7).ok());
  EXPECT_EQ(m.open_count(Verb::copy_system), 0U);
  ASSERT_TRUE(m.core.client_fork(++m.now, 1, {8}).ok());
  EXPECT_EQ(m.move(new_span, 0, 9).code, Code::in_use);
  while (!m.open.empty() && !m.replied(7)) {
    EXPECT_FALSE(m.replied(8).has_value());
    m.answer(m.open.front().verb);
  }
  m.settle();
  EXPECT_TRUE(m.went_on(50));
  EXPECT_TRUE(m.replied(7) && m.replied(7)->ok());
  EXPECT_TRUE(m.replied(8) && m.replied(8)->ok());
}

/// A page at the target whose counterpart was freed meanwhile stays, and so does its VRAM: the slot there is not given up.
TEST(Move, what_was_freed_meanwhile_leaves_its_counterpart_where_it_is) {
  for (const bool unmapped : {false, true}) {
    Moved m;
    m.fault(5, Access::write);
    m.fault(target + 5, Access::write);
    m.settle();
    ASSERT_TRUE(m.at(5).dirty && m.at(target + 10).dirty);
    const VramPage place = m.at(target + 10).vram_page;
    ASSERT_TRUE(m.core.client_fork(++m.now, 1, {6}).ok());  // so that the device faults once more
    m.settle();
    m.fault(target + 5, Access::write, 50);
    ASSERT_TRUE(m.move(old_span, target, 7).ok());
    ASSERT_TRUE(unmapped ? m.core.change(++m.now, 1, Change::unmap, {10, 1}, 0, 0, {8}).ok()
                         : m.core.free(++m.now, 1, {10, 1}, {8}).ok());
    m.settle();
    EXPECT_TRUE(m.replied(7) && m.replied(7)->ok());
    EXPECT_TRUE(m.replied(8) && m.replied(8)->ok());
    EXPECT_FALSE(m.at(10).allocated);
    EXPECT_TRUE(m.at(target + 10).dirty);
    EXPECT_EQ(m.at(target + 10).vram_page, place);
    EXPECT_TRUE(m.at(target + 9).dirty && m.at(target + 11).dirty);
    m.core.device_gone(++m.now, 1, 0);
    m.core.client_gone(++m.now, 1, {99});
    m.settle();
    EXPECT_EQ(m.core.vram_used_pages(0), 0U);
    EXPECT_TRUE(m.core.quiescent());
  }
}

TEST(Move, a_client_that_ends_meanwhile_leaves_nothing) {
  for (unsigned stop = 0; stop < 6; ++stop) {
    Moved m;
    m.fault(5, Access::write);
    m.settle();
    ASSERT_TRUE(m.move({0, 300}, target + 7, 7).ok());
    for (unsigned i = 0; i < stop && !m.open.empty(); ++i) m.answer(m.open.front().verb);
    m.core.device_gone(++m.now, 1, 0);
    m.core.client_gone(++m.now, 1, {99});
    m.settle();
    EXPECT_TRUE(m.replied(99).has_value()) << stop;
    EXPECT_TRUE(m.core.quiescent());
  }
}

}  // namespace
}  // namespace ferry::core::test
