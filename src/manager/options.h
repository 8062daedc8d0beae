// The machine that a manager models and its policy, as `ferry run`, `ferryd` and the TOML file name them. Owns parsing
// and bounds, not the meaning: core/config.h has that. Pure but for reading the file; any thread.
//
//   [machine]                     [policy]                        [store]
//   vram = "64M"                  speculation = 4  # granules     room = "1G"
//   system = "64M"                contention_threshold = 4        memory = "16M"
//   cus = 4                       contention_window_ms = 20       directory = "/var/tmp"
//   devices = 1                   contention_hold_ms = 300        codec = "zstd"
//   granularity = "64K"           copy_retries = 3                level = 1
//   waves_per_cu = 16             keep_free = 1                   io = "uring"
//                                 prefetch = "both"
//                                 density_percent = 51
//                                 victims = "probe"
//                                 leave = "thrash"
//                                 contention_slice_us = 500
//   hardware, policy, reserved_cus, slice_ms, min_run_ms: of every device; in the n-th [[device]] of that one
//   hive: of a [[device]] alone
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/config.h"
#include "linux/store/store.h"

namespace ferry::manager {

/// What was said of a device's hardware and policy; what is empty was not said.
struct DeviceOptions {
  std::optional<bool> preempts_while_faulting;
  std::optional<bool> retry_faults;
  std::optional<core::Policy> policy;
  std::optional<unsigned> reserved_cus;
  std::optional<std::uint64_t> slice_ns;
  std::optional<std::uint64_t> min_run_ns;
  std::optional<unsigned> hive;  ///< devices of one number are linked; 0: with nobody

  void apply_to(core::DeviceModel& model) const;
};

struct MachineOptions {
  std::uint64_t vram_bytes = std::uint64_t{256} << 20;  ///< of each device; whole blocks
  unsigned devices = 1;
  unsigned cus = 0;                     ///< of each device; 0: one for each CPU that this process may run on
  std::uint64_t granularity_bytes = 0;  ///< 0: a 1024th of VRAM, but 64 KiB to 2 MiB (docs/design/0004-granularity.md)
  unsigned waves_per_cu = 16;
  unsigned speculation_granules = 4;
  core::PrefetchKind prefetch = core::PrefetchKind::both;
  unsigned density_percent = 51;
  core::VictimKind victims = core::VictimKind::probe;
  core::LeaveKind leave = core::LeaveKind::thrash;
  unsigned leave_returns = 4;
  unsigned contention_threshold = 4;
  std::uint64_t contention_window_ns = 20'000'000;
  std::uint64_t contention_hold_ns = 300'000'000;
  std::uint64_t contention_slice_ns = 500'000;
  unsigned copy_retries = 3;
  unsigned keep_free = 1;  ///< 1: a little of the budget is reclaimed ahead of demand; 0: when somebody waits for it
  std::uint64_t system_bytes = 0;                   ///< budget of system memory; 0: none, and no store
  std::optional<std::uint64_t> store_bytes;         ///< room for pages beneath; unset: 8 times the budget
  std::optional<std::uint64_t> store_memory_bytes;  ///< for compressed pages; unset: a fifth of the budget
  std::optional<std::string> store_directory;       ///< of the file; unset: /var/tmp. Empty: no file
  linux::Codec store_codec = linux::Codec::zstd;
  int store_level = 1;  ///< zstd's
  linux::IoKind store_io = linux::IoKind::automatic;
  DeviceOptions every_device;              ///< of the file's [machine]
  std::vector<DeviceOptions> each_device;  ///< of the file's [[device]] in order; goes before every_device
  DeviceOptions flag_device;               ///< of the command line; goes before both
  std::vector<std::uint8_t> flag_hives;    ///< of the command line, by device; empty: nothing was said

  /// CUs with 0 resolved.
  [[nodiscard]] unsigned cu_count() const;
  /// Bytes that move together, with 0 resolved.
  [[nodiscard]] std::uint64_t granule_bytes() const;
  /// Room beneath system memory: 0 without a budget.
  [[nodiscard]] std::uint64_t store_room_bytes() const;
  /// How the store is to be made (without threads and tests' faults).
  [[nodiscard]] linux::StoreConfig store_config() const;
  [[nodiscard]] core::DeviceModel model(unsigned device) const;
  /// By device: devices of one number are linked, but those of 0.
  [[nodiscard]] std::vector<std::uint8_t> hives() const;
  [[nodiscard]] core::Config core_config() const;
};

/// What the command line said; what is empty was not said.
struct MachineFlags {
  std::optional<std::string> vram;
  std::optional<std::string> cus;
  std::optional<std::string> devices;
  std::optional<std::string> granularity;
  std::optional<std::string> config;         ///< a TOML file
  std::optional<std::string> hardware = {};  ///< words with commas: preempt or no-preempt, retry or no-retry
  std::optional<std::string> policy = {};
  std::optional<std::string> reserved_cus = {};
  std::optional<std::string> system = {};
  std::optional<std::string> store = {};
  std::optional<std::string> store_memory = {};
  std::optional<std::string> store_directory = {};
  std::optional<std::string> store_codec = {};
  std::optional<std::string> prefetch = {};  ///< kinds of migration policies, by name
  std::optional<std::string> victims = {};
  std::optional<std::string> leave = {};
  std::optional<std::string> store_io = {};
  std::optional<std::string> hive = {};  ///< "all", or devices with commas between them, a slash between hives
};

/// Takes from FERRY_VRAM and the like what no flag says; an empty variable says nothing. ferryd and `ferry run` both do
/// so before read_options(): flag, then environment, then file.
void add_environment(MachineFlags& flags);

/// Reads the file, then the flags over it. On error `options` is unspecified and the text says which flag or key (with
/// file and line) is wrong, and what may stand there. Nothing: all well.
[[nodiscard]] std::optional<std::string> read_options(const MachineFlags& flags, MachineOptions& options);

/// The TOML part alone; `name` stands in messages.
[[nodiscard]] std::optional<std::string> read_toml(std::string_view text, const std::string& name,
                                                   MachineOptions& options);

/// "1 device, 64 MiB VRAM, 4 CUs, granules of 2 MiB", and hives and the budget where there are some.
[[nodiscard]] std::string machine_line(const MachineOptions& options);

}  // namespace ferry::manager
