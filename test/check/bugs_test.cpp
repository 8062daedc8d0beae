// Each planted bug of granules, fences, policies and reclaim makes a scenario come out otherwise than it says.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "check/cases.h"

namespace ferry::check {
namespace {
namespace fs = std::filesystem;
using core::PlantedBug;

/// Shows only in a chunk of several granules, while a scenario's page is a whole one; or in what scenarios have no words
/// for. `ferry sim` finds it.
constexpr PlantedBug left_to_sim[] = {
    PlantedBug::wrong_vram_page, PlantedBug::write_map_read_only, PlantedBug::leak_attributes,
    PlantedBug::keep_discarded,  PlantedBug::keep_peer_mapping,   PlantedBug::keep_protected_mapping,
    PlantedBug::forget_turn,     PlantedBug::keep_empty_slot,     PlantedBug::forget_protection,
    PlantedBug::write_back_copy, PlantedBug::drop_last_copy,      PlantedBug::keep_refusal,
    PlantedBug::keep_protection};

std::vector<std::shared_ptr<const Scenario>> scenarios_that_show(PlantedBug bug) {
  std::vector<std::shared_ptr<const Scenario>> out;
  for (const auto& entry : fs::directory_iterator(fs::path(FERRY_TEST_SOURCE_DIR) / "scenarios")) {
    if (entry.path().extension() != ".scn") continue;
    std::ifstream in(entry.path());
    std::stringstream text;
    text << in.rdbuf();
    Parsed parsed = parse_scenario(text.str(), entry.path().stem().string());
    EXPECT_TRUE(parsed.scenario) << parsed.error;
    if (parsed.scenario && std::count(parsed.scenario->shows.begin(), parsed.scenario->shows.end(), bug) != 0) {
      out.push_back(std::make_shared<const Scenario>(std::move(*parsed.scenario)));
    }
  }
  return out;
}

class Bug : public testing::TestWithParam<unsigned> {};

TEST_P(Bug, IsFound) {
  const auto bug = static_cast<PlantedBug>(GetParam());
  if (std::count(std::begin(left_to_sim), std::end(left_to_sim), bug) != 0) GTEST_SKIP() << "ferry sim finds it";
  const auto scenarios = scenarios_that_show(bug);
  ASSERT_FALSE(scenarios.empty()) << "no scenario is there to show it";
  Effort effort;
  effort.states = 60'000;
  std::string tried;
  for (const auto& scenario : scenarios) {
    bool found = false;
    for (const Hardware& hardware : scenario->sweep(false)) {
      for (unsigned p = 0; p < core::policy_count && !found; ++p) {
        const Case one{scenario, static_cast<core::Policy>(p), hardware, bug};
        const Result result = examine(one, effort);
        found = !result.as_expected;
      }
    }
    EXPECT_TRUE(found) << scenario->name << " is there to show it, and comes out as if it were not planted";
  }
}

INSTANTIATE_TEST_SUITE_P(Planted, Bug, testing::Range(1U, core::planted_bug_count),
                         [](const auto& info) { return core::to_string(static_cast<PlantedBug>(info.param)); });

}  // namespace
}  // namespace ferry::check
