// Compute units as a resource of the machine: grants, slices, minimum runs, what graphics takes, what faults hold.
#include <gtest/gtest.h>

#include "work_machine.h"

namespace ferry::core::test {
namespace {

TEST(Unit, AloneAllAreGrantedOnceAndNothingElseHappens) {
  WorkMachine m(work_config());
  m.demand(1);
  ASSERT_EQ(m.said_count(Verb::grant_cus), 1U);
  EXPECT_EQ(m.said.front().cu_mask, 0xfU);
  EXPECT_EQ(m.units(), 0xfU);
  m.demand(0);
  m.demand(3);
  m.tick_at(1000 * ms);
  EXPECT_EQ(m.said_count(Verb::grant_cus), 1U);
  EXPECT_TRUE(m.open.empty());
  EXPECT_EQ(m.core.next_tick_ns(), ~std::uint64_t{0});
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Unit, NonsenseIsIgnored) {
  WorkMachine m(work_config());
  m.demand(1, 7);
  m.core.compute_demand(++m.now, 1, 9, 1);
  m.demand(0);
  EXPECT_EQ(m.core.compute_units(1, 9), 0U);
  EXPECT_EQ(m.units(), 0U);
  m.demand(1000);
  EXPECT_EQ(m.units(), 0xfU);
}

TEST(Unit, TwoThatFitShareWithoutSlices) {
  WorkMachine m(work_config());
  m.open_second_client();
  m.demand(2);
  EXPECT_EQ(m.units(1), 0xfU);
  m.demand(2, 2);
  EXPECT_EQ(m.asked_back(1), 0U);  // not before its minimum run
  m.tick_at(m.core.next_tick_ns());
  EXPECT_EQ(std::popcount(m.asked_back(1)), 2);
  m.leave(1);
  EXPECT_EQ(std::popcount(m.units(1)), 2);
  EXPECT_EQ(std::popcount(m.units(2)), 2);
  m.tick_at(m.now + 100 * ms);
  EXPECT_TRUE(m.open.empty());
  EXPECT_EQ(m.core.next_tick_ns(), ~std::uint64_t{0});
}

TEST(Unit, TwoThatDoNotFitTakeTurns) {
  WorkMachine m(work_config());
  m.open_second_client();
  m.demand(4);
  const std::uint64_t granted = m.now;
  m.demand(4, 2);
  EXPECT_FALSE(m.core.quiescent());  // the second one waits
  EXPECT_EQ(m.core.next_tick_ns(), granted + 5 * ms);
  m.tick_at(granted + 5 * ms - 1);
  EXPECT_EQ(m.asked_back(1), 0U);
  m.tick_at(granted + 5 * ms);
  EXPECT_EQ(m.asked_back(1), 0xfU);
  EXPECT_EQ(m.units(2), 0U);
  m.leave(1);
  EXPECT_EQ(m.units(2), 0xfU);
  EXPECT_EQ(m.core.stats().preemptions, 4U);
  EXPECT_EQ(m.core.client_stats(1).preemptions, 4U);
  const std::uint64_t second = m.now;
  m.tick_at(second + 5 * ms);
  EXPECT_EQ(m.asked_back(2), 0xfU);
  m.leave(2);
  EXPECT_EQ(m.units(1), 0xfU);
}

TEST(Unit, ThreeTakeTurnsAndNobodyIsLeftOut) {
  WorkMachine m(work_config());
  m.open_second_client();
  m.core.client_open(3);
  m.core.device_attach(3, 0);
  for (ClientId c = 1; c <= 3; ++c) {
    m.demand(4, c);
  }
  std::array<int, 4> turns{};
  for (int i = 0; i < 30; ++i) {
    m.tick_at(m.core.next_tick_ns());
    for (ClientId c = 1; c <= 3; ++c) {
      m.leave(c);
    }
    for (ClientId c = 1; c <= 3; ++c) {
      turns.at(c) += m.units(c) == 0xf ? 1 : 0;
    }
  }
  EXPECT_EQ(turns[1], 10);
  EXPECT_EQ(turns[2], 10);
  EXPECT_EQ(turns[3], 10);
}

TEST(Unit, IdleOnesAreTakenAtOnce) {
  WorkMachine m(work_config());
  m.open_second_client();
  m.demand(4);
  m.demand(0);
  m.demand(4, 2);
  EXPECT_EQ(m.asked_back(1), 0xfU);
  m.leave(1);
  EXPECT_EQ(m.units(2), 0xfU);
  EXPECT_EQ(m.core.stats().preemptions, 0U);
}

TEST(Unit, GraphicsTakesUnitsAfterTheMinimumRunAndGivesThemBack) {
  WorkMachine m(work_config());
  m.demand(4);
  const std::uint64_t granted = m.now;
  ASSERT_TRUE(m.submit(graphics_job(1, 2, 4)).ok());
  EXPECT_FALSE(m.runs(1));
  EXPECT_EQ(m.core.next_tick_ns(), granted + ms);
  m.tick_at(granted + ms);
  EXPECT_EQ(std::popcount(m.asked_back()), 2);
  m.leave();
  ASSERT_TRUE(m.runs(1));
  EXPECT_EQ(std::popcount(m.open_of(Verb::run_job, 1)->cu_mask), 2);
  EXPECT_EQ(m.open_of(Verb::run_job, 1)->cu_mask & m.units(), 0U);
  m.finish(1);
  EXPECT_EQ(m.units(), 0xfU);
}

TEST(Unit, GraphicsAloneTakesAllItCanUse) {
  WorkMachine m(work_config());
  ASSERT_TRUE(m.submit(graphics_job(1, 1, 3)).ok());
  EXPECT_EQ(std::popcount(m.open_of(Verb::run_job, 1)->cu_mask), 3);
  ASSERT_TRUE(m.submit(graphics_job(2, 2, 2)).ok());
  EXPECT_FALSE(m.runs(2));
  ASSERT_TRUE(m.submit(graphics_job(3, 1, 1)).ok());
  EXPECT_FALSE(m.runs(3));  // nobody passes one that needs more
  m.finish(1);
  EXPECT_TRUE(m.runs(2) && m.runs(3));
}

TEST(Unit, DeadlineDoesNotLetComputeHaveItsMinimumRun) {
  Config config = work_config();
  config.models[0].min_run_ns = 20 * ms;
  WorkMachine m(config);
  m.demand(4);
  ASSERT_TRUE(m.submit(graphics_job(1)).ok());
  EXPECT_EQ(m.asked_back(), 0U);
  // Far enough away that there is time; then pressing.
  ASSERT_TRUE(m.core.fence_deadline(++m.now, 1, 30 * ms).ok());
  m.take();
  EXPECT_EQ(m.asked_back(), 0U);
  m.tick_at(m.core.next_tick_ns());
  EXPECT_LE(m.now, 10 * ms);
  EXPECT_EQ(std::popcount(m.asked_back()), 1);
}

TEST(Unit, ComputeHasItsTurnBetweenJobsThatNeverEnd) {
  WorkMachine m(work_config(Policy::preempt, 1));
  ASSERT_TRUE(m.submit(graphics_job(1)).ok());
  m.demand(1);
  FenceId next = 2;
  int computed = 0;
  for (int i = 0; i < 60; ++i) {
    ASSERT_TRUE(m.submit(graphics_job(next++)).ok());
    m.now += ms / 2;
    m.tick_at(m.now);
    m.leave();
    for (FenceId id = 1; id < next; ++id) {
      if (m.finish(id)) {
        break;
      }
    }
    computed += m.units() != 0 ? 1 : 0;
  }
  EXPECT_GE(computed, 3);
  EXPECT_GT(m.core.stats().jobs_done, 30U);
}

TEST(Unit, FaultFreeUnitsAreAskedFirst) {
  WorkMachine m(work_config(Policy::none, 4, false));
  m.demand(4);
  ASSERT_TRUE(m.core.alloc(++m.now, 1, {0, 4 * block_pages}, Placement::automatic).ok());
  m.fault_on(3, 0, 17);
  m.now += 2 * ms;
  ASSERT_TRUE(m.submit(graphics_job(1)).ok());
  EXPECT_EQ(m.asked_back(), 0x4U);
  // The one that was asked faults before it has left: another is asked.
  m.fault_on(2, block_pages, 18);
  EXPECT_EQ(m.asked_back(), 0x6U);
  EXPECT_EQ(m.core.deadlock(), "");
}

TEST(Unit, UnitsComeBackWithTheirProcess) {
  WorkMachine m(work_config());
  m.open_second_client();
  m.demand(4);
  m.demand(4, 2);
  ASSERT_TRUE(m.core.alloc(++m.now, 1, {0, block_pages}, Placement::automatic).ok());
  m.fault_on(1, 0, 17);
  m.tick_at(m.now + 6 * ms);
  ASSERT_EQ(m.asked_back(1), 0xfU);
  m.core.device_gone(++m.now, 1, 0);
  m.take();
  m.core.verify();
  EXPECT_EQ(m.units(1), 0U);
  EXPECT_EQ(m.units(2), 0xfU);
  m.core.device_attach(1, 0);
  m.demand(4);
  m.tick_at(m.now + 6 * ms);
  m.leave(2);
  ASSERT_EQ(m.units(1), 0xfU);
  // The answer of the former process takes nothing from the new one.
  ASSERT_TRUE(m.leave(1));
  EXPECT_EQ(m.units(1), 0xfU);
}

TEST(Unit, ClientThatGoesWaitsForTheAnswersAboutItsUnits) {
  WorkMachine m(work_config());
  m.open_second_client();
  m.demand(4);
  m.demand(4, 2);
  m.tick_at(m.now + 6 * ms);
  ASSERT_EQ(m.asked_back(1), 0xfU);
  m.core.device_gone(++m.now, 1, 0);
  m.core.client_gone(++m.now, 1, Cookie{100});
  m.take();
  EXPECT_FALSE(m.replied(100));
  ASSERT_TRUE(m.leave(1));
  EXPECT_EQ(m.replied(100), Status());
  EXPECT_EQ(m.units(2), 0xfU);
}

TEST(Unit, DroppedUnitsAreGivenBackToWhoeverWantsThem) {
  WorkMachine m(work_config());
  m.open_second_client();
  m.demand(4);
  m.demand(4, 2);
  m.tick_at(m.now + 6 * ms);
  m.demand(0, 2);  // wants none any more
  m.leave(1);
  EXPECT_EQ(m.units(1), 0xfU);
  EXPECT_EQ(m.units(2), 0U);
}

}  // namespace
}  // namespace ferry::core::test
