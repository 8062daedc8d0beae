// Pages that are read mostly: each processor that reads has its own copy, a write leaves one. The table at the top of
// core/svm/replica.cpp, line by line, and what evicts, frees, pins, protects and stores such pages.
#include <gtest/gtest.h>

#include "svm_machine.h"

namespace ferry::core::test {
namespace {

constexpr PageSpan block0{0, block_pages};

std::uint16_t devices(std::initializer_list<unsigned> list) {
  std::uint16_t mask = 0;
  for (const unsigned d : list) {
    mask = static_cast<std::uint16_t>(mask | 1U << d);
  }
  return mask;
}

class Readers : public Asked {
 public:
  explicit Readers(unsigned count = 2, unsigned granule = block_pages) : Asked(count, granule) { mark(); }
  explicit Readers(const Config& config) : Asked(config) { mark(); }
  void mark() { set(block0, {flags(svm_read_mostly)}); }
  void reads(DeviceId device, Page page = 5) { EXPECT_EQ(touch(page, Access::read, device), Status()); }
  void writes(DeviceId device, Page page = 5) { EXPECT_EQ(touch(page, Access::write, device), Status()); }
  void cpu_touches(Access access, Page page = 5) {
    cpu(page, access);
    settle();
    EXPECT_TRUE(at(page).cpu_may_map);
    EXPECT_TRUE(access == Access::read || at(page).cpu_may_write);
  }
  [[nodiscard]] std::uint64_t moved() const {
    const Stats& s = core.stats();
    return s.pages_to_vram + s.pages_to_system + s.pages_direct;
  }
};

TEST(Replica, EachProcessorThatReadsHasItsOwnCopy) {
  Readers m;
  m.reads(0);
  Residency r = m.at(5);
  EXPECT_EQ(r.vram_device, 0);
  EXPECT_TRUE(r.system_current);
  EXPECT_TRUE(r.cpu_may_map);  // it goes on reading
  EXPECT_FALSE(r.cpu_may_write);
  m.reads(1);
  r = m.at(5);
  EXPECT_EQ(r.vram_device, 0);
  EXPECT_EQ(r.copies, devices({1}));
  EXPECT_EQ(r.device_mapped, devices({0, 1}));
  EXPECT_EQ(r.device_writable, 0);
  EXPECT_TRUE(r.cpu_may_map);
  EXPECT_EQ(m.core.stats().pages_duplicated, 2 * block_pages);
  // Whoever reads again asks for nothing.
  const std::uint64_t before = m.moved();
  m.reads(0, 6);
  m.reads(1, 7);
  EXPECT_EQ(m.moved(), before);
}

TEST(Replica, WithoutTheFlagAReaderTakesThePageFromTheOthers) {
  Asked m;
  EXPECT_EQ(m.touch(5, Access::read, 0), Status());
  EXPECT_FALSE(m.at(5).cpu_may_map);
  EXPECT_EQ(m.touch(5, Access::read, 1), Status());
  EXPECT_EQ(m.at(5).vram_device, 1);
  EXPECT_EQ(m.at(5).device_mapped, devices({1}));
  EXPECT_EQ(m.core.stats().pages_duplicated, 0U);
}

TEST(Replica, ACpuReadOfAWrittenPageLeavesItWithTheDevice) {
  Readers m;
  m.writes(0);
  EXPECT_TRUE(m.at(5).dirty);
  m.cpu_touches(Access::read);
  const Residency r = m.at(5);
  EXPECT_TRUE(r.system_current);
  EXPECT_EQ(r.vram_device, 0);
  EXPECT_TRUE(r.cpu_may_map);
  EXPECT_FALSE(r.cpu_may_write);
  EXPECT_EQ(r.device_writable, 0);
  const std::uint64_t before = m.moved();
  m.reads(0);
  EXPECT_EQ(m.moved(), before);
}

class Write : public ::testing::TestWithParam<unsigned> {};

TEST_P(Write, OfWhomeverEndsAllCopiesOfThePageButTheWriters) {
  const unsigned writer = GetParam();  // 2: the CPU
  Readers m;
  m.reads(0);
  m.reads(1);
  m.cpu_touches(Access::read);
  const std::uint64_t before = m.moved();
  if (writer == 2) {
    m.cpu_touches(Access::write);
  } else {
    m.writes(static_cast<DeviceId>(writer));
  }
  EXPECT_EQ(m.moved(), before) << "the writer has the bytes already";
  const Residency r = m.at(5);
  EXPECT_EQ(r.copies, 0);
  EXPECT_EQ(r.device_mapped, writer == 2 ? 0 : devices({writer}));
  EXPECT_EQ(r.device_writable, writer == 2 ? 0 : devices({writer}));
  EXPECT_EQ(r.cpu_may_map, writer == 2);
  EXPECT_EQ(r.vram_device, writer == 2 ? no_device : static_cast<DeviceId>(writer));
  EXPECT_EQ(m.core.stats().pages_collapsed, 1U);
  // The pages around it keep theirs.
  EXPECT_EQ(m.at(6).device_mapped, devices({0, 1}));
  EXPECT_TRUE(m.at(6).cpu_may_map);
  // And it can be read by all again: who has written it faults once more for that.
  m.reads(1);
  m.reads(0);
  m.reads(1);
  m.cpu_touches(Access::read);
  EXPECT_EQ(m.at(5).device_mapped, devices({0, 1}));
  EXPECT_EQ(m.at(5).device_writable, 0);
  EXPECT_FALSE(m.at(5).cpu_may_write);
}
INSTANTIATE_TEST_SUITE_P(Device, Write, ::testing::Values(0U, 1U, 2U));

TEST(Replica, TheFirstWritesOfAProgramAreNotMadePageByPage) {
  Readers m;
  m.writes(0, 5);
  EXPECT_TRUE(m.at(100).dirty);
  EXPECT_EQ(m.at(100).device_writable, devices({0}));
}

TEST(Replica, ACopyLeavesForNothingAndTheHomeToo) {
  Config config = Asked::config(2, block_pages);
  config.vram_pages = block_pages;
  Readers m(config);
  m.reads(0);
  m.reads(1);
  const std::uint64_t home = m.core.stats().pages_to_system;
  m.writes(1, block_pages);  // needs the one chunk of device 1
  EXPECT_EQ(m.at(5).copies, 0);
  EXPECT_EQ(m.at(5).vram_device, 0);
  m.writes(0, 2 * block_pages);
  EXPECT_EQ(m.at(5).vram_device, no_device);
  EXPECT_EQ(m.core.stats().pages_to_system, home);
  EXPECT_TRUE(m.at(5).cpu_may_map);
  m.cpu_touches(Access::write);
}

TEST(Replica, WithoutRoomADeviceReadsSystemMemoryAndTheCpuGoesOnReading) {
  Config config = Asked::config(2, block_pages);
  config.vram_pages = block_pages;
  Readers m(config);
  m.writes(1, block_pages);
  m.reads(0);
  m.reads(1);
  Residency r = m.at(5);
  EXPECT_EQ(r.copies, 0);
  EXPECT_EQ(r.vram_device, 0);
  EXPECT_EQ(r.device_mapped, devices({0, 1}));
  EXPECT_EQ(r.device_writable, 0);
  // Something left for who comes next.
  EXPECT_EQ(m.at(block_pages).vram_device, no_device);
  m.writes(1);
  r = m.at(5);
  EXPECT_EQ(r.device_writable, devices({1}));
  EXPECT_EQ(r.device_mapped, devices({1}));
  EXPECT_EQ(r.vram_device, no_device) << "in place: one memory for all";
}

TEST(Replica, TheFlagTakenBackLeavesOneCopy) {
  Readers m;
  m.reads(0);
  m.reads(1);
  m.set(block0, {no_flags(svm_read_mostly)});
  const Residency r = m.at(5);
  EXPECT_EQ(r.copies, 0);
  EXPECT_EQ(r.vram_device, 0);
  EXPECT_EQ(r.device_mapped, devices({0}));
  EXPECT_FALSE(r.cpu_may_map);
  m.reads(1);
  EXPECT_EQ(m.at(5).device_mapped, devices({1}));
}

TEST(Replica, TheFlagSetWhileAPageIsWithADeviceLeavesItThereUntilSomebodyReads) {
  Asked m;
  EXPECT_EQ(m.touch(5, Access::write, 0), Status());
  m.set(block0, {flags(svm_read_mostly)});
  EXPECT_TRUE(m.at(5).dirty);
  EXPECT_EQ(m.touch(5, Access::read, 1), Status());
  EXPECT_EQ(m.at(5).vram_device, 0);
  EXPECT_EQ(m.at(5).copies, devices({1}));
  EXPECT_FALSE(m.at(5).dirty);
}

TEST(Replica, AccessInPlaceReadsSystemMemoryBesideCopies) {
  Readers m;
  m.set(block0, {access_of(1, DeviceAccess::in_place)});
  m.writes(0);
  m.reads(1);
  const Residency r = m.at(5);
  EXPECT_EQ(r.vram_device, 0);
  EXPECT_EQ(r.copies, 0);
  EXPECT_EQ(r.device_mapped & 2U, 2U);
  EXPECT_EQ(r.device_writable, 0);
  m.writes(1);
  EXPECT_EQ(m.at(5).vram_device, no_device);
  EXPECT_EQ(m.at(5).device_writable, devices({1}));
}

TEST(Replica, ADeviceWithoutAccessLosesItsMappingAndMayNotRead) {
  Readers m;
  m.reads(0);
  m.reads(1);
  m.set(block0, {access_of(1, DeviceAccess::none)});
  EXPECT_EQ(m.at(5).device_mapped, devices({0}));
  EXPECT_EQ(m.touch(5, Access::read, 1).code, Code::kernel_fault);
  m.reads(0);
}

TEST(Replica, APinIsOfOneMemoryAlone) {
  for (const DeviceId where : {no_device, DeviceId{0}, DeviceId{1}}) {
    Readers m;
    m.reads(0);
    m.reads(1);
    ASSERT_TRUE(m.core.pin(++m.now, 1, {5, 1}, where, Cookie{9}).ok());
    m.settle();
    ASSERT_EQ(m.replied(9), Status());
    EXPECT_EQ(m.at(5).copies, 0);
    EXPECT_EQ(m.at(5).vram_device, where);
    EXPECT_TRUE(m.at(5).pinned);
  }
}

TEST(Replica, AFreeAUnmapAndADiscardTakeEveryCopy) {
  for (const int how : {0, 1, 2}) {
    Readers m;
    m.reads(0);
    m.reads(1);
    if (how == 0) {
      ASSERT_TRUE(m.core.free(++m.now, 1, all, Cookie{9}).ok());
    } else {
      ASSERT_TRUE(
          m.core.change(++m.now, 1, how == 1 ? Change::unmap : Change::discard, {5, 1}, 0, span_all, Cookie{9}).ok());
    }
    m.settle();
    ASSERT_EQ(m.replied(9), Status());
    EXPECT_EQ(m.at(5).copies, 0);
    EXPECT_EQ(m.at(5).device_mapped, 0);
    EXPECT_EQ(m.at(5).vram_device, no_device);
    if (how != 0) {
      EXPECT_EQ(m.at(6).device_mapped, devices({0, 1}));
    }
  }
}

TEST(Replica, AForkTakesMappingsAndLeavesCopies) {
  Readers m;
  m.reads(0);
  m.reads(1);
  ASSERT_TRUE(m.core.client_fork(++m.now, 1, Cookie{9}).ok());
  m.settle();
  ASSERT_EQ(m.replied(9), Status());
  EXPECT_EQ(m.at(5).device_mapped, 0);
  EXPECT_EQ(m.at(5).copies, devices({1}));
  const std::uint64_t before = m.moved();
  m.reads(0);
  m.reads(1);
  EXPECT_EQ(m.moved(), before);
}

TEST(Replica, APrefetchDuplicates) {
  Readers m;
  m.writes(0);
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, block0, 1, Cookie{9}).ok());
  m.settle();
  EXPECT_EQ(m.at(5).vram_device, 0);
  EXPECT_EQ(m.at(5).copies, devices({1}));
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, block0, no_device, Cookie{10}).ok());
  m.settle();
  EXPECT_EQ(m.at(5).vram_device, 0);
  EXPECT_TRUE(m.at(5).cpu_may_map);
}

TEST(Replica, ALinkedDeviceCopiesFromTheOthersMemory) {
  Config config = Asked::config(2, block_pages);
  config.hives = {1, 1};
  Readers m(config);
  m.writes(0);
  m.reads(1);
  EXPECT_EQ(m.core.stats().pages_to_system, 0U);
  EXPECT_EQ(m.core.stats().pages_direct, std::uint64_t{block_pages});
  EXPECT_EQ(m.at(5).copies, devices({1}));
  EXPECT_TRUE(m.at(5).dirty);
  m.writes(1);
  EXPECT_EQ(m.at(5).vram_device, 1);
  EXPECT_EQ(m.at(5).device_mapped, devices({1}));
  EXPECT_EQ(m.core.stats().pages_to_system, 0U);
}

TEST(Replica, WhatOnlyTheHomeHadGoesHomeWhenItLeavesUnlessACopyHasIt) {
  Config config = Asked::config(2, block_pages);
  config.hives = {1, 1};
  config.vram_pages = block_pages;
  Readers m(config);
  m.writes(0);
  m.reads(1);
  m.writes(0, block_pages);  // device 0 needs its chunk
  EXPECT_EQ(m.at(5).vram_device, 1) << "the copy is the home now";
  EXPECT_EQ(m.core.stats().pages_to_system, 0U);
  m.writes(1, 2 * block_pages);
  EXPECT_EQ(m.at(5).vram_device, no_device);
  EXPECT_EQ(m.core.stats().pages_to_system, std::uint64_t{block_pages});
}

TEST(Replica, ACopyThatFailsIsServedFromSystemMemory) {
  Readers m;
  m.reads(0);
  m.fault(5, Access::read, 77, 1);
  for (unsigned i = 0; i < 8 && !m.went_on(77); ++i) {
    if (!m.answer(Verb::copy, Code::io_error)) {
      m.settle();
    }
  }
  m.settle();
  EXPECT_TRUE(m.went_on(77));
  EXPECT_EQ(m.at(5).copies, 0);
  EXPECT_EQ(m.at(5).device_mapped, devices({0, 1}));
  EXPECT_EQ(m.at(5).device_writable, 0);
}

TEST(Replica, AWriteThatComesWhileACopyIsMadeEndsItAfterwards) {
  Readers m;
  m.reads(0);
  m.fault(5, Access::read, 77, 1);
  m.cpu(5, Access::write);
  m.settle();
  EXPECT_TRUE(m.went_on(77));
  EXPECT_TRUE(m.at(5).cpu_may_write);
  EXPECT_EQ(m.at(5).device_mapped, 0);
  EXPECT_EQ(m.at(5).vram_device, no_device);
}

TEST(Replica, WhatHasToStayInSystemMemoryStaysThereBesideCopies) {
  Machine m(Asked::config(2, block_pages));
  ASSERT_TRUE(m.core.alloc(++m.now, 1, {0, 256}, Placement::automatic).ok());
  unsigned wrong = 0;
  ASSERT_TRUE(m.core.svm_set(++m.now, 1, {0, 256}, {flags(svm_read_mostly)}, Cookie{8}, wrong).ok());
  m.fault(5);
  m.settle();
  ASSERT_TRUE(m.core.alloc(++m.now, 1, {256, 256}, Placement::system).ok());
  ASSERT_TRUE(m.core.svm_set(++m.now, 1, {0, block_pages}, {flags(svm_read_mostly)}, Cookie{9}, wrong).ok());
  ASSERT_TRUE(m.core.client_fork(++m.now, 1, Cookie{10}).ok());  // so that the device asks again
  m.settle();
  m.fault(5);
  m.settle();
  EXPECT_EQ(m.at(5).vram_device, 0);
  EXPECT_EQ(m.at(300).vram_device, no_device);
}

TEST(Replica, WithoutRetryFaultsAPageIsMappedForWritingAndHasNoCopies) {
  Asked m;
  ASSERT_TRUE(m.core.set_retry_faults(++m.now, 1, false).ok());
  m.set(block0, {flags(svm_read_mostly)});
  EXPECT_EQ(m.core.stats().pages_duplicated, 0U);
  m.cpu(5, Access::read);
  m.settle();
  EXPECT_EQ(m.core.stats().pages_duplicated, 0U);
}

TEST(Replica, UnderABudgetACopyIsDroppedAndStoredPagesAreReadAgain) {
  Config config = Asked::config(2, 64);
  config.system_pages = 2 * block_pages;
  config.store_pages = 8 * block_pages;
  Readers m(config);
  m.reads(0);
  m.reads(1);
  m.cpu_touches(Access::read);
  m.core.pressure(++m.now, 2 * block_pages);
  m.settle();
  const Residency r = m.at(5);
  EXPECT_FALSE(r.held);
  EXPECT_EQ(r.device_mapped, devices({0, 1}));
  m.cpu_touches(Access::read);
  m.writes(1);
  EXPECT_EQ(m.at(5).device_mapped, devices({1}));
}

/// The copy becomes the home. What only the old home had, and the store, has to be loaded, and was charged for nothing.
TEST(Replica, WhatOnlyTheOldHomeAndTheStoreHaveIsChargedBeforeItIsLoaded) {
  Config config = Asked::config(2, block_pages);
  config.hives = {1, 1};
  config.system_pages = 4 * block_pages;
  config.store_pages = 16 * block_pages;
  Readers m(config);
  constexpr PageSpan others{256, 256};
  m.set(others, {no_flags(svm_read_mostly)});
  m.cpu_touches(Access::write);
  m.cpu_touches(Access::write, 300);
  m.core.pressure(++m.now, 4 * block_pages);
  m.settle();
  ASSERT_FALSE(m.at(300).held);
  ASSERT_TRUE(m.at(300).stored);
  m.reads(0);
  m.reads(0, 300);
  m.reads(1);
  m.core.pressure(++m.now, 4 * block_pages);
  m.settle();
  Residency r = m.at(300);
  ASSERT_TRUE(r.stored && !r.held && r.vram_device == 0) << r.stored << r.held << unsigned{r.vram_device};
  ASSERT_EQ(m.at(5).copies, devices({1}));
  ASSERT_TRUE(m.core.pin(++m.now, 1, {300, 1}, 1, Cookie{9}).ok());
  m.settle();
  EXPECT_EQ(m.replied(9), Status());
  EXPECT_EQ(m.at(300).vram_device, 1);
}

TEST(HiveLocal, ALinkedDeviceReachesThePageWhereItLies) {
  for (const bool local : {false, true}) {
    Config config = Asked::config(2, block_pages);
    config.hives = {1, 1};
    Asked m(config);
    if (local) {
      m.set(block0, {flags(svm_hive_local)});
    } else {
      m.set(block0, {window(8)});
    }
    EXPECT_EQ(m.touch(5, Access::write, 0), Status());
    EXPECT_EQ(m.touch(5, Access::write, 1), Status());
    EXPECT_EQ(m.at(5).vram_device, local ? 0 : 1);
    EXPECT_EQ(m.at(5).device_writable, local ? devices({0, 1}) : devices({1}));
    EXPECT_EQ(m.core.stats().pages_direct, local ? 0U : 256U);
  }
}

TEST(HiveLocal, OneCopyAHiveIsRead) {
  Config config = Asked::config(3, block_pages);
  config.hives = {1, 1, 0};
  Asked m(config);
  m.set(block0, {flags(svm_hive_local | svm_read_mostly)});
  for (const DeviceId d : {DeviceId{0}, DeviceId{1}, DeviceId{2}}) {
    EXPECT_EQ(m.touch(5, Access::read, d), Status());
  }
  EXPECT_EQ(m.at(5).vram_device, 0);
  EXPECT_EQ(m.at(5).copies, devices({2}));
  EXPECT_EQ(m.at(5).device_mapped, devices({0, 1, 2}));
  EXPECT_EQ(m.touch(5, Access::write, 1), Status());
  EXPECT_EQ(m.at(5).copies, 0);
  EXPECT_FALSE(m.at(5).cpu_may_map);
  EXPECT_EQ(m.at(5).vram_device, 0);
  EXPECT_EQ(m.at(5).device_writable, devices({1}));
  EXPECT_EQ(m.touch(5, Access::read, 2), Status());
}

}  // namespace
}  // namespace ferry::core::test
