// The explorer of `ferry check`: states a second on one CPU, over a scenario of the usual size.
#include <time.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include <fmt/format.h>

#include "check/cases.h"
#include "rows/rows.h"

namespace ferry::bench {

namespace {

/// All scenarios under all policies are half a million states, and ought to take one CPU less than two minutes.
constexpr double required_states_per_s = 5'000;

/// Two devices behind one buffer, and compute that faults on one of them: engines, fences, memory, compute units.
constexpr std::string_view text = R"(title  Two devices and a buffer between them
device 0 units 1
device 1 units 1
system 2
store  4
client app game
page   a b : app
buffer shared : game home system
wave   w0 : app on 0
  write a
  write b
thread g0 : game
  submit f0 graphics on 0 writes shared
  submit f1 graphics on 1 reads shared
  wait f1
thread t0 : app
  read a
  write b
expect all : clean
)";

/// Policies that finish it, so that the search sees everything and ends nowhere early.
constexpr std::array policies = {core::Policy::preempt, core::Policy::reserve_in_flight, core::Policy::exclusive,
                                 core::Policy::query};

std::uint64_t thread_ns() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(time.tv_nsec);
}

Row owed() { return {.name = "progress_explorer", .target = 1.0, .bound = Bound::at_least, .unit = "states/ms"}; }

struct Sample {
  std::uint64_t states = 0;
  double states_per_ms = 0;
};

Sample sample(const std::shared_ptr<const check::Scenario>& scenario) {
  Sample out;
  const std::uint64_t begin_ns = thread_ns();
  for (const core::Policy policy : policies) {
    const check::Result result = check::examine({scenario, policy, {}, core::PlantedBug::none}, {});
    if (!result.as_expected || !result.exploration.exhaustive) {
      throw std::runtime_error(fmt::format("the scenario comes out otherwise under {}", core::to_string(policy)));
    }
    out.states += result.exploration.states;
  }
  out.states_per_ms = static_cast<double>(out.states) * 1e6 / static_cast<double>(thread_ns() - begin_ns);
  return out;
}

}  // namespace

Bench progress_explorer() {
  return {.name = "progress-explorer",
          .about = "states that `ferry check` explores a second on one CPU",
          .run =
              [](const Settings& settings) {
                check::Parsed parsed = check::parse_scenario(text, "bench");
                if (!parsed.scenario) throw std::runtime_error("the scenario of the bench: " + parsed.error);
                const auto scenario = std::make_shared<const check::Scenario>(std::move(*parsed.scenario));
                std::vector<double> samples;
                std::uint64_t states = 0;
                for (int round = 0; round < settings.repeat; ++round) {
                  const Sample one = sample(scenario);
                  samples.push_back(one.states_per_ms);
                  states = one.states;
                }
                Row row = make_row(owed(), median(samples), required_states_per_s / 1e3);
                row.note = fmt::format("{} states, searched through under {} policies", states, policies.size());
                return std::vector<Row>{row};
              },
          .expected = {owed()}};
}

}  // namespace ferry::bench
