// ferry run: one program under a chosen machine, with a manager of its own that starts when the program first asks for
// a device. Passes signals on, returns the program's status, leaves the files asked for.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "manager/options.h"

namespace ferry::cli {

struct RunOptions {
  manager::MachineFlags machine;
  bool malloc = false;   ///< preload libferry_malloc.so
  bool quiet = false;    ///< no summary, no progress
  bool progress = true;  ///< where standard error is a terminal
  std::optional<std::string> stats;
  std::optional<std::string> trace;
  std::optional<std::string> report;
  std::vector<std::string> program;
};

/// Exit code of the process.
int run(const RunOptions& options);

}  // namespace ferry::cli
