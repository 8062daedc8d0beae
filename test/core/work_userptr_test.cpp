// userptr buffers: their pages in place while a job uses them, the notifier's mark, frees under them, moves elsewhere.
#include <gtest/gtest.h>

#include "buffer_machine.h"

namespace ferry::core::test {
namespace {

constexpr Page block = block_pages;
constexpr PageSpan two_blocks{0, 2 * block};
constexpr PageSpan pages{block - 4, 8};  // four pages in each
constexpr JobBuffer use{1, Access::write};

class Userptr : public ::testing::Test {
 protected:
  explicit Userptr(const Config& config = buffer_config()) : m(config) {
    EXPECT_TRUE(m.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
    EXPECT_TRUE(m.create_userptr(1, pages).ok());
  }
  void to_vram(Page page, DeviceId device = 0) {
    m.fault(page, Access::write, 0, device);
    m.settle();
    ASSERT_EQ(m.at(page).vram_device, device);
  }
  Status free(PageSpan span, std::uint64_t cookie) {
    const Status status = m.core.free(++m.now, 1, span, Cookie{cookie});
    m.take();
    m.core.verify();
    return status;
  }
  /// Answers all but jobs.
  void settle_memory() {
    for (;;) {
      m.take();
      const auto it =
          std::find_if(m.open.begin(), m.open.end(), [](const Action& a) { return a.verb != Verb::run_job; });
      if (it == m.open.end()) {
        return;
      }
      m.answer(it->verb);
    }
  }
  void submit(FenceId fence, bool graphics = false) {
    ASSERT_TRUE(m.submit(with_buffers(graphics ? graphics_job(fence) : copy_job(fence), {use})).ok());
  }
  BufferMachine m;
};

TEST_F(Userptr, only_over_own_allocated_pages_and_for_nobody_else) {
  m.open_client(2, 2);
  EXPECT_EQ(m.create_userptr(2, {2 * block - 1, 2}).code, Code::not_allocated);
  EXPECT_EQ(m.create_userptr(2, {2 * block, 1}).code, Code::not_allocated);
  EXPECT_EQ(m.create_userptr(2, pages, 2).code, Code::not_allocated);
  EXPECT_EQ(m.create_userptr(2, {0, 0}).code, Code::bad_range);
  BufferSpec odd;
  odd.count_pages = 3;
  odd.userptr = true;
  odd.user_pages = {0, 4};
  EXPECT_EQ(m.core.buffer_create(++m.now, 1, 2, odd).code, Code::bad_range);
  ASSERT_TRUE(m.core.alloc(1, 1, {4 * block, std::uint64_t{1} << 25}, Placement::automatic).ok());
  EXPECT_EQ(m.create_userptr(2, {4 * block, std::uint64_t{1} << 25}).code, Code::bad_range) << "more than fit";
  EXPECT_EQ(m.open_buffer(1, 2).code, Code::bad_range);
  EXPECT_EQ(m.map(1, 9 * block).code, Code::bad_range);
  EXPECT_EQ(m.where(1), BufferInfo::Where::system);
}

TEST_F(Userptr, a_job_finds_its_pages_in_system_memory_and_looks_them_up_once) {
  to_vram(block - 1);
  to_vram(block);
  submit(1);
  EXPECT_FALSE(m.visible(1));
  EXPECT_EQ(m.asked(Verb::map_buffer, 1), nullptr) << "not before they are there";
  while (m.asked(Verb::map_buffer, 1) == nullptr) {
    ASSERT_FALSE(m.open.empty());
    m.answer(m.open.front().verb);
  }
  for (Page page = pages.first; page < pages.end(); ++page) {
    EXPECT_EQ(m.at(page).vram_device, no_device) << page;
    EXPECT_TRUE(m.at(page).system_current) << page;
  }
  EXPECT_EQ(m.asked(Verb::map_buffer, 1)->pages, pages);
  EXPECT_EQ(m.asked(Verb::map_buffer, 1)->device, no_device) << "the copy engine needs no mapping";
  EXPECT_FALSE(m.visible(1));
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1));
  EXPECT_TRUE(m.runs(1));
  EXPECT_FALSE(m.core.buffer_info(1).stale);
  m.settle();
  submit(2);
  EXPECT_TRUE(m.runs(2)) << "nothing changed";
}

TEST_F(Userptr, graphics_has_them_mapped_in_place) {
  to_vram(block - 1);
  submit(1, true);
  settle_memory();
  EXPECT_TRUE(m.runs(1));
  for (Page page = pages.first; page < pages.end(); ++page) {
    EXPECT_EQ(m.at(page).device_mapped & 1U, 1U) << page;
    EXPECT_EQ(m.at(page).device_writable & 1U, 1U) << page;
  }
}

TEST_F(Userptr, while_a_fence_uses_them_faults_are_served_in_place_and_prefetch_passes_them) {
  submit(1);
  settle_memory();
  ASSERT_TRUE(m.runs(1));
  m.fault(block, Access::write, 7);
  settle_memory();
  EXPECT_TRUE(m.went_on(7));
  EXPECT_EQ(m.at(block).vram_device, no_device);
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, two_blocks, 0, Cookie{70}).ok());
  settle_memory();
  EXPECT_TRUE(m.replied(70).has_value());
  EXPECT_EQ(m.at(block - 1).vram_device, no_device);
  ASSERT_TRUE(m.finish(1));
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, two_blocks, 0, Cookie{71}).ok());
  settle_memory();
  EXPECT_EQ(m.at(block - 1).vram_device, 0);
}

TEST_F(Userptr, pages_on_their_way_to_vram_when_the_job_comes_are_brought_back) {
  m.fault(block, Access::write, 7);
  submit(1);
  settle_memory();
  EXPECT_TRUE(m.runs(1));
  EXPECT_TRUE(m.went_on(7));
  EXPECT_EQ(m.at(block).vram_device, no_device);
}

TEST_F(Userptr, the_notifier_marks_and_the_next_job_looks_again) {
  submit(1);
  settle_memory();
  ASSERT_TRUE(m.runs(1));
  m.core.userptr_invalidate(++m.now, 1, {block, 1});
  m.take();
  EXPECT_TRUE(m.core.buffer_info(1).stale);
  EXPECT_EQ(m.open.size(), 1U) << "the job runs on, nobody waits";
  submit(2);
  ASSERT_NE(m.asked(Verb::map_buffer, 1), nullptr);
  EXPECT_FALSE(m.visible(2));
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1));
  EXPECT_TRUE(m.visible(2));
  m.core.userptr_invalidate(++m.now, 1, {0, block - 4});
  EXPECT_FALSE(m.core.buffer_info(1).stale) << "beside it";
}

TEST_F(Userptr, a_change_while_pages_are_looked_up_has_them_looked_up_again) {
  submit(1);
  ASSERT_NE(m.asked(Verb::map_buffer, 1), nullptr);
  m.core.userptr_invalidate(++m.now, 1, pages);
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1));
  EXPECT_FALSE(m.visible(1));
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1));
  EXPECT_TRUE(m.runs(1));
}

TEST_F(Userptr, who_changes_its_pages_for_ever_does_not_hold_up_the_line_for_ever) {
  submit(1);
  ASSERT_TRUE(m.submit(copy_job(2)).ok());
  unsigned lookups = 0;
  for (; m.asked(Verb::map_buffer, 1) != nullptr; ++lookups) {
    ASSERT_LT(lookups, 100U);
    m.core.userptr_invalidate(++m.now, 1, pages);
    ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1));
  }
  EXPECT_EQ(m.replied(1), Status(Code::timed_out));
  EXPECT_TRUE(m.runs(2));
}

class UserptrKeepsOld : public Userptr {
 protected:
  static Config config() {
    Config c = buffer_config();
    c.bug = PlantedBug::userptr_keeps_old;
    return c;
  }
  UserptrKeepsOld() : Userptr(config()) {}
};

TEST_F(UserptrKeepsOld, the_bug_shows_as_a_job_that_does_not_look_again) {
  submit(1);
  settle_memory();
  m.core.userptr_invalidate(++m.now, 1, pages);
  submit(2);
  EXPECT_EQ(m.asked(Verb::map_buffer, 1), nullptr);
  EXPECT_TRUE(m.visible(2));
  EXPECT_TRUE(m.core.buffer_info(1).stale);
}

// --- free ------------------------------------------------------------------------------------------------------------

TEST_F(Userptr, a_free_under_a_running_job_returns_and_gives_the_pages_back_after_the_fence) {
  submit(1, true);
  settle_memory();
  ASSERT_TRUE(m.runs(1));
  ASSERT_TRUE(free({block, block}, 80).ok());
  EXPECT_TRUE(m.core.buffer_info(1).stale);
  EXPECT_EQ(m.open.size(), 1U) << "only the job: nothing is revoked under it";
  EXPECT_FALSE(m.replied(80).has_value());
  EXPECT_EQ(m.core.alloc(1, 1, {block, 1}, Placement::automatic).code, Code::overlap);
  m.fault(block, Access::read, 7);
  EXPECT_EQ(m.woken(7), Status(Code::not_allocated));
  m.cpu(block);
  EXPECT_EQ(m.cpu_wakes(block), 1U);
  ASSERT_TRUE(m.submit(with_buffers(copy_job(2), {use})).ok());
  EXPECT_EQ(m.replied(2), Status(Code::not_allocated)) << "the next job finds no pages";
  ASSERT_TRUE(m.finish(1));
  EXPECT_EQ(m.open_count(Verb::discard_system), 0U);
  ASSERT_TRUE(m.answer(Verb::revoke_device));
  ASSERT_TRUE(m.answer(Verb::discard_system));
  EXPECT_EQ(m.replied(80), Status{});
  ASSERT_TRUE(m.core.alloc(1, 1, {block, block}, Placement::automatic).ok());
  submit(3);
  settle_memory();
  EXPECT_TRUE(m.runs(3)) << "pages of now";
}

TEST_F(Userptr, pages_beside_it_are_given_up_at_once) {
  Config config = buffer_config();
  config.granularity_pages = 16;
  BufferMachine fine(config);
  ASSERT_TRUE(fine.core.alloc(1, 1, two_blocks, Placement::automatic).ok());
  ASSERT_TRUE(fine.create_userptr(1, pages).ok());
  fine.fault(block + 100, Access::write, 7);
  fine.settle();
  ASSERT_TRUE(fine.submit(with_buffers(graphics_job(1), {use})).ok());
  while (!fine.runs(1)) {
    fine.answer(fine.open.front().verb);
  }
  ASSERT_TRUE(fine.core.free(++fine.now, 1, {block, block}, Cookie{80}).ok());
  fine.take();
  EXPECT_EQ(fine.open_count(Verb::revoke_device), 1U) << "the granule of page 100";
  EXPECT_EQ(fine.at(block).device_mapped & 1U, 0U) << "not allocated any more, says the query";
  ASSERT_TRUE(fine.answer(Verb::revoke_device));
  EXPECT_EQ(fine.open_count(Verb::revoke_device), 0U);
  EXPECT_EQ(fine.open_count(Verb::discard_system), 0U);
  ASSERT_TRUE(fine.finish(1));
  fine.settle();
  EXPECT_EQ(fine.replied(80), Status{});
}

TEST_F(Userptr, a_free_of_pages_that_were_never_touched_waits_for_the_fence_too) {
  submit(1);
  settle_memory();
  ASSERT_TRUE(m.runs(1));
  ASSERT_TRUE(free(two_blocks, 80).ok());
  EXPECT_EQ(m.open_count(Verb::discard_system), 0U);
  ASSERT_TRUE(m.finish(1));
  m.settle();
  EXPECT_EQ(m.replied(80), Status{});
}

TEST_F(Userptr, a_free_while_the_job_gathers_fails_the_job_and_goes_on) {
  submit(1);
  ASSERT_NE(m.asked(Verb::map_buffer, 1), nullptr);
  ASSERT_TRUE(free(two_blocks, 80).ok());
  EXPECT_EQ(m.open_count(Verb::discard_system), 0U) << "they are being looked up";
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1));
  EXPECT_EQ(m.replied(1), Status(Code::not_allocated));
  m.settle();
  EXPECT_EQ(m.replied(80), Status{});
}

TEST_F(Userptr, a_thread_that_waits_for_a_page_does_not_wait_for_the_fence_of_its_free) {
  submit(1);
  settle_memory();
  ASSERT_TRUE(m.runs(1));
  m.fault(block, Access::write, 7);
  m.cpu(block);
  EXPECT_EQ(m.cpu_wakes(block), 0U);
  ASSERT_TRUE(free({block, block}, 80).ok());
  EXPECT_EQ(m.cpu_wakes(block), 1U);
  settle_memory();
  EXPECT_TRUE(m.woken(7).has_value() || m.went_on(7));
  EXPECT_FALSE(m.replied(80).has_value());
  ASSERT_TRUE(m.finish(1));
  m.settle();
  EXPECT_EQ(m.replied(80), Status{});
}

TEST_F(Userptr, closed_while_it_is_used_it_goes_after_its_fence) {
  submit(1);
  settle_memory();
  ASSERT_TRUE(m.close(1).ok());
  EXPECT_TRUE(m.core.buffer_info(1).known);
  ASSERT_TRUE(free(two_blocks, 80).ok());
  ASSERT_TRUE(m.finish(1));
  m.settle();
  EXPECT_FALSE(m.core.buffer_info(1).known);
  EXPECT_EQ(m.replied(80), Status{});
  EXPECT_TRUE(m.core.quiescent());
}

TEST_F(Userptr, a_dead_clients_pages_stay_until_its_job_has_ended) {
  submit(1);
  settle_memory();
  ASSERT_TRUE(m.runs(1));
  ASSERT_TRUE(free({block, block}, 80).ok());
  m.kill(1, 2, 900);
  settle_memory();
  EXPECT_FALSE(m.replied(900).has_value());
  ASSERT_TRUE(m.finish(1));
  m.settle();
  EXPECT_TRUE(m.replied(900).has_value());
  EXPECT_FALSE(m.core.buffer_info(1).known);
}

TEST_F(Userptr, a_client_that_dies_while_its_pages_are_brought_in_place) {
  to_vram(block);
  submit(1);
  m.kill(1, 2, 900);
  m.settle();
  EXPECT_TRUE(m.replied(900).has_value());
  EXPECT_TRUE(m.core.quiescent());
}

TEST(UserptrBudget, pages_are_charged_and_not_stored_while_they_are_used) {
  Config config = buffer_config(64, 1024);
  config.granularity_pages = 16;
  BufferMachine m(config);
  ASSERT_TRUE(m.core.alloc(1, 1, {0, 32}, Placement::automatic).ok());
  ASSERT_TRUE(m.create_userptr(1, {0, 32}).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {use})).ok());
  while (!m.runs(1)) {
    ASSERT_FALSE(m.open.empty());
    m.answer(m.open.front().verb);
  }
  EXPECT_EQ(m.core.stats().system_pages, 32U);
  m.pressure(64);
  EXPECT_EQ(m.open_count(Verb::store), 0U);
  ASSERT_TRUE(m.finish(1));
  m.pressure(64);
  m.settle();
  EXPECT_EQ(m.core.stats().system_pages, 0U);
}

}  // namespace
}  // namespace ferry::core::test
