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
    contention_slice_us = 7
    copy_retries = 1
    prefetch = "stride"
    density_percent = 75
    victims = "random"
    leave = "cost"
    leave_returns = 2
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
  EXPECT_EQ(config.contention_slice_ns, 7'000U);
  EXPECT_EQ(config.copy_retries, 1U);
  EXPECT_EQ(config.prefetch, core::PrefetchKind::stride);
  EXPECT_EQ(config.density_percent, 75U);
  EXPECT_EQ(config.victims, core::VictimKind::random);
  EXPECT_EQ(config.leave, core::LeaveKind::cost);
  EXPECT_EQ(config.leave_returns, 2U);
}

TEST(Options, FlagsChoosePolicies) {
  MachineOptions options;
  MachineFlags flags;
  flags.prefetch = "density";
  flags.victims = "lru";
  flags.leave = "never";
  ASSERT_FALSE(read_options(flags, options));
  EXPECT_EQ(options.core_config().prefetch, core::PrefetchKind::density);
  EXPECT_EQ(options.core_config().victims, core::VictimKind::lru);
  EXPECT_EQ(options.core_config().leave, core::LeaveKind::never);
  flags.leave = "sometimes";
  const auto error = read_options(flags, options);
  ASSERT_TRUE(error);
  EXPECT_NE(error->find("never, thrash or cost"), std::string::npos) << *error;
}

TEST(Options, WithoutABudgetThereIsNoStore) {
  MachineOptions options;
  MachineFlags flags;
  flags.store = "1G";
  ASSERT_FALSE(read_options(flags, options));
  EXPECT_EQ(options.core_config().system_pages, 0U);
  EXPECT_EQ(options.core_config().store_pages, 0U);
}

TEST(Options, ABudgetBringsAStoreThatFollowsIt) {
  MachineOptions options;
  MachineFlags flags;
  flags.system = "64M";
  ASSERT_FALSE(read_options(flags, options));
  const core::Config config = options.core_config();
  EXPECT_EQ(config.system_pages * page_bytes, std::uint64_t{64} << 20);
  EXPECT_EQ(config.store_pages, 8 * config.system_pages);
  const linux::StoreConfig store = options.store_config();
  EXPECT_EQ(store.codec, linux::Codec::zstd);
  EXPECT_EQ(store.memory_bytes, (std::uint64_t{64} << 20) / 5);
  EXPECT_EQ(store.file_bytes, std::uint64_t{512} << 20);
  EXPECT_EQ(store.directory, "/var/tmp");
}

TEST(Options, FlagsSetTheStore) {
  MachineOptions options;
  MachineFlags flags;
  flags.system = "64M";
  flags.store = "128M";
  flags.store_memory = "4M";
  flags.store_directory = "";
  flags.store_codec = "lz4";
  flags.store_io = "threads";
  ASSERT_FALSE(read_options(flags, options));
  const linux::StoreConfig store = options.store_config();
  EXPECT_EQ(options.core_config().store_pages * page_bytes, std::uint64_t{128} << 20);
  EXPECT_EQ(store.codec, linux::Codec::lz4);
  EXPECT_EQ(store.io, linux::IoKind::threads);
  EXPECT_EQ(store.memory_bytes, std::uint64_t{4} << 20);
  EXPECT_EQ(store.file_bytes, 0U) << "an empty directory is no file";
  EXPECT_EQ(machine_line(options).substr(machine_line(options).find(';')),
            "; 64 MiB of system memory, 128 MiB beneath it");
}

TEST(Options, StoreFlagsThatAreWrongAreNamed) {
  struct Case {
    std::optional<std::string> MachineFlags::*flag;
    const char* value;
    const char* part;
  };
  const Case cases[] = {
      {&MachineFlags::system, "1M", "--system '1M' is too small: 2M at least"},
      {&MachineFlags::system, "much", "--system 'much' is not a size"},
      {&MachineFlags::store, "16T", "less than 16T"},
      {&MachineFlags::store_memory, "64K", "1M at least"},
      {&MachineFlags::store_codec, "gzip", "--store-codec 'gzip' has to be zstd, lz4 or none"},
      {&MachineFlags::store_io, "aio", "--store-io 'aio' has to be uring or threads"},
  };
  for (const Case& c : cases) {
    MachineOptions options;
    MachineFlags flags;
    flags.*c.flag = c.value;
    const auto error = read_options(flags, options);
    ASSERT_TRUE(error) << c.part;
    EXPECT_NE(error->find(c.part), std::string::npos) << *error;
  }
}

TEST(Options, TomlSetsTheStore) {
  MachineOptions options;
  const auto error = read_toml(R"(
    [machine]
    system = "32M"
    [store]
    room = "100M"
    memory = "8M"
    directory = "/tmp"
    codec = "none"
    level = 3
    io = "threads"
  )",
                               "f.toml", options);
  ASSERT_FALSE(error) << *error;
  const linux::StoreConfig store = options.store_config();
  EXPECT_EQ(options.system_bytes, std::uint64_t{32} << 20);
  EXPECT_EQ(store.file_bytes, std::uint64_t{100} << 20);
  EXPECT_EQ(store.memory_bytes, std::uint64_t{8} << 20);
  EXPECT_EQ(store.directory, "/tmp");
  EXPECT_EQ(store.codec, linux::Codec::none);
  EXPECT_EQ(store.level, 3);
  EXPECT_EQ(store.io, linux::IoKind::threads);
}

TEST(Options, FlagsSetHardwareAndPolicyOfEveryDevice) {
  MachineOptions options;
  MachineFlags flags;
  flags.cus = "4";
  flags.devices = "2";
  flags.hardware = "no-preempt,no-retry";
  flags.policy = "reserve-in-flight";
  flags.reserved_cus = "3";
  const auto error = read_options(flags, options);
  ASSERT_FALSE(error) << *error;
  const core::Config config = options.core_config();
  ASSERT_EQ(config.models.size(), 2U);
  for (const core::DeviceModel& model : config.models) {
    EXPECT_EQ(model.cu_count, 4U);
    EXPECT_FALSE(model.preempts_while_faulting);
    EXPECT_FALSE(model.retry_faults);
    EXPECT_EQ(model.policy, core::Policy::reserve_in_flight);
    EXPECT_EQ(model.reserved_cus, 3U);
  }
}

TEST(Options, EveryPolicyHasAName) {
  for (unsigned p = 0; p < core::policy_count; ++p) {
    MachineOptions options;
    MachineFlags flags;
    flags.cus = "2";
    flags.policy = core::to_string(static_cast<core::Policy>(p));
    ASSERT_FALSE(read_options(flags, options));
    EXPECT_EQ(options.core_config().models.at(0).policy, static_cast<core::Policy>(p));
  }
}

TEST(Options, ADeviceOfItsOwnGoesBeforeTheMachineAndTheFlagsBeforeBoth) {
  constexpr const char* text = R"(
    [machine]
    cus = 4
    devices = 3
    policy = "query"
    hardware = "no-preempt"
    slice_ms = 7
    [[device]]
    policy = "track"
    min_run_ms = 2
    [[device]]
    hardware = "preempt"
    reserved_cus = 2
  )";
  MachineOptions options;
  auto error = read_toml(text, "f.toml", options);
  ASSERT_FALSE(error) << *error;
  const core::Config config = options.core_config();
  ASSERT_EQ(config.models.size(), 3U);
  EXPECT_EQ(config.models[0].policy, core::Policy::track);
  EXPECT_EQ(config.models[0].min_run_ns, 2'000'000U);
  EXPECT_EQ(config.models[1].policy, core::Policy::query);
  EXPECT_EQ(config.models[1].reserved_cus, 2U);
  EXPECT_EQ(config.models[2].policy, core::Policy::query);
  EXPECT_FALSE(config.models[0].preempts_while_faulting);
  EXPECT_TRUE(config.models[1].preempts_while_faulting);
  EXPECT_FALSE(config.models[2].preempts_while_faulting);
  EXPECT_EQ(config.models[2].slice_ns, 7'000'000U);
  MachineFlags flags;
  flags.policy = "pinned";
  error = read_options(flags, options);
  ASSERT_FALSE(error) << *error;
  for (unsigned d = 0; d < 3; ++d) EXPECT_EQ(options.model(d).policy, core::Policy::pinned);
}

TEST(Options, HivesOfFlagsAndOfTheFile) {
  using Hives = std::vector<std::uint8_t>;
  const auto hives = [](const char* text, const char* devices) {
    MachineOptions options;
    MachineFlags flags;
    flags.devices = devices;
    flags.hive = text;
    const auto error = read_options(flags, options);
    EXPECT_FALSE(error) << *error;
    return options.core_config().hives;
  };
  EXPECT_EQ(hives("0,2", "4"), (Hives{1, 0, 1, 0}));
  EXPECT_EQ(hives("0,3/1,2", "4"), (Hives{1, 2, 2, 1}));
  EXPECT_EQ(hives("all", "16"), Hives(16, 1));
  constexpr const char* text = R"(
    [machine]
    devices = 3
    cus = 1
    [[device]]
    hive = 2
    [[device]]
    [[device]]
    hive = 2
  )";
  MachineOptions options;
  const auto error = read_toml(text, "f.toml", options);
  ASSERT_FALSE(error) << *error;
  EXPECT_EQ(options.core_config().hives, (Hives{2, 0, 2}));
  EXPECT_NE(machine_line(options).find("; hives 0-2"), std::string::npos) << machine_line(options);
  options.flag_hives.assign(max_devices, 1);
  EXPECT_EQ(options.core_config().hives, (Hives{1, 1, 1}));
  EXPECT_EQ(MachineOptions().core_config().hives, Hives{0});
}

TEST(Options, HivesThatCannotBeAreRefused) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "--hive '' has to be all, or devices"},   {"0,", "has to be all, or devices"},
      {"0;1", "has to be all, or devices"},          {"-1", "has to be all, or devices"},
      {"0,4", "names device 4, which there is not"}, {"0,1/1,2", "names device 1 twice"},
  };
  for (const auto& [text, part] : cases) {
    MachineOptions options;
    MachineFlags flags;
    flags.devices = "4";
    flags.hive = text;
    const auto error = read_options(flags, options);
    ASSERT_TRUE(error) << text;
    EXPECT_NE(error->find(part), std::string::npos) << *error;
  }
  for (const char* text : {"[machine]\nhive = 1\n", "[[device]]\nhive = 17\n", "[[device]]\nhive = -1\n"}) {
    MachineOptions options;
    EXPECT_TRUE(read_toml(text, "f.toml", options)) << text;
  }
}

TEST(Options, HardwareAndPoliciesThatCannotBeAreRefused) {
  struct Case {
    const char* cus;
    std::optional<std::string> hardware, policy, reserved;
    const char* part;
  };
  const Case cases[] = {
      {"4", "fast", {}, {}, "--hardware 'fast' has to be preempt or no-preempt"},
      {"4", "retry,", {}, {}, "has to be preempt"},
      {"4", "", {}, {}, "has to be preempt"},
      {"4", {}, "best", {}, "--policy 'best' has to be none, preempt, reserve, reserve-in-flight"},
      {"4", {}, {}, "0", "--reserved-cus '0' has to be 1 to 64"},
      {"1", {}, "reserve", {}, "leaves none for compute"},
      {"4", {}, "reserve", "4", "leaves none for compute"},
  };
  for (const Case& c : cases) {
    MachineOptions options;
    MachineFlags flags;
    flags.cus = c.cus;
    flags.hardware = c.hardware;
    flags.policy = c.policy;
    flags.reserved_cus = c.reserved;
    const auto error = read_options(flags, options);
    ASSERT_TRUE(error) << c.part;
    EXPECT_NE(error->find(c.part), std::string::npos) << *error;
  }
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
      {"[policy]\ncontention_slice_us = 1000001\n", "microseconds"},
      {"[engine]\n", "'engine' is not a table known here: there are machine, policy"},
      {"[[device]]\npolicy = 'best'\n", "f.toml:2: 'device.policy' has to be none, preempt"},
      {"[[device]]\nhardware = 3\n", "'device.hardware' has to be text"},
      {"[[device]]\ncus = 3\n", "f.toml:2: no key 'cus' in [[device]]: there are hardware, hive, min_run_ms"},
      {"[[device]]\nslice_ms = -1\n", "'device.slice_ms' has to be 0 to 3600000"},
      {"device = 3\n", "'device' is not a table known here"},
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
