// Compute units that are lent and taken back, graphics jobs on them, and waves that wait for words.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <stdexcept>

#include "base/status.h"
#include "device/user_fence.h"
#include "fake_manager.h"

namespace ferry::device::test {
namespace {

using Word = std::atomic<std::uint64_t>;

constexpr std::size_t more_than_a_stack = 300 * 1024;

/// Words in managed memory, a page each, that test and kernels talk through.
struct Talk {
  Word* words;
  [[nodiscard]] Word& at(std::uint64_t i) const { return words[i * page_bytes / sizeof(Word)]; }
};

FakeManager::Options machine(unsigned cus) {
  FakeManager::Options options;
  options.cus = cus;
  options.managed_bytes = std::uint64_t{4} << 20;
  return options;
}

/// The device has the first pages of managed memory as a job has its buffers: mapped before.
void map_pages(FakeManager& manager, std::uint64_t pages) {
  wire::DownRecord map{};
  map.kind = static_cast<std::uint32_t>(wire::DownKind::map);
  map.file = static_cast<std::uint8_t>(wire::File::system);
  map.rights = 1;
  map.address = default_window_base;
  map.length_bytes = pages * page_bytes;
  ASSERT_EQ(manager.command(map), 0);
}

[[nodiscard]] ::testing::AssertionResult comes(const std::function<bool()>& condition) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > give_up) return ::testing::AssertionFailure() << "it did not come";
    std::this_thread::yield();
  }
  return ::testing::AssertionSuccess();
}

/// Time in which the device does a good deal, whatever the machine's speed: its agent answers commands.
void let_it_run(FakeManager& manager) {
  wire::DownRecord nothing{};
  nothing.kind = static_cast<std::uint32_t>(wire::DownKind::take_units);
  for (const int error : manager.command(std::vector<wire::DownRecord>(200, nothing))) ASSERT_EQ(error, 0);
}

/// Counts in word 1 + wave, until word 0 is set.
void count_until_told(const void* captures, std::uint64_t first, std::uint64_t) {
  const Talk talk = *static_cast<const Talk*>(captures);
  while (talk.at(0).load() == 0) talk.at(1 + first).fetch_add(1);
}

void add_one(const void* captures, std::uint64_t first, std::uint64_t count) {
  const Talk talk = *static_cast<const Talk*>(captures);
  for (std::uint64_t i = first; i < first + count; ++i) talk.words[i].fetch_add(1);
}

TEST(Units, NothingRunsBeforeAUnitIsGranted) {
  FakeManager::Options options = machine(2);
  options.granted_units = 0;
  FakeManager manager(options);
  manager.units().report_demand.store(1);
  const Talk talk{manager.managed_array<Word>()};
  const auto launch = manager.launch(0, add_one, talk, 100, 10);
  ASSERT_TRUE(comes([&] { return manager.units().demand.load() != 0; }));
  let_it_run(manager);
  EXPECT_EQ(manager.queues().queues[0].waves_done.load(), 0U);
  EXPECT_EQ(manager.faults(), 0U);
  manager.grant_units(2);
  const auto result = manager.wait(0, launch);
  ASSERT_EQ(result.code, 0U) << describe(result);
  for (unsigned i = 0; i < 100; ++i) ASSERT_EQ(talk.words[i].load(), 1U);
  EXPECT_TRUE(comes([&] { return manager.units().demand.load() == 0; })) << "an idle device wants no units";
  EXPECT_TRUE(comes([&] { return manager.demands() >= 2; })) << "up and down, each is told";
}

TEST(Units, DemandIsNotToldWhereNobodyAsksForIt) {
  FakeManager manager(machine(4));
  const Talk talk{manager.managed_array<Word>()};
  for (unsigned i = 0; i < 20; ++i) {
    const auto result = manager.run(add_one, talk, 400, 10);
    ASSERT_EQ(result.code, 0U) << describe(result);
  }
  EXPECT_TRUE(comes([&] { return manager.units().demand.load() == 0; }));
  EXPECT_EQ(manager.demands(), 0U);
}

TEST(Units, IdleUnitsAreLeftAtOnceAndAreNoneWhenGrantedAnew) {
  FakeManager manager(machine(4));
  manager.take_units(0b1011);
  manager.wait_left(0b1011);
  manager.take_units(0b0100);
  manager.wait_left(0b0100);
  manager.grant_units(0b1111);
  const Talk talk{manager.managed_array<Word>()};
  const auto result = manager.run(add_one, talk, 400, 10);
  ASSERT_EQ(result.code, 0U) << describe(result);
}

TEST(Units, AWaveThatNeverEndsLeavesItsUnitAndGoesOnLater) {
  FakeManager manager(machine(1));
  const Talk talk{manager.managed_array<Word>()};
  const auto launch = manager.launch(0, count_until_told, talk, 1, 1);
  ASSERT_TRUE(comes([&] { return talk.at(1).load() > 1000; }));
  for (unsigned turn = 0; turn < 5; ++turn) {
    manager.take_units(1);
    manager.wait_left(1);
    const std::uint64_t seen = talk.at(1).load();
    let_it_run(manager);
    EXPECT_EQ(talk.at(1).load(), seen) << "it runs without a unit";
    manager.grant_units(1);
    ASSERT_TRUE(comes([&] { return talk.at(1).load() > seen + 1000; }));
  }
  talk.at(0).store(1);
  const auto result = manager.wait(0, launch);
  ASSERT_EQ(result.code, 0U) << describe(result);
}

/// A device whose first fault is answered when the test says so.
class OneFault {
 public:
  explicit OneFault(FakeManager::Options options)
      : manager(options, [this](FakeManager& m, unsigned cu, const wire::UpRecord& fault) {
          if (answered_) {
            FakeManager::give_page(m, cu, fault);
            return;
          }
          EXPECT_FALSE(parked_);
          cu_ = cu;
          fault_ = fault;
          parked_ = true;
        }) {}
  [[nodiscard]] bool parked() const { return parked_; }
  [[nodiscard]] const wire::UpRecord& fault() const { return fault_; }
  void answer() {
    manager.on_serving_thread([this] {
      answered_ = true;
      FakeManager::give_page(manager, cu_, fault_);
    });
  }

 private:
  std::atomic<bool> parked_{false};
  std::atomic<bool> answered_{false};
  unsigned cu_ = 0;
  wire::UpRecord fault_{};

 public:
  FakeManager manager;
};

TEST(Units, TakenFromWavesWhoseFaultsArePendingWhereTheHardwareCan) {
  OneFault device(machine(2));
  FakeManager& manager = device.manager;
  manager.take_units(0b10);
  manager.wait_left(0b10);
  const Talk talk{manager.managed_array<Word>()};
  const auto launch = manager.launch(0, add_one, talk, 1, 1);
  ASSERT_TRUE(comes([&] { return device.parked(); }));
  EXPECT_EQ(device.fault().unit, 0U);
  manager.take_units(0b01);
  manager.wait_left(0b01);
  device.answer();
  let_it_run(manager);
  EXPECT_EQ(talk.words[0].load(), 0U) << "the wave went on without a unit";
  // Another unit than before will do.
  manager.grant_units(0b10);
  const auto result = manager.wait(0, launch);
  ASSERT_EQ(result.code, 0U) << describe(result);
  EXPECT_EQ(talk.words[0].load(), 1U);
}

TEST(Units, HeldByFaultsUntilTheyAreRepairedWhereTheHardwareCannot) {
  FakeManager::Options options = machine(1);
  options.leave_while_faulting = false;
  OneFault device(options);
  FakeManager& manager = device.manager;
  const Talk talk{manager.managed_array<Word>()};
  const auto launch = manager.launch(0, add_one, talk, 1, 1);
  ASSERT_TRUE(comes([&] { return device.parked(); }));
  manager.take_units(1);
  let_it_run(manager);
  EXPECT_EQ(manager.units_left(), 0U);
  device.answer();
  manager.wait_left(1);
  EXPECT_EQ(talk.words[0].load(), 0U) << "with the fault repaired the unit is left first";
  manager.grant_units(1);
  const auto result = manager.wait(0, launch);
  ASSERT_EQ(result.code, 0U) << describe(result);
}

TEST(Units, AUnitThatWaitsInPlaceRunsNothingElse) {
  for (const bool in_place : {true, false}) {
    FakeManager::Options options = machine(1);
    options.wait_in_place = in_place;
    options.leave_while_faulting = !in_place;
    OneFault device(options);
    FakeManager& manager = device.manager;
    const Talk talk{manager.managed_array<Word>()};
    const auto launch = manager.launch(0, add_one, talk, 1, 1);
    ASSERT_TRUE(comes([&] { return device.parked(); }));
    const auto other = [](const void*, std::uint64_t, std::uint64_t) {};
    const auto second = manager.launch(1, other, talk, 1, 1);
    if (in_place) {
      let_it_run(manager);
      EXPECT_EQ(manager.queues().queues[1].completed.load(), 0U);
      device.answer();
    }
    EXPECT_EQ(manager.wait(1, second).code, 0U);
    if (!in_place) device.answer();
    EXPECT_EQ(manager.wait(0, launch).code, 0U);
  }
}

/// Wave 0 waits for wave 1 when word 0 is set; both say in words 2 and 3 that they run.
void wait_for_the_other(const void* captures, std::uint64_t first, std::uint64_t) {
  const Talk talk = *static_cast<const Talk*>(captures);
  talk.at(2 + first).store(1);
  while (talk.at(0).load() == 0) {}
  if (first == 1) talk.at(4).store(1);
  while (talk.at(4).load() == 0) {}
}

TEST(Units, ThreadsOfOneProcessTakeTurnsOnTooFewUnits) {
  FakeManager manager(machine(2));
  const Talk talk{manager.managed_array<Word>()};
  const auto launch = manager.launch(0, wait_for_the_other, talk, 2, 1);
  ASSERT_TRUE(comes([&] { return talk.at(2).load() != 0 && talk.at(3).load() != 0; }));
  manager.take_units(0b11);
  manager.wait_left(0b11);
  talk.at(0).store(1);
  manager.grant_units(0b10);
  const auto result = manager.wait(0, launch);
  ASSERT_EQ(result.code, 0U) << describe(result);
}

TEST(Units, AllWavesRunOnceWhileUnitsComeAndGo) {
  FakeManager manager(machine(4));
  const Talk talk{manager.managed_array<Word>()};
  constexpr std::uint64_t items = 400'000;
  std::uint64_t launches = 0;
  for (unsigned turn = 0; turn < 300; ++turn) {
    if (manager.queues().queues[0].completed.load() == launches) {
      manager.launch(0, add_one, talk, items, 100);
      ++launches;
    }
    const std::uint64_t units = 0b1111 & ~(std::uint64_t{1} << turn % 4);
    manager.take_units(units);
    manager.wait_left(units);
    manager.grant_units(units);
  }
  const auto result = manager.wait(0, launches - 1);
  ASSERT_EQ(result.code, 0U) << describe(result);
  for (std::uint64_t i = 0; i < items; ++i) ASSERT_EQ(talk.words[i].load(), launches) << "item " << i;
}

// --- graphics jobs ---------------------------------------------------------------------------------------------------

TEST(Jobs, RunOnTheirUnitsBesideCompute) {
  FakeManager manager(machine(2));
  map_pages(manager, 1024);
  const Talk talk{manager.managed_array<Word>()};
  manager.take_units(0b10);
  manager.wait_left(0b10);
  const auto launch = manager.launch(0, count_until_told, talk, 1, 1);
  ASSERT_TRUE(comes([&] { return talk.at(1).load() > 1000; }));
  const Talk frame{manager.managed_array<Word>(std::uint64_t{1} << 20)};
  for (std::uint64_t round = 1; round <= 20; ++round) {
    manager.start_job(0b10, add_one, frame, 1000, 30);
    const auto result = manager.wait_job(0b10);
    ASSERT_EQ(result.code, 0U) << describe(result);
    for (unsigned i = 0; i < 1000; ++i) ASSERT_EQ(frame.words[i].load(), round);
  }
  talk.at(0).store(1);
  EXPECT_EQ(manager.wait(0, launch).code, 0U);
}

TEST(Jobs, RunWhileComputeIsParkedWithItsFaults) {
  OneFault device(machine(1));
  FakeManager& manager = device.manager;
  map_pages(manager, 256);
  const Talk talk{manager.managed_array<Word>(std::uint64_t{2} << 20)};
  const auto launch = manager.launch(0, add_one, talk, 1, 1);
  ASSERT_TRUE(comes([&] { return device.parked(); }));
  manager.take_units(1);
  manager.wait_left(1);
  const Talk frame{manager.managed_array<Word>()};
  manager.start_job(1, add_one, frame, 64, 1);
  const auto result = manager.wait_job(1);
  ASSERT_EQ(result.code, 0U) << describe(result);
  for (unsigned i = 0; i < 64; ++i) ASSERT_EQ(frame.words[i].load(), 1U);
  manager.grant_units(1);
  device.answer();
  EXPECT_EQ(manager.wait(0, launch).code, 0U);
}

TEST(Jobs, SeveralUnitsShareAJobAndSeveralJobsRunAtOnce) {
  FakeManager::Options options = machine(8);
  options.granted_units = 0b11;
  FakeManager manager(options);
  map_pages(manager, 1024);
  const Talk one{manager.managed_array<Word>()};
  const Talk two{manager.managed_array<Word>(std::uint64_t{1} << 20)};
  for (std::uint64_t round = 1; round <= 50; ++round) {
    manager.start_job(0b0011'1000, add_one, one, 5000, 7);
    manager.start_job(0b1100'0000, add_one, two, 5000, 7);
    ASSERT_EQ(manager.wait_job(0b0011'1000).code, 0U);
    ASSERT_EQ(manager.wait_job(0b1100'0000).code, 0U);
    for (unsigned i = 0; i < 5000; ++i) {
      ASSERT_EQ(one.words[i].load(), round);
      ASSERT_EQ(two.words[i].load(), round);
    }
  }
}

TEST(Jobs, WithoutWavesOrWithoutKernelEndAtOnce) {
  FakeManager::Options options = machine(1);
  options.granted_units = 0;
  FakeManager manager(options);
  const Talk talk{manager.managed_array<Word>()};
  manager.start_job(1, add_one, talk, 0, 1);
  EXPECT_EQ(manager.wait_job(1).code, 0U);
  manager.start_job(1, nullptr, talk, 1, 1);
  const auto result = manager.wait_job(1);
  EXPECT_EQ(static_cast<Code>(result.code), Code::bad_range) << describe(result);
}

TEST(Jobs, FailAloneWhenTheirKernelDoes) {
  FakeManager manager(machine(2));
  const Talk talk{manager.managed_array<Word>()};
  const auto compute = manager.launch(0, count_until_told, talk, 1, 1);
  ASSERT_TRUE(comes([&] { return talk.at(1).load() > 1000; }));
  manager.take_units(0b11);
  manager.wait_left(0b11);
  manager.grant_units(0b01);

  // Not mapped: compute would have the page brought.
  manager.start_job(0b10, add_one, Talk{manager.managed_array<Word>(std::uint64_t{2} << 20)}, 10, 1);
  auto result = manager.wait_job(0b10);
  EXPECT_EQ(static_cast<Code>(result.code), Code::kernel_fault);
  EXPECT_EQ(result.address, default_window_base + (std::uint64_t{2} << 20));
  EXPECT_NE(std::string(result.text).find("graphics job may not touch"), std::string::npos) << result.text;

  manager.start_job(
      0b10, [](const void*, std::uint64_t, std::uint64_t) { throw std::runtime_error("no frame"); }, talk, 1, 1);
  result = manager.wait_job(0b10);
  EXPECT_EQ(static_cast<Code>(result.code), Code::kernel_threw);
  EXPECT_STREQ(result.text, "no frame");

  manager.start_job(
      0b10, [](const void*, std::uint64_t, std::uint64_t) { __builtin_trap(); }, talk, 100, 1);
  result = manager.wait_job(0b10);
  EXPECT_EQ(static_cast<Code>(result.code), Code::kernel_fault);

  const auto overflow = [](const void*, std::uint64_t, std::uint64_t) {
    volatile char big[more_than_a_stack];
    big[0] = 1;
    big[more_than_a_stack - 1] = big[0];
  };
  manager.start_job(0b10, overflow, talk, 1, 1);
  result = manager.wait_job(0b10);
  EXPECT_EQ(static_cast<Code>(result.code), Code::kernel_fault);

  // Good ones after the bad ones, and compute has noticed nothing.
  manager.start_job(
      0b10, [](const void*, std::uint64_t, std::uint64_t) {}, talk, 100, 1);
  result = manager.wait_job(0b10);
  EXPECT_EQ(result.code, 0U) << describe(result);
  talk.at(0).store(1);
  EXPECT_EQ(manager.wait(0, compute).code, 0U);
}

TEST(Jobs, AreCancelledWhereverTheyStand) {
  FakeManager::Options options = machine(4);
  options.granted_units = 0;
  FakeManager manager(options);
  map_pages(manager, 64);
  const Talk talk{manager.managed_array<Word>()};
  for (unsigned round = 0; round < 50; ++round) {
    manager.start_job(0b0110, count_until_told, talk, 10, 1);
    if (round % 2 == 0) {
      const std::uint64_t seen = talk.at(1).load();
      ASSERT_TRUE(comes([&] { return talk.at(1).load() > seen; }));
    }
    manager.cancel_job(0b0110);
    const auto result = manager.wait_job(0b0110);
    ASSERT_EQ(static_cast<Code>(result.code), Code::cancelled) << describe(result);
  }
  // One that has ended is not cancelled any more, nor is the next one in its slot.
  manager.cancel_job(0b0110);
  manager.start_job(0b0110, add_one, talk, 10, 1);
  EXPECT_EQ(manager.wait_job(0b0110).code, 0U);
}

// --- waves that wait for words ----------------------------------------------------------------------------------------

std::uint64_t& word_of(const Talk& talk, std::uint64_t i) { return reinterpret_cast<std::uint64_t&>(talk.at(i)); }

/// Every wave waits for the next one, the last one for word 0.
void wait_for_the_next(const void* captures, std::uint64_t first, std::uint64_t) {
  const Talk talk = *static_cast<const Talk*>(captures);
  constexpr std::uint64_t waves = 16;
  if (wait_word(&word_of(talk, first == waves - 1 ? 0 : first + 2), 1, ~std::uint64_t{0}) != WordWait::reached) return;
  talk.at(first + 1).store(1);
}

TEST(Words, WavesOfOneUnitWaitForEachOtherAndForTheProgram) {
  for (const unsigned cus : {1U, 2U}) {
    FakeManager::Options options = machine(cus);
    options.waves_per_cu = 32;
    FakeManager manager(options);
    const Talk talk{manager.managed_array<Word>()};
    const auto launch = manager.launch(0, wait_for_the_next, talk, 16, 1);
    // Others go on beside them.
    const auto other =
        manager.launch(1, add_one, Talk{manager.managed_array<Word>(std::uint64_t{2} << 20)}, 10'000, 10);
    EXPECT_EQ(manager.wait(1, other).code, 0U);
    EXPECT_EQ(manager.queues().queues[0].completed.load(), 0U);
    talk.at(0).store(1);
    EXPECT_EQ(manager.wait(0, launch).code, 0U);
    for (unsigned i = 1; i <= 16; ++i) EXPECT_EQ(talk.at(i).load(), 1U);
  }
}

TEST(Words, WavesThatWaitLeaveTheirUnit) {
  FakeManager manager(machine(2));
  const Talk talk{manager.managed_array<Word>()};
  const auto launch = manager.launch(0, wait_for_the_next, talk, 16, 1);
  ASSERT_TRUE(comes([&] { return manager.faults() >= 16; }));
  manager.take_units(0b11);
  manager.wait_left(0b11);
  talk.at(0).store(1);
  let_it_run(manager);
  EXPECT_EQ(manager.queues().queues[0].completed.load(), 0U) << "they go on without a unit";
  manager.grant_units(0b01);
  EXPECT_EQ(manager.wait(0, launch).code, 0U);
}

/// When told, wave 0 waits for a word that wave 1 sets; both say before that they run.
void wait_for_the_other_thread(const void* captures, std::uint64_t first, std::uint64_t) {
  const Talk talk = *static_cast<const Talk*>(captures);
  talk.at(2 + first).store(1);
  while (talk.at(0).load() == 0) {}
  if (first == 1) talk.at(4).store(1);
  static_cast<void>(wait_word(&word_of(talk, 4), 1, ~std::uint64_t{0}));
}

TEST(Words, AThreadWhoseWavesWaitLendsItsUnitToOneThatHasNone) {
  for (unsigned round = 0; round < 20; ++round) {
    FakeManager manager(machine(2));
    const Talk talk{manager.managed_array<Word>()};
    const auto launch = manager.launch(0, wait_for_the_other_thread, talk, 2, 1);
    ASSERT_TRUE(comes([&] { return talk.at(2).load() != 0 && talk.at(3).load() != 0; }));
    manager.take_units(0b11);
    manager.wait_left(0b11);
    talk.at(0).store(1);
    manager.grant_units(round % 2 == 0 ? 0b01 : 0b10);
    EXPECT_EQ(manager.wait(0, launch).code, 0U);
  }
}

TEST(Words, WaitsEndByTheirTimeOrWithTheirLaunch) {
  FakeManager manager(machine(1));
  const Talk talk{manager.managed_array<Word>()};
  const auto in_time = [](const void* captures, std::uint64_t, std::uint64_t) {
    const Talk t = *static_cast<const Talk*>(captures);
    t.at(1).store(wait_word(&word_of(t, 0), 1, 1'000'000) == WordWait::timed_out ? 7 : 8);
  };
  EXPECT_EQ(manager.run(in_time, talk, 1, 1).code, 0U);
  EXPECT_EQ(talk.at(1).load(), 7U);

  // Of a launch that has failed nobody waits on.
  const auto one_fails = [](const void* captures, std::uint64_t first, std::uint64_t) {
    const Talk t = *static_cast<const Talk*>(captures);
    if (first == 7) {
      static_cast<void>(wait_word(&word_of(t, 2), 7, ~std::uint64_t{0}));
      throw std::runtime_error("enough");
    }
    t.at(2).fetch_add(1);
    static_cast<void>(wait_word(&word_of(t, 0), 1, ~std::uint64_t{0}));
  };
  const auto result = manager.run(one_fails, talk, 8, 1);
  EXPECT_EQ(static_cast<Code>(result.code), Code::kernel_threw) << describe(result);
}

TEST(Words, GraphicsJobsMayNotWait) {
  FakeManager::Options options = machine(1);
  options.granted_units = 0;
  FakeManager manager(options);
  map_pages(manager, 16);
  const Talk talk{manager.managed_array<Word>()};
  const auto kernel = [](const void* captures, std::uint64_t, std::uint64_t) {
    const Talk t = *static_cast<const Talk*>(captures);
    t.at(1).store(wait_word(&word_of(t, 0), 1, ~std::uint64_t{0}) == WordWait::not_allowed ? 7 : 8);
  };
  manager.start_job(1, kernel, talk, 1, 1);
  EXPECT_EQ(manager.wait_job(1).code, 0U);
  EXPECT_EQ(talk.at(1).load(), 7U);
}

}  // namespace
}  // namespace ferry::device::test
