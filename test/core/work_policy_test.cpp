// The eight policies: what each asks before a fence is visible, what it lets reclaim wait for.
#include <gtest/gtest.h>

#include "work_machine.h"

namespace ferry::core::test {
namespace {

class Faulting : public WorkMachine {
 public:
  explicit Faulting(const Config& config) : WorkMachine(config) {
    EXPECT_TRUE(core.alloc(++now, 1, {0, 4 * block_pages}, Placement::automatic).ok());
  }
};

TEST(Policy, ReserveKeepsUnitsFreeOfCompute) {
  WorkMachine m(work_config(Policy::reserve, 4, false));
  m.demand(4);
  EXPECT_EQ(m.units(), 0x7U);
  ASSERT_TRUE(m.submit(graphics_job(1)).ok());
  EXPECT_TRUE(m.runs(1));
  EXPECT_EQ(m.open_of(Verb::run_job, 1)->cu_mask, 0x8U);
  ASSERT_TRUE(m.submit(graphics_job(2)).ok());
  EXPECT_FALSE(m.runs(2));
  m.tick_at(100 * ms);
  EXPECT_EQ(m.asked_back(), 0U);  // it waits for the reserved one, and so for a job that runs
  m.finish(1);
  EXPECT_TRUE(m.runs(2));
}

TEST(Policy, ReserveInFlightKeepsThemFromBeforeTheFenceIsVisible) {
  Faulting m(work_config(Policy::reserve_in_flight, 4, false));
  m.demand(4);
  EXPECT_EQ(m.units(), 0xfU);
  for (unsigned cu = 0; cu < 4; ++cu) {
    m.fault_on(cu, cu * block_pages, 10 + cu);
  }
  m.now += 2 * ms;
  ASSERT_TRUE(m.submit(graphics_job(1, 2, 2)).ok());
  EXPECT_FALSE(m.visible(1));
  EXPECT_EQ(std::popcount(m.asked_back()), 2);
  m.leave();
  EXPECT_TRUE(m.visible(1));
  EXPECT_TRUE(m.runs(1));
  // A second one goes through at once, and waits for the first.
  ASSERT_TRUE(m.submit(graphics_job(2, 1, 1)).ok());
  EXPECT_TRUE(m.visible(2));
  EXPECT_FALSE(m.runs(2));
  m.tick_at(100 * ms);
  EXPECT_EQ(m.asked_back(), 0U);
  m.finish(1);
  EXPECT_EQ(std::popcount(m.units()), 2);  // one fence is left
  m.finish(2);
  EXPECT_EQ(m.units(), 0xfU);
}

TEST(Policy, ReserveInFlightLetsComputeInBetweenJobsThatNeedAllUnits) {
  WorkMachine m(work_config(Policy::reserve_in_flight, 1));
  ASSERT_TRUE(m.submit(graphics_job(1)).ok());
  m.demand(1);
  FenceId next = 2;
  int computed = 0;
  for (int i = 0; i < 60; ++i) {
    ASSERT_TRUE(m.submit(graphics_job(next++)).ok());
    m.tick_at(m.now + ms / 2);
    m.leave();
    for (FenceId id = 1; id < next; ++id) {
      if (m.finish(id)) {
        break;
      }
    }
    computed += m.units() != 0 ? 1 : 0;
  }
  EXPECT_GE(computed, 3);
  EXPECT_GT(m.core.stats().jobs_done, 20U);
}

TEST(Policy, ExclusiveDrainsOneBeforeTheOtherIsLetIn) {
  WorkMachine m(work_config(Policy::exclusive, 4, false));
  m.demand(4);
  m.now += 2 * ms;
  ASSERT_TRUE(m.submit(graphics_job(1)).ok());
  EXPECT_FALSE(m.visible(1));
  EXPECT_EQ(m.asked_back(), 0xfU);
  // Copies have no gate; those of this client keep their order all the same.
  m.open_second_client();
  ASSERT_TRUE(m.submit(copy_job(2), 2).ok());
  EXPECT_TRUE(m.visible(2));
  ASSERT_TRUE(m.submit(copy_job(3)).ok());
  EXPECT_FALSE(m.visible(3));
  m.leave();
  EXPECT_TRUE(m.visible(1) && m.runs(1) && m.visible(3));
  EXPECT_EQ(m.units(), 0U);
  EXPECT_EQ(m.core.stats().mode_switches, 1U);
  ASSERT_TRUE(m.submit(graphics_job(4)).ok());
  EXPECT_TRUE(m.visible(4));
  // Compute has waited a slice: no more are admitted, and when those in flight are done it is let in.
  m.tick_at(m.now + 6 * ms);
  ASSERT_TRUE(m.submit(graphics_job(5)).ok());
  EXPECT_FALSE(m.visible(5));
  m.finish(1);
  EXPECT_EQ(m.units(), 0U);
  m.finish(4);
  EXPECT_EQ(m.units(), 0xfU);
  EXPECT_FALSE(m.visible(5));
  EXPECT_EQ(m.core.stats().mode_switches, 2U);
  m.tick_at(m.core.next_tick_ns());
  EXPECT_EQ(m.asked_back(), 0xfU);
  m.leave();
  EXPECT_TRUE(m.runs(5));
  m.finish(5);
  m.finish(2);
  m.finish(3);
  EXPECT_EQ(m.units(), 0xfU);
}

TEST(Policy, ExclusiveWithoutComputeAsksNobody) {
  WorkMachine m(work_config(Policy::exclusive));
  ASSERT_TRUE(m.submit(graphics_job(1)).ok());
  EXPECT_TRUE(m.runs(1));
  m.demand(4);
  EXPECT_EQ(m.units(), 0U);
  m.finish(1);
  EXPECT_EQ(m.units(), 0xfU);
}

TEST(Policy, ReserveInFlightJobCancelledAtTheGateLeavesIt) {
  WorkMachine m(work_config(Policy::reserve_in_flight, 1));
  m.demand(1);
  ASSERT_TRUE(m.submit(graphics_job(1)).ok());
  EXPECT_FALSE(m.visible(1));
  m.core.job_cancel(++m.now, 1, 1);
  m.take();
  m.core.verify();
  EXPECT_EQ(m.replied(1), Status(Code::cancelled));
  m.tick_at(100 * ms);
  EXPECT_EQ(m.asked_back(), 0U);
  EXPECT_EQ(m.units(), 1U);
}

TEST(PolicyDeathTest, ReservedUnitsThatComputeGetsAreFound) {
  Config config = work_config(Policy::reserve);
  config.bug = PlantedBug::grant_reserved_cu;
  WorkMachine m(config);
  EXPECT_DEATH(m.demand(4), "reserved_cus");
}

TEST(PolicyDeathTest, FenceVisibleBeforeItsUnitsAreKeptIsFound) {
  for (const Policy policy : {Policy::reserve_in_flight, Policy::exclusive}) {
    Config config = work_config(policy);
    config.bug = PlantedBug::publish_before_gate;
    WorkMachine m(config);
    m.demand(4);
    EXPECT_DEATH((void)m.submit(graphics_job(1)), "passed == 0");
  }
}

TEST(PolicyDeathTest, ComputeBesideAVisibleFenceIsFound) {
  Config config = work_config(Policy::exclusive);
  config.bug = PlantedBug::switch_while_visible;
  WorkMachine m(config);
  ASSERT_TRUE(m.submit(graphics_job(1)).ok());
  m.demand(4);
  EXPECT_DEATH(m.tick_at(m.now + 6 * ms), "passed == 0");
}

}  // namespace
}  // namespace ferry::core::test
