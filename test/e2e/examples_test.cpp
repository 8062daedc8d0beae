// The examples on twice the device's memory, on machines of every kind: they check their own results.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <tuple>

#include "family.h"

namespace ferry::test {
namespace {

constexpr std::uint64_t vram_mib = 16;

struct Machine {
  const char* granularity;
  unsigned devices;
  unsigned cus;
};

using Parameters = std::tuple<const char*, Machine>;
class Examples : public testing::TestWithParam<Parameters> {};

TEST_P(Examples, TwiceTheMemory) {
  const auto& [name, machine] = GetParam();
  Folder folder;
  std::vector<std::string> command = {program("bin/ferry"),
                                      "run",
                                      "--vram",
                                      std::to_string(vram_mib) + "M",
                                      "--granularity",
                                      machine.granularity,
                                      "--devices",
                                      std::to_string(machine.devices),
                                      "--cus",
                                      std::to_string(machine.cus),
                                      "--stats",
                                      folder.file("stats"),
                                      "--",
                                      program((std::string("examples/") + name).c_str())};
  const std::string example = name;
  if (example == "stencil") command.insert(command.end(), {"--out", folder.file("heat")});
  if (example == "graph" && !std::filesystem::exists("/var/lib/dpkg/status")) command.emplace_back("--no-packages");
  {
    App app(command, {{"XDG_RUNTIME_DIR", folder.file("")}});
    ASSERT_EQ(app.wait_end(), 0) << app.said() << app.errors();
    EXPECT_NE(app.said().find("verified"), std::string::npos) << app.said();
    EXPECT_EQ(app.said().find("WRONG"), std::string::npos) << app.said();
  }
  expect_no_processes();
  std::ifstream file(folder.file("stats"));
  const auto stats = nlohmann::json::parse(file, nullptr, false);
  ASSERT_TRUE(stats.is_object());
  SCOPED_TRACE(stats.dump(1));
  const std::uint64_t peak = stats.value("peak_vram_bytes", std::uint64_t{0});
  EXPECT_GT(peak, 0U);
  EXPECT_LE(peak, machine.devices * (vram_mib << 20));
  // Chase may end with nothing evicted: what CPU threads update all the time stays in system memory.
  if (example != "chase") {
    EXPECT_GT(stats.value("evictions", std::uint64_t{0}), 0U);
  }
  std::vector<std::string> left = folder.entries();
  std::erase_if(left, [](const std::string& entry) { return entry == "stats" || entry.starts_with("heat-"); });
  EXPECT_EQ(left, std::vector<std::string>{});
}

constexpr Machine machines[] = {{"2M", 1, 1},  {"2M", 2, 3}, {"64K", 1, 1}, {"64K", 1, 3},
                                {"64K", 2, 3}, {"4K", 1, 1}, {"4K", 2, 3}};

std::string name_of(const testing::TestParamInfo<Parameters>& info) {
  const auto& [name, machine] = info.param;
  return std::string(name) + "_" + machine.granularity + "_" + std::to_string(machine.devices) + "devices_" +
         std::to_string(machine.cus) + "cus";
}
INSTANTIATE_TEST_SUITE_P(All, Examples,
                         testing::Combine(testing::Values("graph", "stencil", "chase", "wordcount"),
                                          testing::ValuesIn(machines)),
                         name_of);

class AttributesExample : public testing::TestWithParam<const char*> {};

TEST_P(AttributesExample, SaysWhatWasRefusedAndIsRight) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer reports the kernel that is refused itself, and ends the device";
#endif
  {
    App app({program("examples/attributes")},
            {{"FERRY_SOCKET", ""}, {"FERRY_VRAM", "16M"}, {"FERRY_CUS", "2"}, {"FERRY_DEVICES", GetParam()}});
    ASSERT_EQ(app.wait_end(), 0) << app.said() << app.errors();
    EXPECT_NE(app.said().find("is right"), std::string::npos) << app.said();
    EXPECT_NE(app.said().find("line 1"), std::string::npos) << app.said();
  }
  expect_no_processes();
}

INSTANTIATE_TEST_SUITE_P(Of, AttributesExample, testing::Values("1", "2", "5"));

}  // namespace
}  // namespace ferry::test
