// Exit codes of every command, for scripts; docs/CLI.md says the same.
#pragma once

namespace ferry::cli {

inline constexpr int exit_ok = 0;
inline constexpr int exit_failed = 1;      ///< the command ran, and the answer is no (doctor: Ferry cannot run here)
inline constexpr int exit_usage = 2;       ///< the command line or a configuration file is wrong
inline constexpr int exit_no_manager = 3;  ///< explain: no manager to ask

// ferry run returns the program's own status, so its failures keep clear of the low numbers, as env and timeout do.
inline constexpr int exit_ferry = 125;           ///< Ferry itself failed
inline constexpr int exit_not_executable = 126;  ///< the program was found and cannot be run
inline constexpr int exit_not_found = 127;
inline constexpr int exit_signal = 128;  ///< + number of the signal that ended the program

}  // namespace ferry::cli
