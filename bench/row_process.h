// Runs one bench in a process of its own, so that each starts with a fresh machine (its own private manager, devices and
// configuration), and one that crashes or hangs costs its own rows only.
#pragma once

#include <string>
#include <vector>

#include "harness.h"

namespace ferry::bench {

/// Starts this program again with `arguments` and the bench's environment, and reads the rows it prints.
/// A process that fails, or is not done within `limit_s`, yields the bench's expected rows with the reason as note.
[[nodiscard]] std::vector<Row> run_in_own_process(const Bench& bench, const std::vector<std::string>& arguments,
                                                  int limit_s);

}  // namespace ferry::bench
