// One scenario under one policy on one machine, and what came of it; many of them on several threads.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "check/explore.h"
#include "check/scenario.h"

namespace ferry::check {

struct Case {
  std::shared_ptr<const Scenario> scenario;
  core::Policy policy = core::Policy::none;
  Hardware hardware;
  core::PlantedBug bug = core::PlantedBug::none;

  [[nodiscard]] Setup setup() const { return {scenario.get(), policy, hardware, bug}; }
  /// "shared, policy none, units=1".
  [[nodiscard]] std::string title() const;
  /// "shared-none-units=1", for files.
  [[nodiscard]] std::string file_name() const;
};

struct Result {
  Exploration exploration;
  std::vector<Verdict> expected;  ///< any of these
  bool as_expected = false;
  bool random = false;
  double seconds = 0;  ///< of processor
};

struct Effort {
  bool exhaustive = false;  ///< large scenarios are searched too
  std::uint64_t schedules = 0;
  std::uint64_t seed = 1;
  unsigned preemptions = 3;
  std::uint64_t states = 2'000'000;
};

[[nodiscard]] Result examine(const Case& one, const Effort& effort);
/// In parallel; results in the order of the cases. `done` is called for each, one at a time; cleared return value: stop.
[[nodiscard]] std::vector<Result> examine_all(const std::vector<Case>& cases, const Effort& effort, unsigned jobs,
                                              const std::function<bool(std::size_t, const Result&)>& done = {});

[[nodiscard]] std::string words(const std::vector<Verdict>& verdicts);

}  // namespace ferry::check
