// The state as one number: equal for equal states however they came about, different as soon as a future differs.
#include <gtest/gtest.h>

#include <tuple>
#include <utility>
#include <vector>

#include "machine.h"

namespace ferry::core::test {
namespace {

constexpr PageSpan four_blocks{0, 4 * block_pages};
constexpr Page page_in(Page block) { return block * block_pages + 1; }

TEST(Digest, does_not_know_in_which_order_answers_came) {
  std::uint64_t seen[2];
  for (const bool turned : {false, true}) {
    Machine m(plain_config());
    ASSERT_TRUE(m.core.alloc(1, 1, four_blocks, Placement::automatic).ok());
    m.fault(page_in(0), Access::read, 7);
    m.fault(page_in(2), Access::write, 8);
    ASSERT_EQ(m.open_count(Verb::revoke_cpu), 2U);
    if (turned) {
      std::swap(m.open[0], m.open[1]);
    }
    // Both copies, then both mappings: operations and answers have other numbers, the state is the same.
    ASSERT_TRUE(m.answer(Verb::revoke_cpu));
    ASSERT_TRUE(m.answer(Verb::revoke_cpu));
    seen[turned ? 1 : 0] = m.core.digest();
    m.settle();
  }
  EXPECT_EQ(seen[0], seen[1]);
}

TEST(Digest, does_not_know_what_is_over) {
  // One has served a wave and freed its pages before: operations, answers and requests were numbered meanwhile.
  Machine fresh(plain_config());
  Machine used(plain_config());
  ASSERT_TRUE(used.core.alloc(1, 1, four_blocks, Placement::system).ok());
  used.fault(page_in(1), Access::write);
  used.settle();
  EXPECT_NE(fresh.core.digest(), used.core.digest());
  ASSERT_TRUE(used.core.free(++used.now, 1, four_blocks, {5}).ok());
  used.settle();
  EXPECT_EQ(fresh.core.digest(), used.core.digest());
  for (Machine* m : {&fresh, &used}) {
    ASSERT_TRUE(m->core.alloc(++m->now, 1, four_blocks, Placement::automatic).ok());
    m->fault(page_in(0), Access::read, 70);
  }
  EXPECT_EQ(fresh.core.digest(), used.core.digest());
}

TEST(Digest, knows_who_waits_and_for_what) {
  std::vector<std::uint64_t> seen;
  for (const auto& [page, access, token] :
       {std::tuple{page_in(0), Access::read, 1}, std::tuple{page_in(0), Access::write, 1},
        std::tuple{page_in(0), Access::read, 2}, std::tuple{page_in(1), Access::read, 1},
        std::tuple{Page{0}, Access::read, 1}}) {
    Machine m(plain_config());
    ASSERT_TRUE(m.core.alloc(1, 1, four_blocks, Placement::automatic).ok());
    m.fault(page, access, static_cast<std::uint64_t>(token));
    for (const std::uint64_t other : seen) {
      EXPECT_NE(other, m.core.digest());
    }
    seen.push_back(m.core.digest());
  }
}

TEST(Digest, counts_time_from_now_and_only_where_it_matters) {
  Config config = plain_config();
  config.contention_threshold = 2;
  std::uint64_t seen[3];
  for (const unsigned run : {0U, 1U, 2U}) {
    Machine m(config);
    m.now = run == 1 ? 5'000'000'000 : 1000;
    ASSERT_TRUE(m.core.alloc(m.now, 1, four_blocks, Placement::automatic).ok());
    m.fault(page_in(0), Access::write, 1);
    m.settle();
    m.cpu(page_in(0));  // the first change of sides begins a window
    m.settle();
    m.core.tick(m.now += run == 2 ? 10'000'000 : 5);
    seen[run] = m.core.digest();
  }
  EXPECT_EQ(seen[0], seen[1]) << "a later start";
  EXPECT_NE(seen[0], seen[2]) << "the window is shorter now";
}

TEST(Digest, knows_the_order_of_victims) {
  std::uint64_t seen[2];
  for (const Page first : {Page{0}, Page{1}}) {
    Machine m(plain_config());
    ASSERT_TRUE(m.core.alloc(1, 1, four_blocks, Placement::automatic).ok());
    for (const Page b : {first, 1 - first}) {
      m.fault(page_in(b), Access::read, b + 1);
      m.settle();
    }
    seen[first] = m.core.digest();
  }
  EXPECT_NE(seen[0], seen[1]);
}

}  // namespace
}  // namespace ferry::core::test
