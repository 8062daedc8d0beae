// Applications of one ferryd share the compute units of a device: all of them get on, whatever they run.
#include <gtest/gtest.h>

#include <csignal>
#include <memory>

#include "family.h"

namespace ferry::test {
namespace {

using Apps = std::vector<std::unique_ptr<App>>;

class Units : public testing::TestWithParam<const char*> {
 protected:
  static Environment machine() {
    // So much VRAM that a page outlives the turns of the others: else who gets it has no unit to use it with.
    return {{"FERRY_VRAM", "16M"},
            {"FERRY_GRANULARITY", "64K"},
            {"FERRY_CUS", "2"},
            {"FERRY_HARDWARE", GetParam()},
            {"FERRY_SOCKET", ""}};
  }
  static std::unique_ptr<App> spinner(const Daemon& daemon, bool faults) {
    std::vector<std::string> arguments = {program("bin/test/e2e_spinner")};
    if (faults) arguments.emplace_back("faults");
    return std::make_unique<App>(std::move(arguments), Environment{{"FERRY_SOCKET", daemon.socket()}});
  }
  /// Each of them several times, from now on.
  static void expect_progress(const Apps& apps) {
    for (const auto& app : apps) app->drain();
    for (const auto& app : apps) ASSERT_TRUE(app->wait_lines("round", 3));
  }
  static void expect_good_end(App& app) {
    app.close_input();
    EXPECT_EQ(app.wait_end(), 0) << app.errors();
    EXPECT_NE(app.said().find("done"), std::string::npos);
  }
};

TEST_P(Units, TwoKernelsThatNeverEndBothGoOn) {
  Folder folder;
  Daemon daemon(folder, machine());
  Apps apps;
  for (unsigned i = 0; i < 2; ++i) {
    apps.push_back(spinner(daemon, false));
    ASSERT_TRUE(apps.back()->wait_line("ready"));
  }
  expect_progress(apps);
  expect_good_end(*apps[0]);
  apps.erase(apps.begin());
  expect_progress(apps);
  expect_good_end(*apps[0]);
  EXPECT_EQ(daemon.end(), 0) << daemon.app().errors();
  expect_no_processes();
}

TEST_P(Units, ManyWithFaultsAndWithoutAllGoOn) {
  Folder folder;
  Daemon daemon(folder, machine());
  Apps apps;
  for (unsigned i = 0; i < 4; ++i) {
    apps.push_back(spinner(daemon, i % 2 == 0));
    ASSERT_TRUE(apps.back()->wait_line("ready"));
  }
  expect_progress(apps);
  for (const auto& app : apps) expect_good_end(*app);
  EXPECT_EQ(daemon.end(), 0) << daemon.app().errors();
  expect_no_processes();
}

TEST_P(Units, AKilledOneGivesItsUnitsBack) {
  Folder folder;
  Daemon daemon(folder, machine());
  Apps apps;
  apps.push_back(spinner(daemon, false));
  ASSERT_TRUE(apps[0]->wait_line("round"));
  for (unsigned i = 0; i < 4; ++i) {
    auto other = spinner(daemon, i % 2 == 1);
    ASSERT_TRUE(other->wait_line("round"));
    const pid_t victim = i < 2 ? other->pid() : other->wait_for(Role::device);
    ASSERT_GT(victim, 0);
    App::signal(victim, SIGKILL);
    // 4: its launch was lost, and it said so.
    EXPECT_EQ(other->wait_end(), i < 2 ? 128 + SIGKILL : 4);
    expect_progress(apps);
  }
  expect_good_end(*apps[0]);
  EXPECT_EQ(daemon.end(), 0) << daemon.app().errors();
  expect_no_processes();
}

INSTANTIATE_TEST_SUITE_P(Hardware, Units, testing::Values("preempt", "no-preempt"), [](const auto& info) {
  return std::string(info.param) == "preempt" ? "preempts" : "waits_in_place";
});

}  // namespace
}  // namespace ferry::test
