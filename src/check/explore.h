// Finds out what a scenario can come to under one policy on one machine: by going through every state, or by random
// schedules. The argument why that is sound is docs/design/0013-explorer.md.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "check/verdict.h"
#include "check/world.h"

namespace ferry::check {

struct Limits {
  std::uint64_t states = 2'000'000;  ///< then the search ends, and is not exhaustive
  /// Transitions that the reduction has concluded are executed all the same and compared: for tests of the reduction.
  bool distrust_reduction = false;
};

struct RandomOptions {
  std::uint64_t schedules = 1000;
  std::uint64_t seed = 1;
  unsigned preemptions = 3;        ///< times that the order of preference changes in one schedule
  unsigned length = 4000;          ///< events of a schedule, at most
  unsigned progress_bound = 1500;  ///< events without progress that count as livelock
};

struct Exploration {
  Finding finding;                      ///< the worst; clean if there was none
  std::vector<std::uint64_t> schedule;  ///< keys of the events that lead to it, as few as could be found
  /// Livelock: the events from here on repeat for ever.
  std::size_t cycle_from = 0;
  bool exhaustive = false;
  std::uint64_t states = 0;
  std::uint64_t transitions = 0;     ///< between them, those that were concluded included
  std::uint64_t concluded = 0;       ///< without being executed
  std::uint64_t executions = 0;      ///< runs from the start
  std::uint64_t events = 0;          ///< performed, in all executions
  std::uint64_t seed = 0;            ///< random: of the schedule that found it
  std::uint64_t schedules = 0;       ///< random
  std::vector<std::string> remarks;  ///< what the core's graph told, each once
};

[[nodiscard]] Exploration explore(const Setup& setup, const Limits& limits);
[[nodiscard]] Exploration explore_randomly(const Setup& setup, const RandomOptions& options);

/// Performs the events with these keys, passing over those that are not enabled, then goes on in a fair order until
/// nothing can happen. What it came to, and the keys performed.
struct Run {
  Finding finding;
  std::vector<std::uint64_t> performed;
  std::vector<std::string> names;  ///< of those performed
  Log log;                         ///< if asked for
  std::vector<std::string> participants;
  bool followed = true;  ///< every key was enabled when its turn came
};
struct RunOptions {
  bool go_on = true;  ///< after the last key
  bool log = false;
  unsigned length = 4000;
  unsigned progress_bound = 1500;
};
[[nodiscard]] Run run_schedule(const Setup& setup, const std::vector<std::uint64_t>& keys, const RunOptions& options);

/// Fewer events that lead to the same verdict, by leaving out ever smaller parts.
[[nodiscard]] std::vector<std::uint64_t> minimise(const Setup& setup, std::vector<std::uint64_t> schedule,
                                                  Verdict verdict);

/// While one lives, a failed FERRY_CHECK on this thread becomes a Violation (crash).
class CrashCatcher {
 public:
  CrashCatcher();
  ~CrashCatcher();
  CrashCatcher(const CrashCatcher&) = delete;
  CrashCatcher& operator=(const CrashCatcher&) = delete;
};

}  // namespace ferry::check
