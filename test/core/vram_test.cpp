// Room: eviction, budgets, several clients, deaths, frees in the middle of things.
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "machine.h"

namespace ferry::core::test {
namespace {

constexpr PageSpan ten_blocks{0, 10 * block_pages};
constexpr Page page_in(Page block) { return block * block_pages + 1; }

TEST(Vram, a_full_device_evicts_one_granule_whose_pages_come_home) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  for (Page b = 0; b < 4; ++b) {
    m.fault(page_in(b), Access::write);
    m.settle();
  }
  EXPECT_EQ(m.core.vram_used_pages(0), 4U * block_pages);
  m.fault(page_in(4), Access::read, 44);
  m.settle();
  EXPECT_TRUE(m.went_on(44));
  int at_home = 0;
  for (Page b = 0; b < 4; ++b) {
    at_home += m.at(page_in(b)).vram_device == no_device && m.at(page_in(b)).system_current ? 1 : 0;
  }
  EXPECT_EQ(at_home, 1);
  EXPECT_EQ(m.core.stats().evictions, 1U);
  EXPECT_EQ(m.core.vram_used_pages(0), 4U * block_pages);
}

TEST(Vram, an_evicted_slot_is_not_reused_before_its_copy_is_home) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  for (Page b = 0; b < 4; ++b) {
    m.fault(page_in(b), Access::write);
    m.settle();
  }
  m.fault(page_in(4), Access::read);
  EXPECT_EQ(m.open_count(Verb::revoke_device), 1U);
  EXPECT_EQ(m.open_count(Verb::revoke_cpu), 0U) << "waits for room with nothing taken away yet";
  ASSERT_TRUE(m.answer(Verb::revoke_device));
  ASSERT_EQ(m.open_count(Verb::copy), 1U);
  EXPECT_EQ(m.open[0].place, Place::vram);
  ASSERT_TRUE(m.answer(Verb::copy));
  EXPECT_EQ(m.open_count(Verb::revoke_cpu), 1U);
  m.settle();
}

TEST(Vram, more_waiters_than_granules_all_go_on) {
  Config config = plain_config();
  config.vram_pages = block_pages;
  Machine m(config);
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  for (Page b = 0; b < 10; ++b) {
    m.fault(page_in(b), Access::write, b + 1);
  }
  m.settle();
  for (Page b = 0; b < 10; ++b) {
    EXPECT_TRUE(m.went_on(b + 1)) << b;
  }
  EXPECT_LE(m.core.stats().vram_peak_pages, block_pages);
}

TEST(Vram, no_vram_at_all_is_served_in_place) {
  Config config = plain_config();
  config.vram_pages = 0;
  Machine m(config);
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(page_in(0), Access::write, 1);
  m.settle();
  EXPECT_TRUE(m.went_on(1));
  EXPECT_EQ(m.core.vram_used_pages(0), 0U);
}

TEST(Vram, a_second_client_takes_chunks_that_were_released_first) {
  Machine m(plain_config());
  m.core.client_open(2);
  m.core.device_attach(2, 0);
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  ASSERT_TRUE(m.core.alloc(1, 2, ten_blocks, Placement::automatic).ok());
  for (Page b = 0; b < 4; ++b) {
    m.fault(page_in(b), Access::write);
    m.settle();
  }
  m.fault(page_in(0), Access::write, 77, 0, 2);
  EXPECT_EQ(m.open_count(Verb::revoke_device), 1U);
  ASSERT_TRUE(m.answer(Verb::revoke_device));
  ASSERT_TRUE(m.answer(Verb::copy));
  ASSERT_EQ(m.open_count(Verb::release_chunk), 1U);
  EXPECT_EQ(m.open_count(Verb::revoke_cpu), 0U) << "not before the chunk's memory is gone";
  EXPECT_EQ(m.core.vram_used_pages(0), 4U * block_pages);
  m.settle();
  EXPECT_TRUE(m.went_on(77));
  EXPECT_EQ(m.at(page_in(0), 2).vram_device, 0);
  EXPECT_EQ(m.core.client_stats(1).evictions, 1U);
}

TEST(Vram, small_granules_share_a_chunk_and_keep_their_pages_apart) {
  Config config = plain_config();
  config.vram_pages = block_pages;
  config.granularity_pages = 16;
  Machine m(config);
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  std::vector<VramPage> seen;
  for (Page g = 0; g < block_pages / 16; ++g) {
    m.fault(g * 16, Access::write);
    ASSERT_TRUE(m.answer(Verb::revoke_cpu));
    seen.push_back(m.open[0].vram_first);
    m.settle();
  }
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(std::unique(seen.begin(), seen.end()), seen.end());
  EXPECT_EQ(m.core.stats().evictions, 0U);
  EXPECT_EQ(m.core.vram_used_pages(0), block_pages);
}

TEST(Vram, clients_do_not_wait_for_ever_for_one_that_does_not_answer) {
  const Config config = plain_config();
  Machine m(config);
  m.core.client_open(2);
  m.core.device_attach(2, 0);
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  ASSERT_TRUE(m.core.alloc(1, 2, ten_blocks, Placement::automatic).ok());
  for (Page b = 0; b < 4; ++b) {
    m.fault(page_in(b), Access::write, b + 1);
  }
  ASSERT_EQ(m.open_count(Verb::revoke_cpu), 4U);
  // The application is stopped: it answers none of these, and all room is held for granules on their way.
  const std::vector<Action> unanswered = std::exchange(m.open, {});
  m.fault(page_in(0), Access::write, 20, 0, 2);
  m.core.tick(m.now += config.line_patience_ns / 2);
  m.settle();
  EXPECT_FALSE(m.went_on(20)) << "granules on their way are waited for";
  m.core.tick(m.now += config.line_patience_ns);
  m.settle();
  EXPECT_TRUE(m.went_on(20));
  EXPECT_NE(m.at(page_in(0), 2).device_mapped, 0) << "in place";
  m.fault(page_in(1), Access::write, 21, 0, 2);
  m.settle();
  EXPECT_TRUE(m.went_on(21)) << "the next does not wait as long again";
  m.open = unanswered;
  m.settle();
  for (Page b = 0; b < 4; ++b) {
    EXPECT_TRUE(m.went_on(b + 1)) << b;
  }
  m.fault(page_in(2), Access::write, 22, 0, 2);
  EXPECT_FALSE(m.went_on(22)) << "room is to be had again";
  m.settle();
  EXPECT_TRUE(m.went_on(22));
  EXPECT_EQ(m.at(page_in(2), 2).vram_device, 0);
}

TEST(Vram, prefetch_of_what_cannot_move_ends_at_once_however_large) {
  Config config = plain_config();
  config.granularity_pages = 1;
  Machine m(config);
  constexpr PageSpan huge{0, std::uint64_t{1} << 40};
  ASSERT_TRUE(m.core.alloc(1, 1, huge, Placement::automatic).ok());
  constexpr PageSpan in_system{huge.end(), huge.count_pages};
  ASSERT_TRUE(m.core.alloc(1, 1, in_system, Placement::system).ok());
  m.fault(huge.count_pages / 2, Access::write);
  m.settle();
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, huge, no_device, Cookie{1}).ok());
  m.settle();
  EXPECT_TRUE(m.replied(1).has_value());
  EXPECT_EQ(m.at(huge.count_pages / 2).vram_device, no_device) << "what was away is home";
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, in_system, 0, Cookie{2}).ok());
  m.settle();
  EXPECT_TRUE(m.replied(2).has_value());
  m.core.device_gone(++m.now, 1, 0);
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, huge, 0, Cookie{3}).ok());
  m.settle();
  EXPECT_TRUE(m.replied(3).has_value());
}

TEST(Vram, free_during_a_migration_waits_for_it_and_fails_its_waves) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(page_in(0), Access::write, 5);
  ASSERT_TRUE(m.answer(Verb::revoke_cpu));
  ASSERT_TRUE(m.core.free(++m.now, 1, ten_blocks, Cookie{9}).ok());
  m.take();
  EXPECT_EQ(m.open_count(Verb::discard_system), 0U);
  EXPECT_FALSE(m.replied(9).has_value());
  m.fault(page_in(0), Access::read, 6);
  EXPECT_EQ(m.woken(6)->code, Code::not_allocated);
  EXPECT_EQ(m.core.alloc(++m.now, 1, {0, 1}, Placement::automatic).code, Code::overlap);
  m.settle();
  ASSERT_TRUE(m.replied(9).has_value());
  EXPECT_TRUE(m.replied(9)->ok());
  EXPECT_FALSE(m.at(page_in(0)).allocated);
  EXPECT_TRUE(m.core.alloc(++m.now, 1, ten_blocks, Placement::automatic).ok());
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Vram, part_of_a_granule_can_be_freed_and_the_rest_stays) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(0, Access::write);
  m.settle();
  ASSERT_TRUE(m.core.free(++m.now, 1, {100, 50}, Cookie{1}).ok());
  m.settle();
  EXPECT_TRUE(m.replied(1).has_value());
  EXPECT_FALSE(m.at(120).allocated);
  EXPECT_EQ(m.at(99).vram_device, 0);
  m.cpu(99);
  m.settle();
  EXPECT_TRUE(m.at(99).system_current);
  EXPECT_EQ(m.core.free(++m.now, 1, {90, 20}, Cookie{2}).code, Code::not_allocated) << "a hole in it";
  EXPECT_TRUE(m.at(95).allocated) << "nothing happened";
}

TEST(Vram, pages_of_a_dead_device_come_home_when_touched) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(page_in(0), Access::write);
  m.settle();
  m.core.device_gone(++m.now, 1, 0);
  EXPECT_TRUE(m.at(page_in(0)).dirty);
  m.cpu(page_in(0));
  m.settle();
  EXPECT_TRUE(m.at(page_in(0)).system_current && m.at(page_in(0)).cpu_may_map);
  m.core.device_attach(1, 0);
  m.fault(page_in(0), Access::write, 3);
  m.settle();
  EXPECT_TRUE(m.went_on(3));
}

TEST(Vram, a_client_that_dies_in_the_middle_gives_everything_back) {
  for (int answered = 0; answered < 6; ++answered) {
    Machine m(plain_config());
    ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
    for (Page b = 0; b < 6; ++b) {
      m.fault(page_in(b), Access::write);
      if (b < 4) {
        m.settle();
      }
    }
    for (int i = 0; i < answered && !m.open.empty(); ++i) {
      m.answer(m.open.front().verb);
    }
    m.core.device_gone(++m.now, 1, 0);
    m.core.client_gone(++m.now, 1, Cookie{3});
    m.settle();
    ASSERT_TRUE(m.replied(3).has_value()) << answered;
    EXPECT_EQ(m.core.vram_used_pages(0), 0U);
    EXPECT_TRUE(m.core.quiescent());
    m.core.client_open(1);
  }
}

TEST(Vram, prefetch_up_and_home) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, {0, 2 * block_pages}, 0, Cookie{1}).ok());
  EXPECT_FALSE(m.replied(1).has_value());
  m.settle();
  EXPECT_TRUE(m.replied(1).has_value());
  EXPECT_EQ(m.at(page_in(1)).vram_device, 0);
  EXPECT_EQ(m.at(page_in(1)).device_mapped, 1);
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, ten_blocks, no_device, Cookie{2}).ok());
  m.settle();
  EXPECT_TRUE(m.replied(2).has_value());
  EXPECT_TRUE(m.at(page_in(1)).cpu_may_map);
  EXPECT_EQ(m.core.prefetch(++m.now, 1, {99 * block_pages, 1}, 0, Cookie{3}).code, Code::not_allocated);
  EXPECT_EQ(m.core.prefetch(++m.now, 1, {0, 0}, 0, Cookie{4}).code, Code::bad_range);
}

TEST(Vram, prefetch_of_more_than_vram_ends_and_fills_it) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, ten_blocks, 0, Cookie{1}).ok());
  m.settle();
  EXPECT_TRUE(m.replied(1).has_value());
  EXPECT_EQ(m.core.stats().evictions, 0U) << "a prefetch does not push out what it just brought";
  EXPECT_EQ(m.core.vram_used_pages(0), 4U * block_pages);
}

TEST(Vram, spans_that_make_no_sense_are_refused) {
  Machine m(plain_config());
  EXPECT_EQ(m.core.alloc(1, 1, {0, 0}, Placement::automatic).code, Code::bad_range);
  EXPECT_EQ(m.core.alloc(1, 1, {~Page{0}, 2}, Placement::automatic).code, Code::bad_range);
  EXPECT_EQ(m.core.alloc(1, 1, {5, ~Page{0}}, Placement::automatic).code, Code::bad_range);
  ASSERT_TRUE(m.core.alloc(1, 1, {10, 10}, Placement::automatic).ok());
  EXPECT_EQ(m.core.alloc(1, 1, {5, 6}, Placement::automatic).code, Code::overlap);
  EXPECT_EQ(m.core.alloc(1, 1, {19, 1}, Placement::automatic).code, Code::overlap);
  EXPECT_EQ(m.core.free(1, 1, {9, 2}, Cookie{}).code, Code::not_allocated);
  EXPECT_EQ(m.core.free(1, 1, {0, 0}, Cookie{}).code, Code::not_allocated);
  EXPECT_TRUE(m.core.alloc(1, 1, {20, 5}, Placement::automatic).ok());
}

}  // namespace
}  // namespace ferry::core::test
