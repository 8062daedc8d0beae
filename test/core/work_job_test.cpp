// Jobs from submission to signal: order, failures, priorities, timeouts, bad input.
#include <gtest/gtest.h>

#include "work_machine.h"

namespace ferry::core::test {
namespace {

TEST(Job, RunsAndSignals) {
  WorkMachine m(work_config());
  ASSERT_TRUE(m.submit(copy_job(7)).ok());
  EXPECT_EQ(m.replied(7), Status());
  EXPECT_TRUE(m.visible(7));
  EXPECT_FALSE(m.signalled(7));
  ASSERT_TRUE(m.runs(7));
  EXPECT_EQ(m.open_of(Verb::run_job, 7)->engine, Engine::copy);
  EXPECT_FALSE(m.core.quiescent());
  ASSERT_TRUE(m.finish(7));
  EXPECT_EQ(m.signalled(7), Status());
  EXPECT_TRUE(m.core.fence_info(7).signalled);
  EXPECT_EQ(m.core.stats().jobs_done, 1U);
  EXPECT_EQ(m.core.client_stats(1).jobs_done, 1U);
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Job, SignalsHowItFailed) {
  WorkMachine m(work_config());
  ASSERT_TRUE(m.submit(copy_job(7)).ok());
  ASSERT_TRUE(m.finish(7, Code::io_error));
  EXPECT_EQ(m.signalled(7), Status(Code::io_error));
  EXPECT_EQ(m.core.stats().jobs_failed, 1U);
}

TEST(Job, WaitsForFences) {
  WorkMachine m(work_config());
  ASSERT_TRUE(m.submit(copy_job(1)).ok());
  JobSpec second = copy_job(2);
  second.engine = Engine::video;
  second.waits = {1, 1};
  ASSERT_TRUE(m.submit(second).ok());
  EXPECT_TRUE(m.visible(2));
  EXPECT_FALSE(m.runs(2));
  m.finish(1);
  EXPECT_TRUE(m.runs(2));
  m.finish(2);
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Job, FailsWithItsDependencyButAfterAllOfThem) {
  WorkMachine m(work_config());
  ASSERT_TRUE(m.submit(copy_job(1)).ok());
  ASSERT_TRUE(m.submit(copy_job(2)).ok());
  JobSpec last = copy_job(3);
  last.waits = {1, 2};
  ASSERT_TRUE(m.submit(last).ok());
  m.finish(1, Code::kernel_fault);
  // Its fence stands for the user before it, which still runs.
  EXPECT_FALSE(m.signalled(3));
  m.finish(2);
  EXPECT_EQ(m.signalled(3), Status(Code::kernel_fault));
  EXPECT_FALSE(m.runs(3));
}

TEST(Job, FailsWithADependencyThatHadFailedBefore) {
  WorkMachine m(work_config());
  ASSERT_TRUE(m.submit(copy_job(1)).ok());
  m.finish(1, Code::io_error);
  JobSpec second = copy_job(2);
  second.waits = {1};
  ASSERT_TRUE(m.submit(second).ok());
  EXPECT_EQ(m.signalled(2), Status(Code::io_error));
}

TEST(Job, EnginesTakeAsManyAsTheyHaveSlots) {
  WorkMachine m(work_config());
  for (FenceId id = 1; id <= 4; ++id) {
    ASSERT_TRUE(m.submit(copy_job(id)).ok());
  }
  JobSpec video = copy_job(5);
  video.engine = Engine::video;
  ASSERT_TRUE(m.submit(video).ok());
  EXPECT_TRUE(m.runs(1) && m.runs(2) && m.runs(5));
  EXPECT_FALSE(m.runs(3) || m.runs(4));
  m.finish(2);
  EXPECT_TRUE(m.runs(3));
  EXPECT_FALSE(m.runs(4));
}

TEST(Job, HigherPrioritiesGoFirstUntilOthersAreOld) {
  Config config = work_config();
  config.models[0].copy_slots = 1;
  WorkMachine m(config);
  ASSERT_TRUE(m.submit(copy_job(1)).ok());
  JobSpec low = copy_job(2);
  low.priority = 0;
  ASSERT_TRUE(m.submit(low).ok());
  JobSpec high = copy_job(3);
  high.priority = 3;
  ASSERT_TRUE(m.submit(high).ok());
  m.finish(1);
  EXPECT_TRUE(m.runs(3));
  EXPECT_FALSE(m.runs(2));
  // A stream of high ones does not starve it: after four steps of age it goes before one that has just come.
  m.now += 4 * config.ageing_ns;
  high.fence = 4;
  ASSERT_TRUE(m.submit(high).ok());
  m.finish(3);
  EXPECT_TRUE(m.runs(2));
  EXPECT_FALSE(m.runs(4));
}

TEST(Job, DeadlineGoesBeforePriority) {
  Config config = work_config();
  config.models[0].copy_slots = 1;
  WorkMachine m(config);
  ASSERT_TRUE(m.submit(copy_job(1)).ok());
  JobSpec high = copy_job(2);
  high.priority = 3;
  ASSERT_TRUE(m.submit(high).ok());
  JobSpec low = copy_job(3);
  low.priority = 0;
  ASSERT_TRUE(m.submit(low).ok());
  JobSpec display = copy_job(4);
  display.engine = Engine::video;
  display.waits = {3};
  ASSERT_TRUE(m.submit(display).ok());
  // What the fence waits for is hurried too.
  ASSERT_TRUE(m.core.fence_deadline(m.now, 4, m.now + 5 * ms).ok());
  EXPECT_EQ(m.core.fence_info(3).deadline_ns, m.core.fence_info(4).deadline_ns);
  m.finish(1);
  EXPECT_TRUE(m.runs(3));
  EXPECT_FALSE(m.runs(2));
}

TEST(Job, OverrunsItsTime) {
  WorkMachine m(work_config());
  JobSpec spec = copy_job(1);
  spec.timeout_ns = 3 * ms;
  ASSERT_TRUE(m.submit(spec).ok());
  const std::uint64_t due = m.core.next_tick_ns();
  EXPECT_EQ(due, m.now + 3 * ms);
  m.tick_at(due - 1);
  EXPECT_EQ(m.said_count(Verb::cancel_job), 0U);
  m.tick_at(due);
  EXPECT_EQ(m.said_count(Verb::cancel_job, 1), 1U);
  m.tick_at(due + 5'000 * ms);
  EXPECT_EQ(m.said_count(Verb::cancel_job, 1), 1U);
  EXPECT_EQ(m.said_count(Verb::reset_device), 0U);  // copies are the machine's own
  m.finish(1);
  EXPECT_EQ(m.signalled(1), Status(Code::timed_out));
}

TEST(Job, TimeCountsFromDispatch) {
  Config config = work_config();
  config.models[0].copy_slots = 1;
  WorkMachine m(config);
  JobSpec spec = copy_job(1);
  spec.timeout_ns = 50 * ms;
  ASSERT_TRUE(m.submit(spec).ok());
  spec.fence = 2;
  spec.timeout_ns = 3 * ms;
  ASSERT_TRUE(m.submit(spec).ok());
  m.tick_at(20 * ms);
  EXPECT_EQ(m.said_count(Verb::cancel_job), 0U);
  m.finish(1);
  m.finish(2);
  EXPECT_EQ(m.signalled(2), Status());
}

TEST(Job, GraphicsThatIgnoresCancellationLosesItsDevice) {
  WorkMachine m(work_config());
  JobSpec spec = graphics_job(1);
  spec.timeout_ns = 3 * ms;
  ASSERT_TRUE(m.submit(spec).ok());
  m.tick_at(m.core.next_tick_ns());
  ASSERT_EQ(m.said_count(Verb::cancel_job, 1), 1U);
  m.tick_at(m.core.next_tick_ns());
  ASSERT_EQ(m.said_count(Verb::reset_device), 1U);
  m.core.device_gone(++m.now, 1, 0);
  EXPECT_FALSE(m.signalled(1));
  m.finish(1, Code::device_lost);
  EXPECT_EQ(m.signalled(1), Status(Code::timed_out));
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Job, CancelledAtEachStage) {
  Config config = work_config();
  config.models[0].copy_slots = 1;
  WorkMachine m(config);
  ASSERT_TRUE(m.submit(copy_job(1)).ok());  // running
  ASSERT_TRUE(m.submit(copy_job(2)).ok());  // queued
  JobSpec third = copy_job(3);
  third.waits = {1};
  ASSERT_TRUE(m.submit(third).ok());  // depends
  m.core.job_cancel(++m.now, 2, 2);   // not the client's own
  m.core.job_cancel(++m.now, 1, 99);  // unknown
  m.take();
  EXPECT_FALSE(m.signalled(2));
  m.core.job_cancel(++m.now, 1, 2);
  m.core.job_cancel(++m.now, 1, 3);
  m.core.job_cancel(++m.now, 1, 1);
  m.core.job_cancel(++m.now, 1, 1);
  m.take();
  m.core.verify();
  EXPECT_EQ(m.signalled(2), Status(Code::cancelled));
  EXPECT_FALSE(m.signalled(3));
  EXPECT_EQ(m.said_count(Verb::cancel_job), 1U);
  m.finish(1);  // came to its end before it heard
  EXPECT_EQ(m.signalled(1), Status());
  EXPECT_EQ(m.signalled(3), Status(Code::cancelled));
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Job, BadInputIsRefusedAndLeavesNothing) {
  Config config = work_config(Policy::reserve);
  WorkMachine m(config);
  const auto refused = [&](auto&& change) {
    JobSpec spec = graphics_job(5);
    change(spec);
    const Status status = m.submit(spec);
    EXPECT_TRUE(m.core.quiescent());
    return status.code;
  };
  EXPECT_EQ(refused([](JobSpec& s) { s.fence = 0; }), Code::bad_range);
  EXPECT_EQ(refused([](JobSpec& s) { s.engine = Engine::compute; }), Code::bad_range);
  EXPECT_EQ(refused([](JobSpec& s) { s.engine = static_cast<Engine>(9); }), Code::bad_range);
  EXPECT_EQ(refused([](JobSpec& s) { s.device = 1; }), Code::bad_range);
  EXPECT_EQ(refused([](JobSpec& s) { s.priority = job_priorities; }), Code::bad_range);
  EXPECT_EQ(refused([](JobSpec& s) { s.timeout_ns = 0; }), Code::bad_range);
  EXPECT_EQ(refused([](JobSpec& s) { s.timeout_ns = job_timeout_max_ns + 1; }), Code::bad_range);
  EXPECT_EQ(refused([](JobSpec& s) { s.cus_min = 0; }), Code::bad_range);
  EXPECT_EQ(refused([](JobSpec& s) { s.cus_max = 5; }), Code::bad_range);
  EXPECT_EQ(refused([](JobSpec& s) { s.cus_min = s.cus_max = 2; }), Code::bad_range);  // more than are reserved
  EXPECT_EQ(refused([](JobSpec& s) { s.waits.assign(job_waits_max + 1, 1); }), Code::bad_range);
  EXPECT_EQ(refused([](JobSpec& s) { s.buffers.resize(job_buffers_max + 1); }), Code::bad_range);
  EXPECT_EQ(refused([](JobSpec& s) { s.waits = {4}; }), Code::not_held);
  EXPECT_EQ(refused([](JobSpec& s) { s.buffers = {{77, Access::read}}; }), Code::not_held);
  EXPECT_EQ(refused([](JobSpec& s) { s.wait_points = {{77, 1}}; }), Code::not_held);
  EXPECT_EQ(m.submit(graphics_job(5), 2).code, Code::client_gone);
  ASSERT_TRUE(m.submit(graphics_job(5)).ok());
  EXPECT_EQ(m.submit(graphics_job(5)).code, Code::in_use);
  m.finish(5);
}

TEST(Job, HeldForAPointAndLetOn) {
  WorkMachine m(work_config());
  ASSERT_TRUE(m.core.timeline_create(++m.now, 1, 9).ok());
  JobSpec waits = copy_job(1);
  waits.wait_points = {{9, 1}};
  ASSERT_TRUE(m.submit(waits).ok());
  EXPECT_FALSE(m.visible(1));
  EXPECT_FALSE(m.replied(1));
  // Nobody can wait for what may never be.
  JobSpec early = copy_job(2);
  early.waits = {1};
  EXPECT_EQ(m.submit(early).code, Code::not_held);
  JobSpec signals = copy_job(3);
  signals.signal_points = {{9, 1}};
  ASSERT_TRUE(m.submit(signals).ok());
  EXPECT_TRUE(m.visible(1));
  EXPECT_FALSE(m.runs(1));
  m.finish(3);
  EXPECT_EQ(m.core.timeline_value(9), 1U);
  EXPECT_TRUE(m.runs(1));
  m.finish(1);
}

TEST(Job, HeldAndCancelledIsDropped) {
  WorkMachine m(work_config());
  ASSERT_TRUE(m.core.timeline_create(++m.now, 1, 9).ok());
  JobSpec waits = copy_job(1);
  waits.wait_points = {{9, 1}};
  waits.signal_points = {{9, 2}};
  ASSERT_TRUE(m.submit(waits).ok());
  m.core.job_cancel(++m.now, 1, 1);
  m.take();
  EXPECT_EQ(m.replied(1), Status(Code::cancelled));
  EXPECT_FALSE(m.core.fence_info(1).known);
  EXPECT_FALSE(m.signalled(1));
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Job, ClientsThatGoLeaveNothingBehind) {
  Config config = work_config();
  config.models[0].copy_slots = 1;
  WorkMachine m(config);
  m.open_second_client();
  ASSERT_TRUE(m.core.timeline_create(++m.now, 1, 9).ok());
  ASSERT_TRUE(m.submit(copy_job(1)).ok());  // running
  ASSERT_TRUE(m.submit(copy_job(2)).ok());  // queued
  JobSpec third = copy_job(3);
  third.waits = {1};
  ASSERT_TRUE(m.submit(third).ok());
  JobSpec held = copy_job(4);
  held.wait_points = {{9, 1}};
  ASSERT_TRUE(m.submit(held).ok());
  JobSpec foreign = copy_job(5);
  foreign.waits = {2};
  ASSERT_TRUE(m.submit(foreign, 2).ok());
  m.core.device_gone(++m.now, 1, 0);
  m.core.client_gone(++m.now, 1, Cookie{100});
  m.take();
  m.core.verify();
  EXPECT_EQ(m.signalled(2), Status(Code::client_gone));
  EXPECT_EQ(m.signalled(5), Status(Code::client_gone));  // it asked for a fence of a client that went
  EXPECT_FALSE(m.replied(100));
  m.finish(1);
  EXPECT_EQ(m.signalled(3), Status(Code::client_gone));
  m.settle();
  EXPECT_EQ(m.replied(100), Status());
  EXPECT_TRUE(m.core.quiescent());
}

TEST(JobDeathTest, SignalBeforeDoneIsFound) {
  Config config = work_config();
  config.bug = PlantedBug::signal_before_done;
  WorkMachine m(config);
  EXPECT_DEATH((void)m.submit(copy_job(1)), "signalled");
}

TEST(JobDeathTest, LeakedUnitIsFound) {
  Config config = work_config();
  config.bug = PlantedBug::leak_cu;
  WorkMachine m(config);
  ASSERT_TRUE(m.submit(graphics_job(1, 2, 2)).ok());
  EXPECT_DEATH(m.finish(1, Code::kernel_fault), "Holder::job");
}

}  // namespace
}  // namespace ferry::core::test
