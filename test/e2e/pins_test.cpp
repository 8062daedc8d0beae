// Memory that is unmapped and freed while it is pinned: by the very thread that unpins it later, with nobody else to help.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <ferry/svm.hpp>
#include <thread>
#include <vector>

#include "change.h"

namespace ferry::test {
namespace {

constexpr std::size_t count = 1024;  // pages: an allocation of its own

char* allocate() {
  auto* p = static_cast<char*>(ferry_alloc(count * page, FERRY_AUTOMATIC, nullptr));
  EXPECT_NE(p, nullptr);
  for (std::size_t i = 0; i < count; ++i) *reinterpret_cast<std::uint64_t*>(p + i * page) = stamp(i);
  return p;
}
std::uint64_t word(const char* p, std::size_t i) { return *reinterpret_cast<const std::uint64_t*>(p + i * page); }

bool is_managed(const void* p) {
  ferry_page_info info{};
  return ferry_query(p, &info, nullptr) == FERRY_OK && info.managed != 0;
}

/// Where long-term DMA may have its pages.
class Pinned : public testing::TestWithParam<int> {};

TEST_P(Pinned, MemoryIsUnmappedAtOnceAndGoesWithTheLastUnpin) {
  char* const p = allocate();
  ferry_error e{};
  ASSERT_EQ(ferry_pin(p + 600 * page, 4 * page, GetParam(), &e), FERRY_OK) << e.text;
  ASSERT_EQ(ferry_pin(p + 600 * page, 4 * page, GetParam(), &e), FERRY_OK) << e.text;
  ASSERT_EQ(::munmap(p + 598 * page, 8 * page), 0) << "by the thread that is to unpin";
  EXPECT_EQ(read_signal(p + 601 * page), SIGSEGV);
  EXPECT_EQ(read_signal(p + 598 * page), SIGSEGV) << "not pinned itself";
  FERRY_TEST_CRASHES_END_DEVICES();
  EXPECT_NE(kernel_code(p + 601 * page, true), 0);
  EXPECT_NE(kernel_code(p + 605 * page, false), 0);
  EXPECT_EQ(word(p, 597), stamp(597));
  EXPECT_EQ(kernel_code(p + 606 * page + 8, true), 0) << "what lies beside it is there";
  EXPECT_TRUE(is_managed(p + 601 * page)) << "its memory lives on";
  ASSERT_EQ(ferry_unpin(p + 600 * page, 4 * page, &e), FERRY_OK) << e.text;
  EXPECT_TRUE(is_managed(p + 601 * page)) << "pinned once more";
  ASSERT_EQ(ferry_unpin(p + 600 * page, 4 * page, &e), FERRY_OK) << e.text;
  EXPECT_FALSE(is_managed(p + 601 * page));
  EXPECT_EQ(ferry_unpin(p + 600 * page, 4 * page, &e), FERRY_NOT_HELD);
  EXPECT_EQ(read_signal(p + 601 * page), SIGSEGV);
  ferry_free(p, nullptr);
}

TEST_P(Pinned, MemoryIsFreedAtOnceAndItsAddressesAreUsedAgainAfterTheUnpin) {
  ferry_error e{};
  char* const p = allocate();
  ASSERT_EQ(ferry_pin(p + 5 * page, page, GetParam(), &e), FERRY_OK) << e.text;
  ASSERT_EQ(::munmap(p, 10 * page), 0);
  EXPECT_EQ(ferry_free(p, &e), FERRY_OK) << e.text;
  // The heap goes on, in this thread and in others, and hands out other addresses.
  std::vector<char*> others;
  for (int i = 0; i < 8; ++i) std::thread([&] { others.push_back(allocate()); }).join();
  for (char* o : others) {
    EXPECT_TRUE(o + count * page <= p || o >= p + count * page) << "what is pinned is nobody's";
    for (std::size_t i = 0; i < count; i += 97) EXPECT_EQ(word(o, i), stamp(i));
  }
  EXPECT_TRUE(is_managed(p + 5 * page));
  ASSERT_EQ(ferry_unpin(p + 5 * page, page, &e), FERRY_OK) << e.text;
  EXPECT_FALSE(is_managed(p + 5 * page));
  EXPECT_FALSE(is_managed(p + 500 * page));
  for (char* o : others) {
    for (std::size_t i = 0; i < count; i += 97) EXPECT_EQ(word(o, i), stamp(i));
    ferry_free(o, nullptr);
  }
}

TEST_P(Pinned, MemoryIsReplacedOnlyWhenItIsUnpinned) {
  char* const p = allocate();
  ferry_error e{};
  ASSERT_EQ(ferry_pin(p + 5 * page, page, GetParam(), &e), FERRY_OK) << e.text;
  EXPECT_EQ(::mmap(p, 10 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), MAP_FAILED);
  EXPECT_EQ(errno, EBUSY);
  EXPECT_EQ(word(p, 4), stamp(4)) << "nothing has changed";
  EXPECT_EQ(::madvise(p, 10 * page, MADV_DONTNEED), -1);
  EXPECT_EQ(errno, EBUSY);
  EXPECT_EQ(word(p, 4), stamp(4));
  ASSERT_EQ(ferry_unpin(p + 5 * page, page, &e), FERRY_OK) << e.text;
  EXPECT_EQ(word(p, 5), stamp(5));
  ASSERT_EQ(::mmap(p, 10 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), p);
  EXPECT_EQ(word(p, 5), 0U);
  ferry_free(p, nullptr);
}

TEST_P(Pinned, MemoryIsMovedOnlyWhenItIsUnpinned) {
  char* const p = allocate();
  ferry_error e{};
  ASSERT_EQ(ferry_pin(p + 5 * page, page, GetParam(), &e), FERRY_OK) << e.text;
  EXPECT_EQ(::mremap(p, 10 * page, 20 * page, MREMAP_MAYMOVE), MAP_FAILED);
  EXPECT_EQ(errno, EBUSY);
  EXPECT_EQ(::mremap(p, 10 * page, 10 * page, MREMAP_MAYMOVE | MREMAP_DONTUNMAP), MAP_FAILED);
  EXPECT_EQ(errno, EBUSY);
  EXPECT_EQ(word(p, 4), stamp(4)) << "nothing has changed";
  ASSERT_EQ(ferry_unpin(p + 5 * page, page, &e), FERRY_OK) << "it is where it was: " << e.text;
  auto* const moved = static_cast<char*>(::mremap(p, 10 * page, 20 * page, MREMAP_MAYMOVE));
  ASSERT_NE(moved, MAP_FAILED);
  for (std::size_t i = 0; i < 10; ++i) EXPECT_EQ(word(moved, i), stamp(i)) << i;
  for (std::size_t i = 10; i < count; ++i) ASSERT_EQ(word(p, i), stamp(i)) << i;
  ferry_free(moved, nullptr);
  ferry_free(p, nullptr);
}

TEST_P(Pinned, AdoptedMemoryIsUnmappedAtOnceAndWhatIsMappedThereWaitsForTheUnpin) {
  ferry_error e{};
  auto* const p =
      static_cast<char*>(::mmap(nullptr, 64 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(p, MAP_FAILED);
  for (std::size_t i = 0; i < 64; ++i) *reinterpret_cast<std::uint64_t*>(p + i * page) = stamp(i);
  ASSERT_EQ(ferry_adopt(p, 64 * page, &e), FERRY_OK) << e.text;
  ASSERT_EQ(ferry_pin(p + 5 * page, page, GetParam(), &e), FERRY_OK) << e.text;
  ASSERT_EQ(::munmap(p, 64 * page), 0);
  ASSERT_EQ(::mmap(p, 64 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), p);
  *reinterpret_cast<std::uint64_t*>(p + 5 * page) = 77;
  EXPECT_NE(ferry_adopt(p, 64 * page, &e), FERRY_OK);
  EXPECT_NE(std::string(e.text).find("still pinned"), std::string::npos) << e.text;
  EXPECT_EQ(word(p, 5), 77U);
  // Memory elsewhere is adopted meanwhile.
  auto* const other =
      static_cast<char*>(::mmap(nullptr, 8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  EXPECT_EQ(ferry_adopt(other, 8 * page, &e), FERRY_OK) << e.text;
  EXPECT_EQ(::munmap(other, 8 * page), 0);
  ASSERT_EQ(ferry_unpin(p + 5 * page, page, &e), FERRY_OK) << e.text;
  EXPECT_EQ(ferry_adopt(p, 64 * page, &e), FERRY_OK) << e.text;
  EXPECT_EQ(kernel_code(p + 5 * page + 8, true), 0);
  EXPECT_EQ(word(p, 5), 77U);
  EXPECT_EQ(::munmap(p, 64 * page), 0);
}

INSTANTIATE_TEST_SUITE_P(, Pinned, testing::Values(FERRY_TO_CPU, 0),
                         [](const testing::TestParamInfo<int>& i) { return i.param < 0 ? "in_system" : "in_vram"; });

/// A pin that ends while another thread unmaps: whoever of the two comes last has the memory go.
TEST(PinnedThreads, UnpinAndUnmapAtOnceLeaveNothing) {
  for (int turn = 0; turn < 100; ++turn) {
    char* const p = allocate();
    ferry_error e{};
    ASSERT_EQ(ferry_pin(p + 5 * page, 2 * page, FERRY_TO_CPU, &e), FERRY_OK) << e.text;
    std::thread unpins([p] {
      ferry_error own{};
      EXPECT_EQ(ferry_unpin(p + 5 * page, 2 * page, &own), FERRY_OK) << own.text;
    });
    if (turn % 2 == 0) {
      EXPECT_EQ(::munmap(p + 4 * page, 4 * page), 0);
    } else {
      EXPECT_EQ(ferry_free(p, &e), FERRY_OK) << e.text;
    }
    unpins.join();
    EXPECT_FALSE(is_managed(p + 5 * page)) << turn;
    if (turn % 2 == 0) {
      EXPECT_EQ(ferry_free(p, &e), FERRY_OK) << e.text;
    }
  }
}

}  // namespace
}  // namespace ferry::test
