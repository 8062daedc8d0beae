// The states that an exploration has seen, and how events lead from one to the other.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "check/scenario.h"
#include "check/verdict.h"

namespace ferry::check {

struct Transition {
  std::uint64_t key = 0;
  std::uint64_t footprint = 0;
  std::uint32_t to = none;  ///< none: not looked at yet
  bool progress = false;    ///< somebody got a step further
  bool optional = false;    ///< fairness does not ask for it: failures, timers that fire early
};

struct StateNode {
  std::vector<Transition> out;
  std::uint32_t finding = none;  ///< index, where an execution ends here badly
};

class StateGraph {
 public:
  /// The state's number, and whether it is new.
  std::uint32_t state(std::uint64_t digest, bool& is_new);
  [[nodiscard]] StateNode& operator[](std::uint32_t state) { return nodes_[state]; }
  [[nodiscard]] const StateNode& operator[](std::uint32_t state) const { return nodes_[state]; }
  [[nodiscard]] std::size_t size() const { return nodes_.size(); }

  /// Keys of a shortest way from state 0, or nothing if there is none.
  [[nodiscard]] std::vector<std::uint64_t> way_to(std::uint32_t target) const;
  /// The nearest to state 0 among those whose finding has the verdict; none: no such state.
  [[nodiscard]] std::uint32_t nearest(const std::vector<Finding>& findings, Verdict verdict) const;

  /// A way that comes back to its start, in which nobody makes progress and whatever can happen somewhere on it does
  /// happen: a livelock under strong fairness. Empty: there is none. `entry`: the state where it begins.
  [[nodiscard]] std::vector<std::uint64_t> fair_cycle(std::uint32_t& entry) const;

 private:
  void distances(std::vector<std::uint32_t>& from, std::vector<std::uint64_t>& by,
                 std::vector<std::uint32_t>& order) const;
  [[nodiscard]] std::vector<std::uint64_t> cycle_in(const std::vector<std::uint32_t>& component) const;
  /// Strongly connected components of two states and more (or one with a way to itself) among `states`, over transitions
  /// without progress.
  [[nodiscard]] std::vector<std::vector<std::uint32_t>> components(const std::vector<std::uint32_t>& states) const;

  std::vector<StateNode> nodes_;
  std::unordered_map<std::uint64_t, std::uint32_t> index_;
};

}  // namespace ferry::check
