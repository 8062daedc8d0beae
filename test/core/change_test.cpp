// What the application does to its own pages: unmapped, discarded, protected at any moment of an operation.
#include <gtest/gtest.h>

#include "machine.h"

namespace ferry::core::test {
namespace {

constexpr PageSpan two_blocks{0, 2 * block_pages};
constexpr std::uint8_t read_only = span_read;

Status ask(Machine& m, Change change, PageSpan span, std::uint64_t cookie, std::uint8_t prot = 0) {
  const Status status = m.core.change(++m.now, 1, change, span, 0, prot, {cookie});
  m.take();
  return status;
}

/// As a device that knows of every unmap up to `seen`.
void fault_seen(Machine& m, Page page, std::uint64_t seen, std::uint64_t token, Access access = Access::read) {
  m.core.device_fault(++m.now, 1, 0, page, access, FaultToken{token}, AllocContext::no_cu, seen);
  m.take();
}

TEST(Change, bad_requests_change_nothing) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
  EXPECT_EQ(ask(m, Change::unmap, {0, 0}, 1).code, Code::bad_range);
  EXPECT_EQ(ask(m, Change::discard, {5, ~std::uint64_t{0}}, 2).code, Code::bad_range);
  EXPECT_EQ(ask(m, Change::protect, {0, 1}, 3, 8).code, Code::bad_range);
  EXPECT_EQ(ask(m, Change::unmap, {2 * block_pages, 7}, 4).code, Code::not_allocated);
  EXPECT_EQ(m.core.change(9, 2, Change::unmap, {0, 1}, 0, 0, {5}).code, Code::client_gone);
  EXPECT_TRUE(m.open.empty());
  for (std::uint64_t cookie = 1; cookie < 6; ++cookie) EXPECT_FALSE(m.replied(cookie).has_value());
  EXPECT_TRUE(m.at(0).allocated);
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Change, unmap_takes_a_hole_and_the_rest_goes_over_it) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
  m.fault(5, Access::write);
  m.settle();
  ASSERT_TRUE(ask(m, Change::unmap, {100, 50}, 7).ok());
  m.settle();
  EXPECT_TRUE(m.replied(7) && m.replied(7)->ok());
  EXPECT_FALSE(m.at(100).allocated || m.at(149).allocated);
  EXPECT_TRUE(m.at(99).allocated && m.at(99).dirty && m.at(150).allocated && m.at(150).dirty);
  // All of it: the hole is passed over, in one request.
  ASSERT_TRUE(ask(m, Change::unmap, two_blocks, 8).ok());
  EXPECT_FALSE(m.replied(8).has_value());
  m.settle();
  EXPECT_TRUE(m.replied(8) && m.replied(8)->ok());
  EXPECT_FALSE(m.at(0).allocated || m.at(2 * block_pages - 1).allocated);
  EXPECT_TRUE(m.core.quiescent());
  EXPECT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok()) << "the addresses are free again";
}

TEST(Change, a_fault_older_than_the_unmap_tries_again_and_a_newer_one_fails) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
  const std::uint64_t before = m.core.changes(1);
  ASSERT_TRUE(ask(m, Change::unmap, {0, 10}, 1).ok());
  EXPECT_EQ(m.core.changes(1), before + 1);
  m.settle();
  fault_seen(m, 3, before, 50);
  ASSERT_TRUE(m.woken(50).has_value());
  EXPECT_TRUE(m.woken(50)->ok());
  fault_seen(m, 3, before + 1, 51);
  ASSERT_TRUE(m.woken(51).has_value());
  EXPECT_EQ(m.woken(51)->code, Code::not_allocated);
  // Another page is none of its business.
  fault_seen(m, 20, before, 52);
  EXPECT_FALSE(m.woken(52).has_value());
  m.settle();
  EXPECT_TRUE(m.went_on(52));
  // Allocated anew, the old fault is dropped all the same.
  ASSERT_TRUE(m.core.alloc(1, 1, {0, 10}, Placement::automatic).ok());
  const std::size_t open = m.open.size();
  fault_seen(m, 4, before, 53);
  EXPECT_TRUE(m.woken(53) && m.woken(53)->ok());
  EXPECT_EQ(m.open.size(), open) << "nothing is moved for it";
}

TEST(Change, faults_older_than_all_unmaps_that_are_remembered_try_again) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
  for (Page p = 0; p < 100; ++p) {
    ASSERT_TRUE(ask(m, Change::unmap, {p, 1}, 100 + p).ok());
    m.settle();
  }
  fault_seen(m, 2, 0, 50);
  EXPECT_TRUE(m.woken(50) && m.woken(50)->ok());
  fault_seen(m, 2, 99, 51);
  EXPECT_TRUE(m.woken(51) && m.woken(51)->code == Code::not_allocated);
}

TEST(Change, a_wave_that_waits_for_a_page_that_goes_tries_again) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
  fault_seen(m, 5, 0, 50, Access::write);
  ASSERT_EQ(m.open_count(Verb::revoke_cpu), 1U);
  ASSERT_TRUE(ask(m, Change::unmap, {0, 10}, 1).ok());
  m.settle();
  EXPECT_TRUE(m.replied(1) && m.replied(1)->ok());
  EXPECT_TRUE(m.went_on(50)) << "mapped before the page went, or told to try again";
}

TEST(Change, discard_forgets_what_vram_has_without_a_copy) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
  m.fault(5, Access::write);
  m.settle();
  ASSERT_TRUE(m.at(5).dirty);
  m.history.clear();
  ASSERT_TRUE(ask(m, Change::discard, {0, block_pages}, 1).ok());
  EXPECT_EQ(m.open_count(Verb::revoke_device), 1U);
  EXPECT_FALSE(m.replied(1).has_value());
  m.settle();
  EXPECT_TRUE(m.replied(1) && m.replied(1)->ok());
  EXPECT_EQ(m.history, (std::vector<Verb>{Verb::revoke_device, Verb::discard_system}));
  const Residency r = m.at(5);
  EXPECT_TRUE(r.allocated && r.system_current && r.vram_device == no_device && r.device_mapped == 0);
  EXPECT_EQ(m.core.vram_used_pages(0), block_pages) << "the chunk stays the client's";
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Change, discard_of_a_part_leaves_the_rest_of_the_granule_where_it_is) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
  m.fault(5, Access::write);
  m.settle();
  ASSERT_TRUE(ask(m, Change::discard, {100, 10}, 1).ok());
  m.settle();
  EXPECT_TRUE(m.at(105).system_current && !m.at(105).dirty);
  EXPECT_TRUE(m.at(99).dirty && m.at(110).dirty);
  EXPECT_NE(m.at(99).device_mapped, 0);
}

TEST(Change, discard_waits_for_the_migration_under_way_and_comes_before_its_waiters) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
  m.fault(5, Access::read, 50);
  ASSERT_TRUE(m.answer(Verb::revoke_cpu));
  ASSERT_TRUE(ask(m, Change::discard, {0, block_pages}, 1).ok());
  EXPECT_EQ(m.open_count(Verb::copy), 1U);
  m.cpu(7);
  m.settle();
  EXPECT_TRUE(m.replied(1) && m.replied(1)->ok());
  EXPECT_TRUE(m.went_on(50));
  EXPECT_TRUE(m.at(7).system_current && m.at(7).cpu_may_map) << "the CPU thread that waited was served afterwards";
}

TEST(Change, discard_under_a_budget_gives_memory_and_store_back) {
  Config config = plain_config();
  config.system_pages = 4 * block_pages;
  config.store_pages = 16 * block_pages;
  Machine m(config);
  ASSERT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
  m.cpu(0);
  m.settle();
  m.cpu(block_pages);
  m.settle();
  EXPECT_EQ(m.core.stats().system_pages, 2 * block_pages);
  m.core.pressure(++m.now, block_pages);
  m.settle();
  ASSERT_EQ(m.core.stats().stored_pages, block_pages);
  ASSERT_TRUE(ask(m, Change::discard, two_blocks, 1).ok());
  m.settle();
  EXPECT_TRUE(m.replied(1) && m.replied(1)->ok());
  EXPECT_EQ(m.core.stats().system_pages, 0U);
  EXPECT_EQ(m.core.stats().stored_pages, 0U);
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Change, protect_takes_the_mapping_away_and_the_next_write_fails) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
  m.fault(5, Access::write);
  m.settle();
  ASSERT_TRUE(ask(m, Change::protect, {0, 10}, 1, read_only).ok());
  ASSERT_EQ(m.open_count(Verb::revoke_device), 1U);
  EXPECT_EQ(m.open[0].pages, (PageSpan{0, 10}));
  m.settle();
  EXPECT_TRUE(m.replied(1) && m.replied(1)->ok());
  EXPECT_TRUE(m.at(5).dirty) << "the bytes stay where they are";
  EXPECT_NE(m.at(20).device_writable, 0) << "its neighbours are left alone";
  m.fault(5, Access::write, 50);
  ASSERT_TRUE(m.woken(50).has_value());
  EXPECT_EQ(m.woken(50)->code, Code::kernel_fault);
  m.fault(6, Access::read, 51);
  m.settle();
  EXPECT_TRUE(m.went_on(51));
  EXPECT_TRUE(m.at(6).device_mapped == 1 && m.at(6).device_writable == 0);
  // Allowed again: by a fault, when it is wanted.
  ASSERT_TRUE(ask(m, Change::protect, {0, 10}, 2, span_all).ok());
  EXPECT_TRUE(m.replied(2) && m.replied(2)->ok()) << "nothing has to be taken away";
  m.fault(5, Access::write, 52);
  m.settle();
  EXPECT_TRUE(m.went_on(52));
}

TEST(Change, no_access_means_no_mapping_even_beside_pages_that_are_faulted) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
  ASSERT_TRUE(ask(m, Change::protect, {64, 1}, 1, 0).ok());
  m.fault(5, Access::write, 50);
  m.settle();
  EXPECT_TRUE(m.went_on(50));
  EXPECT_EQ(m.at(64).device_mapped, 0);
  EXPECT_NE(m.at(65).device_writable, 0);
  m.fault(64, Access::read, 51);
  ASSERT_TRUE(m.woken(51).has_value());
  EXPECT_EQ(m.woken(51)->code, Code::kernel_fault);
}

TEST(Change, protect_during_a_mapping_ends_with_what_it_wants) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
  m.fault(5, Access::write, 50);
  ASSERT_TRUE(m.answer(Verb::revoke_cpu));
  ASSERT_TRUE(m.answer(Verb::copy));
  ASSERT_EQ(m.open_count(Verb::map_device), 1U);
  ASSERT_TRUE(ask(m, Change::protect, two_blocks, 1, read_only).ok());
  EXPECT_FALSE(m.replied(1).has_value());
  m.settle();
  EXPECT_TRUE(m.replied(1) && m.replied(1)->ok());
  EXPECT_EQ(m.at(5).device_writable, 0);
}

TEST(Change, a_write_in_place_to_a_read_only_page_fails_and_reads_go_on) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::system).ok());
  ASSERT_TRUE(ask(m, Change::protect, {0, 4}, 1, read_only).ok());
  m.fault(5, Access::write, 50);
  m.settle();
  EXPECT_TRUE(m.went_on(50));
  EXPECT_TRUE((m.at(2).device_mapped & 1) != 0 && m.at(2).device_writable == 0);
  EXPECT_NE(m.at(5).device_writable, 0);
  m.fault(2, Access::write, 51);
  ASSERT_TRUE(m.woken(51).has_value());
  EXPECT_EQ(m.woken(51)->code, Code::kernel_fault);
}

TEST(Change, protection_goes_with_the_pages) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
  ASSERT_TRUE(ask(m, Change::protect, {10, 20}, 1, 0).ok());
  ASSERT_TRUE(ask(m, Change::unmap, {15, 5}, 2).ok());
  m.settle();
  ASSERT_TRUE(m.core.alloc(1, 1, {15, 5}, Placement::automatic).ok());
  m.fault(17, Access::write, 50);
  m.settle();
  EXPECT_TRUE(m.went_on(50));
  m.fault(14, Access::read, 51);
  EXPECT_TRUE(m.woken(51) && m.woken(51)->code == Code::kernel_fault);
  m.fault(20, Access::read, 52);
  EXPECT_TRUE(m.woken(52) && m.woken(52)->code == Code::kernel_fault);
  ASSERT_TRUE(m.core.free(++m.now, 1, two_blocks, {9}).ok());
  m.settle();
  m.core.verify();
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Change, a_client_that_ends_takes_its_changes_along) {
  Machine m(plain_config());
  ASSERT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
  m.fault(5, Access::write);
  m.settle();
  m.fault(block_pages, Access::write);
  ASSERT_TRUE(ask(m, Change::discard, two_blocks, 1).ok());
  ASSERT_TRUE(ask(m, Change::protect, two_blocks, 2, 0).ok());
  ASSERT_TRUE(ask(m, Change::unmap, {0, 5}, 3).ok());
  m.core.device_gone(++m.now, 1, 0);
  m.core.client_gone(++m.now, 1, {9});
  m.settle();
  EXPECT_TRUE(m.replied(9).has_value());
  EXPECT_FALSE(m.replied(1).has_value());
  EXPECT_TRUE(m.core.quiescent());
}

/// Of the pages that are not allocated when it is asked for, some are before it is answered.
TEST(Change, a_discard_is_not_about_what_is_allocated_there_later) {
  for (const Change kind : {Change::discard, Change::lazy_free}) {
    Machine m(plain_config());
    ASSERT_TRUE(m.core.alloc(1, 1, {0, 100}, Placement::automatic).ok());
    m.fault(5, Access::write);  // the discard has to wait for this
    ASSERT_TRUE(ask(m, kind, {0, 200}, 1).ok());
    ASSERT_FALSE(m.replied(1).has_value());
    ASSERT_TRUE(m.core.alloc(++m.now, 1, {100, 50}, Placement::automatic).ok());
    bool touched = false;
    for (m.take(); !m.open.empty(); m.take()) {
      for (const Action& a : m.open) {
        touched = touched || ((a.verb == Verb::discard_system || a.verb == Verb::revoke_cpu) && a.pages.contains(120));
      }
      m.answer(m.open.front().verb);
    }
    EXPECT_TRUE(m.replied(1).has_value());
    EXPECT_FALSE(touched) << to_string(kind);
  }
}

/// Each planted bug breaks what is written beside it.
TEST(ChangeDeathTest, planted_bugs_are_seen) {
  const auto run = [](PlantedBug bug, Change change, std::uint8_t prot) {
    Config config = plain_config();
    config.bug = bug;
    Machine m(config);
    static_cast<void>(m.core.alloc(1, 1, two_blocks, Placement::automatic));
    m.fault(5, Access::write);
    m.settle();
    static_cast<void>(ask(m, change, {0, 10}, 1, prot));
    m.settle();
    m.core.verify();
  };
  EXPECT_DEATH(run(PlantedBug::keep_protected_mapping, Change::protect, 0), "no_read");
  Config config = plain_config();
  config.bug = PlantedBug::serve_old_fault;
  Machine m(config);
  ASSERT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
  ASSERT_TRUE(ask(m, Change::unmap, {0, 10}, 1).ok());
  m.settle();
  fault_seen(m, 3, 0, 50);
  EXPECT_TRUE(m.woken(50) && !m.woken(50)->ok()) << "the bug shows as a wave that fails";
}

}  // namespace
}  // namespace ferry::core::test
