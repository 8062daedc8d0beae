// One seed, one run of the real core in a simulated machine, to the last byte: the same options give the same trace on
// every machine. Virtual time only; no thread, clock, pointer value or hash order has a part in it.
// Owns nothing outside the call to run(). docs/TESTING.md says how to read what it prints.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "core/config.h"

namespace ferry::sim {

/// What the checkers watch. The number is the one in docs/INVARIANTS.md.
enum class Invariant : std::uint8_t {
  none = 0,
  current_copy = 1,       ///< every allocated page has a current copy
  exclusive_writer = 2,   ///< a writable mapping of one copy excludes mappings of every other copy
  maps_current = 3,       ///< a mapping leads to a current copy
  budget = 4,             ///< chunks in use never exceed a device's budget
  slot_single_use = 5,    ///< a VRAM page holds one page at a time
  fault_ends_once = 6,    ///< every device fault ends exactly once
  dma_balance = 7,        ///< what was opened to a device is closed again
  all_given_back = 8,     ///< when the clients are gone nothing is left
  writable_is_dirty = 9,  ///< VRAM that a device can write counts as dirty
  reads_last_write = 10,  ///< a read gives what was written last, by whoever
  quiet_source = 11,      ///< nobody can write the source of a copy, nobody can reach its target
  reply_once = 12,        ///< every request is answered exactly once
  cpu_fault_ends = 13,    ///< every CPU fault is woken
  progress = 14,          ///< when failures stop, whoever waits is served within a bound
  free_is_final = 15,     ///< after the reply to a free nothing of the span is mapped, copied or remembered
  view_is_true = 16,      ///< what the core says about a page is so
  answers_right = 17,     ///< requests and faults succeed and fail as documented
  order_free = 18,        ///< no two actions in flight depend on which is performed first
  core_check = 19,        ///< the core's own checks hold (FERRY_CHECK, verify())
  counts_are_true = 20,   ///< statistics count what happened
  // The numbers between belong to buffers, fences and units.
  charged_first = 40,        ///< a page has system memory only while it is charged, and what is charged is held
  over_is_told = 41,         ///< nothing is given over the budget but what is counted as such
  nothing_forbidden = 50,    ///< a device maps only what attributes let it
  attributes_are_true = 51,  ///< what was said about a page is what is read back, and nothing else
  pinned_stays = 60,         ///< a pinned page keeps its place and memory
  copies_not_written = 65,   ///< nobody may write a page that is read from several memories
  copies_are_equal = 66,     ///< each copy of a page has the newest bytes, and is not the only one
  protected_pages = 70,      ///< from the answer to a protection on no device does what it forbids
  old_fault_again = 73,      ///< a fault older than an unmap of its page is tried again, and nothing else
  moved_pages = 74,          ///< when a move is answered its pages read at their new addresses what they read before
  refused_till_let = 75,     ///< a CPU thread is refused a page only while something keeps the page from it
  fork_is_quiet = 80,        ///< when a fork is answered no device reaches any page
  fork_sees_own = 81,        ///< a child sees what was there at the fork, and its own writes
  discarded_pages = 72,      ///< from the answer to a discard on the pages read as zeros until they are written
};
[[nodiscard]] const char* to_string(Invariant invariant);

inline constexpr std::uint64_t default_steps = 3000;
/// A planted bug must show within this many seeds of default_steps.
inline constexpr unsigned planted_bug_seeds = 50;

struct SimOptions {
  std::uint64_t seed = 1;
  /// Events of the random phase; the phases that end the run come after.
  std::uint64_t steps = default_steps;
  core::PlantedBug bug = core::PlantedBug::none;
  /// Whether system memory has a budget and a store beneath it.
  enum class Budget : std::uint8_t { by_seed, off, on } budget = Budget::by_seed;
  /// Called for every line of the trace, newline not included; empty: no text is made.
  std::function<void(std::string_view)> trace;
};

/// What a run has exercised.
struct SimStats {
  std::uint64_t accesses = 0;
  std::uint64_t device_faults = 0;
  std::uint64_t cpu_faults = 0;
  std::uint64_t copied_pages = 0;
  std::uint64_t evictions = 0;
  std::uint64_t actions = 0;
  std::uint64_t failed_actions = 0;
  std::uint64_t kills = 0;
  std::uint64_t stops = 0;
  std::uint64_t waves_failed = 0;
  std::uint64_t requests = 0;
  std::uint64_t changes = 0;  ///< of address spaces: unmaps, discards, protections, moves
  std::uint64_t moves = 0;    ///< that were taken
  std::uint64_t carried_pages = 0;
  std::uint64_t forks = 0;
  std::uint64_t child_pages = 0;  ///< copied for children before they could go or change
  std::uint64_t old_faults = 0;   ///< read after their page was unmapped
  std::uint64_t budgets = 0;      ///< runs with a budget of system memory
  std::uint64_t stored_pages = 0;
  std::uint64_t loaded_pages = 0;
  std::uint64_t over_budget_pages = 0;
  std::uint64_t duplicated_pages = 0;
  std::uint64_t collapsed_pages = 0;
  std::uint64_t most_retries = 0;  ///< times that one access faulted before it was done, at most

  void add(const SimStats& o);
};

struct SimResult {
  bool ok = true;
  Invariant broken = Invariant::none;
  /// Why, in words, with the last lines of the trace and the command that leads here again. Empty if ok.
  std::string failure;
  /// The first line of `failure`.
  std::string what;
  std::uint64_t trace_hash = 0;
  std::uint64_t steps = 0;  ///< events of all phases; on failure the one that failed
  SimStats stats;
};

[[nodiscard]] SimResult run(const SimOptions& options);

/// The command that repeats a run.
[[nodiscard]] std::string command_of(const SimOptions& options);

/// Fewest steps found, by halving, with which the run still breaks the same invariant. REQUIRES: `failed` came from
/// run(options) and is not ok.
[[nodiscard]] SimOptions shrink(const SimOptions& options, const SimResult& failed);

}  // namespace ferry::sim
