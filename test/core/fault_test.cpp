// Device and CPU faults: order of the stages, merging, dirtiness, failures on the way.
#include <gtest/gtest.h>

#include "machine.h"

namespace ferry::core::test {
namespace {

constexpr PageSpan ten_blocks{0, 10 * block_pages};

TEST(Fault, first_read_revokes_the_cpu_then_copies_then_maps_read_only) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(5, Access::read, 7);
  ASSERT_EQ(m.open.size(), 1U);
  EXPECT_EQ(m.open[0].verb, Verb::revoke_cpu);
  EXPECT_EQ(m.open[0].pages, (PageSpan{0, block_pages}));
  ASSERT_TRUE(m.answer(Verb::revoke_cpu));
  ASSERT_EQ(m.open.size(), 1U);
  EXPECT_EQ(m.open[0].verb, Verb::copy);
  EXPECT_EQ(m.open[0].place, Place::system);
  ASSERT_TRUE(m.answer(Verb::copy));
  ASSERT_EQ(m.open.size(), 1U);
  EXPECT_EQ(m.open[0].verb, Verb::map_device);
  EXPECT_EQ(m.open[0].prot, Prot::read);
  EXPECT_TRUE(m.open[0].has_token);
  EXPECT_EQ(m.open[0].token.value, 7U);
  EXPECT_FALSE(m.went_on(7));
  ASSERT_TRUE(m.answer(Verb::map_device));
  EXPECT_TRUE(m.went_on(7));
  EXPECT_FALSE(m.woken(7).has_value()) << "the wave that maps needs no second wake";
  const Residency r = m.at(5);
  EXPECT_TRUE(r.system_current && r.vram_device == 0 && !r.dirty && !r.cpu_may_map);
  EXPECT_EQ(r.device_mapped, 1);
  EXPECT_EQ(r.device_writable, 0);
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Fault, a_write_upgrades_without_a_copy_and_makes_the_page_dirty) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(5);
  m.settle();
  const auto copied = m.core.stats().pages_to_vram;
  m.fault(6, Access::write, 9);
  ASSERT_EQ(m.open.size(), 1U);
  EXPECT_EQ(m.open[0].verb, Verb::map_device);
  EXPECT_EQ(m.open[0].prot, Prot::read_write);
  EXPECT_TRUE(m.at(6).dirty) << "dirty from before the mapping can be used";
  m.settle();
  EXPECT_EQ(m.core.stats().pages_to_vram, copied);
  EXPECT_TRUE(m.went_on(9));
}

TEST(Fault, many_waves_on_one_granule_cause_one_migration) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  for (std::uint64_t wave = 1; wave <= 100; ++wave) {
    m.fault(wave, Access::read, wave);
  }
  EXPECT_EQ(m.open.size(), 1U);
  m.settle();
  for (std::uint64_t wave = 1; wave <= 100; ++wave) {
    EXPECT_TRUE(m.went_on(wave)) << wave;
  }
  EXPECT_EQ(m.core.stats().device_faults, 100U);
  EXPECT_EQ(m.core.stats().device_faults_merged, 99U);
  EXPECT_EQ(m.core.stats().migrations_to_vram, 1U);
}

TEST(Fault, a_writer_that_joins_before_the_mapping_gets_it_writable_at_once) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(1, Access::read, 1);
  m.fault(2, Access::write, 2);
  ASSERT_TRUE(m.answer(Verb::revoke_cpu));
  ASSERT_TRUE(m.answer(Verb::copy));
  ASSERT_EQ(m.open_count(Verb::map_device), 1U);
  EXPECT_EQ(m.open[0].prot, Prot::read_write);
  m.settle();
  EXPECT_TRUE(m.went_on(1) && m.went_on(2));
}

TEST(Fault, a_writer_that_joins_after_the_mapping_was_asked_for_gets_a_second_one) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(1, Access::read, 1);
  ASSERT_TRUE(m.answer(Verb::revoke_cpu));
  ASSERT_TRUE(m.answer(Verb::copy));
  m.fault(2, Access::write, 2);
  EXPECT_EQ(m.open[0].prot, Prot::read);
  ASSERT_TRUE(m.answer(Verb::map_device));
  EXPECT_FALSE(m.went_on(2));
  m.settle();
  EXPECT_TRUE(m.went_on(2));
  EXPECT_TRUE(m.at(2).dirty);
}

TEST(Fault, cpu_fault_takes_a_dirty_page_home_in_order) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(3, Access::write);
  m.settle();
  m.history.clear();
  m.cpu(3);
  m.settle();
  EXPECT_EQ(m.history, (std::vector<Verb>{Verb::revoke_device, Verb::copy, Verb::map_cpu}));
  const Residency r = m.at(3);
  EXPECT_TRUE(r.system_current && r.vram_device == no_device && r.cpu_may_map && r.device_mapped == 0);
}

TEST(Fault, cpu_fault_on_a_clean_page_copies_nothing) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(3, Access::read);
  m.settle();
  m.history.clear();
  m.cpu(3);
  m.settle();
  EXPECT_EQ(m.history, (std::vector<Verb>{Verb::revoke_device, Verb::map_cpu}));
  EXPECT_EQ(m.core.stats().pages_to_system, 0U);
  EXPECT_EQ(m.core.stats().pages_dropped_clean, block_pages);
}

TEST(Fault, an_address_that_is_not_allocated_fails_the_wave_and_nothing_else) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(10 * block_pages, Access::read, 5);
  m.fault(99 * block_pages, Access::write, 6);
  ASSERT_TRUE(m.woken(5) && m.woken(6));
  EXPECT_EQ(m.woken(5)->code, Code::not_allocated);
  EXPECT_EQ(m.woken(6)->code, Code::not_allocated);
  EXPECT_EQ(m.core.stats().faults_failed, 2U);
  EXPECT_TRUE(m.open.empty());
}

TEST(Fault, system_placement_is_mapped_in_place_beside_the_cpu) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::system).ok());
  m.fault(3, Access::write, 4);
  ASSERT_EQ(m.open.size(), 1U);
  EXPECT_EQ(m.open[0].verb, Verb::map_device);
  EXPECT_EQ(m.open[0].place, Place::system);
  m.settle();
  EXPECT_TRUE(m.went_on(4));
  EXPECT_TRUE(m.at(3).cpu_may_map);
  EXPECT_EQ(m.core.stats().dma_mapped_pages, block_pages);
  m.core.device_gone(++m.now, 1, 0);
  EXPECT_EQ(m.core.stats().dma_unmapped_pages, block_pages);
}

TEST(Fault, a_copy_that_fails_is_tried_again_then_served_in_place) {
  Config config = plain_config();
  config.copy_retries = 2;
  Machine m(config);
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(3, Access::write, 4);
  ASSERT_TRUE(m.answer(Verb::revoke_cpu));
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(m.answer(Verb::copy, Code::io_error)) << i;
  }
  ASSERT_EQ(m.open.size(), 1U);
  EXPECT_EQ(m.open[0].verb, Verb::map_device);
  EXPECT_EQ(m.open[0].place, Place::system);
  m.settle();
  EXPECT_TRUE(m.went_on(4));
  EXPECT_EQ(m.at(3).vram_device, no_device);
}

TEST(Fault, a_device_out_of_mappings_is_served_in_place) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(3, Access::write, 4);
  ASSERT_TRUE(m.answer(Verb::revoke_cpu));
  ASSERT_TRUE(m.answer(Verb::copy));
  ASSERT_TRUE(m.answer(Verb::map_device, Code::no_mappings));
  m.settle();
  EXPECT_TRUE(m.went_on(4));
  EXPECT_EQ(m.at(3).vram_device, no_device);
  EXPECT_TRUE(m.at(3).system_current);
}

TEST(Fault, a_dirty_page_whose_copy_home_fails_is_not_lost) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(3, Access::write);
  m.settle();
  m.cpu(3);
  ASSERT_TRUE(m.answer(Verb::revoke_device));
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(m.answer(Verb::copy, Code::io_error));
    EXPECT_TRUE(m.at(3).dirty);
    EXPECT_EQ(m.open_count(Verb::map_cpu), 0U);
  }
  m.settle();
  EXPECT_TRUE(m.at(3).system_current && m.at(3).cpu_may_map);
}

TEST(Fault, sides_that_keep_taking_a_granule_get_it_in_place) {
  Config config = plain_config();
  config.contention_threshold = 4;
  Machine m(config);
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  for (int i = 0; i < 8 && m.core.stats().contention_pins == 0; ++i) {
    m.fault(3, Access::write);
    m.settle();
    if (m.at(3).vram_device != no_device) {
      m.cpu(3);
      m.settle();
    }
  }
  EXPECT_EQ(m.core.stats().contention_pins, 1U);
  m.fault(3, Access::write);
  m.settle();
  EXPECT_TRUE(m.at(3).contended);
  EXPECT_EQ(m.at(3).device_writable, 1);
  EXPECT_EQ(m.at(3).vram_device, no_device);
  m.cpu(3);
  m.settle();
  EXPECT_TRUE(m.at(3).cpu_may_map) << "both reach the one copy";
  EXPECT_EQ(m.at(3).device_writable, 1);
}

TEST(Fault, two_devices_hand_a_dirty_granule_over_through_system_memory) {
  Config config = plain_config();
  config.device_count = 2;
  Machine m(config);
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(3, Access::write, 1, 0);
  m.settle();
  m.history.clear();
  m.fault(3, Access::write, 2, 1);
  m.settle();
  EXPECT_TRUE(m.went_on(2));
  EXPECT_EQ(m.at(3).vram_device, 1);
  EXPECT_EQ(m.at(3).device_mapped, 2);
  EXPECT_EQ(m.history, (std::vector<Verb>{Verb::revoke_device, Verb::copy, Verb::copy, Verb::map_device}));
}

TEST(Fault, sequential_faults_bring_the_next_granules_while_there_is_room) {
  Config config = plain_config();
  config.vram_pages = 32 * block_pages;
  config.speculation_granules = 4;
  Machine m(config);
  ASSERT_TRUE(m.core.alloc(1, 1, {0, 64 * block_pages}, Placement::automatic).ok());
  for (Page block = 0; block < 40; ++block) {
    if (m.at(block * block_pages).device_mapped == 0) {
      m.fault(block * block_pages);
      m.settle();
    }
  }
  EXPECT_GT(m.core.stats().speculated_pages, 10U * block_pages);
  EXPECT_LT(m.core.stats().device_faults, 30U);
}

}  // namespace
}  // namespace ferry::core::test
