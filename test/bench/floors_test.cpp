// The bare-metal floors run here and measure something, on any account that may open a userfaultfd.
#include "floors/floors.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cerrno>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace ferry::bench::floors {
namespace {

void expect_no_children() {
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
}

TEST(Floors, DeviceFaultIsServedAgainInEverySample) {
  for (const unsigned threads : {1U, 2U}) {
    FaultSigbusContinue floor(threads, 256);
    for (int round = 0; round < 3; ++round) EXPECT_GT(floor.sample(), 0.0);
  }
  expect_no_children();
}

TEST(Floors, CpuFaultIsServedAgainInEverySample) {
  {
    FaultCpuRoundtrip floor(64);
    for (int round = 0; round < 3; ++round) EXPECT_GT(floor.sample(), 0.0);
  }
  expect_no_children();
}

TEST(Floors, CopyGoesRoundItsBlocks) {
  for (const CopyKind kind : {CopyKind::memcpy, CopyKind::non_temporal}) {
    MemcpyMemfd floor(2, 16UL << 20U, kind);
    EXPECT_GT(floor.sample(5), 0.0);
    EXPECT_GT(floor.sample(20), 0.0);
  }
  EXPECT_THROW(MemcpyMemfd(0, 16UL << 20U, CopyKind::memcpy), std::invalid_argument);
  EXPECT_THROW(MemcpyMemfd(1, 3UL << 20U, CopyKind::memcpy), std::invalid_argument);
}

TEST(Floors, PlainTriadComputesEveryElement) {
  std::vector<double> a(1001, -1);
  const std::vector<double> b(1001, 2);
  const std::vector<double> c(1001, 5);
  EXPECT_GT(plain_triad(3, a.data(), b.data(), c.data(), a.size(), 1), 0.0);
  for (const double value : a) ASSERT_DOUBLE_EQ(value, 2 + 3.0 * 5);
}

TEST(Floors, PlainChaseVisitsOneCycle) {
  std::vector<ChaseNode> nodes(1000);
  link_chase_cycle(nodes.data(), nodes.size(), 7);
  std::vector<std::uint64_t> sums;
  EXPECT_GT(plain_chase(2, {nodes.data(), &nodes[500]}, nodes.size(), sums), 0.0);
  // As many steps as nodes: each is met once from wherever the walk starts.
  EXPECT_EQ(sums, (std::vector<std::uint64_t>{999 * 1000 / 2, 999 * 1000 / 2}));
}

}  // namespace
}  // namespace ferry::bench::floors
