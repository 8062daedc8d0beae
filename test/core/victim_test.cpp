// The victim policy: what stays when a program walks through more than VRAM holds, and what leaves when it moves on.
#include <gtest/gtest.h>

#include <algorithm>

#include "core/policy/victim.h"
#include "machine.h"

namespace ferry::core::test {
namespace {

/// Granules that a device maps, as a device sees them: a touch of one that is not mapped faults.
class Device {
 public:
  Device(std::uint64_t vram_blocks, std::uint64_t blocks, VictimKind kind = VictimKind::probe)
      : machine(config(vram_blocks, kind)), mapped_(blocks, 0) {
    EXPECT_TRUE(machine.core.alloc(1, 1, {0, blocks * block_pages}, Placement::automatic).ok());
  }
  void touch(Page block, Access access = Access::read) {
    const int need = access == Access::write ? 2 : 1;
    for (int i = 0; i < 10 && mapped_[block] < need; ++i) {
      machine.fault(block * block_pages, access);
      for (machine.take(); !machine.open.empty(); machine.take()) {
        const Action action = machine.open.front();
        if (action.verb == Verb::revoke_device) {
          mapped_[action.pages.first / block_pages] = 0;
        } else if (action.verb == Verb::map_device) {
          mapped_[action.pages.first / block_pages] = action.prot == Prot::read_write ? 2 : 1;
        }
        machine.answer(action.verb);
      }
    }
    EXPECT_GE(mapped_[block], need);
  }
  [[nodiscard]] std::uint64_t loads() const { return machine.core.stats().migrations_to_vram; }

  Machine machine;

 private:
  static Config config(std::uint64_t vram_blocks, VictimKind kind) {
    Config config = plain_config();
    config.victims = kind;
    config.vram_pages = vram_blocks * block_pages;
    return config;
  }
  std::vector<int> mapped_;
};

TEST(Victim, a_loop_over_twice_the_vram_misses_little_more_than_it_must) {
  constexpr std::uint64_t vram = 32;
  constexpr std::uint64_t blocks = 64;
  Device device(vram, blocks);
  constexpr std::uint64_t rounds = 10;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    for (Page b = 0; b < blocks; ++b) {
      device.touch(b);
    }
  }
  // The least: all once, then in each round all but vram - 1.
  const std::uint64_t least = blocks + (rounds - 1) * (blocks - (vram - 1));
  EXPECT_LE(device.loads(), least * 5 / 4) << "least recently used would load " << rounds * blocks;
}

TEST(Victim, what_is_touched_all_the_time_stays_beside_a_walk) {
  Device device(32, 200);
  for (int round = 0; round < 4; ++round) {
    for (Page b = 8; b < 200; ++b) {
      device.touch(b);
      for (Page hot = 0; hot < 8; ++hot) {
        device.touch(hot, Access::write);
      }
    }
  }
  EXPECT_LE(device.machine.core.stats().pages_to_system, 16U * block_pages) << "the hot eight were written back";
}

TEST(Victim, a_program_that_moves_on_gets_the_room_of_what_it_left) {
  Device device(32, 200);
  for (int round = 0; round < 6; ++round) {
    for (Page b = 0; b < 28; ++b) {
      device.touch(b);
    }
  }
  // A second set that fits: once the first one counts as dead, it stays.
  for (int round = 0; round < 40; ++round) {
    for (Page b = 100; b < 124; ++b) {
      device.touch(b);
    }
  }
  const std::uint64_t before = device.loads();
  for (int round = 0; round < 10; ++round) {
    for (Page b = 100; b < 124; ++b) {
      device.touch(b);
    }
  }
  EXPECT_LE(device.loads() - before, 10U) << "of 240 touches";
}

TEST(Victim, lru_keeps_what_faulted_last_and_fifo_does_not) {
  for (const VictimKind kind : {VictimKind::lru, VictimKind::fifo}) {
    Device device(2, 3, kind);
    device.touch(0);
    device.touch(1);
    device.touch(0, Access::write);  // a fault, though it is there
    device.touch(2);
    EXPECT_EQ(device.machine.at(0).vram_device, kind == VictimKind::lru ? 0 : no_device) << to_string(kind);
    EXPECT_EQ(device.machine.at(block_pages).vram_device, kind == VictimKind::lru ? no_device : 0) << to_string(kind);
  }
}

TEST(Victim, random_draws_the_same_each_time_and_spreads) {
  std::vector<int> left;
  for (int run = 0; run < 2; ++run) {
    Device device(8, 64, VictimKind::random);
    std::vector<int> gone(64);
    for (Page block = 0; block < 64; ++block) {
      device.touch(block);
      if (block < 8) continue;
      for (Page b = 0; b < block; ++b) gone[b] += device.machine.at(b * block_pages).vram_device == no_device ? 1 : 0;
    }
    if (run == 1) {
      EXPECT_EQ(gone, left);
    }
    left = gone;
    EXPECT_EQ(device.machine.core.stats().evictions, 56U);
    // First in, first out would leave exactly the last eight.
    unsigned old = 0;
    for (Page b = 0; b < 56; ++b) old += device.machine.at(b * block_pages).vram_device == 0 ? 1U : 0U;
    EXPECT_GT(old, 0U);
  }
}

TEST(Victim, the_others_take_no_mapping_away_to_learn_of_use) {
  for (const VictimKind kind : {VictimKind::lru, VictimKind::fifo, VictimKind::random}) {
    Device device(8, 32, kind);
    for (Page b = 0; b < 64; ++b) device.touch(b % 32);
    const auto revoked = std::count(device.machine.history.begin(), device.machine.history.end(), Verb::revoke_device);
    EXPECT_EQ(static_cast<std::uint64_t>(revoked), device.machine.core.stats().evictions) << to_string(kind);
  }
}

}  // namespace
}  // namespace ferry::core::test
