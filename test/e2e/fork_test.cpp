// Forks of programs whose memory lies in VRAM, in system memory and in the store: each process sees its own, whatever the
// others do, and nothing stays behind. The programs (forker.cpp) check every byte themselves.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <memory>
#include <tuple>
#include <vector>

#include "family.h"

namespace ferry::test {
namespace {

struct Machine {
  const char* name;
  Environment environment;
};

const Machine machines[] = {
    {"large", {{"FERRY_VRAM", "64M"}, {"FERRY_CUS", "2"}}},
    // VRAM is far too small, and granules are smaller than blocks.
    {"tight", {{"FERRY_VRAM", "4M"}, {"FERRY_CUS", "2"}, {"FERRY_GRANULARITY", "64K"}}},
    // So is system memory: the rest lies in the store.
    {"stored", {{"FERRY_VRAM", "4M"}, {"FERRY_CUS", "2"}, {"FERRY_GRANULARITY", "64K"}, {"FERRY_SYSTEM", "12M"}}},
};

class Fork : public testing::TestWithParam<std::tuple<const char*, Machine>> {};

TEST_P(Fork, of) {
  const auto& [name, machine] = GetParam();
  Environment environment = machine.environment;
  environment.emplace_back("FERRY_SOCKET", "");
  App app({program("bin/test/e2e_forker"), name}, environment);
  EXPECT_EQ(app.wait_end(), 0) << app.errors();
  expect_no_processes();
}
INSTANTIATE_TEST_SUITE_P(
    On, Fork,
    testing::Combine(testing::Values("halves", "parent_writes_first", "parent_frees", "grandchildren", "killed", "busy",
                                     "many", "child_changes", "child_threads", "child_protects", "protections",
                                     "read_mostly"),
                     testing::ValuesIn(machines)),
    [](const auto& info) { return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param).name; });

class Orphan : public testing::TestWithParam<std::tuple<const char*, Machine>> {};

/// The parent is gone before its child has looked at anything; `1`: and the child has closed all descriptors.
TEST_P(Orphan, has_all_its_memory) {
  const auto& [closes, machine] = GetParam();
  Environment environment = machine.environment;
  environment.emplace_back("FERRY_SOCKET", "");
  App app({program("bin/test/e2e_forker"), "parent_exits_first", closes}, environment);
  EXPECT_TRUE(app.wait_line("intact")) << app.errors();
  EXPECT_EQ(app.wait_end(), 0) << app.errors();
  expect_no_processes();
}
INSTANTIATE_TEST_SUITE_P(On, Orphan, testing::Combine(testing::Values("0", "1"), testing::ValuesIn(machines)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) == "1"
                                      ? std::string("closing_") + std::get<1>(info.param).name
                                      : std::string(std::get<1>(info.param).name);
                         });

/// What serves the child was started by the program, and by a process of the program's that ends soon after it.
TEST(Fork, a_child_that_outlives_the_program_by_long_has_all_its_memory) {
  App app({program("bin/test/e2e_forker"), "parent_exits_first", "13"},
          {{"FERRY_SOCKET", ""}, {"FERRY_VRAM", "16M"}, {"FERRY_CUS", "2"}});
  EXPECT_TRUE(app.wait_line("intact")) << app.errors();
  EXPECT_EQ(app.wait_end(), 0) << app.errors();
  expect_no_processes();
}

/// What holds a lock of the C library may want nothing but a processor, for longer than the manager waits for a fork.
TEST(Fork, of_a_program_that_shares_its_processor) {
  cpu_set_t all;
  ASSERT_EQ(sched_getaffinity(0, sizeof all, &all), 0);
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu) {
    if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
  }
  const auto on_one = [&one] { sched_setaffinity(0, sizeof one, &one); };
  std::vector<std::unique_ptr<App>> others;
  for (int i = 0; i < 3; ++i) {
    others.push_back(
        std::make_unique<App>(std::vector<std::string>{"/bin/sh", "-c", "while :; do :; done"}, Environment{}, on_one));
  }
  App app({program("bin/test/e2e_forker"), "starved", "6"},
          {{"FERRY_VRAM", "64M"}, {"FERRY_CUS", "2"}, {"FERRY_SOCKET", ""}}, on_one);
  EXPECT_EQ(app.wait_end(), 0) << app.errors();
  others.clear();
  expect_no_processes();
}

#ifndef FERRY_TEST_NO_PRELOAD
/// All of the program's heap is managed, streams and thread-local things included.
TEST(ForkUnderMalloc, of) {
  for (const char* name : {"halves", "busy", "child_changes", "grandchildren"}) {
    App app({program("bin/test/e2e_forker"), name},
            {{"FERRY_VRAM", "8M"}, {"FERRY_CUS", "2"}, {"FERRY_SOCKET", ""}, {"LD_PRELOAD", FERRY_MALLOC_LIBRARY}});
    EXPECT_EQ(app.wait_end(), 0) << name << ": " << app.errors();
    expect_no_processes();
  }
}
#endif

bool can_poison() {
  const auto fd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
  uffdio_api api{};
  api.api = UFFD_API;
  const bool can = fd >= 0 && ::ioctl(fd, UFFDIO_API, &api) == 0 && (api.features & (1U << 14)) != 0;
  if (fd >= 0) ::close(fd);
  return can;
}

TEST(Fork, a_child_whose_pages_the_store_lost_gets_SIGBUS) {
  if (!can_poison()) GTEST_SKIP() << "before Linux 6.6 the whole program ends: UFFDIO_POISON is missing";
  App app({program("bin/test/e2e_forker"), "lost"}, {{"FERRY_VRAM", "4M"},
                                                     {"FERRY_CUS", "2"},
                                                     {"FERRY_SOCKET", ""},
                                                     {"FERRY_GRANULARITY", "64K"},
                                                     {"FERRY_SYSTEM", "4M"},
                                                     {"FERRY_STORE_IO", "threads"},
                                                     {"LD_PRELOAD", program("lib/libe2e_failing_disk.so")},
                                                     {"ASAN_OPTIONS", "verify_asan_link_order=0"},
                                                     {"FERRY_TEST_DISK", "read 5 0"}});
  EXPECT_TRUE(app.wait_line("the child got SIGBUS")) << app.errors();
  EXPECT_EQ(app.wait_end(), 0) << app.errors();
  expect_no_processes();
}

bool serves_system_calls() {
  const auto fd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC));
  if (fd >= 0) ::close(fd);
  return fd >= 0 || ::access("/dev/userfaultfd", R_OK | W_OK) == 0;
}

/// A manager that ends takes what it has not given with it: the child ends too, and never reads anything else.
TEST(Fork, a_child_whose_manager_ends_is_told) {
  if (!serves_system_calls()) {
    GTEST_SKIP() << "faults in system calls are not served for this user: a child has all its memory before it runs";
  }
  App app({program("bin/test/e2e_forker"), "waits"}, {{"FERRY_VRAM", "8M"}, {"FERRY_CUS", "2"}, {"FERRY_SOCKET", ""}});
  ASSERT_TRUE(app.wait_line("waiting")) << app.errors();
  App::signal(app.wait_for(Role::manager), SIGKILL);
  app.wait_end();
  expect_no_processes();
  EXPECT_NE(app.errors().find("before this fork's child had all its memory"), std::string::npos) << app.errors();
}

}  // namespace
}  // namespace ferry::test
