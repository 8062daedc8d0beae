// Programs under a budget of system memory that their data do not fit: they finish with the right result, the budget
// is held, and a store that is full or fails costs them time, never a byte.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "family.h"

namespace ferry::test {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t mib = 1 << 20;

Json read_json(const std::string& path) {
  std::ifstream file(path);
  return Json::parse(file, nullptr, false);
}

std::uint64_t number(const Json& json, const char* object, const char* field) {
  return json.value(object, Json::object()).value(field, std::uint64_t{0});
}

/// The system files that the manager holds.
struct SystemFiles {
  std::size_t count = 0;
  std::uint64_t memory_bytes = 0;
};
SystemFiles system_files(pid_t manager) {
  SystemFiles files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/" + std::to_string(manager) + "/fd", error)) {
    const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
    if (target.find("ferry-system") == std::string::npos) continue;
    struct stat st {};
    if (stat(entry.path().c_str(), &st) != 0) continue;
    ++files.count;
    files.memory_bytes += static_cast<std::uint64_t>(st.st_blocks) * 512;
  }
  return files;
}

/// A run of `ferry run` in a folder of its own, with its counters.
struct FerryRun {
  Folder folder;
  Json stats;
  std::string said;
  std::string errors;
  int status = -1;

  FerryRun(std::vector<std::string> options, const std::vector<std::string>& command, const Environment& more = {}) {
    std::vector<std::string> words = {program("bin/ferry"), "run", "--stats", folder.file("stats"), "--no-progress"};
    words.insert(words.end(), options.begin(), options.end());
    words.emplace_back("--");
    words.insert(words.end(), command.begin(), command.end());
    Environment environment = {{"XDG_RUNTIME_DIR", folder.file("")}};
    environment.insert(environment.end(), more.begin(), more.end());
    {
      App app(words, environment);
      status = app.wait_end();
      said = app.said();
      errors = app.errors();
    }
    expect_no_processes();
    stats = read_json(folder.file("stats"));
    unlink(folder.file("stats").c_str());
    EXPECT_TRUE(stats.is_object()) << errors;
    EXPECT_EQ(said.find("WRONG"), std::string::npos) << said;
  }
};

// --- the examples ----------------------------------------------------------------------------------------------------

struct Example {
  const char* name;
  std::vector<std::string> arguments;
  const char* vram;
  const char* system;
  const char* granularity;
};

class ExamplesUnderABudget : public testing::TestWithParam<Example> {};

TEST_P(ExamplesUnderABudget, FinishWithTheRightResult) {
  const Example& e = GetParam();
  std::vector<std::string> command = {program((std::string("examples/") + e.name).c_str())};
  command.insert(command.end(), e.arguments.begin(), e.arguments.end());
  const FerryRun run({"--vram", e.vram, "--system", e.system, "--granularity", e.granularity}, command);
  SCOPED_TRACE(run.stats.dump(1));
  ASSERT_EQ(run.status, 0) << run.said << run.errors;
  EXPECT_NE(run.said.find("verified"), std::string::npos) << run.said;
  EXPECT_GT(number(run.stats, "store", "bytes_in"), 0U) << "nothing was stored: this test shows nothing";
  EXPECT_EQ(number(run.stats, "store", "errors"), 0U);
  if (number(run.stats, "system", "over_budget_bytes") == 0) {
    EXPECT_LE(number(run.stats, "system", "peak_bytes"), number(run.stats, "system", "budget_bytes"));
  }
}

// A quarter of what each touches in all, or less.
INSTANTIATE_TEST_SUITE_P(
    All, ExamplesUnderABudget,
    testing::Values(Example{"stencil", {"--data", "16", "--steps", "3"}, "8M", "4M", "64K"},
                    Example{"wordcount", {"--data", "16"}, "8M", "4M", "64K"},
                    Example{"chase", {"--data", "8", "--rounds", "1"}, "8M", "3M", "16K"},
                    Example{"graph", {"--no-packages", "--data", "2", "--iterations", "2"}, "2M", "2M", "4K"}),
    [](const auto& info) { return std::string(info.param.name); });

// --- the budget ------------------------------------------------------------------------------------------------------

TEST(Budget, IsHeldInWhatTheKernelCounts) {
  constexpr std::uint64_t budget = 8 * mib;
  App app({program("bin/test/e2e_migrator"), "24"},
          {{"FERRY_VRAM", "8M"}, {"FERRY_SYSTEM", "8M"}, {"FERRY_GRANULARITY", "64K"}, {"FERRY_CUS", "2"}});
  const pid_t manager = app.wait_for(Role::manager);
  ASSERT_GT(manager, 0);
  std::uint64_t most = 0;
  for (unsigned round = 1; round <= 6; ++round) {
    for (int look = 0; look < 200; ++look) most = std::max(most, system_files(manager).memory_bytes);
    ASSERT_TRUE(app.wait_lines("round", 1)) << app.errors();
    most = std::max(most, system_files(manager).memory_bytes);
  }
  EXPECT_LE(most, budget);
  EXPECT_GT(most, budget / 4) << "the files that were looked at are not those that hold the data";
  app.close_input();
  EXPECT_EQ(app.wait_end(), 0) << app.said() << app.errors();
}

TEST(Budget, CountsWhatAProgramHadBeforeItOpenedItsFirstContext) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer has a malloc of its own";
#endif
  constexpr std::uint64_t budget = 8 * mib;
  App app({program("bin/test/e2e_migrator"), "8"}, {{"LD_PRELOAD", program("lib/libferry_malloc.so")},
                                                    {"FERRY_TEST_BALLAST", "16"},
                                                    {"FERRY_VRAM", "4M"},
                                                    {"FERRY_SYSTEM", "8M"},
                                                    {"FERRY_GRANULARITY", "64K"},
                                                    {"FERRY_CUS", "2"}});
  ASSERT_TRUE(app.wait_lines("round", 2)) << app.errors();
  const pid_t manager = app.find(Role::manager);
  ASSERT_GT(manager, 0);
  EXPECT_TRUE(wait_until(app.pid(), [&] { return system_files(manager).memory_bytes <= budget; }));
  app.close_input();
  EXPECT_EQ(app.wait_end(), 0) << app.said() << app.errors();
}

class StoreVariants : public testing::TestWithParam<std::vector<std::string>> {};

TEST_P(StoreVariants, KeepEveryByte) {
  std::vector<std::string> options = {"--vram", "8M", "--system", "4M", "--granularity", "64K"};
  options.insert(options.end(), GetParam().begin(), GetParam().end());
  const FerryRun run(options, {program("bin/test/e2e_migrator"), "16", "3"});
  SCOPED_TRACE(run.stats.dump(1));
  EXPECT_EQ(run.status, 0) << run.said << run.errors;
  EXPECT_GT(number(run.stats, "store", "bytes_out"), 0U) << "nothing came back: this test shows nothing";
}

INSTANTIATE_TEST_SUITE_P(All, StoreVariants,
                         testing::Values(std::vector<std::string>{"--store-codec", "lz4"},
                                         std::vector<std::string>{"--store-codec", "none"},
                                         std::vector<std::string>{"--store-io", "threads"},
                                         std::vector<std::string>{"--store-memory", "0"}),
                         [](const auto& info) {
                           std::string name = info.param[0].substr(2) + "_" + info.param[1];
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// --- a store that is full or fails -----------------------------------------------------------------------------------

TEST(Store, ThatIsTooSmallCostsTheBudgetAndNoByte) {
  const FerryRun run({"--vram", "8M", "--system", "4M", "--granularity", "64K", "--store", "1M"},
                     {program("bin/test/e2e_migrator"), "16", "3"});
  SCOPED_TRACE(run.stats.dump(1));
  EXPECT_EQ(run.status, 0) << run.said << run.errors;
  EXPECT_GT(number(run.stats, "system", "over_budget_bytes"), 0U);
  EXPECT_LE(number(run.stats, "store", "bytes_now"), mib);
}

TEST(Store, ThatIsSwitchedOffCostsTheBudgetAndNoByte) {
  const FerryRun run({"--vram", "8M", "--system", "4M", "--granularity", "64K", "--store", "0"},
                     {program("bin/test/e2e_migrator"), "16", "2"});
  SCOPED_TRACE(run.stats.dump(1));
  EXPECT_EQ(run.status, 0) << run.said << run.errors;
  EXPECT_GT(number(run.stats, "system", "over_budget_bytes"), 0U);
  EXPECT_EQ(number(run.stats, "store", "bytes_in"), 0U);
}

Environment failing_disk(const char* what, int error, int after) {
  return {{"LD_PRELOAD", program("lib/libe2e_failing_disk.so")},
          {"ASAN_OPTIONS", "verify_asan_link_order=0"},  // which wants to be the only library that is preloaded
          {"FERRY_TEST_DISK", std::string(what) + " " + std::to_string(error) + " " + std::to_string(after)}};
}

const std::vector<std::string> on_a_failing_disk = {"--vram",        "8M",  "--system",   "4M",
                                                    "--granularity", "64K", "--store-io", "threads"};

TEST(Store, WhoseDiskFillsUpLosesNoByte) {
  const FerryRun run(on_a_failing_disk, {program("bin/test/e2e_migrator"), "16", "3"},
                     failing_disk("write", ENOSPC, 20));
  SCOPED_TRACE(run.stats.dump(1));
  EXPECT_EQ(run.status, 0) << run.said << run.errors;
  EXPECT_GT(number(run.stats, "store", "errors"), 0U) << "the disk never failed: this test shows nothing";
}

TEST(Store, WhoseDiskFailsToWriteLosesNoByte) {
  const FerryRun run(on_a_failing_disk, {program("bin/test/e2e_migrator"), "16", "3"}, failing_disk("write", EIO, 20));
  SCOPED_TRACE(run.stats.dump(1));
  EXPECT_EQ(run.status, 0) << run.said << run.errors;
  EXPECT_GT(number(run.stats, "store", "errors"), 0U) << "the disk never failed: this test shows nothing";
}

TEST(Store, WhoseDiskFailsToReadEndsTheProgramAndShowsItNoZeros) {
  const FerryRun run(on_a_failing_disk, {program("bin/test/e2e_migrator"), "16", "3"}, failing_disk("read", EIO, 20));
  SCOPED_TRACE(run.stats.dump(1) + run.said + run.errors);
  // A CPU thread gets SIGBUS, a kernel an error: either ends the program.
  EXPECT_NE(run.status, 0);
  EXPECT_EQ(run.said.find("done"), std::string::npos);
}

TEST(Store, InADirectoryThatIsNotThereIsToldAtOnce) {
  Folder folder;
  App app({program("bin/ferryd"), "--socket", folder.file("socket"), "--system", "8M", "--store-dir",
           "/nonexistent/directory"},
          {});
  EXPECT_EQ(app.wait_end(), 1);
  EXPECT_NE(app.errors().find("/nonexistent/directory"), std::string::npos) << app.errors();
  EXPECT_NE(app.errors().find("--store-dir"), std::string::npos) << app.errors();
}

// --- endings ---------------------------------------------------------------------------------------------------------

TEST(Store, KeepsNothingOfAProgramThatWasKilled) {
  Folder folder;
  const std::string stats = folder.file("stats");
  App daemon({program("bin/ferryd"), "--socket", folder.file("socket"), "--stats", stats, "--vram", "8M", "--system",
              "4M", "--granularity", "64K"},
             {});
  ASSERT_TRUE(wait_until(daemon.pid(), [&] { return std::filesystem::exists(folder.file("socket")); }));
  for (int victim = 0; victim < 3; ++victim) {
    App app({program("bin/test/e2e_migrator"), "16"}, {{"FERRY_SOCKET", folder.file("socket")}});
    ASSERT_TRUE(app.wait_line("ready")) << app.errors() << daemon.errors();
    ASSERT_TRUE(victim == 0 || app.wait_lines("round", static_cast<unsigned>(victim))) << app.errors();
    App::signal(app.pid(), SIGKILL);
    app.wait_end();
  }
  // The next one finds all of it free.
  {
    App app({program("bin/test/e2e_migrator"), "8", "2"}, {{"FERRY_SOCKET", folder.file("socket")}});
    EXPECT_EQ(app.wait_end(), 0) << app.said() << app.errors();
  }
  EXPECT_TRUE(wait_until(daemon.pid(), [&] { return system_files(daemon.pid()).count == 0; }));
  App::signal(daemon.pid(), SIGTERM);
  ASSERT_EQ(daemon.wait_end(), 0) << daemon.errors();
  const Json json = read_json(stats);
  unlink(stats.c_str());
  ASSERT_TRUE(json.is_object());
  SCOPED_TRACE(json.dump(1));
  EXPECT_GT(number(json, "store", "bytes_in"), 0U) << "nothing was stored: this test shows nothing";
  EXPECT_EQ(number(json, "store", "bytes_now"), 0U);
  EXPECT_EQ(number(json, "store", "file_bytes"), 0U);
  EXPECT_EQ(number(json, "store", "compressed_bytes"), 0U);
  EXPECT_EQ(number(json, "system", "bytes_now"), 0U);
}

}  // namespace
}  // namespace ferry::test
