// Retry faults off for one application, and memory that is always mapped: mapped before compute runs, compute stopped
// before it is taken, on one tree of attributes.
#include <gtest/gtest.h>

#include "work_machine.h"

namespace ferry::core::test {
namespace {

constexpr PageSpan all{0, 2 * block_pages};

class Switched : public WorkMachine {
 public:
  static Config config() {
    Config config = work_config(Policy::preempt, 2, false);
    config.granularity_pages = 64;
    config.vram_pages = block_pages;
    return config;
  }
  explicit Switched(const Config& c = config()) : WorkMachine(c) {
    EXPECT_TRUE(core.alloc(++now, 1, all, Placement::automatic).ok());
  }
  Status set(PageSpan span, std::uint32_t set_flags, std::uint32_t cookie = 1) {
    unsigned wrong = 0;
    const Status status =
        core.svm_set(++now, 1, span, {{AttributeType::set_flags, no_device, set_flags}}, Cookie{cookie}, wrong);
    take();
    return status;
  }
  Status access(PageSpan span, DeviceAccess wanted, std::uint32_t cookie = 2) {
    unsigned wrong = 0;
    const Status status = core.svm_set(++now, 1, span, {{AttributeType::access, 0, static_cast<std::uint32_t>(wanted)}},
                                       Cookie{cookie}, wrong);
    take();
    return status;
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
  /// Every page of the span is mapped on the device, for writing or not.
  [[nodiscard]] bool mapped(PageSpan span, bool writable = true) const {
    for (Page page = span.first; page < span.end(); ++page) {
      if (at(page).device_mapped == 0 || (at(page).device_writable != 0) != writable) {
        return false;
      }
    }
    return true;
  }
};

TEST(SvmRetry, off_maps_what_compute_may_touch_before_it_runs) {
  Switched m;
  EXPECT_TRUE(m.core.retry_faults(1, 0));
  ASSERT_TRUE(m.access({0, 64}, DeviceAccess::none).ok());
  ASSERT_TRUE(m.set({64, 70}, svm_gpu_ro).ok());
  m.settle();
  ASSERT_TRUE(m.core.set_retry_faults(++m.now, 1, false).ok());
  EXPECT_FALSE(m.core.retry_faults(1, 0));
  m.demand(2);
  EXPECT_EQ(m.units(), 0U) << "not before all is mapped";
  m.go_on();
  EXPECT_EQ(m.units(), 0x3U);
  EXPECT_EQ(m.at(3).device_mapped, 0U) << "it has no access there";
  EXPECT_TRUE(m.mapped({64, 70}, false));
  EXPECT_TRUE(m.mapped({134, 2 * block_pages - 134}));
  m.fault_on(0, 3, 17);
  EXPECT_EQ(m.woken(17), Status(Code::kernel_fault));
  EXPECT_TRUE(m.core.quiescent());
}

TEST(SvmRetry, off_waits_for_answers_however_late_they_come) {
  Switched m;
  ASSERT_TRUE(m.core.set_retry_faults(++m.now, 1, false).ok());
  m.demand(2);
  for (unsigned i = 0; i < 1000; ++i) {
    m.take();
    m.tick_at(m.now + ms);
    ASSERT_EQ(m.units(), 0U) << "the device has not said that anything is mapped, after " << i << " ms";
  }
  m.go_on();
  EXPECT_EQ(m.units(), 0x3U);
  EXPECT_TRUE(m.mapped(all));
}

TEST(SvmRetry, off_stops_compute_before_memory_is_taken) {
  Switched m;
  ASSERT_TRUE(m.core.set_retry_faults(++m.now, 1, false).ok());
  m.demand(2);
  m.go_on();
  ASSERT_EQ(m.units(), 0x3U);
  m.now += 200 * ms;
  ASSERT_TRUE(m.access({0, 4}, DeviceAccess::none, 9).ok());
  EXPECT_EQ(m.open_count(Verb::revoke_device), 0U);
  EXPECT_EQ(m.asked_back(), 0x3U);
  EXPECT_FALSE(m.replied(9));
  ASSERT_TRUE(m.leave());
  EXPECT_EQ(m.open_count(Verb::revoke_device), 1U);
  m.go_on();
  EXPECT_EQ(m.replied(9), Status());
  EXPECT_EQ(m.units(), 0x3U) << "it goes on without them";
  EXPECT_EQ(m.at(3).device_mapped, 0U);
  // What it gets back is mapped before it runs on.
  m.now += 200 * ms;
  ASSERT_TRUE(m.access({0, 4}, DeviceAccess::migrate, 10).ok());
  m.tick_at(m.now + 2 * ms);
  EXPECT_EQ(m.asked_back(), 0x3U);
  ASSERT_TRUE(m.leave());
  m.go_on();
  EXPECT_EQ(m.units(), 0x3U);
  EXPECT_TRUE(m.mapped(all));
}

TEST(SvmRetry, a_stray_touch_is_an_error_and_others_still_retry) {
  Switched m;
  m.open_second_client();
  ASSERT_TRUE(m.core.alloc(++m.now, 2, {0, 64}, Placement::automatic).ok());
  ASSERT_TRUE(m.core.set_retry_faults(++m.now, 1, false).ok());
  m.fault_on(0, 0, 17);
  EXPECT_EQ(m.woken(17), Status(Code::kernel_fault)) << "nothing runs that could touch";
  m.fault(0, Access::read, 18, 0, 2);
  m.settle();
  EXPECT_TRUE(m.went_on(18)) << "the mode is one application's";
}

TEST(SvmRetry, the_mode_is_not_switched_under_compute) {
  Switched m;
  m.demand(1);
  m.settle();
  ASSERT_NE(m.units(), 0U);
  EXPECT_EQ(m.core.set_retry_faults(++m.now, 1, false), Code::in_use);
  EXPECT_TRUE(m.core.retry_faults(1, 0));
  EXPECT_TRUE(m.core.set_retry_faults(++m.now, 1, true).ok()) << "nothing to switch";
  m.demand(0);
  EXPECT_EQ(m.asked_back(), 0U) << "an idle queue keeps its units";
  EXPECT_TRUE(m.core.set_retry_faults(++m.now, 1, false).ok());
  m.take();
  EXPECT_EQ(m.asked_back(), 0x3U) << "its next wave is to ask";
  ASSERT_TRUE(m.leave());
  EXPECT_TRUE(m.core.set_retry_faults(++m.now, 1, true).ok());
  m.fault(0, Access::read, 17);
  m.settle();
  EXPECT_TRUE(m.went_on(17)) << "faults drive everything again";
  Config config = Switched::config();
  config.models[0].retry_faults = false;
  Switched fixed(config);
  EXPECT_EQ(fixed.core.set_retry_faults(1, 1, true), Code::unsupported);
  EXPECT_FALSE(fixed.core.retry_faults(1, 0));
}

TEST(SvmRetry, what_is_always_mapped_is_taken_only_when_the_units_were_left) {
  Switched m;
  ASSERT_TRUE(m.set({0, 64}, svm_always_mapped).ok());
  m.settle();
  ASSERT_EQ(m.replied(1), Status());
  ASSERT_TRUE(m.mapped({0, 64}));
  m.demand(2);
  m.go_on();
  ASSERT_EQ(m.units(), 0x3U);
  // Other memory comes and goes by faults, beside running compute.
  m.fault_on(0, 64, 20);
  m.go_on();
  ASSERT_NE(m.at(64).device_mapped, 0U);
  ASSERT_EQ(m.at(64).vram_device, 0);
  m.cpu(64);
  m.go_on();
  EXPECT_EQ(m.at(64).vram_device, no_device);
  EXPECT_EQ(m.asked_back(), 0U);
  EXPECT_EQ(m.units(), 0x3U);
  // A move that takes it away: to VRAM, by request.
  m.now += 200 * ms;
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, {0, 64}, 0, Cookie{30}).ok());
  m.take();
  while (m.open_count(Verb::revoke_cpu) != 0) {
    m.answer(Verb::revoke_cpu);
  }
  EXPECT_EQ(m.open_count(Verb::revoke_device), 0U);
  EXPECT_EQ(m.asked_back(), 0x3U);
  ASSERT_TRUE(m.leave());
  EXPECT_EQ(m.units(), 0U);
  m.go_on();
  EXPECT_EQ(m.replied(30), Status());
  EXPECT_EQ(m.units(), 0x3U);
  EXPECT_TRUE(m.mapped({0, 64})) << "before it ran again";
  EXPECT_EQ(m.at(0).vram_device, 0);
}

}  // namespace
}  // namespace ferry::core::test
