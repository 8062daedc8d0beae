// Every scenario of Ferry's own under every policy comes out as it says it does.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "check/cases.h"

namespace ferry::check {
namespace {
namespace fs = std::filesystem;

std::shared_ptr<const Scenario> load(const fs::path& path) {
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  Parsed parsed = parse_scenario(text.str(), path.stem().string());
  EXPECT_TRUE(parsed.scenario) << parsed.error;
  return parsed.scenario ? std::make_shared<const Scenario>(std::move(*parsed.scenario)) : nullptr;
}

std::vector<std::shared_ptr<const Scenario>> all_scenarios() {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(fs::path(FERRY_TEST_SOURCE_DIR) / "scenarios")) {
    if (entry.path().extension() == ".scn") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<std::shared_ptr<const Scenario>> out;
  for (const fs::path& path : paths) out.push_back(load(path));
  return out;
}

TEST(Scenarios, ComeOutAsTheySay) {
  std::vector<Case> cases;
  for (const auto& scenario : all_scenarios()) {
    ASSERT_NE(scenario, nullptr);
    EXPECT_FALSE(scenario->title.empty()) << scenario->name;
    EXPECT_FALSE(scenario->expectations.empty()) << scenario->name;
    for (const Hardware& hardware : scenario->sweep(false)) {
      for (unsigned p = 0; p < core::policy_count; ++p) {
        cases.push_back({scenario, static_cast<core::Policy>(p), hardware, core::PlantedBug::none});
      }
    }
  }
  ASSERT_GT(cases.size(), 200U);
  const std::vector<Result> results = examine_all(cases, {}, 2);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    EXPECT_TRUE(results[i].as_expected) << cases[i].title() << ": " << to_string(results[i].exploration.finding.verdict)
                                        << "; expected " << words(results[i].expected) << "\n"
                                        << results[i].exploration.finding.text;
    EXPECT_TRUE(results[i].random || results[i].exploration.exhaustive) << cases[i].title();
  }
}

TEST(Scenarios, TheReductionConcludesOnlyWhatIsSo) {
  Limits limits;
  limits.distrust_reduction = true;
  limits.states = 3000;
  for (const auto& scenario : all_scenarios()) {
    ASSERT_NE(scenario, nullptr);
    for (const core::Policy policy : {core::Policy::preempt, core::Policy::track}) {
      const check::Setup setup{scenario.get(), policy, scenario->sweep(false).front(), core::PlantedBug::none};
      EXPECT_GT(explore(setup, limits).states, 1U) << scenario->name;  // aborts where it is not
    }
  }
}

}  // namespace
}  // namespace ferry::check
