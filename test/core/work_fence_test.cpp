// Fences: visible, signalled once, arrays, deadlines, waiters; what each planted bug of fences looks like.
#include <gtest/gtest.h>

#include "work_machine.h"

namespace ferry::core::test {
namespace {

JobSpec after(FenceId fence, std::vector<FenceId> waits) {
  JobSpec spec;
  spec.fence = fence;
  spec.engine = Engine::copy;
  spec.waits = std::move(waits);
  return spec;
}

class Fences : public ::testing::Test {
 protected:
  static Config config() {
    Config c = plain_config();
    c.models.resize(1);
    c.models[0].copy_slots = 8;
    return c;
  }
  WorkMachine m{config()};

  Status array(FenceId id, const std::vector<FenceId>& parts, bool any) {
    const Status status = m.core.fence_array(++m.now, 1, id, parts, any);
    m.take();
    m.core.verify();
    return status;
  }
};

TEST_F(Fences, a_fence_is_told_once_and_known_until_it_is_forgotten) {
  ASSERT_TRUE(m.submit(copy_job(1)).ok());
  EXPECT_TRUE(m.visible(1));
  EXPECT_FALSE(m.core.fence_info(1).signalled);
  ASSERT_TRUE(m.finish(1, Code::io_error));
  EXPECT_EQ(m.said_count(Verb::signal_fence, 1), 1U);
  EXPECT_EQ(m.signalled(1), Status(Code::io_error));
  EXPECT_TRUE(m.core.fence_info(1).signalled);
  EXPECT_EQ(m.core.fence_info(1).status.code, Code::io_error);
  m.core.fence_forget(1);
  EXPECT_FALSE(m.core.fence_info(1).known);
}

TEST_F(Fences, a_fence_that_was_forgotten_before_still_signals_and_tells_who_waits) {
  ASSERT_TRUE(m.submit(copy_job(1)).ok());
  ASSERT_TRUE(m.submit(after(2, {1})).ok());
  m.core.fence_forget(1);
  EXPECT_FALSE(m.runs(2));
  ASSERT_TRUE(m.finish(1));
  EXPECT_EQ(m.said_count(Verb::signal_fence, 1), 1U);
  EXPECT_FALSE(m.core.fence_info(1).known);
  EXPECT_TRUE(m.runs(2));
}

TEST_F(Fences, forgetting_what_nobody_knows_does_nothing) {
  m.core.fence_forget(77);
  EXPECT_FALSE(m.core.fence_info(77).known);
}

TEST_F(Fences, all_waiters_of_one_fence_are_told) {
  ASSERT_TRUE(m.submit(copy_job(1)).ok());
  for (FenceId f = 2; f < 6; ++f) {
    ASSERT_TRUE(m.submit(after(f, {1})).ok());
  }
  ASSERT_TRUE(m.finish(1));
  for (FenceId f = 2; f < 6; ++f) {
    EXPECT_TRUE(m.runs(f)) << f;
  }
}

TEST(PlantedFenceBugs, forget_fence_waiter_leaves_the_last_waiter_behind) {
  Config c = plain_config();
  c.bug = PlantedBug::forget_fence_waiter;
  WorkMachine m(c);
  ASSERT_TRUE(m.submit(copy_job(1)).ok());
  ASSERT_TRUE(m.submit(after(2, {1})).ok());
  ASSERT_TRUE(m.submit(after(3, {1})).ok());
  m.take();
  const auto run = m.open_of(Verb::run_job, 1)->id;
  m.core.action_done(++m.now, run, {});
  m.take();
  EXPECT_TRUE(m.runs(2));
  EXPECT_FALSE(m.runs(3)) << "the bug shows as a job that never runs";
}

// --- arrays ----------------------------------------------------------------------------------------------------------

TEST_F(Fences, an_array_of_all_signals_with_its_last_part_and_the_first_error) {
  for (FenceId f = 1; f <= 3; ++f) {
    ASSERT_TRUE(m.submit(copy_job(f)).ok());
  }
  ASSERT_TRUE(array(10, {1, 2, 3, 2}, false).ok());
  EXPECT_TRUE(m.visible(10));
  ASSERT_TRUE(m.finish(2, Code::timed_out));
  ASSERT_TRUE(m.finish(1, Code::io_error));
  EXPECT_FALSE(m.signalled(10).has_value());
  EXPECT_TRUE(m.core.fence_info(10).status.ok()) << "not final";
  ASSERT_TRUE(m.finish(3));
  EXPECT_EQ(m.signalled(10), Status(Code::timed_out));
  EXPECT_EQ(m.said_count(Verb::signal_fence, 10), 1U);
}

TEST_F(Fences, an_array_of_any_signals_with_its_first_part_and_lets_go_of_the_others) {
  for (FenceId f = 1; f <= 3; ++f) {
    ASSERT_TRUE(m.submit(copy_job(f)).ok());
  }
  ASSERT_TRUE(array(10, {1, 2, 3}, true).ok());
  ASSERT_TRUE(m.finish(2, Code::io_error));
  EXPECT_EQ(m.signalled(10), Status(Code::io_error));
  m.core.fence_forget(10);
  ASSERT_TRUE(m.finish(1));
  ASSERT_TRUE(m.finish(3));
  EXPECT_EQ(m.said_count(Verb::signal_fence, 10), 1U);
}

TEST_F(Fences, an_array_over_signalled_parts_signals_at_once) {
  ASSERT_TRUE(m.submit(copy_job(1)).ok());
  ASSERT_TRUE(m.submit(copy_job(2)).ok());
  ASSERT_TRUE(m.finish(1, Code::io_error));
  ASSERT_TRUE(array(10, {1}, false).ok());
  EXPECT_EQ(m.signalled(10), Status(Code::io_error));
  ASSERT_TRUE(array(11, {2, 1}, true).ok());
  EXPECT_EQ(m.signalled(11), Status(Code::io_error));
  ASSERT_TRUE(array(12, {1, 2}, false).ok());
  EXPECT_FALSE(m.signalled(12).has_value());
  ASSERT_TRUE(m.finish(2));
  EXPECT_EQ(m.signalled(12), Status(Code::io_error)) << "the error of a part that had signalled before";
}

TEST_F(Fences, arrays_that_cannot_be_are_refused) {
  ASSERT_TRUE(m.submit(copy_job(1)).ok());
  EXPECT_EQ(array(10, {}, false).code, Code::bad_range);
  EXPECT_EQ(array(0, {1}, false).code, Code::bad_range);
  EXPECT_EQ(array(1, {1}, false).code, Code::in_use);
  EXPECT_EQ(array(10, {1, 99}, false).code, Code::not_held);
  EXPECT_EQ(array(10, std::vector<FenceId>(job_waits_max + 1, 1), false).code, Code::bad_range);
  EXPECT_EQ(m.core.fence_array(++m.now, 9, 10, {1}, false).code, Code::client_gone);
  EXPECT_FALSE(m.core.fence_info(10).known);
  // A fence that is not visible yet may never be: a job that is held back.
  ASSERT_TRUE(m.core.timeline_create(++m.now, 1, 5).ok());
  JobSpec held = copy_job(2);
  held.wait_points = {{5, 1}};
  ASSERT_TRUE(m.submit(held).ok());
  EXPECT_EQ(array(10, {2}, false).code, Code::not_held);
}

TEST_F(Fences, a_chain_of_arrays_of_any_length_signals_without_a_stack) {
  ASSERT_TRUE(m.submit(copy_job(1)).ok());
  constexpr FenceId first = 100;
  constexpr FenceId count = 100'000;
  for (FenceId f = 0; f < count; ++f) {
    ASSERT_TRUE(m.core.fence_array(++m.now, 1, first + f, {f == 0 ? 1 : first + f - 1}, f % 2 == 1).ok());
  }
  ASSERT_TRUE(m.core.fence_deadline(++m.now, first + count - 1, 5).ok());
  EXPECT_NE(m.core.fence_info(1).deadline_ns, 0U);
  m.take();
  m.core.action_done(++m.now, m.open_of(Verb::run_job, 1)->id, {});
  m.take();
  EXPECT_TRUE(m.signalled(first + count - 1).has_value());
}

TEST_F(Fences, a_job_may_wait_for_an_array_and_fails_with_it) {
  ASSERT_TRUE(m.submit(copy_job(1)).ok());
  ASSERT_TRUE(m.submit(copy_job(2)).ok());
  ASSERT_TRUE(array(10, {1, 2}, false).ok());
  ASSERT_TRUE(m.submit(after(3, {10})).ok());
  ASSERT_TRUE(m.finish(1, Code::io_error));
  ASSERT_TRUE(m.finish(2));
  EXPECT_EQ(m.signalled(3), Status(Code::io_error));
  EXPECT_FALSE(m.runs(3));
}

TEST_F(Fences, fences_of_the_dead_stay_until_they_have_signalled) {
  m.open_second_client();
  ASSERT_TRUE(m.submit(copy_job(1), 2).ok());
  ASSERT_TRUE(array(10, {1}, false).ok());
  ASSERT_TRUE(m.submit(after(2, {1}), 1).ok());
  m.core.device_gone(++m.now, 2, 0);
  m.core.client_gone(++m.now, 2, Cookie{900});
  m.take();
  m.core.verify();
  EXPECT_TRUE(m.visible(1));
  EXPECT_FALSE(m.replied(900).has_value()) << "its job still runs";
  ASSERT_TRUE(m.finish(1));
  EXPECT_TRUE(m.replied(900).has_value());
  EXPECT_TRUE(m.signalled(10).has_value());
  EXPECT_TRUE(m.runs(2));
}

// --- deadlines -------------------------------------------------------------------------------------------------------

TEST_F(Fences, the_earliest_deadline_counts_and_reaches_what_is_waited_for) {
  ASSERT_TRUE(m.submit(copy_job(1)).ok());
  ASSERT_TRUE(m.submit(after(2, {1})).ok());
  ASSERT_TRUE(m.submit(copy_job(3)).ok());
  ASSERT_TRUE(array(10, {2, 3}, false).ok());
  ASSERT_TRUE(m.core.fence_deadline(++m.now, 10, 5000).ok());
  for (const FenceId f : {1, 2, 3, 10}) {
    EXPECT_EQ(m.core.fence_info(f).deadline_ns, 5000U) << f;
  }
  ASSERT_TRUE(m.core.fence_deadline(++m.now, 2, 9000).ok());
  EXPECT_EQ(m.core.fence_info(2).deadline_ns, 5000U);
  ASSERT_TRUE(m.core.fence_deadline(++m.now, 2, 3000).ok());
  EXPECT_EQ(m.core.fence_info(1).deadline_ns, 3000U);
  EXPECT_EQ(m.core.fence_info(3).deadline_ns, 5000U);
  EXPECT_EQ(m.core.fence_deadline(++m.now, 77, 1).code, Code::not_held);
  EXPECT_TRUE(m.core.fence_deadline(++m.now, 3, 0).ok());
  EXPECT_EQ(m.core.fence_info(3).deadline_ns, 5000U);
}

TEST_F(Fences, a_deadline_that_came_before_the_job_was_visible_reaches_its_dependencies) {
  ASSERT_TRUE(m.core.timeline_create(++m.now, 1, 5).ok());
  ASSERT_TRUE(m.submit(copy_job(1)).ok());
  JobSpec held = after(2, {1});
  held.wait_points = {{5, 1}};
  ASSERT_TRUE(m.submit(held).ok());
  ASSERT_TRUE(m.core.fence_deadline(++m.now, 2, 4000).ok());
  EXPECT_EQ(m.core.fence_info(1).deadline_ns, 0U);
  ASSERT_TRUE(m.core.timeline_signal(++m.now, 1, {5, 1}).ok());
  m.take();
  EXPECT_TRUE(m.visible(2));
  EXPECT_EQ(m.core.fence_info(1).deadline_ns, 4000U);
}

}  // namespace
}  // namespace ferry::core::test
