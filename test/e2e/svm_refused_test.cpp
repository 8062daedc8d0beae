// CPU threads are refused a page (SIGBUS) while VRAM holds it and something keeps it there, and no longer.
#include <sys/mman.h>

#include "svm.h"

namespace ferry::test {
namespace {

/// Pages that the library gave, or that the program had and adopted; page i begins with i.
class Refused : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (GetParam()) {
      own_ = mmap(nullptr, 2 * block, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      ASSERT_NE(own_, MAP_FAILED);
      p_ = static_cast<unsigned char*>(own_) + (block - reinterpret_cast<std::uintptr_t>(own_) % block) % block;
      adopt(p_, block);
    } else {
      p_ = static_cast<unsigned char*>(ferry_alloc_aligned(2 * block, block, FERRY_AUTOMATIC, nullptr));
      ASSERT_NE(p_, nullptr);
    }
    for (std::size_t i = 0; i < block / page; ++i) word(i) = i;
    try {
      attributes().clear(svm_flag::host_access).apply(p_, page);
    } catch (const error& e) {
      GTEST_SKIP() << e.what();  // the same means is needed for all that is refused
    }
    reset_attributes(p_, page);
  }
  void TearDown() override {
    if (GetParam()) {
      munmap(own_, 2 * block);
    } else {
      ferry_free(p_, nullptr);
    }
  }
  [[nodiscard]] unsigned char* at(std::size_t number) const { return p_ + number * page; }
  [[nodiscard]] std::uint64_t& word(std::size_t number) const { return *reinterpret_cast<std::uint64_t*>(at(number)); }
  [[nodiscard]] int vram_of(std::size_t number) const {
    ferry_page_info out{};
    EXPECT_EQ(ferry_query(at(number), &out, nullptr), FERRY_OK);
    return out.vram_device;
  }
  /// VRAM holds the page and it is refused, and stays there.
  void expect_refused(std::size_t number) const {
    ASSERT_EQ(vram_of(number), 0);
    EXPECT_TRUE(ends_in_sigbus(at(number))) << "page " << number;
    EXPECT_TRUE(ends_in_sigbus(at(number))) << "again, page " << number;
    EXPECT_EQ(vram_of(number), 0) << "page " << number;
  }
  void expect_had(std::size_t number) const {
    ASSERT_FALSE(ends_in_sigbus(at(number))) << "page " << number;
    EXPECT_EQ(word(number), number);
  }

  void* own_ = nullptr;
  unsigned char* p_ = nullptr;
};

TEST_P(Refused, PagesPinnedInVramUntilTheyAreUnpinned) {
  for (unsigned round = 0; round < 3; ++round) {
    {
      const pin there(at(4), 8 * page, to_device(0));
      expect_refused(4);
      expect_refused(9);
      expect_had(20);
    }
    expect_had(4);
    expect_had(5);
    expect_had(9);
  }
}

TEST_P(Refused, PagesPinnedTwiceUntilTheSecondUnpin) {
  pin first(at(4), page, to_device(0));
  {
    const pin second(at(4), page, to_device(0));
    expect_refused(4);
  }
  expect_refused(4);
  first.release();
  expect_had(4);
}

TEST_P(Refused, PagesWithoutHostAccessUntilItIsSet) {
  attributes().clear(svm_flag::host_access).apply(at(4), 8 * page);
  prefetch(p_, block, to_device(0));
  expect_refused(4);
  expect_refused(11);
  expect_had(12);
  attributes().set(svm_flag::host_access).apply(at(4), 4 * page);
  expect_had(4);
  expect_refused(11);
  reset_attributes(at(8), 4 * page);
  expect_had(11);
}

TEST_P(Refused, PagesWithoutHostAccessUntilTheyAreHome) {
  attributes().clear(svm_flag::host_access).apply(at(4), 4 * page);
  prefetch(p_, block, to_device(0));
  expect_refused(4);
  prefetch(at(4), 4 * page, to_cpu);
  ASSERT_EQ(vram_of(4), -1);
  expect_had(4);
}

TEST_P(Refused, PagesOfAGroupUntilItMayMigrateOrTheyLeaveIt) {
  prefetch(p_, block, to_device(0));
  {
    const range_group group;
    group.assign(at(4), 8 * page);
    group.forbid_migration();
    expect_refused(4);
    group.allow_migration();
    expect_had(4);
    prefetch(p_, block, to_device(0));
    group.forbid_migration();
    expect_refused(5);
    range_group::unassign(at(4), 4 * page);
    expect_had(5);
    expect_refused(10);
  }
  expect_had(10);
}

INSTANTIATE_TEST_SUITE_P(Of, Refused, testing::Bool(),
                         [](const testing::TestParamInfo<bool>& info) { return info.param ? "Adopted" : "Allocated"; });

}  // namespace
}  // namespace ferry::test
