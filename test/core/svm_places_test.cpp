// Where pages are kept: pins, discards, moves with a fence, and devices that are linked.
#include <gtest/gtest.h>

#include <algorithm>

#include "machine.h"

namespace ferry::core::test {
namespace {

constexpr PageSpan block_zero{0, block_pages};

Config two_devices(bool linked_devices) {
  Config config = plain_config();
  config.device_count = 2;
  if (linked_devices) {
    config.hives = {1, 1};
  }
  return config;
}

class PlacesTest : public ::testing::Test {
 protected:
  static void allocate(Machine& m, std::uint64_t blocks = 1) {
    ASSERT_TRUE(m.core.alloc(1, 1, {0, blocks * block_pages}, Placement::automatic).ok());
  }
  static Status pinned(Machine& m, PageSpan span, DeviceId device, std::uint64_t cookie) {
    const Status status = m.core.pin(++m.now, 1, span, device, Cookie{cookie});
    m.settle();
    return status.ok() ? m.replied(cookie).value_or(Code::timed_out) : status;
  }
  static std::size_t done(const Machine& m, Verb verb) {
    return static_cast<std::size_t>(std::count(m.history.begin(), m.history.end(), verb));
  }
  static const Action* asked(const Machine& m, Verb verb) {
    const auto it = std::find_if(m.open.begin(), m.open.end(), [verb](const Action& a) { return a.verb == verb; });
    return it == m.open.end() ? nullptr : &*it;
  }
};

TEST_F(PlacesTest, a_span_is_pinned_from_the_call_on) {
  Machine m(plain_config());
  allocate(m);
  m.fault(3, Access::write);
  m.settle();
  ASSERT_TRUE(m.core.pin(++m.now, 1, {3, 1}, no_device, Cookie{1}).ok());
  EXPECT_FALSE(m.at(3).pinned) << "it is on its way to system memory";
  EXPECT_TRUE(m.core.span_state(1, {0, 5}).pinned);
  EXPECT_FALSE(m.core.span_state(1, {4, 1}).pinned);
  m.settle();
  EXPECT_TRUE(m.core.span_state(1, {0, 5}).pinned);
  ASSERT_TRUE(m.core.unpin(++m.now, 1, {3, 1}).ok());
  EXPECT_FALSE(m.core.span_state(1, {0, 5}).pinned);
}

TEST_F(PlacesTest, pinned_system_memory_is_reached_in_place_and_moves_again_after_the_last_unpin) {
  Machine m(plain_config());
  allocate(m);
  ASSERT_TRUE(pinned(m, {3, 1}, no_device, 1).ok());
  ASSERT_TRUE(pinned(m, {3, 1}, no_device, 2).ok());
  EXPECT_TRUE(m.at(3).pinned);
  m.fault(3, Access::write);
  m.settle();
  EXPECT_EQ(m.at(3).vram_device, no_device);
  EXPECT_TRUE(m.at(3).device_mapped);
  m.fault(9, Access::write);
  m.settle();
  EXPECT_EQ(m.at(9).vram_device, 0) << "its neighbours move";
  ASSERT_TRUE(m.core.unpin(++m.now, 1, {3, 1}).ok());
  EXPECT_TRUE(m.at(3).pinned);
  ASSERT_TRUE(m.core.unpin(++m.now, 1, {3, 1}).ok());
  EXPECT_FALSE(m.at(3).pinned);
  EXPECT_EQ(m.core.unpin(++m.now, 1, {3, 1}).code, Code::not_held);
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, block_zero, 0, Cookie{3}).ok());
  m.settle();
  EXPECT_EQ(m.at(3).vram_device, 0);
}

TEST_F(PlacesTest, pinned_vram_is_not_evicted_and_its_cpu_touch_fails) {
  Config config = plain_config();
  config.vram_pages = 1 * block_pages;
  Machine m(config);
  allocate(m, 2);
  ASSERT_TRUE(pinned(m, {7, 2}, 0, 1).ok());
  EXPECT_EQ(m.at(7).vram_device, 0);
  EXPECT_TRUE(m.at(7).dirty) << "DMA may write it";
  m.fault(block_pages + 1, Access::write);
  m.settle();
  EXPECT_EQ(m.at(7).vram_device, 0);
  EXPECT_EQ(m.at(block_pages + 1).vram_device, no_device) << "nobody can make room: served in place";
  EXPECT_TRUE(m.at(block_pages + 1).device_mapped);
  m.cpu(7);
  m.settle();
  const auto told = std::find_if(m.said.begin(), m.said.end(), [](const Action& a) {
    return a.verb == Verb::wake_cpu && a.pages.contains(7) && a.status.code == Code::in_use;
  });
  EXPECT_NE(told, m.said.end());
  m.cpu(20);
  m.settle();
  EXPECT_TRUE(m.at(20).cpu_may_map) << "the rest of the block comes home";
  EXPECT_EQ(m.at(7).vram_device, 0);
}

TEST_F(PlacesTest, pins_are_limited_and_all_or_nothing) {
  Config config = plain_config();
  config.pin_pages = 10;
  Machine m(config);
  allocate(m);
  EXPECT_EQ(pinned(m, {0, 11}, no_device, 1).code, Code::no_memory);
  EXPECT_TRUE(pinned(m, {0, 6}, no_device, 2).ok());
  EXPECT_EQ(pinned(m, {0, 6}, no_device, 3).code, Code::no_memory) << "each pin counts";
  EXPECT_EQ(pinned(m, {4, 4}, 0, 4).code, Code::in_use) << "two of them are pinned elsewhere";
  EXPECT_FALSE(m.at(7).pinned);
  EXPECT_TRUE(pinned(m, {20, 4}, no_device, 5).ok()) << "what failed is not counted";
  EXPECT_EQ(pinned(m, {block_pages - 1, 2}, no_device, 6).code, Code::not_allocated);
}

TEST_F(PlacesTest, the_free_of_pinned_pages_is_answered_with_the_last_unpin) {
  Machine m(plain_config());
  allocate(m);
  ASSERT_TRUE(pinned(m, {3, 1}, no_device, 1).ok());
  ASSERT_TRUE(m.core.free(++m.now, 1, block_zero, Cookie{2}).ok());
  m.settle();
  EXPECT_FALSE(m.replied(2));
  m.fault(5, Access::read, 77);
  m.settle();
  ASSERT_TRUE(m.woken(77));
  EXPECT_EQ(m.woken(77)->code, Code::not_allocated);
  EXPECT_EQ(m.core.alloc(++m.now, 1, {3, 1}, Placement::automatic).code, Code::overlap);
  ASSERT_TRUE(m.core.unpin(++m.now, 1, {3, 1}).ok());
  m.settle();
  ASSERT_TRUE(m.replied(2));
  EXPECT_TRUE(m.replied(2)->ok());
}

TEST_F(PlacesTest, discarded_pages_are_evicted_without_a_copy) {
  Config config = plain_config();
  config.vram_pages = 1 * block_pages;
  for (const bool discard : {false, true}) {
    Machine m(config);
    allocate(m, 2);
    m.fault(0, Access::write);
    m.settle();
    if (discard) {
      ASSERT_TRUE(m.core.change(++m.now, 1, Change::lazy_free, block_zero, 0, span_all, Cookie{1}).ok());
      m.settle();
      ASSERT_TRUE(m.replied(1) && m.replied(1)->ok());
      EXPECT_FALSE(m.at(0).device_mapped) << "a write has to be seen";
    }
    m.fault(block_pages, Access::write);
    m.settle();
    EXPECT_TRUE(m.at(0).system_current);
    EXPECT_EQ(m.core.stats().pages_to_system, discard ? 0U : block_pages);
    EXPECT_EQ(m.core.stats().discarded_pages, discard ? block_pages : 0U);
  }
}

TEST_F(PlacesTest, what_is_written_after_a_discard_is_kept) {
  Config config = plain_config();
  config.vram_pages = 1 * block_pages;
  Machine m(config);
  allocate(m, 2);
  m.fault(0, Access::write);
  m.settle();
  ASSERT_TRUE(m.core.change(++m.now, 1, Change::lazy_free, block_zero, 0, span_all, Cookie{1}).ok());
  m.settle();
  m.fault(0, Access::write);
  m.settle();
  m.fault(block_pages, Access::write);
  m.settle();
  EXPECT_EQ(m.core.stats().pages_to_system, block_pages);
}

TEST_F(PlacesTest, the_fence_of_a_migration_signals_when_all_has_moved) {
  Machine m(plain_config());
  allocate(m);
  ASSERT_TRUE(m.core.migrate(++m.now, 1, block_zero, 0, 5).ok());
  EXPECT_EQ(m.core.migrate(++m.now, 1, block_zero, 0, 5).code, Code::in_use);
  EXPECT_TRUE(m.core.fence_info(5).known);
  EXPECT_FALSE(m.core.fence_info(5).visible) << "memory management must not wait for it";
  m.settle();
  EXPECT_TRUE(m.core.fence_info(5).signalled);
  EXPECT_TRUE(m.core.fence_info(5).status.ok());
  EXPECT_EQ(m.at(0).vram_device, 0);
}

TEST_F(PlacesTest, the_fence_of_a_migration_signals_with_an_error_when_its_client_ends) {
  Machine m(plain_config());
  allocate(m);
  ASSERT_TRUE(m.core.migrate(++m.now, 1, block_zero, 0, 5).ok());
  m.core.client_gone(++m.now, 1, Cookie{1});
  EXPECT_TRUE(m.core.fence_info(5).signalled);
  EXPECT_EQ(m.core.fence_info(5).status.code, Code::client_gone);
}

TEST_F(PlacesTest, linked_devices_copy_directly_and_others_by_way_of_home) {
  for (const bool linked_devices : {false, true}) {
    Machine m(two_devices(linked_devices));
    allocate(m);
    m.fault(0, Access::write, 0, 0);
    m.settle();
    m.fault(0, Access::write, 0, 1);
    m.settle();
    EXPECT_EQ(m.at(0).vram_device, 1);
    EXPECT_TRUE(m.at(0).dirty);
    EXPECT_EQ(m.core.stats().pages_direct, linked_devices ? block_pages : 0U);
    EXPECT_EQ(m.core.stats().pages_to_system, linked_devices ? 0U : block_pages);
    EXPECT_EQ(m.core.vram_used_pages(1), block_pages);
  }
}

TEST_F(PlacesTest, a_direct_copy_that_fails_loses_nothing) {
  Machine m(two_devices(true));
  allocate(m);
  m.fault(0, Access::write, 0, 0);
  m.settle();
  m.fault(0, Access::write, 90, 1);
  while (!m.went_on(90)) {
    m.take();
    ASSERT_FALSE(m.open.empty());
    const Action& action = m.open.front();
    const bool direct = action.verb == Verb::copy && action.to == Place::vram;
    m.answer(action.verb, direct ? Status(Code::io_error) : Status());
  }
  m.settle();
  EXPECT_EQ(m.core.stats().pages_direct, 0U);
  EXPECT_TRUE(m.at(0).system_current) << "served in place instead";
  EXPECT_EQ(m.core.stats().pages_to_system, block_pages);
}

TEST_F(PlacesTest, a_device_reaches_vram_of_another_over_the_link_until_it_is_evicted) {
  Config config = two_devices(true);
  config.vram_pages = 1 * block_pages;
  Machine m(config);
  allocate(m, 2);
  unsigned wrong = 0;
  const Attribute in_place{AttributeType::access, 1, static_cast<std::uint32_t>(DeviceAccess::in_place)};
  ASSERT_TRUE(m.core.svm_set(++m.now, 1, block_zero, {in_place}, Cookie{1}, wrong).ok());
  m.settle();
  m.fault(0, Access::write, 0, 0);
  m.settle();
  m.fault(0, Access::write, 91, 1);
  m.take();
  const Action* map = asked(m, Verb::map_device);
  ASSERT_NE(map, nullptr);
  EXPECT_EQ(map->owner, 0);
  EXPECT_EQ(map->place, Place::vram);
  m.settle();
  EXPECT_EQ(m.at(0).vram_device, 0);
  EXPECT_EQ(m.at(0).device_mapped, 3U) << "both";
  EXPECT_EQ(done(m, Verb::copy), 1U);
  m.fault(block_pages, Access::write, 0, 0);
  m.settle();
  EXPECT_EQ(m.at(0).device_mapped, 0U);
  EXPECT_TRUE(m.at(0).system_current);
}

}  // namespace
}  // namespace ferry::core::test
