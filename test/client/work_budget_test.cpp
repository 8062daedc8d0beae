// Buffers on a machine whose system memory is a quarter of what they need: they go beneath it and come back, touched by
// CPU, kernels and jobs, beside managed memory that does the same.
#include <gtest/gtest.h>

#include <algorithm>
#include <ferry/work.hpp>
#include <vector>

#include "e2e.h"

namespace ferry::test {
namespace {

constexpr std::size_t bytes = 1 << 20;
constexpr std::size_t words = bytes / sizeof(std::uint32_t);
constexpr unsigned count = 32;  // of a budget of 8 MiB

std::uint32_t value(std::size_t i, std::uint32_t seed) { return static_cast<std::uint32_t>(i * 2246822519U) ^ seed; }

void fill(const buffer& b, std::uint32_t seed) {
  auto* p = b.map<std::uint32_t>();
  for (std::size_t i = 0; i < words; ++i) p[i] = value(i, seed);
}
bool filled(const buffer& b, std::uint32_t seed) {
  const auto* p = b.map<std::uint32_t>();
  for (std::size_t i = 0; i < words; ++i) {
    if (p[i] != value(i, seed)) return false;
  }
  return true;
}

class Budget : public testing::Test {
 protected:
  Budget() {
    for (unsigned i = 0; i < count; ++i) {
      buffers.emplace_back(bytes);
      fill(buffers.back(), i);
    }
  }
  std::vector<buffer> buffers;
};

TEST_F(Budget, TouchedByTheCpu) {
  const auto stored =
      std::count_if(buffers.begin(), buffers.end(), [](const buffer& b) { return b.state().stored != 0; });
  EXPECT_GE(stored, count / 2) << "they cannot all be in memory";
  for (unsigned turn = 0; turn < 3; ++turn) {
    for (unsigned i = 0; i < count; ++i) EXPECT_TRUE(filled(buffers[i * 7 % count], i * 7 % count)) << turn << ' ' << i;
  }
}

TEST_F(Budget, UsedByJobs) {
  // Each is copied over its neighbour, in one long row of jobs that nobody waits for in between.
  std::optional<fence> last;
  for (unsigned i = 1; i < count; ++i) last.emplace(submit_copy({}, buffers[i], 0, buffers[i - 1], 0, bytes));
  last->wait();
  for (unsigned i = 0; i < count; ++i) EXPECT_TRUE(filled(buffers[i], 0)) << i;
}

TEST_F(Budget, TouchedByKernelsBesideManagedMemory) {
  Vector<std::uint32_t> managed(4 * words);
  for (std::size_t i = 0; i < managed.size(); ++i) managed[i] = static_cast<std::uint32_t>(i);
  for (unsigned i = 0; i < count; ++i) {
    auto* p = buffers[i].map<std::uint32_t>();
    auto* m = managed.data();
    parallel_for(words, [p, m, i](std::size_t k) {
      p[k] ^= i;
      m[k * 4] += 1;
    });
  }
  for (unsigned i = 0; i < count; ++i) EXPECT_TRUE(filled(buffers[i], 0)) << i;
  bool well = true;
  for (std::size_t i = 0; i < managed.size(); ++i) {
    well &= managed[i] == static_cast<std::uint32_t>(i) + (i % 4 == 0 ? count : 0);
  }
  EXPECT_TRUE(well);
}

TEST_F(Budget, OneLargerThanTheBudgetIsRefused) {
  EXPECT_EQ(code_of([] { buffer(std::size_t{64} << 20); }), FERRY_BAD_RANGE);
  // All of a job's buffers have to fit at once.
  job_options all;
  for (unsigned i = 0; i < 20; ++i) all.buffers.push_back(reads(buffers[i]));
  EXPECT_EQ(code_of([&] { static_cast<void>(submit_copy(all, buffers[0], 0, buffers[1], 0, bytes)); }),
            FERRY_BAD_RANGE);
  submit_copy({}, buffers[0], 0, buffers[1], 0, bytes).wait();
  EXPECT_TRUE(filled(buffers[0], 1));
}

}  // namespace
}  // namespace ferry::test
