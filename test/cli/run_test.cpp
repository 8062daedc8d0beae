// ferry run with programs that use no device: status, signals, files, and that nothing is left behind.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "program.h"

namespace ferry {
namespace {

using test::Outcome;
using test::run_ferry;
using test::TemporaryFolder;
using Json = nlohmann::json;

Outcome run_shell(const std::string& script, std::vector<std::string> options = {"--quiet"}) {
  std::vector<std::string> arguments = {"run"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  arguments.insert(arguments.end(), {"--", "sh", "-c", script});
  return run_ferry(arguments);
}

TEST(Run, PassesOutputAndStatusOn) {
  const Outcome outcome = run_shell("echo out; echo err >&2; exit 7");
  EXPECT_EQ(outcome.status, 7);
  EXPECT_EQ(outcome.out, "out\n");
  EXPECT_EQ(outcome.err, "err\n");
}

TEST(Run, ASignalThatEndsTheProgramShowsInTheStatus) {
  EXPECT_EQ(run_shell("kill -KILL $$").status, 128 + SIGKILL);
  EXPECT_EQ(run_shell("kill -TERM $$").status, 128 + SIGTERM);
}

TEST(Run, PassesSignalsOn) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1}) {
    const Outcome outcome = test::run(
        {.arguments = {test::ferry_program(), "run", "--quiet", "--", "bash", "-c",
                       "trap 'echo caught; exit 5' TERM INT HUP USR1; echo ready; while :; do sleep 0.01; done"},
         .until = "ready\n",
         .then = [signal](pid_t pid) { kill(pid, signal); }});
    EXPECT_EQ(outcome.status, 5) << strsignal(signal);
    EXPECT_EQ(outcome.out, "ready\ncaught\n") << strsignal(signal);
  }
}

TEST(Run, ProgramsThatCannotRunAreToldApart) {
  Outcome outcome = run_ferry({"run", "--", "ferry-no-such-program"});
  EXPECT_EQ(outcome.status, 127);
  EXPECT_NE(outcome.err.find("not in PATH"), std::string::npos) << outcome.err;
  const TemporaryFolder folder;
  const std::string path = folder.file("text");
  outcome = run_ferry({"run", "--", path});
  EXPECT_EQ(outcome.status, 127);
  test::write_file(path, "#!/bin/sh\nexit 0\n");
  outcome = run_ferry({"run", "--", path});
  EXPECT_EQ(outcome.status, 126);
  EXPECT_NE(outcome.err.find("chmod +x"), std::string::npos) << outcome.err;
  ASSERT_EQ(chmod(path.c_str(), 0755), 0);
  EXPECT_EQ(run_ferry({"run", "--quiet", "--", path}).status, 0);
}

TEST(Run, SetsTheSocketForTheProgramAndRemovesIt) {
  const Outcome outcome = run_shell("test -S \"$FERRY_SOCKET\" && echo \"$FERRY_SOCKET\"");
  EXPECT_EQ(outcome.status, 0);
  ASSERT_GT(outcome.out.size(), 1U);
  const std::filesystem::path socket(outcome.out.substr(0, outcome.out.size() - 1));
  EXPECT_FALSE(std::filesystem::exists(socket.parent_path()));
}

TEST(Run, PrefersTheUsersRuntimeDirectory) {
  const TemporaryFolder folder;
  const Outcome outcome =
      test::run({.arguments = {test::ferry_program(), "run", "--quiet", "--", "sh", "-c", "echo $FERRY_SOCKET"},
                 .environment = {{"XDG_RUNTIME_DIR", folder.path()}}});
  EXPECT_TRUE(outcome.out.starts_with(folder.path() + "/")) << outcome.out;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Run, RemovesWhatAKilledRunLeft) {
  const TemporaryFolder folder;
  const std::string old = folder.file("ferry-run-old");
  std::filesystem::create_directory(old);
  test::write_file(old + "/socket", "");
  std::filesystem::last_write_time(old, std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
  const std::string young = folder.file("ferry-run-young");
  std::filesystem::create_directory(young);
  EXPECT_EQ(test::run({.arguments = {test::ferry_program(), "run", "--quiet", "--", "true"},
                       .environment = {{"XDG_RUNTIME_DIR", folder.path()}}})
                .status,
            0);
  EXPECT_FALSE(std::filesystem::exists(old));
  EXPECT_TRUE(std::filesystem::exists(young)) << "another run may be just about to use it";
}

TEST(Run, GivesTheProgramNoDescriptorOfItsOwn) {
  const Outcome bare = test::run({.arguments = {"sh", "-c", "ls /proc/self/fd | wc -l"}});
  EXPECT_EQ(run_shell("ls /proc/self/fd | wc -l").out, bare.out);
  const Outcome blocked = run_shell("grep SigBlk /proc/self/status");
  EXPECT_EQ(blocked.out, test::run({.arguments = {"sh", "-c", "grep SigBlk /proc/self/status"}}).out);
}

TEST(Run, WithoutADeviceStartsNoManagerAndStillLeavesTheFiles) {
  const TemporaryFolder folder;
  const std::string stats = folder.file("s.json");
  const std::string trace = folder.file("t.json");
  const std::string report = folder.file("r.html");
  const Outcome outcome =
      run_shell("exit 3", {"--vram", "64M", "--cus", "2", "--stats", stats, "--trace", trace, "--report", report});
  EXPECT_EQ(outcome.status, 3);
  EXPECT_EQ(outcome.err, "ferry: sh used no device: no manager was started\n");
  const Json json = Json::parse(test::contents(stats));
  EXPECT_EQ(json["device_faults"], 0);
  EXPECT_EQ(json["peak_vram_bytes"], 0);
  EXPECT_EQ(json["machine"]["vram_bytes"], 64 << 20);
  EXPECT_EQ(json["machine"]["cus"], 2);
  EXPECT_EQ(json["program"]["exit_status"], 3);
  EXPECT_EQ(json["program"]["manager_started"], false);
  EXPECT_EQ(json["program"]["arguments"], (Json{"sh", "-c", "exit 3"}));
  EXPECT_TRUE(Json::parse(test::contents(trace))["traceEvents"].is_array());
  EXPECT_NE(test::contents(report).find("</html>"), std::string::npos);
}

TEST(Run, FilesThatCannotBeWrittenStopItBeforeItStarts) {
  const TemporaryFolder folder;
  const std::string mark = folder.file("mark");
  for (const char* flag : {"--stats", "--trace", "--report"}) {
    const Outcome outcome = run_shell("touch " + mark, {flag, folder.file("none/x")});
    EXPECT_EQ(outcome.status, 125) << flag;
    EXPECT_NE(outcome.err.find(std::string("cannot write ") + flag), std::string::npos) << outcome.err;
    EXPECT_NE(outcome.err.find("nothing was started"), std::string::npos) << outcome.err;
  }
  EXPECT_FALSE(std::filesystem::exists(mark));
  // One that can be written is not left behind empty because another cannot.
  const std::string good = folder.file("good.json");
  EXPECT_EQ(run_shell("true", {"--stats", good, "--trace", folder.file("none/x")}).status, 125);
  EXPECT_FALSE(std::filesystem::exists(good));
  EXPECT_EQ(run_ferry({"run", "--stats", good, "--", "ferry-no-such-program"}).status, 127);
  EXPECT_FALSE(std::filesystem::exists(good));
}

TEST(Run, AFullDiskIsToldAndTheProgramsFailureComesFirst) {
  const Outcome full = run_shell("true", {"--quiet", "--stats", "/dev/full"});
  EXPECT_EQ(full.status, 125);
  EXPECT_NE(full.err.find("No space left"), std::string::npos) << full.err;
  EXPECT_EQ(run_shell("exit 9", {"--quiet", "--stats", "/dev/full"}).status, 9);
}

TEST(Run, TheConfigurationFileIsReadBeforeTheProgram) {
  const TemporaryFolder folder;
  const std::string config = folder.file("m.toml");
  const std::string stats = folder.file("s.json");
  test::write_file(config, "[machine]\nvram = \"32M\"\ngranularity = \"64K\"\n");
  EXPECT_EQ(run_shell("true", {"--config", config, "--vram", "16M", "--stats", stats}).status, 0);
  const Json json = Json::parse(test::contents(stats));
  EXPECT_EQ(json["machine"]["vram_bytes"], 16 << 20) << "an option goes before the file";
  EXPECT_EQ(json["machine"]["granularity_bytes"], 64 << 10);
  test::write_file(config, "[machine]\nvrma = \"32M\"\n");
  const Outcome outcome = run_shell("touch " + folder.file("mark"), {"--config", config});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_NE(outcome.err.find("m.toml:2: no key 'vrma'"), std::string::npos) << outcome.err;
  EXPECT_FALSE(std::filesystem::exists(folder.file("mark")));
}

TEST(Run, AnOptionGoesBeforeTheEnvironmentWhichGoesBeforeTheFile) {
  const TemporaryFolder folder;
  const std::string config = folder.file("m.toml");
  const std::string stats = folder.file("s.json");
  test::write_file(config, "[machine]\nvram = \"32M\"\ngranularity = \"64K\"\ncus = 3\n");
  const auto machine = [&](std::vector<std::string> options) {
    std::vector<std::string> arguments = {
        test::ferry_program(), "run", "--quiet", "--config", config, "--stats", stats};
    arguments.insert(arguments.end(), options.begin(), options.end());
    arguments.insert(arguments.end(), {"--", "true"});
    EXPECT_EQ(test::run({.arguments = arguments, .environment = {{"FERRY_VRAM", "24M"}, {"FERRY_CUS", "2"}}}).status,
              0);
    return Json::parse(test::contents(stats))["machine"];
  };
  const Json by_environment = machine({});
  EXPECT_EQ(by_environment["vram_bytes"], 24 << 20);
  EXPECT_EQ(by_environment["granularity_bytes"], 64 << 10) << "said by the file alone";
  const Json by_option = machine({"--vram", "16M"});
  EXPECT_EQ(by_option["vram_bytes"], 16 << 20);
  EXPECT_EQ(by_option["granularity_bytes"], 64 << 10);
}

// --- the preload -----------------------------------------------------------------------------------------------------

/// Why the preload is not tried, or empty.
std::string no_malloc() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return "a sanitizer has to come before any other library, in programs that were built with it";
#else
  const bool here = std::filesystem::exists(FERRY_TEST_BUILD_DIR "/lib/libferry_malloc.so");
  return here ? "" : "this build has no libferry_malloc.so";
#endif
}

TEST(RunMalloc, KeepsAPreloadThatIsThere) {
  if (const std::string reason = no_malloc(); !reason.empty()) GTEST_SKIP() << reason;
  const Outcome outcome = test::run(
      {.arguments = {test::ferry_program(), "run", "--quiet", "--malloc", "--", "sh", "-c", "echo $LD_PRELOAD"},
       .environment = {{"LD_PRELOAD", "libm.so.6"}}});
  EXPECT_TRUE(outcome.out.ends_with("/libferry_malloc.so:libm.so.6\n")) << outcome.out;
}

TEST(RunMalloc, ProgramsSayTheSame) {
  if (const std::string reason = no_malloc(); !reason.empty()) GTEST_SKIP() << reason;
  const std::vector<std::vector<std::string>> programs = {
      {"sh", "-c", "ls -l /usr/bin | sort -k5 -n | tail -3; echo $?"},
      {"awk", "BEGIN { for (i = 0; i < 200000; ++i) a[i] = i \"x\"; print length(a), a[777] }"},
      {"python3", "-c",
       "d = {str(i): [i] * 10 for i in range(100000)}; print(len(d), sum(len(v) for v in d.values()))"},
  };
  for (const auto& program : programs) {
    std::vector<std::string> arguments = {test::ferry_program(), "run", "--quiet", "--malloc", "--"};
    arguments.insert(arguments.end(), program.begin(), program.end());
    const Outcome plain = test::run({.arguments = program});
    const Outcome preloaded = test::run({.arguments = arguments});
    EXPECT_EQ(preloaded.status, plain.status) << program[0];
    EXPECT_EQ(preloaded.out, plain.out) << program[0];
    EXPECT_EQ(preloaded.err, plain.err) << program[0];
  }
}

}  // namespace
}  // namespace ferry
