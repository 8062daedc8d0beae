// The counters of a manager as one JSON object: the answer to a stats message, the file of --stats, and what the
// summary at a program's end is written from. docs/CLI.md lists every field. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/core.h"
#include "linux/store/store.h"
#include "manager/options.h"

namespace ferry::manager {

/// Where the time went, in nanoseconds of CLOCK_MONOTONIC. What nobody measured is 0.
struct TimeSplit {
  std::uint64_t wall_ns = 0;            ///< since the manager started
  std::uint64_t kernels_ns = 0;         ///< at least one kernel ran on some device
  std::uint64_t moving_ns = 0;          ///< at least one migration was under way
  std::uint64_t copy_to_vram_ns = 0;    ///< spent by copy threads, summed over them
  std::uint64_t copy_to_system_ns = 0;  ///< the same, homewards
  std::uint64_t manager_busy_ns = 0;    ///< the manager's main thread worked ...
  std::uint64_t manager_poll_ns = 0;    ///< ... looked for work and found none ...
  std::uint64_t manager_sleep_ns = 0;   ///< ... slept
};

/// What lies beneath system memory; all 0 without a store.
struct StoreFigures {
  linux::StoreStats stats;
  std::uint64_t store_ns = 0;         ///< of the store's threads, summed: into it ...
  std::uint64_t load_ns = 0;          ///< ... and out of it
  std::uint64_t pressure_events = 0;  ///< times that the machine or a cgroup asked for memory back
  std::uint64_t pressure_pages = 0;   ///< that were asked for
};

/// One row a kernel name.
struct KernelRow {
  std::string name;
  std::uint64_t launches = 0;
  std::uint64_t failed = 0;
  std::uint64_t waves = 0;
  std::uint64_t total_ns = 0;
  std::uint64_t longest_ns = 0;
  std::uint64_t device_faults = 0;  ///< on its device while it ran; kernels that overlap count them twice
};

struct StatsDocument {
  core::Stats stats;
  MachineOptions machine;
  TimeSplit time;
  StoreFigures store;
  unsigned clients = 0;  ///< connected now
  std::vector<KernelRow> kernels;
};

/// One object; UTF-8 whatever the names hold; at most `kernels_max` rows, those with most time first, so that the text
/// fits a message.
[[nodiscard]] std::string to_json(const StatsDocument& document, std::size_t kernels_max = 64);

/// Printable ASCII: anything else in a name that an application chose becomes '?'.
[[nodiscard]] std::string clean_text(const char* text, std::size_t size_max);

}  // namespace ferry::manager
