// The search itself: what it finds, that what it finds can be gone again, and that random schedules find it too.
#include "check/explore.h"

#include <gtest/gtest.h>

#include <set>

#include "check/draw.h"

namespace ferry::check {
namespace {
using core::Policy;

constexpr const char* hang = R"(device 0 units 1 preempts no
system 2
store 4
client app game
page a b : app
buffer frame : game home system
wave w0 : app on 0
  write a
  write b
thread g0 : game
  submit f1 graphics on 0 writes frame
  wait f1
)";

class Explored : public testing::Test {
 protected:
  const Scenario scenario_ = *parse_scenario(hang, "hang").scenario;
  [[nodiscard]] check::Setup setup_of(Policy policy) const { return {&scenario_, policy, {}, core::PlantedBug::none}; }
};

TEST_F(Explored, TheHangIsFoundWithItsCircle) {
  const Exploration e = explore(setup_of(Policy::none), {});
  EXPECT_TRUE(e.exhaustive);
  ASSERT_EQ(e.finding.verdict, Verdict::deadlock);
  for (const char* link :
       {"the fault of w0", "needs memory", "fence f1", "compute unit 0", "is held by", "page b of app"}) {
    EXPECT_NE(e.finding.text.find(link), std::string::npos) << link << " in\n" << e.finding.text;
  }
}

TEST_F(Explored, TheCounterexampleCanBeGoneAgainAndIsMinimal) {
  const Exploration e = explore(setup_of(Policy::none), {});
  RunOptions options;
  options.go_on = false;
  options.log = true;
  const check::Run run = run_schedule(setup_of(Policy::none), e.schedule, options);
  EXPECT_TRUE(run.followed);
  EXPECT_EQ(run.performed, e.schedule);
  EXPECT_EQ(run.finding.verdict, Verdict::deadlock);
  EXPECT_EQ(run.finding.text, e.finding.text);
  // Nothing can be left out of it.
  EXPECT_GE(minimise(setup_of(Policy::none), e.schedule, Verdict::deadlock).size(), e.schedule.size());
}

TEST_F(Explored, ASoundPolicyIsClean) {
  for (const Policy policy : {Policy::reserve_in_flight, Policy::exclusive, Policy::query, Policy::track}) {
    const Exploration e = explore(setup_of(policy), {});
    EXPECT_EQ(e.finding.verdict, Verdict::clean) << core::to_string(policy) << ": " << e.finding.text;
    EXPECT_TRUE(e.exhaustive);
    EXPECT_GT(e.states, 10U);
  }
}

TEST_F(Explored, TwiceTheSame) {
  const Exploration a = explore(setup_of(Policy::query), {});
  const Exploration b = explore(setup_of(Policy::query), {});
  EXPECT_EQ(a.states, b.states);
  EXPECT_EQ(a.transitions, b.transitions);
  EXPECT_EQ(a.executions, b.executions);
}

TEST_F(Explored, ALimitIsToldAsSuch) {
  Limits limits;
  limits.states = 5;
  const Exploration e = explore(setup_of(Policy::query), limits);
  EXPECT_FALSE(e.exhaustive);
}

TEST_F(Explored, RandomSchedulesFindItAndSayTheSeed) {
  RandomOptions options;
  options.schedules = 2000;
  const Exploration e = explore_randomly(setup_of(Policy::none), options);
  ASSERT_EQ(e.finding.verdict, Verdict::deadlock) << "in " << e.schedules << " schedules";
  RandomOptions again;
  again.schedules = 1;
  again.seed = e.seed;
  EXPECT_EQ(explore_randomly(setup_of(Policy::none), again).schedule, e.schedule);
  EXPECT_LE(e.schedule.size(), explore(setup_of(Policy::none), {}).schedule.size() + 4);
}

TEST_F(Explored, DrawingsNameEverybodyAndLeadNowhereElse) {
  const Exploration e = explore(setup_of(Policy::none), {});
  RunOptions options;
  options.go_on = false;
  options.log = true;
  const check::Run run = run_schedule(setup_of(Policy::none), e.schedule, options);
  const Picture picture{"hang <none> & \"more\"", e.finding, 0, "ferry check --replay x"};
  const std::string text = draw_text(run, picture);
  const std::string html = draw_html(run, picture);
  for (const char* word : {"w0", "g0", "core", "write b", "submit f1", "deadlock"}) {
    EXPECT_NE(text.find(word), std::string::npos) << word;
    EXPECT_NE(html.find(word), std::string::npos) << word;
  }
  EXPECT_NE(html.find("hang &lt;none&gt; &amp; &quot;more&quot;"), std::string::npos);
  for (const char* outside : {"http://", "https://", "src=", "<script", "@import", "url(http"}) {
    EXPECT_EQ(html.find(outside), std::string::npos) << outside;
  }
  EXPECT_EQ(html.find("<svg"), html.rfind("<svg"));
}

TEST(Reduction, WhatItConcludesIsWhatHappens) {
  // Waves that only touch what they have commute with nearly everything; each conclusion is executed and compared.
  const Scenario scenario = *parse_scenario(R"(device 0 units 2
vram 2
client app
page a b : app
wave w0 : app on 0
  write a
  write a
  signal go
  read a
wave w1 : app on 0
  write b
  read b
  read b
thread t0 : app
  await go
  read b
)",
                                            "commuting")
                                 .scenario;
  const check::Setup setup{&scenario, Policy::preempt, {}, core::PlantedBug::none};
  Limits distrust;
  distrust.distrust_reduction = true;
  const Exploration checked = explore(setup, distrust);
  const Exploration trusted = explore(setup, {});
  EXPECT_EQ(checked.finding.verdict, Verdict::clean) << checked.finding.text;
  EXPECT_EQ(checked.states, trusted.states);
  EXPECT_EQ(checked.transitions, trusted.transitions);
  EXPECT_GT(trusted.concluded, 0U);
  EXPECT_LT(trusted.executions, checked.executions);
}

TEST(Catcher, AFailedCheckIsAFinding) {
  const CrashCatcher catcher;
  EXPECT_THROW(FERRY_CHECK(1 == 2), Violation);
}

}  // namespace
}  // namespace ferry::check
