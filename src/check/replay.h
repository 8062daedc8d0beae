// A counterexample as a file: the scenario, the policy, the machine, and the events in their order. Self-contained, so that
// it means the same wherever it is read.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "check/scenario.h"
#include "check/verdict.h"

namespace ferry::check {

struct Replay {
  std::string name;  ///< of the scenario
  std::string text;  ///< of the scenario
  core::Policy policy = core::Policy::none;
  Hardware hardware;
  core::PlantedBug bug = core::PlantedBug::none;
  Verdict verdict = Verdict::clean;
  std::size_t cycle_from = 0;
  std::vector<std::uint64_t> keys;
  std::vector<std::string> names;  ///< for people
};

[[nodiscard]] std::string write_replay(const Replay& replay);
/// `error` says what is wrong when there is none.
[[nodiscard]] std::optional<Replay> read_replay(std::string_view text, std::string& error);

}  // namespace ferry::check
