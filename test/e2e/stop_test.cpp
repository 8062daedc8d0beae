// SIGSTOP to each process while data move: what waits for it waits, what does not goes on, and after SIGCONT all is well.
#include <gtest/gtest.h>
#include <poll.h>

#include <csignal>
#include <iostream>
#include <random>

#include "family.h"

namespace ferry::test {
namespace {

class Stop : public testing::TestWithParam<Role> {
 protected:
  Stop() : random_(seed_of_run()) { std::cout << "FERRY_E2E_SEED=" << seed_of_run() << "\n"; }
  void a_moment(long up_to_ns) {
    const timespec time{0, static_cast<long>(random_() % static_cast<unsigned long>(up_to_ns))};
    ppoll(nullptr, 0, &time, nullptr);
  }
  std::mt19937_64 random_;
  RestlessMachine restless;
  const Environment surroundings = {{"FERRY_VRAM", "4M"},
                                    {"FERRY_GRANULARITY", "64K"},
                                    {"FERRY_CUS", "2"},
                                    {"FERRY_CONFIG", restless.path()},
                                    {"FERRY_SOCKET", ""}};
};

std::string name_of(const testing::TestParamInfo<Role>& info) { return to_string(info.param); }

TEST_P(Stop, AndContinue) {
  App app({program("bin/test/e2e_migrator"), "8"}, surroundings);
  ASSERT_TRUE(app.wait_line("round"));
  const pid_t pid = app.wait_for(GetParam());
  ASSERT_GT(pid, 0);
  for (int i = 0; i < 12 && !HasFailure(); ++i) {
    app.drain();
    ASSERT_TRUE(app.wait_line("round"));
    a_moment(5'000'000);
    App::signal(pid, SIGSTOP);
    a_moment(50'000'000);
    App::signal(pid, SIGCONT);
    app.drain();
    ASSERT_TRUE(app.wait_lines("round", 2));
  }
  app.close_input();
  EXPECT_EQ(app.wait_end(), 0) << app.errors();
  EXPECT_EQ(app.said().find("lost"), std::string::npos) << "a device was given up";
  expect_no_processes();
}
INSTANTIATE_TEST_SUITE_P(Of, Stop, testing::Values(Role::application, Role::device, Role::manager, Role::zygote),
                         name_of);

/// A process that is killed while it is stopped is no harder to get rid of.
TEST_P(Stop, AndKill) {
  App app({program("bin/test/e2e_migrator"), "8"}, surroundings);
  ASSERT_TRUE(app.wait_line("round"));
  const pid_t pid = app.wait_for(GetParam());
  ASSERT_GT(pid, 0);
  App::signal(pid, SIGSTOP);
  a_moment(5'000'000);
  App::signal(app.pid(), SIGKILL);
  EXPECT_EQ(app.wait_end(), 128 + SIGKILL);
  // A stopped manager or template has to be let go: nobody may end them but by their own doing.
  kill(pid, SIGCONT);
  expect_no_processes();
}

using Role::application;
using Role::device;

class StopShared : public Stop {};

TEST_P(StopShared, DoesNotStopOthers) {
  Folder folder;
  Daemon daemon(folder, surroundings);
  const Environment here = {{"FERRY_SOCKET", daemon.socket()}};
  App stopped({program("bin/test/e2e_migrator"), "8"}, here);
  App other({program("bin/test/e2e_migrator"), "8"}, here);
  ASSERT_TRUE(stopped.wait_line("round"));
  ASSERT_TRUE(other.wait_line("round"));
  for (int i = 0; i < 3 && !HasFailure(); ++i) {
    const pid_t pid = stopped.wait_for(GetParam());
    ASSERT_GT(pid, 0);
    stopped.drain();
    ASSERT_TRUE(stopped.wait_line("round"));
    a_moment(5'000'000);
    App::signal(pid, SIGSTOP);
    other.drain();
    EXPECT_TRUE(other.wait_lines("round", 4));
    // It is gone already if the other one's memory had to wait for it.
    kill(pid, SIGCONT);
    stopped.drain();
    ASSERT_TRUE(stopped.wait_lines("round", 3));
  }
  EXPECT_EQ(other.said().find("lost"), std::string::npos);
  stopped.close_input();
  other.close_input();
  EXPECT_EQ(stopped.wait_end(), 0) << stopped.errors();
  EXPECT_EQ(other.wait_end(), 0) << other.errors();
  EXPECT_EQ(daemon.end(), 0) << daemon.app().errors();
  expect_no_processes();
}
INSTANTIATE_TEST_SUITE_P(Of, StopShared, testing::Values(application, device), name_of);

}  // namespace
}  // namespace ferry::test
