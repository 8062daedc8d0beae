// The throttle: down when granules come back right after they left, up when they do not, untouched by long walks.
#include "core/policy/throttle.h"

#include <gtest/gtest.h>

namespace ferry::core {
namespace {

Throttle made(unsigned waves, std::uint64_t capacity) {
  Throttle t;
  t.configure(waves, capacity);
  return t;
}

void note(Throttle& t, std::uint64_t distance, int times) {
  for (int i = 0; i < times; ++i) {
    t.note(distance);
  }
}

TEST(Throttle, starts_without_a_limit) { EXPECT_EQ(made(16, 256).limit(), 0U); }

TEST(Throttle, early_refaults_halve_it_down_to_one_wave) {
  Throttle t = made(16, 256);
  unsigned last = 16;
  for (int period = 0; period < 10; ++period) {
    note(t, 10, 64);
    EXPECT_LE(t.limit(), last);
    last = t.limit();
  }
  EXPECT_EQ(last, 1U);
}

TEST(Throttle, a_walk_through_more_than_vram_is_no_reason) {
  Throttle t = made(16, 256);
  note(t, 200, 10'000);
  EXPECT_EQ(t.limit(), 0U);
}

TEST(Throttle, granules_that_stay_away_give_the_waves_back) {
  Throttle t = made(16, 256);
  note(t, 1, 1000);
  ASSERT_EQ(t.limit(), 1U);
  note(t, ~std::uint64_t{0}, 64 * 16);
  EXPECT_EQ(t.limit(), 0U);
}

}  // namespace
}  // namespace ferry::core
