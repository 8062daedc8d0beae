// The body of `ferry sim`: many runs, planted bugs, and what is printed about them.
#pragma once

#include <cstdint>
#include <string>

#include "sim/sim.h"

namespace ferry::sim {

struct SimMainOptions {
  std::uint64_t seed = 1;  ///< of the first run; the others follow
  std::uint64_t steps = default_steps;
  std::uint64_t runs = 1;
  /// A name of core::PlantedBug, "all" for a table of every one, or empty.
  std::string bug;
  SimOptions::Budget budget = SimOptions::Budget::by_seed;
  bool trace = false;  ///< print every line of the run; with runs > 1 only of a failing one
  unsigned jobs = 0;   ///< threads; 0: one for each CPU
};

/// Prints to standard output. Returns the exit status: 0 clean (with bug "all": each was found in time), 1 a violation
/// was found, 2 the options make no sense (said on standard error).
int sim_main(const SimMainOptions& options);

}  // namespace ferry::sim
