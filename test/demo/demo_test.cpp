// What `ferry demo` shows must stay true: with no policy the circle closes and is told and ended, with every other one
// both applications finish; and everything at once, with applications killed at random, neither hangs nor loses a byte.
#include <gtest/gtest.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include <poll.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

struct Ran {
  int code = -1;
  std::string output;  ///< standard output alone
};

Ran run(const std::string& arguments) {
  const auto program = std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path() / "ferry-demo";
  Ran ran;
  FILE* pipe = popen((program.string() + " " + arguments).c_str(), "r");
  if (pipe == nullptr) return ran;
  std::array<char, 4096> bytes;
  for (std::size_t got = 0; (got = fread(bytes.data(), 1, bytes.size(), pipe)) > 0;)
    ran.output.append(bytes.data(), got);
  const int status = pclose(pipe);
  ran.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return ran;
}

class DeadlockTest : public ::testing::TestWithParam<const char*> {};

TEST_P(DeadlockTest, EndsAsItsPolicySays) {
  const Ran ran = run(std::string("deadlock --json --policy ") + GetParam());
  ASSERT_EQ(ran.code, 0) << ran.output;
  const auto json = nlohmann::json::parse(ran.output, nullptr, false);
  ASSERT_TRUE(json.is_array() && json.size() == 1) << ran.output;
  if (std::string(GetParam()) != "none") {
    EXPECT_EQ(json[0]["circles"], 0) << ran.output;
    return;
  }
  EXPECT_GE(json[0]["circles"], 1) << ran.output;
  // The whole circle, from a fault through memory, a fence and a job to the unit that the fault holds.
  const std::string told = json[0]["told"];
  for (const char* part : {"fault ", "memory ", "fence ", "job ", "compute unit ", "is held by fault "}) {
    EXPECT_NE(told.find(part), std::string::npos) << part << " is not in: " << told;
  }
  const std::string error = json[0]["error"];
  EXPECT_TRUE(error.starts_with("compute: ")) << error;
}

INSTANTIATE_TEST_SUITE_P(Policies, DeadlockTest,
                         ::testing::Values("none", "preempt", "reserve", "reserve-in-flight", "exclusive", "query",
                                           "track", "pinned"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) {
                             if (c == '-') c = '_';
                           }
                           return name;
                         });

TEST(Soak, NothingHangsLeaksOrIsLost) {
  const Ran ran = run("soak --seconds 15");
  EXPECT_EQ(ran.code, 0) << ran.output;
  EXPECT_NE(ran.output.find("no hang, no leak, no wrong byte"), std::string::npos) << ran.output;
}

std::string stress_seconds() {
  const char* asked = std::getenv("FERRY_STRESS_SECONDS");
  return asked != nullptr ? asked : "4";
}

class StressTest : public ::testing::TestWithParam<int> {};

TEST_P(StressTest, NoWrongByteNoHangNoLeak) {
  const Ran ran = run("stress --seconds " + stress_seconds() + " --seed " + std::to_string(GetParam()) + " 2>&1");
  std::printf("%s", ran.output.c_str());
  EXPECT_EQ(ran.code, 0);
  EXPECT_NE(ran.output.find("no wrong byte, no hang, no leak"), std::string::npos);
}

// Seeds whose machines differ: granules of 256 KiB with a budget of system memory and without, of 64 KiB, of 2 MiB.
INSTANTIATE_TEST_SUITE_P(Seeds, StressTest, ::testing::Values(1, 2, 3, 4));

TEST(Stress, FindsAByteThatIsWrong) {
  const Ran ran = run("stress --seconds 60 --seed 3 --only read --only spoil 2>&1");
  EXPECT_EQ(ran.code, 1) << ran.output;
  EXPECT_NE(ran.output.find("and should be"), std::string::npos) << ran.output;
}

TEST(Demo, RefusesWhatItDoesNotKnow) {
  EXPECT_EQ(run("deadlock --policy nonsense 2>/dev/null").code, 2);
  EXPECT_EQ(run("nonsense 2>/dev/null").code, 2);
}

/// Waits until `holds`, which is asked again whenever something changes in what `changes` (inotify) watches.
bool comes_true(int changes, const std::function<bool()>& holds) {
  constexpr int patience_ms = 60'000;
  std::array<char, 4096> events;
  while (!holds()) {
    pollfd watched{.fd = changes, .events = POLLIN, .revents = 0};
    if (poll(&watched, 1, patience_ms) <= 0 || read(changes, events.data(), events.size()) <= 0) return false;
  }
  return true;
}

class EndedTest : public ::testing::TestWithParam<int> {};

TEST_P(EndedTest, LeavesNoFolder) {
  const char* base = std::getenv("TMPDIR");
  std::string folder = std::string(base != nullptr ? base : "/tmp") + "/ferry-ended-XXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  const int changes = inotify_init1(IN_CLOEXEC);
  ASSERT_GE(changes, 0);
  ASSERT_GE(inotify_add_watch(changes, folder.c_str(), IN_CREATE | IN_DELETE), 0);
  const auto program = std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path() / "ferry-demo";
  const pid_t demo = fork();
  ASSERT_GE(demo, 0);
  if (demo == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setenv("TMPDIR", folder.c_str(), 1);
    execl(program.c_str(), "ferry-demo", "stress", "--seconds", "600", nullptr);
    _exit(127);
  }
  EXPECT_TRUE(comes_true(changes, [&] { return !std::filesystem::is_empty(folder); })) << "it makes no folder";
  if (!std::filesystem::is_empty(folder)) {
    const std::filesystem::path made = *std::filesystem::directory_iterator(folder);
    EXPECT_GE(inotify_add_watch(changes, made.c_str(), IN_CREATE), 0);
    EXPECT_TRUE(comes_true(changes, [&] { return std::filesystem::exists(made / "socket"); })) << "no manager listens";
  }
  kill(demo, GetParam());
  int status = 0;
  waitpid(demo, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == GetParam()) << status;
  EXPECT_TRUE(comes_true(changes, [&] { return std::filesystem::is_empty(folder); })) << "its folder stays";
  close(changes);
  std::filesystem::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(Signals, EndedTest, ::testing::Values(SIGINT, SIGTERM, SIGHUP, SIGKILL),
                         [](const auto& info) { return std::string("SIG") + sigabbrev_np(info.param); });

}  // namespace
