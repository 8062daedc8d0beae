// System memory as a budget: who is charged, who has to leave, the store beneath, and what happens when nobody can.
// Longer than 600 lines because its stories share one small machine and are read beside each other.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "work_machine.h"

namespace ferry::core::test {
namespace {

constexpr PageSpan ten_blocks{0, 10 * block_pages};
constexpr Page page_in(Page block) { return block * block_pages + 1; }
constexpr std::uint64_t block_count(std::uint64_t blocks) { return blocks * block_pages; }

/// Room for `blocks` blocks in system memory, and for a hundred in the store.
Config tight_config(std::uint64_t blocks) {
  Config config = plain_config();
  config.system_pages = block_count(blocks);
  config.store_pages = block_count(100);
  return config;
}

class ReclaimTest : public ::testing::Test {
 protected:
  static void allocate(Machine& m, Placement placement = Placement::automatic) {
    ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, placement).ok());
  }
  static void touch(Machine& m, Page block) {
    m.cpu(page_in(block));
    m.settle();
  }
  static std::size_t said(const Machine& m, Verb verb) {
    return static_cast<std::size_t>(
        std::count_if(m.said.begin(), m.said.end(), [verb](const Action& a) { return a.verb == verb; }));
  }
  static std::size_t done(const Machine& m, Verb verb) {
    return static_cast<std::size_t>(std::count(m.history.begin(), m.history.end(), verb));
  }
  static std::uint64_t used(const Machine& m) { return m.core.stats().system_pages; }
};

TEST_F(ReclaimTest, without_a_budget_nothing_is_counted) {
  Machine m(plain_config());
  allocate(m);
  EXPECT_TRUE(m.at(0).cpu_may_map);
  m.fault(page_in(0), Access::write);
  m.settle();
  touch(m, 0);
  EXPECT_EQ(used(m), 0U);
  EXPECT_EQ(m.core.next_tick_ns(), ~std::uint64_t{0});
}

TEST_F(ReclaimTest, pages_are_charged_before_they_are_mapped_and_given_back_after_they_are_gone) {
  Machine m(tight_config(4));
  allocate(m);
  EXPECT_FALSE(m.at(page_in(0)).cpu_may_map) << "nobody reaches a page that is not charged";
  EXPECT_EQ(used(m), 0U);
  m.cpu(page_in(0));
  EXPECT_EQ(used(m), block_count(1));
  EXPECT_EQ(m.open_count(Verb::map_cpu), 1U);
  m.settle();
  EXPECT_TRUE(m.at(page_in(0)).held);
  EXPECT_EQ(m.core.client_stats(1).system_pages, block_count(1));
  ASSERT_TRUE(m.core.free(++m.now, 1, ten_blocks, {7}).ok());
  m.take();
  EXPECT_EQ(used(m), block_count(1)) << "the machine has the memory still";
  ASSERT_TRUE(m.answer(Verb::discard_system));
  EXPECT_EQ(used(m), 0U);
  EXPECT_TRUE(m.replied(7)->ok());
  EXPECT_EQ(m.core.stats().system_peak_pages, block_count(1));
}

TEST_F(ReclaimTest, the_least_recently_used_granule_goes_to_the_store) {
  Machine m(tight_config(2));
  allocate(m);
  touch(m, 0);
  touch(m, 1);
  m.cpu(page_in(2));
  EXPECT_EQ(m.open_count(Verb::map_cpu), 0U);
  ASSERT_TRUE(m.answer(Verb::revoke_cpu));
  ASSERT_EQ(m.open_count(Verb::store), 1U);
  EXPECT_EQ(m.open[0].pages.first, 0U) << "the oldest";
  ASSERT_TRUE(m.answer(Verb::store));
  EXPECT_EQ(used(m), block_count(2)) << "stored is not dropped";
  EXPECT_EQ(m.open_count(Verb::map_cpu), 0U);
  ASSERT_TRUE(m.answer(Verb::discard_system));
  EXPECT_EQ(m.open_count(Verb::map_cpu), 1U) << "whoever waited goes on";
  m.settle();
  const Residency r = m.at(page_in(0));
  EXPECT_TRUE(r.stored);
  EXPECT_FALSE(r.held || r.system_current || r.cpu_may_map);
  EXPECT_EQ(m.core.stats().stored_pages, block_count(1));
  EXPECT_EQ(m.core.stats().over_budget_pages, 0U);
}

TEST_F(ReclaimTest, a_stored_page_comes_back_before_it_is_mapped_and_the_store_forgets_it) {
  Machine m(tight_config(1));
  allocate(m);
  touch(m, 0);
  touch(m, 1);
  ASSERT_TRUE(m.at(page_in(0)).stored);
  m.history.clear();
  touch(m, 0);
  // The other one leaves first; then the load, then the mapping.
  const auto load = std::find(m.history.begin(), m.history.end(), Verb::load);
  const auto map = std::find(m.history.begin(), m.history.end(), Verb::map_cpu);
  ASSERT_NE(load, m.history.end());
  EXPECT_LT(load, map);
  EXPECT_EQ(done(m, Verb::discard_store), 1U) << "a CPU mapping may write: what was stored is worth nothing";
  EXPECT_FALSE(m.at(page_in(0)).stored);
  EXPECT_TRUE(m.at(page_in(1)).stored);
  EXPECT_EQ(m.core.stats().pages_from_store, block_count(1));
}

TEST_F(ReclaimTest, what_a_device_only_reads_leaves_a_second_time_without_being_written) {
  Machine m(tight_config(1));
  allocate(m);
  touch(m, 0);
  touch(m, 1);  // block 0 is stored
  m.fault(page_in(0), Access::read);
  m.settle();
  EXPECT_EQ(m.at(page_in(0)).vram_device, 0);
  EXPECT_TRUE(m.at(page_in(0)).stored);
  const std::uint64_t written = m.core.stats().pages_to_store;
  m.history.clear();
  touch(m, 2);
  EXPECT_EQ(m.core.stats().pages_to_store, written);
  EXPECT_EQ(done(m, Verb::store), 0U);
  EXPECT_FALSE(m.at(page_in(0)).held);
  // A write makes VRAM the only copy.
  m.fault(page_in(0), Access::write);
  m.settle();
  EXPECT_FALSE(m.at(page_in(0)).stored);
  EXPECT_TRUE(m.at(page_in(0)).dirty);
}

TEST_F(ReclaimTest, the_stale_system_copy_of_a_dirty_page_is_dropped_without_work) {
  Machine m(tight_config(1));
  allocate(m);
  m.fault(page_in(0), Access::write);
  m.settle();
  EXPECT_EQ(used(m), block_count(1));
  m.history.clear();
  touch(m, 1);
  EXPECT_EQ(m.history, (std::vector<Verb>{Verb::discard_system, Verb::map_cpu}));
}

TEST_F(ReclaimTest, an_eviction_waits_for_the_memory_that_it_copies_to) {
  Config config = tight_config(1);
  config.vram_pages = block_pages;
  Machine m(config);
  allocate(m);
  m.fault(page_in(0), Access::write);
  m.settle();
  touch(m, 1);  // takes the memory of the stale copy
  ASSERT_FALSE(m.at(page_in(0)).held);
  m.cpu(page_in(0));
  EXPECT_EQ(m.open_count(Verb::revoke_device), 0U) << "nothing is done before it is charged";
  m.settle();
  EXPECT_TRUE(m.at(page_in(0)).cpu_may_map);
  EXPECT_TRUE(m.at(page_in(1)).stored);
  EXPECT_EQ(m.core.stats().over_budget_pages, 0U);
}

TEST_F(ReclaimTest, a_failed_store_keeps_the_page_and_the_next_victim_is_tried) {
  Machine m(tight_config(2));
  allocate(m);
  touch(m, 0);
  touch(m, 1);
  m.cpu(page_in(2));
  ASSERT_TRUE(m.answer(Verb::revoke_cpu));
  ASSERT_TRUE(m.answer(Verb::store, Code::io_error));
  EXPECT_EQ(m.core.stats().store_errors, 1U);
  EXPECT_TRUE(m.at(page_in(0)).held);
  EXPECT_TRUE(m.at(page_in(0)).system_current);
  ASSERT_EQ(m.open_count(Verb::revoke_cpu), 1U);
  EXPECT_EQ(m.open[0].pages.first, Page{block_pages}) << "the next oldest";
  m.settle();
  EXPECT_TRUE(m.at(page_in(1)).stored);
  EXPECT_TRUE(m.at(page_in(2)).cpu_may_map);
}

TEST_F(ReclaimTest, a_store_that_always_fails_is_left_alone_and_faults_go_over_the_budget) {
  Machine m(tight_config(2));
  allocate(m);
  touch(m, 0);
  touch(m, 1);
  m.cpu(page_in(2));
  unsigned stores = 0;
  for (m.take(); !m.open.empty(); m.take()) {
    if (m.answer(Verb::store, Code::io_error)) {
      ASSERT_LT(++stores, 20U);
    } else {
      m.answer(m.open.front().verb);
    }
  }
  EXPECT_TRUE(m.at(page_in(2)).cpu_may_map);
  EXPECT_EQ(m.core.stats().over_budget_pages, block_count(1));
  EXPECT_EQ(used(m), block_count(3));
  m.cpu(page_in(3));
  EXPECT_EQ(m.open_count(Verb::revoke_cpu), 0U) << "it rests";
  m.settle();
  // After a while it is tried again.
  m.core.tick(m.now += 2'000'000'000);
  m.settle();
  EXPECT_LE(used(m), block_count(2));
}

TEST_F(ReclaimTest, a_full_store_is_asked_again_when_it_has_room) {
  Machine m(tight_config(2));
  allocate(m);
  touch(m, 0);
  touch(m, 1);
  m.cpu(page_in(2));
  ASSERT_TRUE(m.answer(Verb::revoke_cpu));
  ASSERT_TRUE(m.answer(Verb::store, Code::no_space));
  EXPECT_EQ(m.open_count(Verb::revoke_cpu), 0U);
  m.settle();
  EXPECT_EQ(used(m), block_count(3));
  EXPECT_EQ(m.core.stats().over_budget_pages, block_count(1));
}

TEST_F(ReclaimTest, without_a_store_only_what_lies_elsewhere_can_leave) {
  Config config = tight_config(1);
  config.store_pages = 0;
  Machine m(config);
  allocate(m);
  touch(m, 0);
  touch(m, 1);
  EXPECT_EQ(m.core.stats().over_budget_pages, block_count(1));
  m.fault(page_in(0), Access::read);
  m.settle();  // clean in VRAM: the system copy is dropped, and VRAM is the only one
  m.fault(page_in(1), Access::read);
  m.settle();
  EXPECT_LE(used(m), block_count(1));
  EXPECT_TRUE(m.at(page_in(0)).dirty);
}

TEST_F(ReclaimTest, a_load_that_fails_is_told_and_nothing_is_lost) {
  Config config = tight_config(1);
  config.copy_retries = 2;
  Machine m(config);
  allocate(m);
  touch(m, 0);
  touch(m, 1);
  m.cpu(page_in(0));
  m.fault(page_in(0), Access::read, 70);
  unsigned loads = 0;
  for (m.take(); !m.open.empty(); m.take()) {
    if (m.answer(Verb::load, Code::io_error)) {
      ASSERT_LT(++loads, 20U);
    } else {
      m.answer(m.open.front().verb);
    }
  }
  EXPECT_EQ(loads, 3U);
  ASSERT_TRUE(m.woken(70).has_value());
  EXPECT_EQ(m.woken(70)->code, Code::io_error);
  bool told = false;
  for (const Action& a : m.said) {
    told = told || (a.verb == Verb::wake_cpu && a.status.code == Code::io_error && a.pages.contains(page_in(0)));
  }
  EXPECT_TRUE(told) << "a CPU thread does not hang";
  EXPECT_TRUE(m.at(page_in(0)).stored);
  EXPECT_TRUE(m.core.quiescent());
  m.fault(page_in(0), Access::read, 71);
  m.settle();
  EXPECT_TRUE(m.went_on(71));
}

TEST_F(ReclaimTest, the_line_is_served_in_order) {
  Machine m(tight_config(1));
  allocate(m);
  touch(m, 0);
  for (Page b = 1; b < 5; ++b) {
    m.cpu(page_in(b));
  }
  std::vector<Page> mapped;
  for (m.take(); !m.open.empty(); m.take()) {
    if (m.open_count(Verb::map_cpu) != 0) {
      const auto it =
          std::find_if(m.open.begin(), m.open.end(), [](const Action& a) { return a.verb == Verb::map_cpu; });
      mapped.push_back(block_of(it->pages.first));
      m.answer(Verb::map_cpu);
    } else {
      m.answer(m.open.front().verb);
    }
  }
  EXPECT_EQ(mapped, (std::vector<Page>{1, 2, 3, 4}));
  EXPECT_EQ(m.core.stats().over_budget_pages, 0U);
  EXPECT_EQ(m.core.stats().system_peak_pages, block_count(1));
}

TEST_F(ReclaimTest, a_budget_smaller_than_a_granule_still_serves_faults) {
  Config config = tight_config(1);
  config.system_pages = 10;
  Machine m(config);
  allocate(m);
  touch(m, 0);
  touch(m, 1);
  EXPECT_TRUE(m.at(page_in(1)).cpu_may_map);
  EXPECT_EQ(m.core.stats().over_budget_pages, 2 * (block_pages - 10U));
  EXPECT_LE(used(m), block_count(1));
}

TEST_F(ReclaimTest, a_prefetch_that_finds_no_memory_ends_and_does_nothing) {
  Config config = tight_config(1);
  config.store_pages = 0;
  Machine m(config);
  allocate(m);
  touch(m, 0);
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, {block_pages, block_pages}, 0, {9}).ok());
  m.settle();
  ASSERT_TRUE(m.replied(9).has_value());
  EXPECT_EQ(used(m), block_count(1));
  EXPECT_EQ(m.core.stats().over_budget_pages, 0U);
  EXPECT_EQ(m.at(page_in(1)).vram_device, no_device);
}

TEST_F(ReclaimTest, a_fault_that_joins_a_prefetch_in_line_is_a_fault) {
  Config config = tight_config(1);
  Machine m(config);
  allocate(m);
  touch(m, 0);
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, {block_pages, block_pages}, 0, {9}).ok());
  m.fault(page_in(1), Access::read, 50);
  // The only victim cannot leave: the fault is served all the same.
  for (m.take(); !m.open.empty(); m.take()) {
    if (!m.answer(Verb::store, Code::no_space)) {
      m.answer(m.open.front().verb);
    }
  }
  EXPECT_TRUE(m.went_on(50));
  EXPECT_EQ(m.core.stats().over_budget_pages, block_count(1));
}

TEST_F(ReclaimTest, speculation_asks_nobody_to_leave) {
  Config config = tight_config(3);
  config.speculation_granules = 4;
  Machine m(config);
  allocate(m);
  for (Page b = 0; b < 3; ++b) {
    m.fault(page_in(b), Access::read);
    m.settle();
  }
  EXPECT_EQ(m.core.stats().pages_to_store, 0U);
  EXPECT_EQ(m.core.stats().over_budget_pages, 0U);
  EXPECT_LE(used(m), block_count(3));
}

TEST_F(ReclaimTest, pressure_takes_the_oldest_without_anybody_in_line) {
  Machine m(tight_config(8));
  allocate(m);
  for (Page b = 0; b < 4; ++b) {
    touch(m, b);
  }
  m.core.pressure(++m.now, block_count(2));
  m.settle();
  EXPECT_EQ(used(m), block_count(2));
  EXPECT_TRUE(m.at(page_in(0)).stored && m.at(page_in(1)).stored);
  EXPECT_FALSE(m.at(page_in(2)).stored || m.at(page_in(3)).stored);
}

TEST_F(ReclaimTest, a_smaller_budget_holds_as_soon_as_it_can) {
  Machine m(tight_config(4));
  allocate(m);
  for (Page b = 0; b < 4; ++b) {
    touch(m, b);
  }
  m.core.set_system_budget(++m.now, block_count(1));
  m.settle();
  EXPECT_EQ(used(m), block_count(1));
  m.core.set_system_budget(++m.now, 0);
  touch(m, 5);
  EXPECT_LE(used(m), block_count(1)) << "0 is no budget to change to";
}

TEST_F(ReclaimTest, waves_that_wait_for_vram_are_served_in_place_before_the_budget_is_broken) {
  // One slot of VRAM, dirty; memory for one more block; two waves. The eviction needs the memory that the second wave
  // holds while it waits for the eviction.
  Config config = tight_config(1);
  config.vram_pages = block_pages;
  config.store_pages = 0;
  Machine m(config);
  allocate(m);
  m.fault(page_in(0), Access::write, 1);
  m.settle();
  m.fault(page_in(1), Access::write, 2);
  m.settle();
  EXPECT_TRUE(m.went_on(2));
  EXPECT_EQ(m.core.stats().over_budget_pages, 0U);
  EXPECT_EQ(m.at(page_in(1)).device_mapped, 1U);
  EXPECT_EQ(m.at(page_in(1)).vram_device, no_device);
  EXPECT_TRUE(m.at(page_in(0)).dirty);
}

TEST_F(ReclaimTest, a_client_that_ends_in_line_leaves_nothing) {
  Machine m(tight_config(1));
  m.core.client_open(2);
  m.core.device_attach(2, 0);
  ASSERT_TRUE(m.core.alloc(1, 2, ten_blocks, Placement::automatic).ok());
  allocate(m);
  touch(m, 0);
  for (Page b = 1; b < 4; ++b) {
    m.cpu(page_in(b), Access::write, 2);
    m.cpu(page_in(b));
  }
  m.core.device_gone(++m.now, 2, 0);
  m.core.client_gone(++m.now, 2, {5});
  m.take();
  m.settle();
  EXPECT_TRUE(m.replied(5).has_value());
  EXPECT_TRUE(m.at(page_in(3)).cpu_may_map);
  m.core.device_gone(++m.now, 1, 0);
  m.core.client_gone(++m.now, 1, {6});
  m.settle();
  EXPECT_TRUE(m.replied(6).has_value());
  EXPECT_EQ(used(m), 0U);
  EXPECT_EQ(m.core.stats().stored_pages, 0U);
  EXPECT_TRUE(m.core.quiescent());
}

TEST_F(ReclaimTest, a_free_of_stored_pages_makes_the_store_forget_them_first) {
  Machine m(tight_config(1));
  allocate(m);
  touch(m, 0);
  touch(m, 1);
  m.history.clear();
  ASSERT_TRUE(m.core.free(++m.now, 1, {0, block_pages}, {3}).ok());
  m.take();
  EXPECT_EQ(m.open_count(Verb::discard_system), 0U);
  m.settle();
  EXPECT_EQ(m.history, (std::vector<Verb>{Verb::discard_store, Verb::discard_system}));
  EXPECT_TRUE(m.replied(3)->ok());
  EXPECT_EQ(m.core.stats().stored_pages, 0U);
}

TEST_F(ReclaimTest, the_reserve_of_track_serves_faults_only_and_is_refilled_first) {
  Config config = tight_config(4);
  config.store_pages = 0;
  DeviceModel model;
  model.policy = Policy::track;
  model.repair_reserve_granules = 1;
  config.models = {model};
  Machine m(config);
  allocate(m);
  for (Page b = 0; b < 3; ++b) {
    touch(m, b);
  }
  EXPECT_EQ(m.core.stats().reserve_repairs, 0U);
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, {6 * block_pages, block_pages}, 0, {9}).ok());
  m.settle();
  EXPECT_EQ(used(m), block_count(3)) << "a prefetch does not get the reserve";
  touch(m, 3);
  EXPECT_EQ(m.core.stats().reserve_repairs, 1U);
  EXPECT_EQ(m.core.stats().over_budget_pages, 0U);
  touch(m, 4);
  EXPECT_EQ(m.core.stats().over_budget_pages, block_count(1)) << "lent already";
  ASSERT_TRUE(m.core.free(++m.now, 1, {0, 2 * block_pages}, {3}).ok());
  m.settle();
  touch(m, 5);
  EXPECT_EQ(m.core.stats().reserve_repairs, 2U) << "what came back went into the reserve";
  EXPECT_EQ(m.core.stats().over_budget_pages, block_count(1));
}

TEST_F(ReclaimTest, a_budget_that_shrinks_and_grows_lends_no_reserve_that_is_in_use) {
  Config config = tight_config(4);
  config.store_pages = 0;
  DeviceModel model;
  model.policy = Policy::track;
  model.repair_reserve_granules = 2;
  config.models = {model};
  Machine m(config);
  allocate(m);
  for (Page b = 0; b < 4; ++b) {
    touch(m, b);
  }
  m.core.set_system_budget(++m.now, block_count(1));
  touch(m, 4);
  EXPECT_EQ(m.core.stats().over_budget_pages, block_count(1));
  m.core.set_system_budget(++m.now, block_count(4));
  touch(m, 5);
  EXPECT_EQ(m.core.stats().over_budget_pages, block_count(2)) << "five of four are in use: nothing is left to lend";
}

TEST_F(ReclaimTest, a_cpu_fault_that_joins_an_eviction_uses_no_memory_that_is_not_charged) {
  Config config = tight_config(1);
  config.vram_pages = block_pages;
  Machine m(config);
  allocate(m);
  touch(m, 0);
  touch(m, 1);
  m.fault(page_in(0), Access::read);  // stored, and clean in VRAM
  m.settle();
  touch(m, 2);
  ASSERT_TRUE(m.at(page_in(0)).stored);
  ASSERT_FALSE(m.at(page_in(0)).held);
  m.fault(page_in(3), Access::read, 30);
  while (m.open_count(Verb::revoke_device) == 0) {
    ASSERT_FALSE(m.open.empty());
    m.answer(m.open.front().verb);
  }
  m.cpu(page_in(0));  // the eviction of block 0 is under way
  m.settle();
  EXPECT_TRUE(m.went_on(30));
  EXPECT_TRUE(m.at(page_in(0)).cpu_may_map);
  EXPECT_EQ(m.core.stats().pages_to_system, 0U) << "the store had them all the time";
}

TEST_F(ReclaimTest, what_is_refused_after_a_failed_mapping_is_not_mapped) {
  Config config = tight_config(1);
  config.system_pages = block_pages + 1;
  config.store_pages = 0;
  Machine m(config);
  allocate(m);
  m.fault(page_in(0), Access::write);
  m.settle();
  touch(m, 1);  // takes the memory of block 0's stale copy
  ASSERT_TRUE(m.core.free(++m.now, 1, {7, 1}, {2}).ok());
  m.settle();
  ASSERT_TRUE(m.core.alloc(++m.now, 1, {7, 1}, Placement::automatic).ok());
  // The new page fits; to bring the others home after the failed mapping does not.
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, {0, block_pages}, 0, {9}).ok());
  for (m.take(); !m.open.empty(); m.take()) {
    if (!m.answer(Verb::map_device, Code::no_memory)) {
      m.answer(m.open.front().verb);
    }
  }
  EXPECT_TRUE(m.replied(9).has_value());
  EXPECT_EQ(m.core.stats().over_budget_pages, 0U);
  EXPECT_EQ(m.at(page_in(0)).device_mapped, 0U) << "what the device reaches was unknown";
  EXPECT_TRUE(m.at(page_in(0)).dirty);
}

TEST_F(ReclaimTest, a_free_of_what_waits_for_memory_does_not_hold_up_the_line) {
  // One granule waits for memory while its pages, and others with memory, are freed: the free waits for the granule.
  Config config = tight_config(1);
  config.store_pages = 0;
  Machine m(config);
  allocate(m);
  touch(m, 0);
  m.core.client_open(2);
  m.core.device_attach(2, 0);
  ASSERT_TRUE(m.core.alloc(++m.now, 2, {0, block_pages}, Placement::system).ok());
  m.fault(page_in(0), Access::write, 60, 0, 2);
  ASSERT_EQ(m.core.stats().over_budget_pages, block_count(1));
  m.cpu(page_in(1));
  ASSERT_TRUE(m.core.free(++m.now, 1, {0, 2 * block_pages}, {3}).ok());
  m.settle();
  EXPECT_TRUE(m.replied(3).has_value());
  EXPECT_TRUE(m.went_on(60));
  EXPECT_TRUE(m.core.quiescent());
}

TEST_F(ReclaimTest, a_line_that_stands_for_a_process_that_does_not_answer_is_served_over_the_budget) {
  Machine m(tight_config(1));
  allocate(m);
  touch(m, 0);
  m.cpu(page_in(1));
  ASSERT_EQ(m.open_count(Verb::revoke_cpu), 1U);  // never answered
  m.core.tick(m.now += 1'000'000'000);
  m.take();
  EXPECT_EQ(m.open_count(Verb::map_cpu), 0U);
  EXPECT_LE(m.core.next_tick_ns(), m.now + 2'000'000'000);
  m.core.tick(m.now += 2'000'000'000);
  m.take();
  EXPECT_EQ(m.open_count(Verb::map_cpu), 1U);
  EXPECT_EQ(m.core.stats().over_budget_pages, block_count(1));
  m.settle();
}

/// A shrinker that waits really waits.
class FenceWaitTest : public ReclaimTest {
 protected:
  /// A buffer of one block in system memory, used by a copy job that runs; block 0 is touched after it.
  static void busy_buffer(WorkMachine& m) {
    BufferSpec spec;
    spec.count_pages = block_pages;
    ASSERT_TRUE(m.core.buffer_create(++m.now, 1, 100, spec).ok());
    JobSpec job = copy_job(200);
    job.buffers = {{100, Access::write}};
    ASSERT_TRUE(m.submit(job).ok());
    while (!m.runs(200)) {
      m.take();
      ASSERT_FALSE(m.open.empty());
      m.answer(m.open.front().verb);
    }
    m.cpu(page_in(0));
    while (m.answer(Verb::map_cpu)) {}
  }
};

TEST_F(FenceWaitTest, waits_for_the_fence_of_the_oldest_and_starts_no_other_victim) {
  WorkMachine m(tight_config(2));
  allocate(m);
  busy_buffer(m);
  EXPECT_EQ(used(m), block_count(2));
  m.cpu(page_in(1));
  EXPECT_EQ(m.core.stats().fence_waits_in_reclaim, 1U);
  EXPECT_EQ(m.open_count(Verb::revoke_cpu), 0U) << "block 0 could leave, but the shrinker sleeps";
  m.core.tick(m.now += 10'000'000'000);
  m.take();
  EXPECT_EQ(m.open_count(Verb::map_cpu), 0U) << "patience is not for fences";
  ASSERT_TRUE(m.finish(200));
  m.settle();
  EXPECT_TRUE(m.at(page_in(1)).cpu_may_map);
  EXPECT_EQ(m.core.buffer_info(100).where, BufferInfo::Where::store);
  EXPECT_EQ(m.core.stats().over_budget_pages, 0U);
}

TEST_F(FenceWaitTest, memory_that_others_give_back_serves_the_line_meanwhile) {
  WorkMachine m(tight_config(2));
  allocate(m);
  busy_buffer(m);
  m.cpu(page_in(1));
  ASSERT_EQ(m.core.stats().fence_waits_in_reclaim, 1U);
  ASSERT_TRUE(m.core.free(++m.now, 1, {0, block_pages}, {4}).ok());
  m.take();
  ASSERT_TRUE(m.answer(Verb::discard_system));
  EXPECT_EQ(m.open_count(Verb::map_cpu), 1U);
  while (m.answer(Verb::map_cpu)) {}
  ASSERT_TRUE(m.finish(200));
  m.settle();
  EXPECT_EQ(m.core.buffer_info(100).where, BufferInfo::Where::system) << "nobody needs its memory any more";
}

TEST_F(FenceWaitTest, pressure_does_not_wait_for_fences) {
  WorkMachine m(tight_config(4));
  allocate(m);
  busy_buffer(m);
  m.core.pressure(++m.now, block_count(2));
  m.take();
  EXPECT_EQ(m.core.stats().fence_waits_in_reclaim, 0U);
  EXPECT_EQ(m.open_count(Verb::revoke_cpu), 1U) << "the next victim is tried";
  ASSERT_TRUE(m.finish(200));
  m.settle();
}

}  // namespace
}  // namespace ferry::core::test
