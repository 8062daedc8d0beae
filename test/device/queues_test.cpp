// Queues beside each other, waves that wait for one another, and sleeping and waking.
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>

#include "base/status.h"
#include "fake_manager.h"

namespace ferry::device::test {
namespace {

struct Cells {
  std::uint64_t* data;
  std::uint64_t number;
};

void bump(const void* captures, std::uint64_t first, std::uint64_t count) {
  const auto& c = *static_cast<const Cells*>(captures);
  for (std::uint64_t i = first; i < first + count; ++i) c.data[i] += 1;
}

TEST(Queues, SixteenRunBesideEachOther) {
  FakeManager::Options options;
  options.cus = 3;
  FakeManager manager(options);
  auto* words = manager.managed_array<std::uint64_t>();
  constexpr std::uint64_t launches = 50;
  constexpr std::uint64_t items = 3000;
  for (std::uint64_t i = 0; i < launches; ++i) {
    for (unsigned q = 0; q < wire::max_queues; ++q) {
      EXPECT_EQ(manager.launch(q, bump, Cells{words + q * 4096, q}, items, 17), i);
    }
  }
  for (unsigned q = 0; q < wire::max_queues; ++q) {
    for (std::uint64_t i = 0; i < launches; ++i) EXPECT_EQ(manager.wait(q, i).code, 0U);
    for (std::uint64_t i = 0; i < items; ++i) ASSERT_EQ(words[q * 4096 + i], launches) << "queue " << q;
  }
}

void wait_for_flag(const void* captures, std::uint64_t, std::uint64_t) {
  std::atomic_ref<std::uint64_t> flag(*static_cast<const Cells*>(captures)->data);
  while (flag.load() == 0) {}
}
void set_flag(const void* captures, std::uint64_t, std::uint64_t) {
  std::atomic_ref<std::uint64_t>(*static_cast<const Cells*>(captures)->data).store(1);
}

/// Maps the flag's page first: a wave that faults would leave its compute unit for that reason alone.
std::uint64_t* mapped_flag(FakeManager& manager) {
  auto* flag = manager.managed_array<std::uint64_t>();
  EXPECT_EQ(manager.run(bump, Cells{flag + 1, 0}, 1, 1).code, 0U);
  EXPECT_EQ(manager.faults(), 1U);
  return flag;
}

TEST(Queues, AKernelMayWaitForAnotherQueuesKernelOnOneCu) {
  FakeManager manager;
  auto* flag = mapped_flag(manager);
  const auto waits = manager.launch(0, wait_for_flag, Cells{flag, 0}, 1, 1);
  const auto sets = manager.launch(1, set_flag, Cells{flag, 0}, 1, 1);
  EXPECT_EQ(manager.wait(1, sets).code, 0U);
  EXPECT_EQ(manager.wait(0, waits).code, 0U);
}

/// Wave 0 waits for wave 1, which the same compute unit has to start meanwhile.
TEST(Queues, AWaveMayWaitForALaterWaveOfItsLaunch) {
  FakeManager manager;
  const auto kernel = [](const void* captures, std::uint64_t first, std::uint64_t count) {
    (first == 0 ? wait_for_flag : set_flag)(captures, first, count);
  };
  const auto result = manager.run(kernel, Cells{mapped_flag(manager), 0}, 2, 1);
  EXPECT_EQ(result.code, 0U) << describe(result);
}

struct Locked {
  std::mutex* mutex;
  std::uint64_t* pages;
};

/// The holder of the lock faults inside; the others sleep in the kernel for it, on the same thread.
TEST(Queues, WavesMayHoldLocksAcrossFaults) {
  FakeManager::Options options;
  options.waves_per_cu = 8;
  FakeManager manager(options);
  auto* mutex = new (manager.managed()) std::mutex;
  const auto kernel = [](const void* captures, std::uint64_t first, std::uint64_t) {
    const auto& c = *static_cast<const Locked*>(captures);
    const std::lock_guard lock(*c.mutex);
    c.pages[(1 + first) * 512] = 1;
    c.pages[0] += 1;
  };
  auto* pages = manager.managed_array<std::uint64_t>(page_bytes);
  const auto result = manager.run(kernel, Locked{mutex, pages}, 40, 1);
  EXPECT_EQ(result.code, 0U) << describe(result);
  EXPECT_EQ(pages[0], 40U);
}

struct Spinning {
  std::uint64_t* lock;
  std::uint64_t* pages;
};

/// The same with a lock that spins: nothing but the clock takes the compute unit from who spins.
TEST(Queues, WavesMaySpinForAWaveThatFaulted) {
  FakeManager::Options options;
  options.waves_per_cu = 4;
  FakeManager manager(options);
  const auto kernel = [](const void* captures, std::uint64_t first, std::uint64_t) {
    const auto& c = *static_cast<const Spinning*>(captures);
    std::atomic_ref<std::uint64_t> lock(*c.lock);
    while (lock.exchange(1) != 0) {}
    c.pages[(1 + first) * 512] = 1;
    c.pages[0] += 1;
    lock.store(0);
  };
  auto* lock = mapped_flag(manager);
  auto* pages = manager.managed_array<std::uint64_t>(page_bytes);
  const auto result = manager.run(kernel, Spinning{lock, pages}, 20, 1);
  EXPECT_EQ(result.code, 0U) << describe(result);
  EXPECT_EQ(pages[0], 20U);
}

TEST(Queues, AFailedLaunchEndsItsEndlessWaves) {
  FakeManager::Options options;
  options.cus = 2;
  FakeManager manager(options);
  const auto kernel = [](const void* captures, std::uint64_t first, std::uint64_t count) {
    if (first == 1) throw 1;
    wait_for_flag(captures, first, count);
  };
  const auto result = manager.run(kernel, Cells{mapped_flag(manager), 0}, 2, 1);
  EXPECT_EQ(static_cast<Code>(result.code), Code::kernel_threw);
}

/// Everybody falls asleep between launches; every wake-up is needed.
TEST(Queues, WakeFromSleepForLaunchesAndAnswers) {
  FakeManager::Options options;
  options.cus = 2;
  FakeManager manager(options, [](FakeManager& m, unsigned cu, const wire::UpRecord& fault) {
    // Longer than any compute unit polls: it has gone to sleep, or is about to.
    const std::uint64_t until = linux::monotonic_ns() + 1'000'000 + fault.address % 7 * 100'000;
    while (linux::monotonic_ns() < until) {}
    FakeManager::give_page(m, cu, fault);
  });
  auto* words = manager.managed_array<std::uint64_t>();
  for (unsigned i = 0; i < 200; ++i) {
    const auto result = manager.run(bump, Cells{words + i * 512, 0}, 1, 1);
    ASSERT_EQ(result.code, 0U) << describe(result);
    ASSERT_EQ(words[i * 512], 1U);
    const std::uint64_t until = linux::monotonic_ns() + (i % 5) * 200'000;
    while (linux::monotonic_ns() < until) {}
  }
}

TEST(Queues, AreTracedAndProgressIsSeen) {
  FakeManager manager;
  auto* words = manager.managed_array<std::uint64_t>();
  for (unsigned i = 0; i < 10; ++i) manager.run(bump, Cells{words, 0}, 100, 10);
  EXPECT_EQ(manager.queues().queues[0].waves_done.load(), 10U);
  manager.wait(0, 9);
  // Between two jobs lies a poll.
  manager.on_serving_thread([] {});
  manager.on_serving_thread([] {});
  const auto trace = manager.trace();
  ASSERT_EQ(trace.size(), 20U);
  for (unsigned i = 0; i < 10; ++i) {
    EXPECT_EQ(trace[2 * i].kind, static_cast<std::uint32_t>(wire::UpKind::kernel_begin));
    EXPECT_EQ(trace[2 * i].value, 10U);
    EXPECT_EQ(trace[2 * i + 1].kind, static_cast<std::uint32_t>(wire::UpKind::kernel_end));
    EXPECT_EQ(trace[2 * i + 1].launch, i);
    EXPECT_LE(trace[2 * i].time_ns, trace[2 * i + 1].time_ns);
    EXPECT_GT(manager.queues().queues[0].results[i].device_time_ns, 0U);
  }
}

}  // namespace
}  // namespace ferry::device::test
