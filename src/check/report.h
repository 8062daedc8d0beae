// What many cases came to, as a table for people and as JSON.
#pragma once

#include <string>
#include <vector>

#include "check/cases.h"

namespace ferry::check {

/// A row for each scenario and machine, a column for each policy; what is not as expected is marked and told below.
[[nodiscard]] std::string report_table(const std::vector<Case>& cases, const std::vector<Result>& results);
/// One object: "cases" and "total".
[[nodiscard]] std::string report_json(const std::vector<Case>& cases, const std::vector<Result>& results);

}  // namespace ferry::check
