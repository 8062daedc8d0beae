// Timelines: points in order, jobs held back for points without a fence, loops among them, broken points, closing.
#include <gtest/gtest.h>

#include "work_machine.h"

namespace ferry::core::test {
namespace {

using Points = std::vector<TimelinePoint>;

JobSpec job(FenceId fence, Points waits, Points signals) {
  JobSpec spec;
  spec.fence = fence;
  spec.engine = Engine::copy;
  spec.wait_points = std::move(waits);
  spec.signal_points = std::move(signals);
  return spec;
}

class Timelines : public ::testing::Test {
 protected:
  Timelines() {
    for (const TimelineId id : {1, 2, 3}) {
      EXPECT_TRUE(m.core.timeline_create(++m.now, 1, id).ok());
    }
  }
  static Config config() {
    Config c = plain_config();
    c.models.resize(1);
    c.models[0].copy_slots = 16;
    return c;
  }
  Status signal(TimelineId timeline, std::uint64_t point, ClientId client = 1) {
    const Status status = m.core.timeline_signal(++m.now, client, {timeline, point});
    m.take();
    m.core.verify();
    return status;
  }
  void cancel(FenceId fence) {
    m.core.job_cancel(++m.now, 1, fence);
    m.take();
    m.core.verify();
  }
  [[nodiscard]] std::uint64_t value(TimelineId timeline) const { return m.core.timeline_value(timeline); }
  WorkMachine m{config()};
};

TEST_F(Timelines, the_value_is_the_highest_point_with_all_before_it_signalled) {
  ASSERT_TRUE(m.submit(job(1, {}, {{1, 3}})).ok());
  ASSERT_TRUE(m.submit(job(2, {}, {{1, 5}})).ok());
  ASSERT_TRUE(signal(1, 8).ok());
  EXPECT_EQ(value(1), 0U);
  ASSERT_TRUE(m.finish(2));
  EXPECT_EQ(value(1), 0U);
  ASSERT_TRUE(m.finish(1));
  EXPECT_EQ(value(1), 8U);
}

TEST_F(Timelines, points_only_grow) {
  ASSERT_TRUE(m.submit(job(1, {}, {{1, 5}})).ok());
  EXPECT_EQ(signal(1, 5).code, Code::in_use);
  EXPECT_EQ(signal(1, 4).code, Code::in_use) << "a later one has a fence";
  EXPECT_EQ(m.submit(job(2, {}, {{1, 5}})).code, Code::in_use);
  EXPECT_EQ(m.submit(job(2, {}, {{1, 7}, {1, 7}})).code, Code::in_use);
  ASSERT_TRUE(m.finish(1));
  EXPECT_EQ(signal(1, 5).code, Code::in_use);
  EXPECT_EQ(signal(1, 0).code, Code::in_use);
  EXPECT_EQ(m.submit(job(2, {{1, 0}}, {})).code, Code::bad_range);
  EXPECT_TRUE(signal(1, 6).ok());
}

TEST_F(Timelines, a_point_before_one_that_is_only_promised_can_still_be_made) {
  ASSERT_TRUE(m.submit(job(1, {{1, 3}}, {{1, 5}})).ok());
  EXPECT_FALSE(m.visible(1));
  EXPECT_EQ(signal(1, 5).code, Code::in_use) << "spoken for";
  ASSERT_TRUE(signal(1, 3).ok());
  EXPECT_TRUE(m.runs(1));
  EXPECT_EQ(value(1), 3U);
  ASSERT_TRUE(m.finish(1));
  EXPECT_EQ(value(1), 5U);
}

TEST_F(Timelines, a_job_waits_unseen_until_its_point_has_a_fence_and_runs_when_that_has_signalled) {
  ASSERT_TRUE(m.submit(job(1, {{1, 2}}, {})).ok());
  EXPECT_FALSE(m.replied(1).has_value());
  EXPECT_FALSE(m.visible(1));
  ASSERT_TRUE(m.submit(job(2, {}, {{1, 2}})).ok());
  EXPECT_TRUE(m.visible(1));
  EXPECT_TRUE(m.replied(1)->ok());
  EXPECT_FALSE(m.runs(1));
  ASSERT_TRUE(m.finish(2));
  EXPECT_TRUE(m.runs(1));
}

TEST_F(Timelines, a_wait_for_a_point_that_was_left_out_is_met_by_the_next) {
  ASSERT_TRUE(m.submit(job(1, {{1, 4}}, {})).ok());
  ASSERT_TRUE(m.submit(job(2, {}, {{1, 2}})).ok());
  EXPECT_FALSE(m.visible(1));
  ASSERT_TRUE(m.submit(job(3, {}, {{1, 6}})).ok());
  EXPECT_TRUE(m.visible(1));
  ASSERT_TRUE(m.finish(3));
  EXPECT_FALSE(m.runs(1)) << "point 2 is before point 4, and has not signalled";
  ASSERT_TRUE(m.finish(2));
  EXPECT_TRUE(m.runs(1));
}

TEST_F(Timelines, a_promise_before_the_point_holds_back_too) {
  ASSERT_TRUE(m.submit(job(1, {{2, 1}}, {{1, 2}})).ok());
  ASSERT_TRUE(m.submit(job(2, {{1, 4}}, {})).ok());
  ASSERT_TRUE(signal(1, 4).ok());
  EXPECT_FALSE(m.visible(2)) << "point 2 is spoken for, and not visible";
  ASSERT_TRUE(signal(2, 1).ok());
  EXPECT_TRUE(m.visible(2));
  EXPECT_FALSE(m.runs(2));
  ASSERT_TRUE(m.finish(1));
  EXPECT_TRUE(m.runs(2));
  EXPECT_EQ(value(1), 4U);
}

TEST_F(Timelines, several_points_of_a_job_are_all_waited_for) {
  ASSERT_TRUE(m.submit(job(1, {{1, 1}, {2, 1}, {1, 1}}, {})).ok());
  ASSERT_TRUE(signal(1, 1).ok());
  EXPECT_FALSE(m.visible(1));
  ASSERT_TRUE(signal(2, 1).ok());
  EXPECT_TRUE(m.runs(1));
}

/// Each job waits for the one before by a timeline of their own.
constexpr FenceId chain_length = 20'000;
void submit_chain(WorkMachine& m) {
  for (FenceId f = 1; f <= chain_length; ++f) {
    ASSERT_TRUE(m.core.timeline_create(++m.now, 1, 100 + f).ok());
  }
  ASSERT_TRUE(m.core.timeline_create(++m.now, 1, 100).ok());
  for (FenceId f = 1; f <= chain_length; ++f) {
    ASSERT_TRUE(m.core.job_submit(++m.now, 1, job(f, {{100 + f - 1, 1}}, {{100 + f, 1}}), Cookie{f}).ok());
  }
  m.take();
  ASSERT_FALSE(m.visible(1));
}

TEST_F(Timelines, a_chain_of_held_jobs_of_any_length_is_let_go_without_a_stack) {
  submit_chain(m);
  ASSERT_TRUE(m.core.timeline_signal(++m.now, 1, {100, 1}).ok());
  m.take();
  EXPECT_TRUE(m.visible(chain_length));
}

TEST_F(Timelines, a_chain_of_held_jobs_of_any_length_fails_without_a_stack) {
  submit_chain(m);
  cancel(1);
  EXPECT_EQ(m.replied(chain_length), Status(Code::cancelled));
  EXPECT_EQ(value(100 + chain_length), 1U);
}

// --- loops -----------------------------------------------------------------------------------------------------------

TEST_F(Timelines, a_job_that_waits_for_itself_is_refused_with_the_loop) {
  EXPECT_EQ(m.submit(job(7, {{1, 3}}, {{1, 3}})).code, Code::would_deadlock);
  EXPECT_EQ(m.core.last_loop(), "job 7 waits for point 3 of timeline 1; point 3 of timeline 1 is promised by job 7");
  EXPECT_EQ(m.submit(job(7, {{1, 5}}, {{1, 3}})).code, Code::would_deadlock) << "3 is before 5";
  EXPECT_EQ(
      m.core.last_loop(),
      "job 7 waits for point 5 of timeline 1, which comes after point 3; point 3 of timeline 1 is promised by job 7");
  EXPECT_TRUE(m.submit(job(7, {{1, 3}}, {{1, 5}})).ok()) << "somebody may still make 3";
}

TEST_F(Timelines, a_loop_of_three_is_refused_and_told_and_nothing_of_it_stays) {
  ASSERT_TRUE(m.submit(job(7, {{1, 1}}, {{2, 1}})).ok());
  ASSERT_TRUE(m.submit(job(8, {{2, 1}}, {{3, 1}})).ok());
  EXPECT_EQ(m.submit(job(9, {{3, 1}}, {{1, 1}})).code, Code::would_deadlock);
  EXPECT_EQ(m.core.last_loop(),
            "job 9 waits for point 1 of timeline 3; point 1 of timeline 3 is promised by job 8; "
            "job 8 waits for point 1 of timeline 2; point 1 of timeline 2 is promised by job 7; "
            "job 7 waits for point 1 of timeline 1; point 1 of timeline 1 is promised by job 9");
  EXPECT_FALSE(m.core.fence_info(9).known);
  ASSERT_TRUE(m.submit(job(9, {}, {{1, 1}})).ok());
  EXPECT_TRUE(m.visible(8));
}

TEST_F(Timelines, held_jobs_are_seen_in_the_wait_graph_until_their_points_have_fences) {
  ASSERT_TRUE(m.submit(job(7, {{1, 1}}, {{2, 4}})).ok());
  ASSERT_TRUE(m.submit(job(8, {{2, 5}}, {})).ok());
  EXPECT_NE(m.core.waits().find("job 8 waits for timeline point 4 of timeline 2"), std::string::npos) << m.core.waits();
  EXPECT_NE(m.core.waits().find("timeline point 4 of timeline 2 is promised by job 7"), std::string::npos);
  ASSERT_TRUE(signal(1, 1).ok());
  EXPECT_EQ(m.core.waits().find("timeline point"), std::string::npos) << m.core.waits();
  EXPECT_TRUE(m.core.take_reports().empty());
}

TEST_F(Timelines, a_loop_by_way_of_an_earlier_point_is_refused) {
  ASSERT_TRUE(m.submit(job(7, {{1, 9}}, {{2, 1}})).ok());
  EXPECT_EQ(m.submit(job(8, {{2, 1}}, {{1, 4}})).code, Code::would_deadlock);
  EXPECT_TRUE(m.submit(job(8, {{2, 1}}, {{1, 12}})).ok()) << "9 may come from elsewhere";
  ASSERT_TRUE(signal(1, 9).ok());
  EXPECT_TRUE(m.visible(7));
  EXPECT_TRUE(m.visible(8));
}

TEST_F(Timelines, a_point_with_a_fence_closes_no_loop) {
  ASSERT_TRUE(m.submit(job(7, {}, {{1, 1}})).ok());
  EXPECT_TRUE(m.submit(job(8, {{1, 1}}, {{2, 1}})).ok());
  EXPECT_TRUE(m.submit(job(9, {{2, 1}}, {{1, 2}})).ok());
}

// --- failures --------------------------------------------------------------------------------------------------------

TEST_F(Timelines, a_dropped_job_fails_its_points_and_who_is_held_on_them) {
  ASSERT_TRUE(m.submit(job(1, {{2, 1}}, {{1, 1}, {3, 1}})).ok());
  ASSERT_TRUE(m.submit(job(2, {{1, 1}}, {{1, 2}})).ok());
  ASSERT_TRUE(m.submit(job(3, {{3, 4}}, {})).ok());
  cancel(1);
  EXPECT_EQ(m.replied(1), Status(Code::cancelled));
  EXPECT_EQ(m.replied(2), Status(Code::cancelled));
  EXPECT_EQ(m.replied(3), Status(Code::cancelled)) << "4 comes after 1";
  EXPECT_EQ(value(1), 2U);
  EXPECT_TRUE(m.core.quiescent());
}

TEST_F(Timelines, the_status_of_a_point_is_the_first_error_among_it_and_those_before) {
  ASSERT_TRUE(m.submit(job(1, {}, {{1, 1}})).ok());
  ASSERT_TRUE(m.finish(1, Code::io_error));
  EXPECT_EQ(value(1), 1U);
  ASSERT_TRUE(m.submit(job(2, {}, {{1, 2}})).ok());
  ASSERT_TRUE(m.submit(job(3, {{1, 2}}, {})).ok());
  EXPECT_TRUE(m.runs(2));
  ASSERT_TRUE(m.finish(2));
  EXPECT_EQ(m.signalled(3), Status(Code::io_error));
  EXPECT_FALSE(m.runs(3));
}

TEST_F(Timelines, a_job_that_fails_while_visible_fails_who_waits_for_its_point) {
  ASSERT_TRUE(m.submit(job(1, {}, {{1, 1}})).ok());
  ASSERT_TRUE(m.submit(job(2, {{1, 1}}, {})).ok());
  ASSERT_TRUE(m.finish(1, Code::timed_out));
  EXPECT_EQ(m.signalled(2), Status(Code::timed_out));
}

TEST_F(Timelines, the_last_hold_fails_who_waits_for_points_that_nobody_can_make) {
  m.open_second_client();
  EXPECT_EQ(m.submit(job(1, {{1, 3}}, {}), 2).code, Code::not_held);
  ASSERT_TRUE(m.core.timeline_open(++m.now, 2, 1).ok());
  ASSERT_TRUE(m.submit(job(1, {{2, 1}}, {{1, 3}})).ok());
  ASSERT_TRUE(m.submit(job(2, {{1, 3}}, {}), 2).ok());
  ASSERT_TRUE(m.submit(job(3, {{1, 4}}, {}), 2).ok());
  ASSERT_TRUE(m.core.timeline_close(++m.now, 2, 1).ok());
  EXPECT_EQ(m.core.timeline_close(++m.now, 2, 1).code, Code::not_held);
  EXPECT_EQ(signal(1, 9, 2).code, Code::not_held);
  m.take();
  EXPECT_FALSE(m.replied(3).has_value()) << "client 1 may still make point 4";
  ASSERT_TRUE(m.core.timeline_close(++m.now, 1, 1).ok());
  m.take();
  m.core.verify();
  EXPECT_EQ(m.replied(3), Status(Code::cancelled));
  EXPECT_FALSE(m.replied(2).has_value()) << "point 3 is promised";
  EXPECT_EQ(m.core.timeline_open(++m.now, 2, 1).code, Code::not_held);
  ASSERT_TRUE(signal(2, 1).ok());
  ASSERT_TRUE(m.finish(1));
  EXPECT_TRUE(m.runs(2));
}

TEST_F(Timelines, a_dead_clients_holds_end_and_its_held_jobs_with_them) {
  m.open_second_client();
  ASSERT_TRUE(m.core.timeline_create(++m.now, 2, 9).ok());
  EXPECT_EQ(m.core.timeline_create(++m.now, 1, 9).code, Code::in_use);
  ASSERT_TRUE(m.core.timeline_open(++m.now, 1, 9).ok());
  ASSERT_TRUE(m.submit(job(1, {{9, 1}}, {{9, 2}}), 2).ok());
  ASSERT_TRUE(m.submit(job(2, {{9, 2}}, {}), 1).ok());
  m.core.device_gone(++m.now, 2, 0);
  m.core.client_gone(++m.now, 2, Cookie{900});
  m.settle();
  EXPECT_TRUE(m.replied(900).has_value());
  EXPECT_EQ(m.replied(2), Status(Code::client_gone)) << "what it was to signal never comes";
  EXPECT_FALSE(m.replied(1).has_value()) << "nobody is there to hear it";
  EXPECT_EQ(signal(9, 3).code, Code::ok);
}

}  // namespace
}  // namespace ferry::core::test
