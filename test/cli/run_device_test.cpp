// ferry run with a program whose data are larger than the device's memory: counters, trace, report, explain, and what
// happens when one of the processes is killed.
#include <gtest/gtest.h>
#include <pty.h>

#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "program.h"

namespace ferry {
namespace {

using test::Outcome;
using test::TemporaryFolder;
using Json = nlohmann::json;

constexpr const char* device_program = FERRY_TEST_BUILD_DIR "/bin/test/device_program";

std::vector<std::string> ferry_run(std::vector<std::string> options, std::vector<std::string> program_arguments) {
  std::vector<std::string> out = {test::ferry_program(), "run"};
  out.insert(out.end(), options.begin(), options.end());
  out.insert(out.end(), {"--", device_program});
  out.insert(out.end(), program_arguments.begin(), program_arguments.end());
  return out;
}

/// Children of a process that run a program of this name (15 bytes at most are known of it).
std::vector<pid_t> children_of(pid_t parent, const std::string& name) {
  std::vector<pid_t> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string number = entry.path().filename();
    if (number.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::string stat = test::contents(entry.path() / "stat");
    const std::size_t open = stat.find('(');
    const std::size_t close = stat.rfind(')');
    if (open == std::string::npos || close == std::string::npos) continue;
    std::istringstream rest(stat.substr(close + 1));
    char state = 0;
    pid_t ppid = 0;
    rest >> state >> ppid;
    if (ppid == parent && stat.substr(open + 1, close - open - 1) == name) {
      found.push_back(static_cast<pid_t>(std::stol(number)));
    }
  }
  return found;
}

TEST(RunDevice, TwiceTheDevicesMemoryIsRightAndWithinTheBudget) {
  const TemporaryFolder folder;
  const std::string stats = folder.file("s.json");
  const std::string trace = folder.file("t.json");
  const std::string report = folder.file("r.html");
  const Outcome outcome =
      test::run({.arguments = ferry_run(
                     {"--vram", "8M", "--cus", "2", "--stats", stats, "--trace", trace, "--report", report}, {"16"})});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "right\n");
  for (const char* part : {"3 kernels on 1 device of 8 MiB VRAM", "evictions", "peak VRAM 8 MiB of 8 MiB", "time "}) {
    EXPECT_NE(outcome.err.find(part), std::string::npos) << part << " in: " << outcome.err;
  }
  const Json json = Json::parse(test::contents(stats));
  EXPECT_GT(json["evictions"], 0);
  EXPECT_GT(json["device_faults"], 0);
  EXPECT_GE(json["bytes_to_vram"], 16 << 20) << "every page was there once";
  EXPECT_GT(json["bytes_to_system"], 0);
  EXPECT_LE(json["peak_vram_bytes"], 8 << 20);
  EXPECT_EQ(json["dma_mapped_pages"], json["dma_unmapped_pages"]);
  EXPECT_EQ(json["program"]["manager_started"], true);
  EXPECT_EQ(json["kernels"][0]["launches"], 3);
  EXPECT_EQ(json["kernels"][0]["failed"], 0);
  EXPECT_GT(json["time"]["kernels_ns"], 0);
  EXPECT_GT(json["time"]["moving_ns"], 0);

  const auto checked =
      test::run({.arguments = {FERRY_TEST_PYTHON, FERRY_TEST_SOURCE_DIR "/scripts/check_trace.py", trace}});
  EXPECT_EQ(checked.status, 0) << checked.err;
  const Json events = Json::parse(test::contents(trace))["traceEvents"];
  unsigned kernels = 0;
  std::set<std::string> causes;
  std::set<std::string> tracks;
  for (const Json& event : events) {
    if (event["ph"] == "X" && event["cat"] == "kernel") ++kernels;
    if (event["ph"] == "X" && event["cat"] == "migration") causes.insert(event["args"]["cause"].get<std::string>());
    if (event["name"] == "thread_name") tracks.insert(event["args"]["name"].get<std::string>());
  }
  EXPECT_EQ(kernels, 3U);
  EXPECT_TRUE(causes.contains("device fault"));
  EXPECT_TRUE(causes.contains("eviction"));
  for (const char* track : {"device 0 faults", "CPU faults", "evictions", "device 0 kernels, queue 0",
                            "migrations to VRAM, lane 1", "migrations to system, lane 1"}) {
    EXPECT_TRUE(tracks.contains(track)) << track;
  }
  const std::string page = test::contents(report);
  EXPECT_NE(page.find("device_program"), std::string::npos);
  EXPECT_EQ(page.find("http"), std::string::npos);
}

TEST(RunDevice, ExplainTellsWhereEveryPageLies) {
  const Outcome outcome = test::run({.arguments = ferry_run({"--quiet", "--vram", "4M"}, {"8", "explain"}),
                                     .environment = {{"FERRY", test::ferry_program()}}});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("VRAM of device 0"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("lies in system memory"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("because a device touched it"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("(evicted)"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("status 0\n"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("not managed: outside the window"), std::string::npos) << outcome.out;
}

TEST(RunDevice, AFullDiskIsToldAfterTheRun) {
  const Outcome outcome =
      test::run({.arguments = ferry_run({"--quiet", "--vram", "4M", "--trace", "/dev/full"}, {"4"})});
  EXPECT_EQ(outcome.status, 125);
  EXPECT_EQ(outcome.out, "right\n");
  EXPECT_NE(outcome.err.find("No space left"), std::string::npos) << outcome.err;
}

TEST(RunDevice, AManagerThatIsKilledEndsTheProgramWithAnError) {
  const Outcome outcome =
      test::run({.arguments = ferry_run({"--vram", "4M"}, {"8", "hang"}), .until = "ready\n", .then = [](pid_t ferry) {
                   const auto managers = children_of(ferry, "ferryd");
                   ASSERT_EQ(managers.size(), 1U);
                   kill(managers[0], SIGKILL);
                 }});
  EXPECT_NE(outcome.status, 0);
  EXPECT_NE(outcome.err.find("the manager was ended by signal 9"), std::string::npos) << outcome.err;
}

TEST(RunDevice, AKilledProgramLeavesCountersAndNothingElse) {
  const TemporaryFolder folder;
  const std::string stats = folder.file("s.json");
  const Outcome outcome = test::run({.arguments = ferry_run({"--vram", "4M", "--stats", stats}, {"8", "hang"}),
                                     .environment = {{"XDG_RUNTIME_DIR", folder.path()}},
                                     .until = "ready\n",
                                     .then = [](pid_t ferry) {
                                       const auto programs = children_of(ferry, "device_program");
                                       ASSERT_EQ(programs.size(), 1U);
                                       kill(programs[0], SIGKILL);
                                     }});
  EXPECT_EQ(outcome.status, 128 + SIGKILL);
  EXPECT_GT(Json::parse(test::contents(stats))["device_faults"], 0);
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    EXPECT_EQ(entry.path().filename(), "s.json") << entry.path();
  }
}

TEST(RunDevice, ATerminalShowsProgressAndItsInterruptEndsTheProgram) {
  int master = -1;
  const pid_t pid = forkpty(&master, nullptr, nullptr, nullptr);
  ASSERT_GE(pid, 0);
  if (pid == 0) {
    const std::vector<std::string> arguments = ferry_run({"--vram", "4M"}, {"8", "hang"});
    std::vector<char*> words;
    for (const std::string& word : arguments) words.push_back(const_cast<char*>(word.c_str()));
    words.push_back(nullptr);
    execv(words[0], words.data());
    _exit(199);
  }
  std::string seen;
  bool interrupted = false;
  while (true) {
    pollfd wait{master, POLLIN, 0};
    if (poll(&wait, 1, 60'000) <= 0) {
      ADD_FAILURE() << "nothing more within a minute; so far: " << seen;
      kill(pid, SIGKILL);
      break;
    }
    char buffer[4096];
    const ssize_t got = read(master, buffer, sizeof buffer);
    if (got <= 0) break;  // EIO: nobody has the terminal open any more
    seen.append(buffer, static_cast<std::size_t>(got));
    if (!interrupted && seen.find("of 4 MiB  faults") != std::string::npos) {
      interrupted = true;
      // Ctrl-C, to the whole group of the terminal.
      ASSERT_EQ(write(master, "\x03", 1), 1);
    }
  }
  close(master);
  int status = 0;
  waitpid(pid, &status, 0);
  EXPECT_TRUE(interrupted) << seen;
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 128 + SIGINT);
  EXPECT_NE(seen.find("peak VRAM 4 MiB of 4 MiB"), std::string::npos) << "the summary comes all the same: " << seen;
}

TEST(RunDevice, AKilledFerryRunTakesTheManagerAlong) {
  const TemporaryFolder folder;
  // The test ends when everybody who holds its output has ended: program, device and manager.
  const Outcome outcome = test::run({.arguments = ferry_run({"--vram", "4M"}, {"8", "hang"}),
                                     .environment = {{"XDG_RUNTIME_DIR", folder.path()}},
                                     .until = "ready\n",
                                     .then = [](pid_t ferry) { kill(ferry, SIGKILL); }});
  EXPECT_EQ(outcome.status, 128 + SIGKILL);
}

}  // namespace
}  // namespace ferry
