// ferry-bench as a script meets it: exit codes, JSON, help.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

namespace ferry::bench {
namespace {

struct Ended {
  int exit_code = -1;
  std::string output;
};

Ended run(const std::string& arguments) {
  Ended ended;
  FILE* pipe = popen((FERRY_TEST_BUILD_DIR "/bin/ferry-bench " + arguments + " 2>/dev/null").c_str(), "r");
  if (pipe == nullptr) return ended;
  char buffer[4096];
  for (std::size_t got = fread(buffer, 1, sizeof buffer, pipe); got > 0; got = fread(buffer, 1, sizeof buffer, pipe)) {
    ended.output.append(buffer, got);
  }
  const int status = pclose(pipe);
  if (WIFEXITED(status)) ended.exit_code = WEXITSTATUS(status);
  return ended;
}

/// Every row is there, whole, and with figures on both sides. Whether targets are met is not a test's business.
void expect_measured(const std::string& arguments, std::size_t rows) {
  const Ended ended = run(arguments + " --json --repeat 1");
  EXPECT_TRUE(ended.exit_code == 0 || ended.exit_code == 1) << ended.exit_code;
  const auto parsed = nlohmann::json::parse(ended.output, nullptr, false);
  ASSERT_TRUE(parsed.is_array()) << ended.output;
  ASSERT_EQ(parsed.size(), rows);
  bool all_met = true;
  for (const auto& row : parsed) {
    EXPECT_TRUE(row.at("ferry").is_number()) << row;
    EXPECT_TRUE(row.at("floor").is_number()) << row;
    EXPECT_TRUE(row.at("ratio").is_number()) << row;
    all_met = all_met && row.at("meets").get<bool>();
  }
  EXPECT_EQ(ended.exit_code, all_met ? 0 : 1);
}

TEST(Program, HelpNamesEveryBenchAndAnExample) {
  const Ended help = run("--help");
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_NE(help.output.find("core "), std::string::npos);
  EXPECT_NE(help.output.find("Example: ferry-bench"), std::string::npos);
}

TEST(Program, WrongUsageIsTwo) {
  EXPECT_EQ(run("no-such-bench").exit_code, 2);
  EXPECT_EQ(run("--repeat 0").exit_code, 2);
  EXPECT_EQ(run("--no-such-option").exit_code, 2);
}

TEST(Program, ABenchThatIsNotDoneInTimeIsPrintedAsNotMeasured) {
  const Ended ended = run("core --json --limit 1 --repeat 1000");
  EXPECT_EQ(ended.exit_code, 1);
  const auto parsed = nlohmann::json::parse(ended.output, nullptr, false);
  ASSERT_TRUE(parsed.is_array());
  ASSERT_EQ(parsed.size(), 2U);
  EXPECT_TRUE(parsed[0].at("ferry").is_null());
  EXPECT_EQ(parsed[0].at("meets"), false);
}

TEST(Program, CoreIsMeasured) { expect_measured("core", 2); }

#ifdef FERRY_BENCH_DEVICE
TEST(Program, DeviceFaultsAreMeasured) { expect_measured("fault-1cu fault-all", 3); }
TEST(Program, CpuFaultsAreMeasured) { expect_measured("fault-cpu", 1); }
TEST(Program, MigrationIsMeasured) { expect_measured("migrate", 2); }
TEST(Program, MovesAreMeasured) { expect_measured("move", 2); }
#endif

}  // namespace
}  // namespace ferry::bench
