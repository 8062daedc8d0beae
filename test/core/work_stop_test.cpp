// Compute without retry faults: its memory is mapped before it runs, and it is stopped before that is taken away.
#include <gtest/gtest.h>

#include "work_machine.h"

namespace ferry::core::test {
namespace {

class Stopped : public WorkMachine {
 public:
  static Config config() {
    Config config = work_config(Policy::preempt, 2, false);
    config.models[0].retry_faults = false;
    config.granularity_pages = 64;
    config.vram_pages = block_pages;
    return config;
  }
  explicit Stopped(const Config& c = config()) : WorkMachine(c) {
    EXPECT_TRUE(core.alloc(++now, 1, {0, 2 * block_pages}, Placement::automatic).ok());
  }
  /// Answers everything but revocations of units, while time passes.
  void go_on(unsigned ticks = 30) {
    for (unsigned i = 0; i < ticks; ++i) {
      take();
      for (std::size_t at = 0; at < open.size();) {
        if (open[at].verb == Verb::revoke_cus) {
          ++at;
          continue;
        }
        const Action action = open[at];
        open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
        core.action_done(++now, action.id, {});
        core.verify();
        take();
        at = 0;
      }
      tick_at(now + ms);
    }
  }
  [[nodiscard]] bool all_mapped(PageSpan span) const {
    for (Page page = span.first; page < span.end(); ++page) {
      if (at(page).device_writable == 0) {
        return false;
      }
    }
    return true;
  }
};

TEST(Stop, AllIsMappedBeforeUnitsAreGranted) {
  Stopped m;
  m.demand(2);
  EXPECT_EQ(m.units(), 0U);
  EXPECT_FALSE(m.core.quiescent());
  m.go_on();
  EXPECT_EQ(m.units(), 0x3U);
  EXPECT_TRUE(m.all_mapped({0, 2 * block_pages}));  // what has no room in VRAM, in place
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Stop, MemoryIsTakenOnlyWhenTheUnitsWereLeft) {
  Stopped m;
  m.demand(2);
  m.go_on();
  ASSERT_EQ(m.units(), 0x3U);
  Page in_vram = 0;
  while (m.at(in_vram).vram_device != 0) {
    ++in_vram;
  }
  m.now += 200 * ms;
  m.cpu(in_vram);
  EXPECT_EQ(m.open_count(Verb::revoke_device), 0U);
  EXPECT_EQ(m.asked_back(), 0x3U);
  ASSERT_TRUE(m.leave());
  EXPECT_EQ(m.units(), 0U);
  EXPECT_EQ(m.open_count(Verb::revoke_device), 1U);
  m.go_on();
  EXPECT_EQ(m.units(), 0x3U);
  // What the CPU wanted stays where both reach it: it need not stop again for the same page.
  EXPECT_TRUE(m.all_mapped({0, 2 * block_pages}));
  EXPECT_TRUE(m.at(in_vram).cpu_may_map);
  EXPECT_EQ(m.at(in_vram).vram_device, no_device);
}

TEST(Stop, ItHasItsMinimumRunAndComesBackLaterEachTime) {
  Config config = Stopped::config();
  config.models[0].min_run_ns = 2 * ms;
  Stopped m(config);
  m.demand(2);
  m.go_on();
  std::vector<std::uint64_t> pauses;
  for (Page granule = 0; granule < 3; ++granule) {
    ASSERT_EQ(m.units(), 0x3U);
    ASSERT_EQ(m.at(granule * 64).vram_device, 0);
    m.cpu(granule * 64);
    m.tick_at(m.now + 2 * ms);
    ASSERT_TRUE(m.leave());
    const std::uint64_t stopped = m.now;
    while (m.units() == 0) {
      m.go_on(1);
      ASSERT_LT(m.now, stopped + 500 * ms);
    }
    pauses.push_back(m.now - stopped);
  }
  EXPECT_GT(pauses[1], pauses[0]);
  EXPECT_GT(pauses[2], pauses[1]);
}

TEST(Stop, NewMemoryIsMappedBeforeItGoesOn) {
  Stopped m;
  m.demand(2);
  m.go_on();
  const PageSpan added{4 * block_pages, 64};
  ASSERT_TRUE(m.core.alloc(++m.now, 1, added, Placement::automatic).ok());
  m.tick_at(m.now + 2 * ms);
  EXPECT_EQ(m.asked_back(), 0x3U);
  // A wave that is quicker than the revocation tries again until it has left.
  m.fault_on(0, added.first, 17);
  EXPECT_EQ(m.woken(17), Status());
  ASSERT_TRUE(m.leave());
  m.go_on();
  EXPECT_EQ(m.units(), 0x3U);
  EXPECT_TRUE(m.all_mapped(added));
}

TEST(Stop, WavesOfNobodyWhoAskedFail) {
  Stopped m;
  m.fault_on(0, 0, 17);
  EXPECT_EQ(m.woken(17), Status(Code::kernel_fault));
  m.demand(2);
  m.go_on();
  m.fault_on(0, 90 * block_pages, 18);
  EXPECT_EQ(m.woken(18), Status(Code::not_allocated));
}

TEST(Stop, MemoryThatCannotBeHadDoesNotKeepItWaitingForEver) {
  Stopped m;
  m.demand(2);
  for (unsigned i = 0; i < 2000 && m.units() == 0; ++i) {
    m.take();
    while (!m.open.empty()) {
      const Action action = m.open.front();
      m.open.erase(m.open.begin());
      const bool fails = action.verb == Verb::map_device && action.pages.first < 64;
      m.core.action_done(++m.now, action.id, fails ? Status(Code::no_memory) : Status());
      m.take();
    }
    m.tick_at(m.now + ms);
  }
  EXPECT_EQ(m.units(), 0x3U);
  m.fault_on(0, 0, 17);
  EXPECT_EQ(m.woken(17), Status(Code::kernel_fault));
}

TEST(Stop, FreesAndDeathsOfDevicesEndWhatWaits) {
  Stopped m;
  m.demand(2);
  m.go_on();
  ASSERT_TRUE(m.core.free(++m.now, 1, {0, block_pages}, Cookie{50}).ok());
  m.tick_at(m.now + 2 * ms);
  EXPECT_EQ(m.asked_back(), 0x3U);
  EXPECT_FALSE(m.replied(50));
  m.core.device_gone(++m.now, 1, 0);
  m.take();
  m.settle();
  EXPECT_EQ(m.replied(50), Status());
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Stop, IdleComputeKeepsNoUnits) {
  Stopped m;
  m.demand(2);
  m.go_on();
  m.demand(0);
  EXPECT_EQ(m.asked_back(), 0x3U);
  ASSERT_TRUE(m.leave());
  m.demand(1);
  EXPECT_EQ(m.units(), 0x3U);  // nothing was missing
}

}  // namespace
}  // namespace ferry::core::test
