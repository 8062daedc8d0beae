// Granules that stay in system memory: those that come and go, and, by cost, those of which little is touched.
#include <gtest/gtest.h>

#include "base/random.h"
#include "toucher.h"

namespace ferry::core::test {
namespace {

Config config_of(LeaveKind kind, std::uint64_t vram_blocks, unsigned granule = block_pages) {
  Config config = plain_config();
  config.granularity_pages = granule;
  config.vram_pages = vram_blocks * block_pages;
  config.leave = kind;
  return config;
}

struct Cost {
  std::uint64_t moved = 0;
  std::uint64_t faults = 0;
};

/// A look-up in a table of 32 blocks: a few random pages a time, again and again.
Cost look_up(LeaveKind kind, std::uint64_t vram_blocks) {
  constexpr std::uint64_t pages = 32 * block_pages;
  Toucher device(config_of(kind, vram_blocks), pages);
  Random random(5);
  for (unsigned i = 0; i < 6000; ++i) device.touch(random.below(pages), Access::write);
  return {device.moved_pages(), device.faults};
}

TEST(Leave, large_granules_in_tiny_vram_stop_coming_and_going) {
  const Cost never = look_up(LeaveKind::never, 2);
  const Cost thrash = look_up(LeaveKind::thrash, 2);
  EXPECT_GT(never.moved, 5000 * block_pages);
  EXPECT_LT(thrash.moved * 10, never.moved);
  EXPECT_LT(thrash.faults, never.faults);
}

TEST(Leave, sparse_use_costs_less_by_cost) {
  // One page of each of many granules, once round and round again, with VRAM for an eighth of them.
  constexpr std::uint64_t granule = 16;
  constexpr std::uint64_t granules = 512;
  const auto walk = [&](LeaveKind kind) {
    Toucher device(config_of(kind, 2, granule), granules * granule);
    for (unsigned round = 0; round < 4; ++round) {
      for (Page g = 0; g < granules; ++g) device.touch(g * granule + g % granule, Access::write);
    }
    return Cost{device.moved_pages(), device.faults};
  };
  const Cost never = walk(LeaveKind::never);
  const Cost cost = walk(LeaveKind::cost);
  EXPECT_LT(cost.moved * 4, never.moved);
  EXPECT_LE(cost.faults, never.faults);
}

TEST(Leave, what_is_touched_all_over_gets_vram_all_the_same) {
  Toucher device(config_of(LeaveKind::cost, 2), 3 * block_pages);
  device.touch(0);
  device.touch(block_pages);  // VRAM is full
  Page page = 2 * block_pages;
  device.touch(page);
  EXPECT_EQ(device.machine.at(page).vram_device, no_device);
  EXPECT_EQ(device.machine.at(page).device_mapped, 1) << "served in place";
  EXPECT_EQ(device.machine.at(page + 100).device_mapped, 0) << "and only a part of it";
  for (; page < 3 * block_pages; ++page) device.touch(page);
  EXPECT_EQ(device.machine.at(2 * block_pages).vram_device, 0);
}

TEST(Leave, nothing_stays_behind_while_vram_is_free) {
  for (const LeaveKind kind : {LeaveKind::thrash, LeaveKind::cost}) {
    Toucher device(config_of(kind, 8), 8 * block_pages);
    for (Page block = 0; block < 8; ++block) device.touch(block * block_pages);
    EXPECT_EQ(device.stats().in_place_maps, 0U);
    for (Page block = 0; block < 8; ++block) EXPECT_EQ(device.machine.at(block * block_pages).vram_device, 0);
  }
}

TEST(Leave, the_cpu_reaches_what_is_left_and_no_write_is_lost) {
  Toucher device(config_of(LeaveKind::cost, 1), 2 * block_pages);
  device.touch(0, Access::write);
  device.touch(block_pages + 3, Access::write);  // in place
  device.touch_cpu(block_pages + 3);
  EXPECT_TRUE(device.machine.at(block_pages + 3).cpu_may_map);
  EXPECT_EQ(device.machine.at(block_pages + 3).device_mapped, 1);
  device.touch_cpu(0);
  EXPECT_TRUE(device.machine.at(0).system_current);
}

}  // namespace
}  // namespace ferry::core::test
