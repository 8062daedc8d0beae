// What becomes of a process in the midst of everything (ender.cpp): its end by each way, another program in its place,
// children by vfork and posix_spawn, threads that end, processes that are stopped. Nothing hangs, nothing is left.
#include <gtest/gtest.h>
#include <poll.h>

#include <csignal>
#include <iostream>
#include <random>

#include "family.h"

namespace ferry::test {
namespace {

const Environment full = {{"FERRY_VRAM", "4M"},
                          {"FERRY_CUS", "3"},
                          {"FERRY_DEVICES", "2"},
                          {"FERRY_GRANULARITY", "64K"},
                          {"FERRY_SOCKET", ""}};

class End : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(By, End, testing::Values("exit", "quick", "from_thread", "exec", "vfork", "spawn", "threads"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(End, LeavesNothing) {
  for (unsigned run = 0; run < 2 && !HasFailure(); ++run) {
    App app({program("bin/test/e2e_ender"), GetParam()}, full);
    EXPECT_TRUE(app.wait_line("ready")) << app.errors();
    EXPECT_EQ(app.wait_end(), 0) << app.said() << app.errors();
    expect_no_processes();
  }
}

/// With a manager that others use: it has what the process had.
TEST_P(End, LeavesNothingInAManagerOfMany) {
  Folder folder;
  Daemon daemon(folder, full);
  const Environment shared = {{"FERRY_SOCKET", daemon.socket()}};
  const MemoryFiles before = memory_files(daemon.pid());
  {
    App first({program("bin/test/e2e_ender"), "threads"}, shared);
    EXPECT_EQ(first.wait_end(), 0) << first.said() << first.errors();
  }
  EXPECT_TRUE(wait_until(daemon.pid(), [&] { return memory_files(daemon.pid()) == before; })) << "it keeps files";
  App app({program("bin/test/e2e_ender"), GetParam()}, shared);
  EXPECT_EQ(app.wait_end(), 0) << app.said() << app.errors();
  EXPECT_TRUE(wait_until(daemon.pid(), [&] { return memory_files(daemon.pid()) == before; })) << "it keeps files";
}

class Stopped : public testing::TestWithParam<Role> {};
INSTANTIATE_TEST_SUITE_P(Of, Stopped, testing::Values(Role::application, Role::device, Role::manager),
                         [](const auto& info) { return std::string(to_string(info.param)); });

TEST_P(Stopped, GoesOnWithNothingLost) {
  std::mt19937_64 random(seed_of_run());
  std::cout << "FERRY_E2E_SEED=" << seed_of_run() << "\n";
  const auto a_moment = [&](long up_to_ns) {
    const timespec time{0, static_cast<long>(random() % static_cast<unsigned long>(up_to_ns))};
    ppoll(nullptr, 0, &time, nullptr);
  };
  App app({program("bin/test/e2e_ender"), "rounds"}, full);
  ASSERT_TRUE(app.wait_line("round")) << app.said() << app.errors();
  const pid_t pid = app.wait_for(GetParam());
  ASSERT_GT(pid, 0);
  for (int i = 0; i < 8 && !HasFailure(); ++i) {
    a_moment(5'000'000);
    App::signal(pid, SIGSTOP);
    a_moment(30'000'000);
    App::signal(pid, SIGCONT);
    app.drain();
    ASSERT_TRUE(app.wait_lines("round", 2));
  }
  app.close_input();
  EXPECT_EQ(app.wait_end(), 0) << app.said() << app.errors();
  expect_no_processes();
}

}  // namespace
}  // namespace ferry::test
