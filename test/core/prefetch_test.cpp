// What comes along with a fault: walks of every step are seen, dense blocks are completed, and prefetch that brings what
// nobody wants stops.
#include <gtest/gtest.h>

#include "base/random.h"
#include "core/policy/prefetch.h"
#include "toucher.h"

namespace ferry::core::test {
namespace {

constexpr unsigned granule = 16;  // 64 KiB

Config config_of(PrefetchKind kind, std::uint64_t vram_blocks) {
  Config config = plain_config();
  config.granularity_pages = granule;
  config.vram_pages = vram_blocks * block_pages;
  config.speculation_granules = 8;
  config.prefetch = kind;
  return config;
}

std::vector<std::uint64_t> fault(Prefetcher& prefetcher, std::uint64_t number, const PageMask& have = {},
                                 bool bring = true) {
  std::vector<std::uint64_t> wanted;
  prefetcher.fault({number, granule, 4, &have}, wanted);
  prefetcher.brought(bring ? wanted.size() : 0);
  return wanted;
}

using Numbers = std::vector<std::uint64_t>;

TEST(Stride, two_faults_side_by_side_are_a_walk_and_each_further_one_brings_more) {
  StridePrefetcher prefetcher(64);
  EXPECT_EQ(fault(prefetcher, 10), Numbers{});
  EXPECT_EQ(fault(prefetcher, 11), (Numbers{12}));
  EXPECT_EQ(fault(prefetcher, 13), (Numbers{14, 15}));
  EXPECT_EQ(fault(prefetcher, 16), (Numbers{17, 18, 19, 20}));
  EXPECT_EQ(fault(prefetcher, 21), (Numbers{22, 23, 24, 25}));
}

TEST(Stride, three_faults_at_equal_distances_are_a_walk_up_or_down) {
  for (const std::int64_t step : {-1, 2, 7, -5, 64, -64}) {
    StridePrefetcher prefetcher(64);
    const auto at = [&](int i) { return static_cast<std::uint64_t>(1000 + step * i); };
    EXPECT_EQ(fault(prefetcher, at(0)), Numbers{}) << step;
    EXPECT_EQ(fault(prefetcher, at(1)), Numbers{}) << step;
    EXPECT_EQ(fault(prefetcher, at(2)), (Numbers{at(3)})) << step;
    EXPECT_EQ(fault(prefetcher, at(4)), (Numbers{at(5), at(6)})) << step;
  }
}

TEST(Stride, a_walk_down_ends_at_address_0) {
  StridePrefetcher prefetcher(64);
  fault(prefetcher, 6);
  fault(prefetcher, 4);
  EXPECT_EQ(fault(prefetcher, 2), (Numbers{0}));
  for (const std::uint64_t number : fault(prefetcher, 0)) ADD_FAILURE() << number;
}

TEST(Stride, walks_of_several_waves_are_told_apart) {
  StridePrefetcher prefetcher(64);
  // Four, a long way from one another, with steps of their own, a fault of each in turn.
  const std::array<std::int64_t, 4> steps = {1, 3, -2, 10};
  std::array<Numbers, 4> last;
  for (int i = 0; i < 6; ++i) {
    for (std::size_t w = 0; w < steps.size(); ++w) {
      last[w] = fault(prefetcher, 10'000 * (w + 1) + static_cast<std::uint64_t>(steps[w] * i), {}, false);
    }
  }
  for (std::size_t w = 0; w < steps.size(); ++w) {
    ASSERT_FALSE(last[w].empty()) << "walk " << w;
    EXPECT_EQ(last[w][0], 10'000 * (w + 1) + static_cast<std::uint64_t>(steps[w] * 6)) << "walk " << w;
  }
}

TEST(Stride, a_touch_of_what_was_brought_carries_the_walk_on) {
  StridePrefetcher prefetcher(64);
  for (const std::uint64_t number : {0, 1, 3, 6}) fault(prefetcher, number);  // 7 to 10 are there
  EXPECT_EQ(fault(prefetcher, 9), (Numbers{11, 12, 13}));                     // and 10: four again
}

TEST(Stride, sequential_sees_no_other_step) {
  StridePrefetcher prefetcher(1);
  for (std::uint64_t i = 0; i < 20; ++i) EXPECT_EQ(fault(prefetcher, 100 + 2 * i), Numbers{});
}

TEST(Density, the_largest_part_of_which_most_is_there_is_completed) {
  DensityPrefetcher prefetcher(51);
  PageMask have;
  EXPECT_EQ(fault(prefetcher, 5, have), Numbers{}) << "one of two is not more than half";
  have.set_range(4 * granule, granule);  // of 4 to 7, three with the fault's
  have.set_range(7 * granule, granule);
  EXPECT_EQ(fault(prefetcher, 5, have), (Numbers{6}));
  have.set_range(0, 4 * granule);  // of 0 to 7, seven
  EXPECT_EQ(fault(prefetcher, 5, have), (Numbers{6}));
  have.set_range(8 * granule, 2 * granule);  // of 0 to 15, nine
  EXPECT_EQ(fault(prefetcher, 5, have), (Numbers{6, 10, 11, 12, 13, 14, 15}));
  have.set_range(16 * granule, 10 * granule);  // of all 32, nineteen
  EXPECT_EQ(fault(prefetcher, 5, have).size(), 32U - 19U);
}

TEST(Density, the_threshold_is_the_users) {
  PageMask have;
  DensityPrefetcher eager(49);
  EXPECT_EQ(fault(eager, 5, have), (Numbers{4}));
  DensityPrefetcher never(100);
  have = PageMask::range(0, 31 * granule);
  EXPECT_EQ(fault(never, 5, have), Numbers{});
}

TEST(Gate, waste_ends_prefetch_and_after_a_while_it_tries_again) {
  PrefetchGate gate;
  EXPECT_EQ(gate.allow(8), 8U);
  for (int i = 0; i < 5; ++i) gate.waste();
  const unsigned less = gate.allow(8);
  EXPECT_GE(less, 1U);
  EXPECT_LT(less, 8U);
  for (int i = 0; i < 20; ++i) gate.waste();
  unsigned faults = 0;
  while (gate.allow(8) == 0 && faults < 10'000) ++faults;
  EXPECT_GT(faults, 100U);
  EXPECT_LT(faults, 1000U);
  EXPECT_TRUE(gate.sample()) << "what it tries is looked at";
  for (int i = 0; i < 40; ++i) gate.hit();
  EXPECT_EQ(gate.allow(8), 8U);
}

/// Faults and pages moved of one pass in steps of `step` granules over what fits in VRAM.
std::uint64_t faults_of_walk(PrefetchKind kind, std::int64_t step) {
  constexpr std::uint64_t granules = 4 * 32;
  Toucher device(config_of(kind, 8), granules * granule);
  for (std::uint64_t lap = 0; lap < static_cast<std::uint64_t>(std::abs(step)); ++lap) {
    for (std::uint64_t at = lap; at < granules; at += static_cast<std::uint64_t>(std::abs(step))) {
      device.touch((step > 0 ? at : granules - 1 - at) * granule);
    }
  }
  EXPECT_EQ(device.moved_pages(), granules * granule);
  return device.faults;
}

TEST(Prefetch, stride_saves_faults_whatever_the_step) {
  for (const std::int64_t step : {1, -1, 4, -4}) {
    const std::uint64_t none = faults_of_walk(PrefetchKind::none, step);
    EXPECT_EQ(none, 128U);
    EXPECT_LT(faults_of_walk(PrefetchKind::stride, step), none / 2) << step;
  }
  EXPECT_EQ(faults_of_walk(PrefetchKind::sequential, -4), 128U);
}

TEST(Prefetch, density_saves_faults_in_no_order) {
  constexpr std::uint64_t granules = 4 * 32;
  const auto faults = [&](PrefetchKind kind) {
    Toucher device(config_of(kind, 8), granules * granule);
    Random random(3);
    for (unsigned i = 0; i < 3000; ++i) device.touch(random.below(granules) * granule);
    EXPECT_EQ(device.moved_pages(), granules * granule);
    return device.faults;
  };
  EXPECT_LT(faults(PrefetchKind::density), faults(PrefetchKind::none) * 3 / 4);
}

TEST(Prefetch, brings_nothing_when_vram_is_full) {
  // Half a walk fills VRAM; the other half asks for more.
  Toucher device(config_of(PrefetchKind::both, 2), 4 * block_pages);
  for (Page page = 0; page < 4 * block_pages; page += granule) device.touch(page);
  const std::uint64_t before = device.stats().speculated_pages;
  EXPECT_GT(before, 0U);
  EXPECT_LE(before, 2 * block_pages);
  for (Page page = 0; page < 4 * block_pages; page += granule) device.touch(page);
  EXPECT_EQ(device.stats().speculated_pages, before);
}

TEST(Prefetch, stops_when_what_it_brings_leaves_unused) {
  // Pairs of neighbours, far apart: each looks like the beginning of a walk and is not. The memory is freed before
  // anybody touches what came along, so that room is always left.
  Toucher device(config_of(PrefetchKind::sequential, 8), 4096 * block_pages);
  std::uint64_t brought_early = 0;
  for (std::uint64_t pair = 0; pair < 400; ++pair) {
    const Page first = pair * 8 * block_pages;
    device.touch(first);
    device.touch(first + granule);
    ASSERT_TRUE(device.machine.core.free(++device.machine.now, 1, {first, block_pages}, Cookie{pair}).ok());
    device.machine.settle();
    if (pair == 99) brought_early = device.stats().speculated_pages;
  }
  EXPECT_GT(brought_early, 0U);
  EXPECT_LT(device.stats().speculated_pages - brought_early, brought_early) << "it goes on as it began";
}

TEST(Prefetch, goes_on_when_what_it_brings_is_used) {
  Toucher device(config_of(PrefetchKind::sequential, 8), 512 * block_pages);
  for (Page block = 0; block + 4 <= 512; block += 4) {
    for (Page page = block * block_pages; page < (block + 4) * block_pages; page += granule) device.touch(page);
    ASSERT_TRUE(
        device.machine.core.free(++device.machine.now, 1, {block * block_pages, 4 * block_pages}, Cookie{block}).ok());
    device.machine.settle();
  }
  EXPECT_GT(device.stats().speculated_pages, 512U * block_pages * 2 / 3);
}

}  // namespace
}  // namespace ferry::core::test
