#include "linux/pressure.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace ferry::linux {
namespace {

constexpr std::uint64_t second_ns = 1'000'000'000;
constexpr std::uint64_t gib = std::uint64_t{1} << 30;

TEST(PressureGauge, SilenceIsNoPressure) {
  PressureGauge gauge;
  for (std::uint64_t t = 1; t < 10; ++t) EXPECT_EQ(gauge.want(t * second_ns, gib, false, {}), 0U);
}

TEST(PressureGauge, AStallAsksForALittleAndAgainForMore) {
  PressureGauge gauge;
  const std::uint64_t first = gauge.want(second_ns, gib, true, {});
  EXPECT_GT(first, 0U);
  EXPECT_LE(first, gib / 16);
  EXPECT_EQ(gauge.want(second_ns + 1000, gib, true, {}), 0U) << "what was asked for has had no time";
  // The second stall was heard all the same.
  const std::uint64_t second = gauge.want(2 * second_ns, gib, false, {});
  EXPECT_GT(second, first);
  std::uint64_t last = second;
  for (std::uint64_t t = 3; t < 20; ++t) {
    const std::uint64_t next = gauge.want(t * second_ns, gib, true, {});
    EXPECT_GE(next, last);
    EXPECT_LE(next, gib / 4) << "never most of it";
    last = next;
  }
  EXPECT_EQ(gauge.want(60 * second_ns, gib, true, {}), first) << "after a calm it begins small";
}

TEST(PressureGauge, NearTheLimitItAsksForWhatIsTooMuch) {
  PressureGauge gauge;
  CgroupMemory cgroup;
  cgroup.high_bytes = gib;
  cgroup.current_bytes = gib / 2;
  EXPECT_EQ(gauge.want(second_ns, gib, false, cgroup), 0U);
  cgroup.current_bytes = gib;
  const std::uint64_t wanted = gauge.want(2 * second_ns, gib, false, cgroup);
  EXPECT_GT(wanted, 0U);
  EXPECT_LT(wanted, gib / 4);
  cgroup.current_bytes -= wanted;
  EXPECT_EQ(gauge.want(3 * second_ns, gib, false, cgroup), 0U) << "what it asked for is enough";
}

TEST(PressureGauge, EventsOfBeforeAreNoNews) {
  PressureGauge gauge;
  CgroupMemory cgroup;
  cgroup.high_events = 77;
  EXPECT_EQ(gauge.want(second_ns, gib, false, cgroup), 0U);
  ++cgroup.high_events;
  EXPECT_GT(gauge.want(2 * second_ns, gib, false, cgroup), 0U);
}

TEST(PressureGauge, NeverMoreThanThereIs) {
  PressureGauge gauge;
  CgroupMemory cgroup;
  cgroup.max_bytes = gib;
  cgroup.current_bytes = gib;
  EXPECT_EQ(gauge.want(second_ns, 4096, true, cgroup), 4096U);
}

/// A /proc and a cgroup made of ordinary files.
class PressureFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "ferry-pressure-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    root_ = name;
    std::filesystem::create_directories(root_ / "proc/self");
    std::filesystem::create_directories(root_ / "group/app one");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void write(const std::string& path, const std::string& text) const { std::ofstream(root_ / path) << text; }
  [[nodiscard]] std::string proc() const { return (root_ / "proc").string(); }
  void make_cgroup() const {
    write("proc/self/cgroup", "9:memory:/elsewhere\n0::/app one\n");
    write("proc/self/mountinfo", "21 1 0:20 / /proc rw - proc proc rw\n30 24 0:26 / " + (root_ / "group").string() +
                                     " rw,nosuid shared:4 - cgroup2 cgroup2 rw\n");
    write("group/app one/memory.current", "1048576\n");
    write("group/app one/memory.high", "max\n");
    write("group/app one/memory.max", "2097152\n");
    write("group/app one/memory.events", "low 0\nhigh 3\nmax 4\noom 0\noom_kill 0\n");
  }
  std::filesystem::path root_;
};

TEST_F(PressureFiles, TheOwnCgroupIsFoundAndRead) {
  make_cgroup();
  const Pressure p = Pressure::open(proc());
  ASSERT_TRUE(p.has_cgroup()) << p.cgroup_text();
  EXPECT_EQ(p.cgroup_text(), (root_ / "group/app one").string());
  EXPECT_GE(p.events_fd(), 0);
  const CgroupMemory m = p.read();
  EXPECT_EQ(m.current_bytes, 1048576U);
  EXPECT_EQ(m.high_bytes, CgroupMemory::none);
  EXPECT_EQ(m.max_bytes, 2097152U);
  EXPECT_EQ(m.high_events, 3U);
  EXPECT_EQ(m.max_events, 4U);
}

TEST_F(PressureFiles, TheTriggerGoesToTheCgroupsOwnStalls) {
  make_cgroup();
  write("group/app one/memory.pressure", "");
  std::filesystem::create_directories(root_ / "proc/pressure");
  write("proc/pressure/memory", "");
  const Pressure p = Pressure::open(proc());
  EXPECT_GE(p.stall_fd(), 0);
  EXPECT_EQ(p.stall_text(), (root_ / "group/app one/memory.pressure").string());
  std::ifstream written(root_ / "group/app one/memory.pressure");
  std::string word;
  written >> word;
  EXPECT_EQ(word, "some");
}

TEST_F(PressureFiles, WithoutAnyOfItNothingIsHeardAndTheReasonIsTold) {
  Pressure p = Pressure::open(proc());
  EXPECT_FALSE(p.has_cgroup());
  EXPECT_EQ(p.stall_fd(), -1);
  EXPECT_EQ(p.events_fd(), -1);
  EXPECT_NE(p.stall_text().find("No such file"), std::string::npos) << p.stall_text();
  EXPECT_FALSE(p.cgroup_text().empty());
  EXPECT_EQ(p.want(second_ns, gib), 0U);
}

TEST_F(PressureFiles, NonsenseInTheFilesIsNoLimit) {
  make_cgroup();
  write("group/app one/memory.max", "");
  write("group/app one/memory.current", "plenty\n");
  write("group/app one/memory.events", "\n\nhigh\nmax x\n");
  Pressure p = Pressure::open(proc());
  EXPECT_EQ(p.read().max_bytes, CgroupMemory::none);
  EXPECT_EQ(p.want(second_ns, gib), 0U);
}

}  // namespace
}  // namespace ferry::linux
