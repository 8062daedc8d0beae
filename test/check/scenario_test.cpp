// What a scenario's text says, and what is said about a text that is none.
#include <gtest/gtest.h>

#include "check/replay.h"
#include "check/scenario.h"

namespace ferry::check {
namespace {
using core::Policy;

constexpr const char* small = R"(title  A title: with a colon
claim  one
device 0 units 2 preempts no
sweep  units 1 2
client app game
page   a b : app
buffer frame : game app home system
wave   w0 : app on 0
  write a     # a comment
thread g0 : game
  submit f1 graphics on 0 writes frame cus 2 timeout 5ms
  wait f1
expect all : clean
expect none preempt if units 2+ : deadlock or refused
)";

std::string error_of(const std::string& text) {
  const Parsed parsed = parse_scenario(text, "x");
  return parsed.scenario ? std::string("parsed") : parsed.error;
}

TEST(Scenario, SaysWhatItSays) {
  const Parsed parsed = parse_scenario(small, "small");
  ASSERT_TRUE(parsed.scenario) << parsed.error;
  const Scenario& s = *parsed.scenario;
  EXPECT_EQ(s.title, "A title: with a colon");
  ASSERT_EQ(s.agents.size(), 2U);
  EXPECT_TRUE(s.agents[0].is_wave);
  EXPECT_EQ(s.agents[0].steps.at(0).text, "write a");
  ASSERT_EQ(s.jobs.size(), 1U);
  EXPECT_EQ(s.jobs[0].cus_min, 2U);
  EXPECT_EQ(s.jobs[0].timeout_ns, 5'000'000U);
  EXPECT_EQ(s.buffers[0].clients, (std::vector<std::uint32_t>{1, 0}));
}

TEST(Scenario, SweepsWhatItLeavesOpen) {
  const Scenario s = *parse_scenario(small, "small").scenario;
  ASSERT_EQ(s.sweep(false).size(), 2U);
  EXPECT_EQ(s.sweep(false)[1].text(), "units=2");
  EXPECT_EQ(s.sweep(true).size(), 3U * 2U);  // preempts is fixed
  EXPECT_EQ(s.model(0, Policy::track, s.sweep(false)[1]).cu_count, 2U);
  EXPECT_FALSE(s.model(0, Policy::track, {}).preempts_while_faulting);
}

TEST(Scenario, TheLastExpectationThatFitsCounts) {
  const Scenario s = *parse_scenario(small, "small").scenario;
  EXPECT_EQ(s.expected(Policy::none, *parse_hardware("units=1")), std::vector<Verdict>{Verdict::clean});
  EXPECT_EQ(s.expected(Policy::none, *parse_hardware("units=3")),
            (std::vector<Verdict>{Verdict::deadlock, Verdict::refused}));
  EXPECT_EQ(s.expected(Policy::query, *parse_hardware("units=2")), std::vector<Verdict>{Verdict::clean});
}

TEST(Scenario, MistakesAreToldWithTheirLine) {
  EXPECT_EQ(error_of("device 0 units 1\nclient app\nwave w : app on 1\n  read a\n"),
            "x:3: '1' is no number from 0 to 0");
  EXPECT_EQ(error_of("device 0 units 1\nclient app\nwave w : app on 0\n  read a\n"),
            "x:4: no page or buffer is called 'a'");
  EXPECT_EQ(error_of("device 0 units 99\n"), "x:1: '99' is no number from 1 to 8");
  EXPECT_EQ(error_of("  read a\n"), "x:1: a step belongs to a thread or a wave");
  EXPECT_EQ(error_of("device 0\nclient app\nthread t : app\n  wait f\n"),
            "x: fence 'f' is waited for, but nobody submits it");
  EXPECT_EQ(error_of("device 0\nclient app\nthread t : app\n  await w\n"),
            "x: word 'w' is waited for, but nobody signals it");
  EXPECT_EQ(error_of("client app app\n"), "x:1: 'app' has been declared already");
  EXPECT_EQ(error_of("expect nobody : clean\n"), "x:1: no policy is called 'nobody'");
  EXPECT_EQ(error_of("expect none : fine\n"), "x:1: no verdict is called 'fine'");
  EXPECT_EQ(error_of("device 0\nclient app\nwave w : app on 0\n  submit f copy on 0\n"), "x:4: a wave cannot submit");
  EXPECT_EQ(error_of(""), "x: no device");
  const std::string head = "device 0\nclient app other\npage a : app\npage b : other\n";
  EXPECT_EQ(error_of(head + "wave w : app on 0\n  pin a to 0\n"), "x:6: a wave cannot pin");
  EXPECT_EQ(error_of(head + "thread t : app\n  discard b\n"), "x:6: the page is another client's");
  EXPECT_EQ(error_of(head + "thread t : app\n  access a all on 0\n"), "x:6: no access is called 'all'");
  EXPECT_EQ(error_of(head + "thread t : app\n  pin a to 1\n"), "x:6: '1' is no number from 0 to 0");
}

TEST(Scenario, AnyTextIsReadOrRefused) {
  // Every way to cut a good text short, and every byte of it replaced by another.
  const std::string text = small;
  for (std::size_t i = 0; i < text.size(); ++i) {
    (void)parse_scenario(text.substr(0, i), "cut");
    for (const char c : {'\0', ':', '9', '\n', '\xff'}) {
      std::string other = text;
      other[i] = c;
      (void)parse_scenario(other, "changed");
    }
  }
}

TEST(Hardware, IsReadAsItIsWritten) {
  for (const char* text : {"-", "units=2", "preempts=no,retry=yes", "units=1,preempts=yes,retry=no"}) {
    ASSERT_TRUE(parse_hardware(text)) << text;
    EXPECT_EQ(parse_hardware(text)->text(), text);
  }
  for (const char* text : {"units=0", "units=9", "units", "preempts=maybe", "cus=2", "units=2x"}) {
    EXPECT_FALSE(parse_hardware(text)) << text;
  }
}

TEST(Replay, IsReadAsItIsWritten) {
  Replay replay;
  replay.name = "small";
  replay.text = small;
  replay.policy = Policy::reserve_in_flight;
  replay.hardware = *parse_hardware("units=2");
  replay.bug = core::PlantedBug::leak_cu;
  replay.verdict = Verdict::livelock;
  replay.cycle_from = 1;
  replay.keys = {1, 0xfedc'ba98'7654'3210};
  replay.names = {"w0: begins", "done: x"};
  std::string error;
  const auto back = read_replay(write_replay(replay), error);
  ASSERT_TRUE(back) << error;
  EXPECT_EQ(back->name, replay.name);
  EXPECT_EQ(back->text, replay.text);
  EXPECT_EQ(back->policy, replay.policy);
  EXPECT_EQ(back->hardware, replay.hardware);
  EXPECT_EQ(back->bug, replay.bug);
  EXPECT_EQ(back->verdict, replay.verdict);
  EXPECT_EQ(back->cycle_from, 1U);
  EXPECT_EQ(back->keys, replay.keys);
  EXPECT_EQ(back->names, replay.names);
}

TEST(Replay, AnyTextIsReadOrRefused) {
  Replay replay;
  replay.name = "small";
  replay.text = small;
  replay.keys = {7};
  replay.names = {"x"};
  const std::string text = write_replay(replay);
  std::string error;
  for (std::size_t i = 0; i + 1 < text.find("text\n"); ++i) EXPECT_FALSE(read_replay(text.substr(0, i), error)) << i;
  EXPECT_FALSE(read_replay("ferry check replay 1\nevents 99999999999\n", error));
}

}  // namespace
}  // namespace ferry::check
