#include "manager/options.h"

#include <gtest/gtest.h>

namespace ferry::manager {
namespace {

TEST(Options, DefaultsAreOneDevice) {
  const MachineOptions options;
  EXPECT_EQ(options.devices, 1U);
  EXPECT_GE(options.cu_count(), 1U);
  const core::Config config = options.core_config();
  EXPECT_EQ(config.vram_pages, options.vram_bytes / page_bytes);
  EXPECT_EQ(config.granularity_pages * page_bytes, options.granule_bytes());
  EXPECT_EQ(config.bug, core::PlantedBug::none);
}

TEST(Options, GranulesFollowTheSizeOfVramUnlessSaidOtherwise) {
  const std::pair<const char*, std::uint64_t> cases[] = {
      {"2M", 64 << 10}, {"64M", 64 << 10}, {"256M", 256 << 10}, {"1G", 1 << 20}, {"16G", 2 << 20}};
  for (const auto& [vram, granule] : cases) {
    MachineOptions options;
    ASSERT_FALSE(read_options({.vram = vram, .cus = {}, .devices = {}, .granularity = {}, .config = {}}, options));
    EXPECT_EQ(options.granule_bytes(), granule) << vram;
  }
}

TEST(Options, FlagsSetTheMachine) {
  MachineOptions options;
  const auto error =
      read_options({.vram = "65M", .cus = "3", .devices = "2", .granularity = "64K", .config = {}}, options);
  EXPECT_FALSE(error) << *error;
  EXPECT_EQ(options.vram_bytes, std::uint64_t{64} << 20) << "rounded down to whole blocks";
  EXPECT_EQ(options.cu_count(), 3U);
  EXPECT_EQ(options.devices, 2U);
  EXPECT_EQ(options.core_config().granularity_pages, 16U);
  EXPECT_EQ(machine_line(options), "2 devices, each 64 MiB VRAM, 3 CUs, granules of 64 KiB");
}

TEST(Options, FlagsThatAreWrongAreNamed) {
  struct Case {
    MachineFlags flags;
    const char* part;
  };
  const Case cases[] = {
      {{.vram = "64X", .cus = {}, .devices = {}, .granularity = {}, .config = {}}, "--vram '64X' is not a size"},
      {{.vram = "1M", .cus = {}, .devices = {}, .granularity = {}, .config = {}}, "at least 2M"},
      {{.vram = "16T", .cus = {}, .devices = {}, .granularity = {}, .config = {}}, "less than 16T"},
      {{.vram = "99999999T", .cus = {}, .devices = {}, .granularity = {}, .config = {}}, "64 bits"},
      {{.vram = {}, .cus = "0", .devices = {}, .granularity = {}, .config = {}}, "--cus '0' has to be 1 to 64"},
      {{.vram = {}, .cus = "many", .devices = {}, .granularity = {}, .config = {}}, "not a whole number"},
      {{.vram = {}, .cus = "2x", .devices = {}, .granularity = {}, .config = {}}, "not a whole number"},
      {{.vram = {}, .cus = "", .devices = {}, .granularity = {}, .config = {}}, "not a whole number"},
      {{.vram = {}, .cus = {}, .devices = "17", .granularity = {}, .config = {}}, "--devices '17' has to be 1 to 16"},
      {{.vram = {}, .cus = {}, .devices = {}, .granularity = "3K", .config = {}}, "power of two from 4K to 2M"},
      {{.vram = {}, .cus = {}, .devices = {}, .granularity = "4M", .config = {}}, "power of two from 4K to 2M"},
      {{.vram = {}, .cus = {}, .devices = {}, .granularity = {}, .config = "/nonexistent/f.toml"}, "No such file"},
      {{.vram = {}, .cus = {}, .devices = {}, .granularity = {}, .config = "/"}, "Is a directory"},
  };
  for (const Case& c : cases) {
    MachineOptions options;
    const auto error = read_options(c.flags, options);
    ASSERT_TRUE(error) << c.part;
    EXPECT_NE(error->find(c.part), std::string::npos) << *error;
  }
}

TEST(Options, TomlSetsEveryKey) {
  MachineOptions options;
  const auto error = read_toml(R"(
    [machine]
    vram = "128M"
    cus = 5
    devices = 3
    granularity = 4096
    waves_per_cu = 7
    [policy]
    speculation = 0
    contention_threshold = 9
    contention_window_ms = 5
    contention_hold_ms = 6
    copy_retries = 1
  )",
                               "f.toml", options);
  ASSERT_FALSE(error) << *error;
  EXPECT_EQ(options.vram_bytes, std::uint64_t{128} << 20);
  EXPECT_EQ(options.cus, 5U);
  EXPECT_EQ(options.waves_per_cu, 7U);
  const core::Config config = options.core_config();
  EXPECT_EQ(config.device_count, 3U);
  EXPECT_EQ(config.granularity_pages, 1U);
  EXPECT_EQ(config.speculation_granules, 0U);
  EXPECT_EQ(config.contention_threshold, 9U);
  EXPECT_EQ(config.contention_window_ns, 5'000'000U);
  EXPECT_EQ(config.contention_hold_ns, 6'000'000U);
  EXPECT_EQ(config.copy_retries, 1U);
}

TEST(Options, TomlErrorsSayWhere) {
  const std::pair<const char*, const char*> cases[] = {
      {"[machine\n", "f.toml:1"},
      {"[machine]\nvram = 'x'\n", "f.toml:2: 'machine.vram' is not a size"},
      {"[machine]\n\nvrma = 1\n", "f.toml:3: no key 'vrma' in [machine]: there are cus, devices"},
      {"[machine]\nvram = -1\n", "is negative"},
      {"[machine]\nvram = true\n", "has to be a size"},
      {"[machine]\ncus = '2'\n", "has to be a whole number"},
      {"[machine]\ncus = 1.5\n", "has to be a whole number"},
      {"[machine]\nwaves_per_cu = 65\n", "has to be 1 to 64"},
      {"[policy]\ncontention_hold_ms = -3\n", "milliseconds"},
      {"[engine]\n", "'engine' is not a table known here: there are machine, policy"},
      {"machine = 3\n", "'machine' is not a table known here"},
  };
  for (const auto& [text, part] : cases) {
    MachineOptions options;
    const auto error = read_toml(text, "f.toml", options);
    ASSERT_TRUE(error) << text;
    EXPECT_NE(error->find(part), std::string::npos) << *error;
  }
}

}  // namespace
}  // namespace ferry::manager
