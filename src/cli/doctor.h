// ferry doctor: what this machine offers, what each lack costs, and the command that mends it. Every line comes from
// trying the thing itself where that is possible, not from a version number.
#pragma once

#include <string>
#include <vector>

namespace ferry::cli {

enum class State {
  ok,
  degraded,  ///< Ferry runs, slower or with a limit
  missing,   ///< Ferry cannot run
};
[[nodiscard]] const char* to_string(State state);

struct Check {
  std::string name;
  State state = State::ok;
  std::string found = {};
  std::string cost = {};  ///< what the lack costs; empty if ok
  std::string mend = {};  ///< a command; empty if ok or if none mends it
};

/// Runs every probe. Starts and ends child processes and threads of its own; changes nothing on the machine.
[[nodiscard]] std::vector<Check> examine();

/// What mends a kernel that is too old. Debian 12 comes with 6.1, and has newer ones among its backports.
inline constexpr const char* new_kernel =
    "a newer kernel; on Debian 12: sudo apt-get install -t bookworm-backports linux-image-$(dpkg --print-architecture)";

/// The user-mode fault path, tried in a child process.
[[nodiscard]] Check check_fault_path();
[[nodiscard]] Check check_full_service();
[[nodiscard]] Check check_features();
[[nodiscard]] Check check_read_only_pages();
[[nodiscard]] Check check_poison();
[[nodiscard]] Check check_huge_pages();
[[nodiscard]] Check check_window();
[[nodiscard]] Check check_wake_latency();
// For budgets of system memory (doctor_store.cpp).
[[nodiscard]] Check check_store_file();
[[nodiscard]] Check check_io_uring();
[[nodiscard]] Check check_pressure();

/// Prints; returns the exit code.
int doctor(bool json);

}  // namespace ferry::cli
