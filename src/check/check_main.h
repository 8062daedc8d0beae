// The body of `ferry check`: many scenarios, policies and machines on several threads, and what is printed about them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ferry::check {

struct CheckOptions {
  /// Names of scenarios in `folder`, paths of files, or "all".
  std::vector<std::string> scenarios;
  std::string folder;           ///< where Ferry's own scenarios lie; empty: nowhere
  std::string policy = "all";   ///< a name, or "all"
  std::string hardware;         ///< as parse_hardware, "all", or empty for what the scenario sweeps
  bool exhaustive = false;      ///< search all, even where the scenario is large
  std::uint64_t schedules = 0;  ///< random schedules in place of the search; 0: the scenario says
  std::uint64_t seed = 1;
  unsigned preemptions = 3;
  std::uint64_t states = 2'000'000;
  std::string bug;     ///< a name of core::PlantedBug, or "all" for a table of every one
  std::string replay;  ///< a file
  std::string save;    ///< a folder for counterexamples
  std::string html;    ///< a file: the first counterexample
  bool json = false;
  bool list = false;
  unsigned jobs = 0;  ///< threads; 0: one for each CPU
};

/// Prints to standard output. Returns the exit status: 0 all as expected (with bug "all": each was found), 1 not, 2 the
/// options or a file make no sense (said on standard error).
int check_main(const CheckOptions& options);

}  // namespace ferry::check
