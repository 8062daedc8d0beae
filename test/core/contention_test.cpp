// Two devices and a CPU that all want one page: it comes to rest where all reach it, or, where it may not be had in place,
// goes round in turns of a slice. Counted in migrations and waits over the core's own clock.
#include <gtest/gtest.h>

#include "svm_machine.h"
#include "toucher.h"

namespace ferry::core::test {
namespace {

constexpr unsigned rounds = 300;

Config config_of(unsigned devices = 2) {
  Config config = plain_config();
  config.device_count = devices;
  config.contention_threshold = 4;
  return config;
}

class Crowd : public Toucher {
 public:
  explicit Crowd(const Config& config, const std::vector<Attribute>& attributes = {})
      : Toucher(config, block_pages), devices_(config.device_count) {
    unsigned wrong = 0;
    if (!attributes.empty()) {
      EXPECT_TRUE(machine.core.svm_set(machine.now, 1, {0, block_pages}, attributes, Cookie{1}, wrong).ok());
      machine.settle();
    }
  }
  /// Each processor writes a page of its own, and the first of all, once a round.
  void run(unsigned count) {
    for (unsigned round = 0; round < count; ++round) {
      for (DeviceId d = 0; d < devices_; ++d) {
        touch(1 + d, Access::write, d);
        touch(0, Access::write, d);
      }
      touch_cpu(0);
    }
  }
  [[nodiscard]] std::uint64_t migrations() const { return stats().migrations_to_vram + stats().migrations_to_system; }

 private:
  unsigned devices_;
};

TEST(Contention, a_page_that_all_want_comes_to_rest_where_all_reach_it) {
  Crowd crowd(config_of());
  crowd.run(rounds);
  EXPECT_EQ(crowd.stats().contention_pins, 1U);
  EXPECT_LE(crowd.migrations(), 2 * crowd.machine.core.stats().contention_pins + 4);
  const Residency r = crowd.machine.at(0);
  EXPECT_TRUE(r.contended && r.cpu_may_map);
  EXPECT_EQ(r.device_writable, 3) << "atomics of all three meet in one memory";
  EXPECT_EQ(crowd.stats().contention_waits, 0U) << "nobody has to wait for what is had in place";
}

TEST(Contention, without_thrash_control_it_goes_to_and_fro) {
  Config config = config_of();
  config.contention_threshold = 0;
  Crowd crowd(config);
  crowd.run(rounds);
  EXPECT_GE(crowd.migrations(), 2 * rounds) << "or the tests beside this one show nothing";
  EXPECT_EQ(crowd.stats().contention_pins, 0U);
}

TEST(Contention, false_sharing_is_contention_for_the_granule) {
  Config config = config_of();
  Crowd crowd(config);
  for (unsigned round = 0; round < rounds; ++round) {
    crowd.touch(1, Access::write, 0);
    crowd.touch(2, Access::write, 1);
    crowd.touch_cpu(3);
  }
  EXPECT_EQ(crowd.stats().contention_pins, 1U);
  EXPECT_LE(crowd.migrations(), 8U);
}

TEST(Contention, ends_with_its_hold) {
  Config config = config_of();
  Crowd crowd(config);
  crowd.run(10);
  ASSERT_TRUE(crowd.machine.at(0).contended);
  crowd.machine.now += config.contention_hold_ns;
  crowd.machine.core.tick(crowd.machine.now);
  EXPECT_FALSE(crowd.machine.at(0).contended);
  EXPECT_EQ(crowd.machine.at(0).device_mapped, 3) << "nobody is disturbed";
  ASSERT_TRUE(crowd.machine.core.prefetch(crowd.machine.now, 1, {0, 1}, 0, Cookie{1}).ok());
  crowd.settle();
  crowd.touch(0, Access::write, 0);
  EXPECT_EQ(crowd.machine.at(0).vram_device, 0);
  crowd.touch_cpu(0);
  crowd.touch(0, Access::write, 0);
  EXPECT_EQ(crowd.machine.at(0).vram_device, 0) << "it goes to and fro again, until that is too often";
}

/// Waves of a device contend for its VRAM: granules that come back right after they left halve the waves.
TEST(Contention, waves_that_evict_each_others_granules_become_fewer) {
  const auto limit_of = [](std::uint64_t vram_blocks) {
    Config config = config_of(1);
    config.vram_pages = vram_blocks * block_pages;
    config.leave = LeaveKind::never;
    config.victims = VictimKind::fifo;
    config.granularity_pages = 64;
    Toucher device(config, 4 * block_pages);
    for (unsigned round = 0; round < 64; ++round) {
      for (Page granule = 0; granule < 9; ++granule) device.touch(granule * 64, Access::write);
    }
    return device.machine.core.wave_limit(0);
  };
  EXPECT_EQ(limit_of(4), 0U) << "all has room";
  EXPECT_GT(limit_of(1), 0U);
  EXPECT_LT(limit_of(1), Config{}.waves_per_cu);
}

/// What may not be had in place: not coherent, or preferred on a device.
struct Turns {
  const char* what;
  std::vector<Attribute> attributes;
};
class Slices : public testing::TestWithParam<Turns> {};
INSTANTIATE_TEST_SUITE_P(Of, Slices,
                         testing::Values(Turns{"not_coherent", {no_flags(svm_coherent)}},
                                         Turns{"preferred", {preferred(0)}},
                                         Turns{"both", {no_flags(svm_coherent), preferred(1)}}),
                         [](const auto& info) { return std::string(info.param.what); });

TEST_P(Slices, a_page_stays_for_a_slice_with_whom_it_came_to) {
  Config config = config_of();
  config.contention_slice_ns = 1'000'000;
  Crowd crowd(config, GetParam().attributes);
  crowd.run(10);
  ASSERT_TRUE(crowd.machine.at(0).contended);
  const std::uint64_t begun_ns = crowd.machine.now;
  const std::uint64_t moved = crowd.migrations();
  const std::uint64_t waited = crowd.stats().contention_waits;
  crowd.run(rounds);
  const std::uint64_t slices = (crowd.machine.now - begun_ns) / config.contention_slice_ns + 1;
  EXPECT_GT(crowd.stats().contention_waits, waited);
  // From one device to the other is two migrations, by way of home.
  EXPECT_LE(crowd.migrations() - moved, 2 * slices);
}

/// Threads of a busy machine get a processor later than a slice lasts: it grows until they do.
TEST_P(Slices, they_grow_while_contention_goes_on_and_begin_anew) {
  Config config = config_of();
  config.contention_slice_ns = 1'000'000;
  config.contention_hold_ns = 1'000'000'000;
  Crowd crowd(config, GetParam().attributes);
  const auto length_of_turns = [&](unsigned count) {
    const std::uint64_t begun_ns = crowd.machine.now;
    const std::uint64_t waited = crowd.stats().contention_waits;
    crowd.run(count);
    return (crowd.machine.now - begun_ns) / std::max<std::uint64_t>(crowd.stats().contention_waits - waited, 1);
  };
  crowd.run(1);
  const std::uint64_t first = length_of_turns(1);
  crowd.run(5);
  const std::uint64_t later = length_of_turns(2);
  EXPECT_GT(later, 4 * first);
  EXPECT_LE(later, 33'000'000U);
  crowd.machine.now += 2 * config.contention_hold_ns;
  crowd.run(1);
  EXPECT_LT(length_of_turns(1), later);
}

TEST_P(Slices, without_slices_it_goes_at_once) {
  Config config = config_of();
  config.contention_slice_ns = 0;
  Crowd crowd(config, GetParam().attributes);
  crowd.run(10);
  const std::uint64_t begun_ns = crowd.machine.now;
  const std::uint64_t moved = crowd.migrations();
  crowd.run(rounds);
  const std::uint64_t slices = (crowd.machine.now - begun_ns) / 1'000'000 + 1;
  EXPECT_EQ(crowd.stats().contention_waits, 0U);
  EXPECT_GT(crowd.migrations() - moved, 2 * slices) << "or the test of slices shows nothing";
}

/// A page in VRAM of device 0, in its slice, and others that wait.
class InASlice : public testing::Test {
 protected:
  static Config config() {
    Config config = config_of();
    config.contention_threshold = 2;
    config.contention_slice_ns = 1'000'000;
    return config;
  }
  void SetUp() override {
    unsigned wrong = 0;
    ASSERT_TRUE(m.core.alloc(1, 1, {0, block_pages}, Placement::automatic).ok());
    ASSERT_TRUE(m.core.svm_set(1, 1, {0, block_pages}, {no_flags(svm_coherent)}, Cookie{1}, wrong).ok());
    m.settle();
    for (unsigned i = 0; i < 3; ++i) {
      m.cpu(0);
      finish();
      m.fault(0, Access::write);
      finish();
    }
    ASSERT_EQ(m.at(0).vram_device, 0);
    m.cpu(0);
    ASSERT_TRUE(m.open.empty()) << "the slice is not over";
    ASSERT_EQ(m.core.stats().contention_waits, before + 1);
    ASSERT_EQ(m.at(0).device_writable, 1) << "who has it goes on";
  }
  void finish() {
    m.settle();
    while (!m.core.quiescent()) {
      ASSERT_NE(m.core.next_tick_ns(), ~std::uint64_t{0});
      m.now = std::max(m.now, m.core.next_tick_ns());
      m.core.tick(m.now);
      m.settle();
    }
    before = m.core.stats().contention_waits;
  }
  Machine m{config()};
  std::uint64_t before = 0;
};

TEST_F(InASlice, the_tick_ends_it) {
  const std::uint64_t end_ns = m.core.next_tick_ns();
  EXPECT_LE(end_ns, m.now + 32'000'000);
  m.core.tick(end_ns - 1);
  m.settle();
  EXPECT_EQ(m.at(0).vram_device, 0);
  m.core.tick(end_ns);
  m.settle();
  EXPECT_TRUE(m.at(0).cpu_may_map);
  EXPECT_TRUE(m.core.quiescent());
}

TEST_F(InASlice, others_join_whoever_waits) {
  m.fault(3, Access::write, 77, 1);
  finish();
  EXPECT_TRUE(m.went_on(77));
  EXPECT_TRUE(m.core.quiescent());
}

TEST_F(InASlice, the_device_that_has_it_goes) {
  m.core.device_gone(++m.now, 1, 0);
  m.take();
  finish();
  EXPECT_TRUE(m.at(0).cpu_may_map);
}

TEST_F(InASlice, the_client_goes) {
  m.core.device_gone(++m.now, 1, 0);
  m.core.device_gone(++m.now, 1, 1);
  m.core.client_gone(++m.now, 1, Cookie{9});
  m.settle();
  EXPECT_EQ(m.replied(9), Status());
  EXPECT_TRUE(m.core.quiescent());
  EXPECT_EQ(m.core.next_tick_ns(), ~std::uint64_t{0});
}

TEST_F(InASlice, it_is_freed) {
  ASSERT_TRUE(m.core.free(++m.now, 1, {0, block_pages}, Cookie{9}).ok());
  finish();
  EXPECT_EQ(m.replied(9), Status());
}

TEST_F(InASlice, the_application_forks) {
  ASSERT_TRUE(m.core.client_fork(++m.now, 1, Cookie{9}).ok());
  finish();
  EXPECT_EQ(m.replied(9), Status());
  EXPECT_EQ(m.at(0).device_mapped, 0);
}

TEST_F(InASlice, it_is_brought_home_on_request) {
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, {0, block_pages}, no_device, Cookie{9}).ok());
  finish();
  EXPECT_EQ(m.replied(9), Status());
  EXPECT_EQ(m.at(0).vram_device, no_device);
}

}  // namespace
}  // namespace ferry::core::test
