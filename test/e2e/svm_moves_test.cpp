// Moves on request, range groups, pins and the mode without retry faults over the real thing.
#include <sys/mman.h>

#include <chrono>
#include <vector>

#include "svm.h"

namespace ferry::test {
namespace {

constexpr auto patience = std::chrono::seconds(60);

TEST(SvmMoves, AnAsynchronousMoveSignalsItsFence) {
  const Memory m(2);
  const fence to_vram = migrate_async(m.p(), m.bytes(), to_device(1));
  ASSERT_TRUE(to_vram.wait_for(patience));
  EXPECT_EQ(m.info(700).vram_device, 1);
  const fence home = migrate_async(m.p(), m.bytes(), to_cpu);
  ASSERT_TRUE(home.wait_for(patience));
  EXPECT_EQ(m.info(700).vram_device, -1);
  for (std::size_t i = 0; i < m.bytes() / page; ++i) ASSERT_EQ(m.word(i), i);
}

TEST(SvmMoves, ManyMovesOfTheSamePagesAllEnd) {
  const Memory m(2);
  std::vector<fence> all;
  for (unsigned i = 0; i < 50; ++i) {
    all.push_back(migrate_async(m.p(), m.bytes(), i % 3 == 2 ? to_cpu : to_device(i % 3)));
  }
  const fence last = merge_all([&] {
    std::vector<const fence*> parts;
    for (const fence& f : all) parts.push_back(&f);
    return parts;
  }());
  EXPECT_TRUE(last.wait_for(patience));
  for (std::size_t i = 0; i < m.bytes() / page; ++i) ASSERT_EQ(m.word(i), i);
}

TEST(SvmMoves, APopulatedDeviceNeedsNoFault) {
  const Memory m;
  populate(m.p(), m.bytes(), to_device(0));
  EXPECT_EQ(m.info(100).vram_device, 0);
  EXPECT_EQ(m.word(100), 100U) << "contents stay";
  const Memory fresh;
  populate(fresh.p(), fresh.bytes());
  EXPECT_EQ(fresh.info(100).vram_device, -1);
  EXPECT_EQ(fresh.word(100), 100U);
}

TEST(SvmMoves, DiscardedPagesReadAsBeforeOrAsZerosAndMayBeWrittenAgain) {
  const Memory m;
  ASSERT_EQ(device_writes(0, m, 0, 512), 0);
  ASSERT_EQ(m.info(9).vram_device, 0);
  discard(m.p(), m.bytes());
  for (std::size_t i = 0; i < 512; ++i) EXPECT_TRUE(m.word(i) == i + 1 || m.word(i) == 0) << i << ": " << m.word(i);
  m.word(9) = 5;
  ASSERT_EQ(device_writes(0, m, 9), 0);
  EXPECT_EQ(m.word(9), 6U);
}

TEST(SvmMoves, PinnedPagesStayWhereTheyAre) {
  const Memory m(2);
  {
    pin first(m.p(), block);
    const pin again(m.p(), page);
    ASSERT_EQ(device_writes(0, m, 0), 0);
    ASSERT_EQ(device_writes(0, m, 512), 0);
    EXPECT_EQ(m.info(0).vram_device, -1);
    EXPECT_EQ(m.info(0).device_mapped, 1U) << "served in place";
    EXPECT_EQ(m.info(512).vram_device, 0) << "not pinned";
    ferry::prefetch(m.p(), block, to_device(0));
    EXPECT_EQ(m.info(0).vram_device, -1);
    first.release();
    ferry::prefetch(m.p(), block, to_device(0));
    EXPECT_EQ(m.info(0).vram_device, -1) << "pinned twice";
    EXPECT_EQ(failure_of([&] { discard(m.p(), page); }).code, FERRY_IN_USE);
  }
  ferry::prefetch(m.p(), block, to_device(0));
  EXPECT_EQ(m.info(0).vram_device, 0);
  EXPECT_EQ(m.word(0), 1U);
}

TEST(SvmMoves, PagesPinnedInVramAreThereAndCpuAccessWaitsForNobody) {
  const Memory m;
  const pin there(m.p(), m.bytes(), to_device(1));
  EXPECT_EQ(m.info(5).vram_device, 1);
  ASSERT_EQ(device_writes(1, m, 5), 0);
  EXPECT_EQ(m.info(5).vram_device, 1);
}

TEST(SvmMoves, AnUnpinOfWhatIsNotPinnedIsRefused) {
  const Memory m;
  ferry_error e{};
  EXPECT_NE(ferry_unpin(m.p(), m.bytes(), &e), FERRY_OK);
  EXPECT_NE(e.text[0], 0);
}

TEST(SvmMoves, RefusalsSayWhatToDo) {
  const Memory m;
  void* const own = mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(own, MAP_FAILED);
  for (const auto& refused :
       {failure_of([&] { discard(own, page); }), failure_of([&] { populate(own, page); }),
        failure_of([&] { const pin p(own, page); }), failure_of([&] { reset_attributes(own, page); }),
        failure_of([&] { (void)migrate_async(own, page, to_cpu); })}) {
    EXPECT_EQ(refused.code, FERRY_NOT_ALLOCATED);
    EXPECT_NE(refused.text.find("ferry_adopt"), std::string::npos) << refused.text;
  }
  adopt(own, page);
  {
    const pin held(own, page);
    for (const auto& refused : {failure_of([&] { discard(own, page); }), failure_of([&] { release(own, page); })}) {
      EXPECT_EQ(refused.code, FERRY_IN_USE);
      EXPECT_NE(refused.text.find("ferry_unpin"), std::string::npos) << refused.text;
    }
  }
  release(own, page);
  munmap(own, page);
  ferry_error e{};
  EXPECT_EQ(ferry_unpin(m.p(), m.bytes(), &e), FERRY_NOT_HELD);
  EXPECT_NE(std::string(e.text).find("not all pages of the span are pinned"), std::string::npos) << e.text;
}

TEST(SvmMoves, BadMovesAreRefused) {
  const Memory m;
  EXPECT_EQ(failure_of([&] { (void)migrate_async(m.p(), m.bytes(), to_device(2)); }).code, FERRY_BAD_RANGE);
  EXPECT_EQ(failure_of([&] { (void)migrate_async(m.p() + 1, page, to_cpu); }).code, FERRY_BAD_RANGE);
  EXPECT_EQ(failure_of([&] { populate(m.p(), 0); }).code, FERRY_BAD_RANGE);
  EXPECT_EQ(failure_of([&] { populate(m.p(), page, to_device(7)); }).code, FERRY_BAD_RANGE);
  EXPECT_EQ(failure_of([&] { const pin p(m.p(), page, to_device(7)); }).code, FERRY_BAD_RANGE);
  ferry_error e{};
  EXPECT_EQ(ferry_migrate_async(m.p(), page, 0, nullptr, &e), FERRY_BAD_RANGE);
}

TEST(SvmMoves, PagesOfAGroupThatMayNotMigrateStayAndAreReachedInPlace) {
  const Memory m(2);
  const range_group group;
  group.assign(m.p(), block);
  group.forbid_migration();
  ASSERT_EQ(device_writes(0, m, 0), 0);
  ASSERT_EQ(device_writes(0, m, 512), 0);
  EXPECT_EQ(m.info(0).vram_device, -1);
  EXPECT_EQ(m.info(0).device_mapped, 1U);
  EXPECT_EQ(m.info(512).vram_device, 0) << "of no group";
  ferry::prefetch(m.p(), block, to_device(0));
  EXPECT_EQ(m.info(0).vram_device, -1);
  group.allow_migration();
  ferry::prefetch(m.p(), block, to_device(0));
  EXPECT_EQ(m.info(0).vram_device, 0);
  EXPECT_EQ(m.word(0), 1U);
}

TEST(SvmMoves, PagesOfAGroupThatGoesMayMigrateAgain) {
  const Memory m;
  {
    const range_group group;
    group.assign(m.p(), block);
    group.forbid_migration();
    ferry::prefetch(m.p(), block, to_device(0));
    EXPECT_EQ(m.info().vram_device, -1);
  }
  ferry::prefetch(m.p(), block, to_device(0));
  EXPECT_EQ(m.info().vram_device, 0);
  range_group::unassign(m.p(), block);
}

TEST(SvmMoves, WithoutRetryFaultsKernelsRunOnWhatIsMappedBefore) {
  const Memory m;
  ASSERT_EQ(device_writes(0, m, 3), 0);
  ASSERT_TRUE(retry_faults());
  EXPECT_TRUE(set_retry_faults(false));
  EXPECT_FALSE(retry_faults());
  for (unsigned round = 0; round < 5; ++round) {
    ASSERT_EQ(device_writes(0, m, 0, 512), 0) << round;
    m.word(7) += 1;  // takes it from the device, which is stopped for it
  }
  EXPECT_EQ(m.word(7), 7U + 5 + 5);
  EXPECT_EQ(m.word(3), 3U + 1 + 5);
  EXPECT_FALSE(set_retry_faults(true));
  EXPECT_EQ(device_writes(0, m, 3), 0);
}

TEST(SvmMoves, AStrayAccessWithoutRetryFaultsIsAClearError) {
  FERRY_SKIP_CRASHES();
  const Memory m;
  ASSERT_EQ(device_writes(0, m), 0);
  set_retry_faults(false);
  unsigned char* gone = nullptr;
  {
    const Memory other;
    gone = other.p();
  }
  EXPECT_EQ(touch(0, gone, true), FERRY_KERNEL_FAULT);
  EXPECT_EQ(device_writes(0, m), 0);
  set_retry_faults(true);
}

TEST(SvmMoves, TheModeIsNotChangedUnderAKernel) {
  auto* words = static_cast<std::uint64_t*>(ferry_alloc_aligned(page, page, FERRY_SYSTEM, nullptr));
  ASSERT_NE(words, nullptr);
  words[0] = words[8] = 0;
  queue q(0);
  auto running = q.parallel_for(1, [words](std::size_t) {
    ferry::signal(words[0], 1);
    ferry::wait_until(words[8], 1);
  });
  ferry::wait_until(words[0], 1);
  EXPECT_EQ(failure_of([] { set_retry_faults(false); }).code, FERRY_IN_USE);
  EXPECT_TRUE(retry_faults());
  ferry::signal(words[8], 1);
  running.wait();
  EXPECT_TRUE(set_retry_faults(false));
  EXPECT_FALSE(set_retry_faults(true));
  ferry_free(words, nullptr);
}

}  // namespace
}  // namespace ferry::test
