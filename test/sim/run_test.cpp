// Whole runs: clean seeds, equal traces, every planted bug, seeds that once failed, and what a failure prints.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "sim/sim.h"
#include "sim/sim_main.h"

namespace ferry::sim {
namespace {
using core::PlantedBug;

TEST(SimRunTest, BlockOfSeedsIsClean) {
  SimStats total;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    SimOptions o;
    o.seed = seed;
    const SimResult r = run(o);
    ASSERT_TRUE(r.ok) << r.failure;
    total.add(r.stats);
  }
  // A run that does nothing is clean too: this block must have exercised everything.
  EXPECT_GT(total.device_faults, 1000U);
  EXPECT_GT(total.cpu_faults, 1000U);
  EXPECT_GT(total.evictions, 500U);
  EXPECT_GT(total.failed_actions, 500U);
  EXPECT_GT(total.kills, 200U);
  EXPECT_GT(total.stops, 100U);
  EXPECT_GT(total.waves_failed, 100U);
  EXPECT_GT(total.changes, 300U);
  EXPECT_GT(total.moves, 100U);
  EXPECT_GT(total.carried_pages, 0U);
  EXPECT_GT(total.forks, 200U);
  EXPECT_GT(total.child_pages, 2000U);
  EXPECT_GT(total.old_faults, 10U);
  EXPECT_GT(total.budgets, 50U);
  EXPECT_LT(total.budgets, 150U);
  EXPECT_GT(total.stored_pages, 100'000U);
  EXPECT_GT(total.loaded_pages, 100'000U);
  EXPECT_GT(total.over_budget_pages, 1000U);
}

std::string trace_of(std::uint64_t seed, std::uint64_t steps) {
  SimOptions o;
  o.seed = seed;
  o.steps = steps;
  std::string text;
  o.trace = [&](std::string_view line) { (text += line) += '\n'; };
  const SimResult r = run(o);
  EXPECT_TRUE(r.ok) << r.failure;
  return text;
}

TEST(SimRunTest, SameSeedSameTraceToTheLastByte) {
  for (std::uint64_t seed : {3, 44, 105}) {
    const std::string first = trace_of(seed, 2000);
    const std::string second = trace_of(seed, 2000);
    ASSERT_GT(first.size(), 50'000U);
    ASSERT_EQ(first, second) << "seed " << seed;
  }
}

TEST(SimRunTest, BudgetChangesNothingElse) {
  // A seed means the same programs with and without a budget; without one nothing of it is in the trace.
  for (std::uint64_t seed : {3, 4}) {
    SimOptions o;
    o.seed = seed;
    o.steps = 500;
    o.budget = SimOptions::Budget::off;
    const SimResult without = run(o);
    ASSERT_TRUE(without.ok) << without.failure;
    EXPECT_EQ(without.stats.budgets, 0U);
    EXPECT_EQ(without.stats.stored_pages, 0U);
    o.budget = SimOptions::Budget::on;
    const SimResult with = run(o);
    ASSERT_TRUE(with.ok) << with.failure;
    EXPECT_EQ(with.stats.budgets, 1U);
    EXPECT_NE(with.trace_hash, without.trace_hash);
    o.budget = SimOptions::Budget::by_seed;
    const std::uint64_t chosen = run(o).trace_hash;
    EXPECT_TRUE(chosen == with.trace_hash || chosen == without.trace_hash);
  }
}

TEST(SimRunTest, OtherSeedOtherTrace) { EXPECT_NE(trace_of(1, 500), trace_of(2, 500)); }

TEST(SimRunTest, MoreStepsBeginTheSame) {
  // What shrink() relies on: the random phase does not depend on how many steps it has.
  const std::string small = trace_of(7, 300);
  const std::string large = trace_of(7, 900);
  const std::string common = small.substr(0, small.find("phase"));
  EXPECT_GT(common.size(), 1000U);
  EXPECT_EQ(common.substr(0, common.rfind('\n')), large.substr(0, common.rfind('\n')));
}

class PlantedBugTest : public ::testing::TestWithParam<unsigned> {};

TEST_P(PlantedBugTest, IsFoundInTime) {
  SimOptions o;
  o.bug = static_cast<PlantedBug>(GetParam());
  for (std::uint64_t seed = 1; seed <= planted_bug_seeds; ++seed) {
    o.seed = seed;
    const SimResult r = run(o);
    if (r.ok) continue;
    // The failure names the invariant, the seed and the command, and the same command fails the same way.
    EXPECT_NE(r.failure.find("I-"), std::string::npos);
    EXPECT_NE(r.failure.find(command_of(o)), std::string::npos);
    EXPECT_NE(r.failure.find("last events"), std::string::npos);
    const SimResult again = run(o);
    EXPECT_EQ(again.failure, r.failure);
    // And a shorter run shows the same.
    const SimOptions small = shrink(o, r);
    EXPECT_LE(small.steps, o.steps);
    const SimResult shorter = run(small);
    EXPECT_FALSE(shorter.ok);
    EXPECT_EQ(shorter.broken, r.broken);
    return;
  }
  FAIL() << core::to_string(o.bug) << " was not found in " << planted_bug_seeds << " seeds of " << o.steps << " steps";
}

std::vector<unsigned> simulated_bugs() {
  std::vector<unsigned> bugs;
  for (unsigned i = 1; i < core::planted_bug_count; ++i) {
    if (core::is_simulated(static_cast<PlantedBug>(i))) bugs.push_back(i);
  }
  return bugs;
}

INSTANTIATE_TEST_SUITE_P(All, PlantedBugTest, ::testing::ValuesIn(simulated_bugs()),
                         [](const auto& info) { return core::to_string(static_cast<PlantedBug>(info.param)); });

TEST(SimRunTest, SeedsThatFailedBefore) {
  std::ifstream file(FERRY_TEST_SOURCE_DIR "/test/sim/seeds.txt");
  ASSERT_TRUE(file) << "test/sim/seeds.txt is missing";
  unsigned runs = 0;
  for (std::string text; std::getline(file, text);) {
    if (text.empty() || text[0] == '#') continue;
    std::istringstream words(text);
    SimOptions o;
    ASSERT_TRUE(words >> o.seed >> o.steps) << text;
    std::string what;
    words >> what;
    // Most of them failed before there was a budget.
    o.budget = what == "budget" ? SimOptions::Budget::by_seed : SimOptions::Budget::off;
    const SimResult r = run(o);
    EXPECT_TRUE(r.ok) << text << "\n" << r.failure;
    ++runs;
  }
  EXPECT_GT(runs, 0U);
}

TEST(SimMainTest, ExitCodes) {
  SimMainOptions o;
  o.runs = 3;
  o.steps = 300;
  o.jobs = 1;
  EXPECT_EQ(sim_main(o), 0);
  o.bug = "stale_map";
  o.runs = planted_bug_seeds;
  o.steps = default_steps;
  EXPECT_EQ(sim_main(o), 1);
  o.bug = "no_such_bug";
  EXPECT_EQ(sim_main(o), 2);
  o.bug.clear();
  o.runs = 0;
  EXPECT_EQ(sim_main(o), 2);
}

TEST(SimMainTest, NumberOfJobsDoesNotChangeWhatIsFound) {
  SimMainOptions o;
  o.bug = "over_budget";
  o.runs = planted_bug_seeds;
  std::string texts[2];
  for (unsigned jobs : {1U, 3U}) {
    o.jobs = jobs;
    ::testing::internal::CaptureStdout();
    EXPECT_EQ(sim_main(o), 1);
    texts[jobs == 1 ? 0 : 1] = ::testing::internal::GetCapturedStdout();
  }
  EXPECT_EQ(texts[0], texts[1]);
  // Its own invariant, or the core's check of the same.
  EXPECT_TRUE(texts[0].find("I-04") != std::string::npos || texts[0].find("chunk_owned") != std::string::npos)
      << texts[0];
}

}  // namespace
}  // namespace ferry::sim
