// A manager's counters as people read them: the summary after a run and the line while it goes on.
// Reads JSON as it comes over a socket, so every field may be missing or of another type (then it counts as 0). Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace ferry::cli {

struct Counters {
  bool valid = false;  ///< it was a JSON object at all
  std::uint64_t device_faults = 0, device_merged = 0, cpu_faults = 0, cpu_merged = 0, failed = 0;
  std::uint64_t to_vram_bytes = 0, to_system_bytes = 0, dropped_bytes = 0, to_vram_moves = 0, to_system_moves = 0;
  std::uint64_t evictions = 0, evicted_bytes = 0, refaults = 0, in_place = 0, pins = 0, copy_errors = 0;
  std::uint64_t peak_vram_bytes = 0, vram_bytes = 0, vram_bytes_now = 0, devices = 0, kernels = 0;
  std::uint64_t budget_bytes = 0, system_peak_bytes = 0, over_budget_bytes = 0;  ///< of system memory; 0: no budget
  std::uint64_t stored_bytes = 0, restored_bytes = 0, store_errors = 0;
  std::uint64_t wall_ns = 0, kernels_ns = 0, moving_ns = 0, copy_ns = 0, busy_ns = 0, poll_ns = 0, sleep_ns = 0;
};

/// Devices did something between the two: ran, faulted, moved or evicted.
[[nodiscard]] bool device_work(const Counters& now, const Counters& before);

[[nodiscard]] Counters read_counters(std::string_view json);

/// Several lines, each beginning with "ferry: ". `run_ns` is the program's own time.
[[nodiscard]] std::string summary(const Counters& counters, const std::string& program, std::uint64_t run_ns);

/// One line without its end, at most `columns` wide; rates are since `before`, which was taken `since_ns` ago.
[[nodiscard]] std::string progress_line(const Counters& now, const Counters& before, std::uint64_t since_ns,
                                        std::uint64_t run_ns, unsigned columns);

}  // namespace ferry::cli
