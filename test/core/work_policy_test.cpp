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

TEST(Policy, ExclusiveLetsComputeInAtOnceWhenNoFenceIsLeft) {
  WorkMachine m(work_config(Policy::exclusive, 1));
  ASSERT_TRUE(m.submit(graphics_job(1)).ok());
  ASSERT_TRUE(m.finish(1));
  m.demand(1);
  EXPECT_EQ(m.units(), 1U);  // nothing else happens that would look at the gate again
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

// --- the argument ----------------------------------------------------------------------------------------------------

/// All of system memory is a buffer of a graphics job, a wave of another application faults and needs some of it, and
/// the job needs the compute unit that the wave holds. Hardware answers as its model says.
class Argument : public WorkMachine {
 public:
  static constexpr std::uint64_t memory_pages = 2 * block_pages;

  static Config config(Policy policy, bool preempts_while_faulting, unsigned cus) {
    Config config = work_config(policy, cus, preempts_while_faulting);
    config.system_pages = memory_pages;
    config.store_pages = 8 * block_pages;
    config.granularity_pages = 64;
    return config;
  }
  /// What buffers may have of it.
  static std::uint64_t buffer_pages(const Config& c) {
    switch (c.models[0].policy) {
      case Policy::pinned: return memory_pages / 2;
      case Policy::track: return memory_pages - std::uint64_t{c.models[0].cu_count} * c.granularity_pages;
      default: return memory_pages;
    }
  }

  explicit Argument(const Config& c) : WorkMachine(c), model(c.models[0]) {
    open_second_client();
    EXPECT_TRUE(core.alloc(++now, 1, {0, block_pages}, Placement::system).ok());
    BufferSpec spec;
    spec.count_pages = buffer_pages(c);
    EXPECT_TRUE(core.buffer_create(++now, 2, 5, spec).ok());
    JobSpec fill = copy_job(41);
    fill.buffers = {{5, Access::write}};
    EXPECT_TRUE(submit(fill, 2).ok());
    go_on();
    EXPECT_EQ(signalled(41), Status());
    demand(model.cu_count);
    take();
  }

  void job() {
    JobSpec draw = graphics_job(42);
    draw.buffers = {{5, Access::read}};
    EXPECT_TRUE(submit(draw, 2).ok());
  }
  void wave() { fault_on(0, 0, 17); }

  /// Whether the machine can leave the units now.
  [[nodiscard]] bool can_leave(const Action& revoke) const {
    const bool faulting = !went_on(17) && !woken(17);
    return !faulting || (revoke.cu_mask & 1) == 0 || (model.preempts_while_faulting && model.policy == Policy::preempt);
  }
  /// Answers all that hardware can, with time passing, until nothing moves.
  void go_on(unsigned ticks = 20) {
    for (unsigned i = 0; i < ticks; ++i) {
      bool moved = true;
      while (moved) {
        moved = false;
        take();
        for (std::size_t at = 0; at < open.size(); ++at) {
          if (open[at].verb == Verb::revoke_cus && !can_leave(open[at])) {
            continue;
          }
          const Action action = open[at];
          open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
          if (action.verb == Verb::map_device && action.has_token) {
            resumed.push_back(action.token.value);
          }
          core.action_done(++now, action.id, {});
          core.verify();
          moved = true;
          break;
        }
      }
      tick_at(now + ms);
    }
  }
  [[nodiscard]] bool done() const { return went_on(17) && signalled(42) == Status(); }

  DeviceModel model;
};

struct Case {
  Policy policy;
  bool preempts_while_faulting;
  unsigned cus;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << to_string(c.policy) << (c.preempts_while_faulting ? ", preempts while faulting, " : ", does not, ") << c.cus;
}

class Sound : public ::testing::TestWithParam<Case> {};

TEST_P(Sound, JobThenWave) {
  Argument m(Argument::config(GetParam().policy, GetParam().preempts_while_faulting, GetParam().cus));
  m.job();
  m.wave();
  m.go_on();
  EXPECT_EQ(m.core.deadlock(), "");
  EXPECT_TRUE(m.done()) << m.core.waits();
  EXPECT_EQ(m.core.stats().circles, 0U);
  EXPECT_EQ(m.core.take_reports(), std::vector<std::string>());
  // It was not for want of an argument.
  const Stats& stats = m.core.stats();
  switch (GetParam().policy) {
    case Policy::preempt:
    case Policy::reserve: EXPECT_GT(stats.fence_waits_in_reclaim, 0U); break;
    case Policy::query:  // with one unit it may deadlock, with four another unit can be had
      EXPECT_GT(GetParam().cus == 1 ? stats.fence_waits_refused : stats.fence_waits_in_reclaim, 0U);
      break;
    case Policy::track: EXPECT_GT(stats.fence_waits_refused + stats.fence_waits_in_reclaim, 0U); break;
    default: break;
  }
  EXPECT_EQ(stats.reserve_repairs > 0, GetParam().policy == Policy::track && stats.fence_waits_refused > 0);
}

TEST_P(Sound, WaveThenJob) {
  Argument m(Argument::config(GetParam().policy, GetParam().preempts_while_faulting, GetParam().cus));
  m.wave();
  m.job();
  m.go_on();
  EXPECT_EQ(m.core.deadlock(), "");
  EXPECT_TRUE(m.done()) << m.core.waits();
  EXPECT_EQ(m.core.stats().circles, 0U);
  EXPECT_EQ(m.core.take_reports(), std::vector<std::string>());
}

INSTANTIATE_TEST_SUITE_P(All, Sound,
                         ::testing::Values(Case{Policy::preempt, true, 1}, Case{Policy::preempt, true, 4},
                                           Case{Policy::reserve, false, 2}, Case{Policy::reserve, true, 4},
                                           Case{Policy::reserve_in_flight, false, 1},
                                           Case{Policy::reserve_in_flight, false, 4}, Case{Policy::exclusive, false, 1},
                                           Case{Policy::exclusive, true, 4}, Case{Policy::query, false, 1},
                                           Case{Policy::query, false, 4}, Case{Policy::track, false, 1},
                                           Case{Policy::track, false, 4}, Case{Policy::pinned, false, 1},
                                           Case{Policy::pinned, true, 4}));

TEST(Argument, WithoutAPolicyItDeadlocksAndIsToldAndEnded) {
  Argument m(Argument::config(Policy::none, false, 1));
  m.job();
  m.wave();
  m.go_on();
  EXPECT_EQ(m.core.deadlock(),
            "fault 17 of client 1 on compute unit 0 waits for operation 1 on page 0 of client 1; operation 1 on page 0 "
            "of client 1 needs memory 1; memory 1 waits for fence 42; fence 42 waits for job 42; job 42 waits for "
            "compute unit 0; compute unit 0 is held by fault 17 of client 1 on compute unit 0");
  EXPECT_EQ(m.core.stats().circles, 1U);
  EXPECT_FALSE(m.woken(17));
  EXPECT_LE(m.core.next_tick_ns(), m.now + 1000 * ms);
  m.tick_at(m.now + 1000 * ms);
  EXPECT_EQ(m.woken(17), Status(Code::would_deadlock));
  m.go_on();
  EXPECT_EQ(m.signalled(42), Status());
  EXPECT_EQ(m.core.deadlock(), "");
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Argument, CheckersCanLetItStand) {
  Config config = Argument::config(Policy::none, false, 1);
  config.end_deadlocks = false;
  Argument m(config);
  m.job();
  m.wave();
  m.go_on();
  m.tick_at(m.now + 10'000 * ms);
  EXPECT_NE(m.core.deadlock(), "");
  EXPECT_FALSE(m.woken(17));
  EXPECT_EQ(m.core.stats().circles, 1U);
}

TEST(Argument, PreemptionHelpsOnlyWhereHardwareCan) {
  Argument m(Argument::config(Policy::preempt, false, 1));
  m.job();
  m.wave();
  m.go_on();
  EXPECT_NE(m.core.deadlock(), "");
}

TEST(Argument, FreeUnitsAreEnough) {
  Argument m(Argument::config(Policy::none, false, 4));
  m.job();
  m.wave();
  m.go_on();
  EXPECT_TRUE(m.done());  // one of the other three was left
  EXPECT_EQ(m.core.deadlock(), "");
}

TEST(Argument, FaultsOfUnknownUnitsHoldAll) {
  Argument m(Argument::config(Policy::none, false, 4));
  m.job();
  m.core.device_fault(++m.now, 1, 0, 0, Access::read, FaultToken{17});
  m.take();
  m.core.verify();
  m.tick_at(m.now + 5 * ms);
  EXPECT_NE(m.core.deadlock(), "");
}

/// Each of these bugs brings the deadlock back under the policy that it breaks.
TEST(Argument, QueryThatSaysNoDeadlocks) {
  Config config = Argument::config(Policy::query, false, 1);
  config.bug = PlantedBug::query_says_no;
  Argument m(config);
  m.job();
  m.wave();
  m.go_on();
  EXPECT_FALSE(m.done());
  EXPECT_NE(m.core.deadlock(), "");
}

TEST(Argument, TrackThatForgetsUnitsHangs) {
  Config config = Argument::config(Policy::track, false, 1);
  config.bug = PlantedBug::track_forgets_unit;
  Argument m(config);
  m.job();
  m.wave();
  m.go_on(100);
  EXPECT_FALSE(m.done());
}

}  // namespace
}  // namespace ferry::core::test
