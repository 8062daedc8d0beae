// `ferry check`: its options, and where Ferry's own scenarios lie.
#pragma once

#include <CLI/App.hpp>
#include <string>

#include "check/check_main.h"

namespace ferry::cli {

inline constexpr const char* check_usage =
    "ferry check [SCENARIO...|all] [--policy P|all] [--hardware H|all] [--exhaustive | --schedules N]";

/// Declares the command's options on `app`, which fill `options`.
void declare_check(CLI::App& app, check::CheckOptions& options);
/// REQUIRES: options as declare_check filled them.
int run_check(check::CheckOptions options);

}  // namespace ferry::cli
