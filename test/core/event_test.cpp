// What the core tells its observer about faults, moves and queues: each begin has its end, with how it ended.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "core/observer.h"
#include "work_machine.h"

namespace ferry::core::test {
namespace {

class Seen final : public Observer {
 public:
  void on_event(const Event& event) override { events.push_back(event); }
  [[nodiscard]] std::vector<Event> of(EventKind kind) const {
    std::vector<Event> out;
    std::copy_if(events.begin(), events.end(), std::back_inserter(out),
                 [kind](const Event& e) { return e.kind == kind; });
    return out;
  }
  std::vector<Event> events;
};

constexpr PageSpan ten_blocks{0, 10 * block_pages};

TEST(Events, EveryDeviceFaultHasOneEndOfItsPage) {
  Seen seen;
  Machine m(plain_config(), true, &seen);
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  for (Page page = 3; page < 6; ++page) m.fault(page, page == 4 ? Access::write : Access::read);
  EXPECT_TRUE(seen.of(EventKind::device_fault_end).empty()) << "none before the pages are there";
  m.settle();
  m.fault(3);  // is mapped by now
  const auto ends = seen.of(EventKind::device_fault_end);
  ASSERT_EQ(ends.size(), seen.of(EventKind::device_fault).size());
  std::vector<Page> pages;
  for (const Event& e : ends) {
    EXPECT_EQ(e.status, Code::ok);
    EXPECT_EQ(e.device, 0);
    pages.push_back(e.pages.first);
  }
  std::sort(pages.begin(), pages.end());
  EXPECT_EQ(pages, (std::vector<Page>{3, 3, 4, 5}));
}

TEST(Events, AFaultThatFailsSaysWhy) {
  Seen seen;
  Machine m(plain_config(), true, &seen);
  m.fault(77, Access::write);
  const auto ends = seen.of(EventKind::device_fault_end);
  ASSERT_EQ(ends.size(), 1U);
  EXPECT_EQ(ends[0].status, Code::not_allocated);
  EXPECT_EQ(ends[0].access, Access::write);
}

TEST(Events, ACpuFaultEndsWhenItsThreadsGoOn) {
  Seen seen;
  Machine m(plain_config(), true, &seen);
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(5, Access::write);
  m.settle();
  EXPECT_TRUE(seen.of(EventKind::cpu_fault_end).empty());
  m.cpu(5);
  EXPECT_TRUE(seen.of(EventKind::cpu_fault_end).empty());
  m.settle();
  const auto ends = seen.of(EventKind::cpu_fault_end);
  ASSERT_EQ(ends.size(), 1U);
  EXPECT_TRUE(ends[0].pages.contains(5));
}

TEST(Events, AMoveSaysWhereFromAndHowItEnded) {
  Seen seen;
  Config config = plain_config();
  config.copy_retries = 0;
  Machine m(config, true, &seen);
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(5, Access::write);
  m.settle();
  m.cpu(5);
  m.settle();
  const auto ends = seen.of(EventKind::migrate_end);
  ASSERT_EQ(ends.size(), 2U);
  EXPECT_EQ(ends[0].to, Place::vram);
  EXPECT_EQ(ends[0].from, no_device);
  EXPECT_EQ(ends[0].device, 0);
  EXPECT_EQ(ends[1].to, Place::system);
  EXPECT_EQ(ends[1].from, 0);
  EXPECT_EQ(ends[1].status, Code::ok);
  m.fault(block_pages, Access::write);
  ASSERT_TRUE(m.answer(Verb::revoke_cpu));
  ASSERT_TRUE(m.answer(Verb::copy, Code::io_error));
  m.settle();
  EXPECT_EQ(seen.of(EventKind::migrate_end).back().status, Code::io_error);
}

TEST(Events, TakingADevicesMappingIsTold) {
  Seen seen;
  Machine m(plain_config(), true, &seen);
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  m.fault(5, Access::write);
  m.settle();
  EXPECT_TRUE(seen.of(EventKind::unmap_device).empty());
  m.cpu(5);
  m.settle();
  const auto unmaps = seen.of(EventKind::unmap_device);
  ASSERT_EQ(unmaps.size(), 1U);
  EXPECT_EQ(unmaps[0].device, 0);
  EXPECT_EQ(unmaps[0].cause, Cause::cpu_fault);
  EXPECT_EQ(unmaps[0].pages, (PageSpan{0, block_pages}));
}

TEST(Events, APrefetchIsToldOnce) {
  Seen seen;
  Machine m(plain_config(), true, &seen);
  ASSERT_TRUE(m.core.alloc(1, 1, ten_blocks, Placement::automatic).ok());
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, {0, 600}, 0, Cookie{1}).ok());
  m.settle();
  const auto told = seen.of(EventKind::prefetch);
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(told[0].pages, (PageSpan{0, 600}));
  EXPECT_EQ(told[0].device, 0);
  EXPECT_EQ(told[0].to, Place::vram);
}

TEST(Events, QueuesThatLoseAllTheirUnitsAreEvictedAndRestored) {
  Seen seen;
  WorkMachine m(work_config(), &seen);
  m.open_second_client();
  m.demand(4);
  const std::uint64_t granted = m.now;
  m.demand(4, 2);
  EXPECT_TRUE(seen.of(EventKind::queue_eviction).empty());
  m.tick_at(granted + 5 * ms);
  auto evictions = seen.of(EventKind::queue_eviction);
  ASSERT_EQ(evictions.size(), 1U);
  EXPECT_EQ(evictions[0].client, 1U);
  EXPECT_EQ(evictions[0].device, 0);
  EXPECT_EQ(evictions[0].cause, Cause::preempted);
  m.leave(1);
  EXPECT_TRUE(seen.of(EventKind::queue_restore).empty()) << "the second one was never evicted";
  m.tick_at(m.now + 5 * ms);
  m.leave(2);
  const auto restores = seen.of(EventKind::queue_restore);
  ASSERT_EQ(restores.size(), 1U);
  EXPECT_EQ(restores[0].client, 1U);
  m.demand(0);
  m.demand(0, 2);
  m.settle();
  EXPECT_EQ(seen.of(EventKind::queue_restore).size(), 1U) << "who wants none is not restored";
}

}  // namespace
}  // namespace ferry::core::test
