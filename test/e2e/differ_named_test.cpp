// Sequences in which a program once could tell that devices had its memory.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include "twins.h"

namespace ferry::test {
namespace {

constexpr std::int64_t pages(std::int64_t count) { return count * 4096; }
constexpr std::size_t bytes(std::size_t count) { return count * 4096; }

class DifferNamed : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(twins.device(10, 60, true, 1)) << twins.differences(); }
  void TearDown() override {
    static_cast<void>(twins.compare_all());
    EXPECT_EQ(twins.differences(), "") << twins.log();
  }
  Twins twins;
};

TEST_F(DifferNamed, AMoveThatIsRefusedLosesNothingOfItsTarget) {
  EXPECT_TRUE(twins.remap(pages(20), bytes(4), bytes(4), MREMAP_FIXED, pages(40)));
  // Nothing is where it begins.
  EXPECT_TRUE(twins.remap(pages(-1), bytes(2), bytes(6), MREMAP_MAYMOVE | MREMAP_FIXED, pages(25)));
}

TEST_F(DifferNamed, AMoveOfHolesLeavesWhatTheKernelLeavesOfItsTarget) {
  EXPECT_TRUE(twins.remap(pages(62), bytes(42), bytes(42), MREMAP_MAYMOVE | MREMAP_FIXED, pages(0)));
}

TEST_F(DifferNamed, PrivateMemoryIsNotMappedTwice) {
  EXPECT_TRUE(twins.remap(pages(17), 0, bytes(60), MREMAP_MAYMOVE, 0));
  EXPECT_TRUE(twins.remap(pages(56), 0, bytes(2), MREMAP_MAYMOVE | MREMAP_FIXED, pages(49)));
  EXPECT_TRUE(twins.remap(pages(12), ~std::size_t{0} - 1, bytes(47), 0, 0));  // nothing, when it is rounded
}

TEST_F(DifferNamed, AMappingThatIsRefusedLosesNothing) {
  EXPECT_TRUE(twins.map(pages(20), bytes(8), PROT_READ, MAP_PRIVATE | MAP_FIXED, 0, 1));
  EXPECT_TRUE(twins.map(pages(20), bytes(8), PROT_READ, MAP_FIXED, 0, 0));
  EXPECT_TRUE(twins.map(pages(20), bytes(8), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
}

TEST_F(DifferNamed, AdviceOfPosixKeepsAdoptedMemoryTogether) {
  EXPECT_TRUE(twins.advise(pages(0), bytes(Twins::pages), POSIX_MADV_RANDOM, true));
  EXPECT_TRUE(twins.advise(pages(1) + 1, bytes(1), POSIX_MADV_WILLNEED, true));
  EXPECT_TRUE(twins.remap(pages(0), bytes(Twins::pages), bytes(Twins::pages + 8), MREMAP_MAYMOVE, 0));
}

TEST_F(DifferNamed, ProtectionForSemaphoresBindsKernels) {
  constexpr int prot_sem = 8;
  EXPECT_TRUE(twins.protect(pages(71), bytes(6), PROT_READ | prot_sem));
  EXPECT_TRUE(twins.device_as_thread(72, false));
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_TRUE(twins.device_as_thread(76, true));
#endif
}

TEST_F(DifferNamed, AdviceEndsWhereTheKernelRefusesIt) {
  EXPECT_TRUE(twins.advise(pages(12), bytes(3), MADV_REMOVE));
  EXPECT_TRUE(twins.map(pages(73), bytes(4), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
  // Shared memory cannot be freed so; what lies behind it stays, and the hole behind that is not reached.
  EXPECT_TRUE(twins.advise(pages(74), bytes(50), MADV_FREE));
  EXPECT_TRUE(twins.unmap(pages(30), bytes(2)));
  EXPECT_TRUE(twins.advise(pages(28), bytes(8), MADV_DONTNEED));
}

}  // namespace
}  // namespace ferry::test
