// From a fence's becoming visible to its signal.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "graph/graph.h"

namespace ferry::graph {
namespace {

struct GraphSection : testing::Test {
  Graph graph;
  ClassId fence = graph.define("fence");
  ClassId unit = graph.define("unit");
  ClassId fault = graph.define("fault", Graph::InSection::forbidden);
  ClassId memory = graph.define("memory", Graph::InSection::forbidden);
  ClassId choice = graph.define("choice");

  void SetUp() override { graph.ordered(fence, fence); }

  std::vector<Report> reports() { return graph.take_reports(); }
  void expect_one(Report::What what, const std::string& text) {
    const auto all = reports();
    ASSERT_EQ(all.size(), 1U);
    EXPECT_EQ(all[0].what, what);
    EXPECT_EQ(all[0].text, text);
  }
};

TEST_F(GraphSection, WhatWorksIsNotTold) {
  const NodeId f = graph.add(fence, 1);
  EXPECT_TRUE(graph.wait(f, graph.add(memory, 1)).empty());
  graph.done_all(f);
  graph.begin_section(f);
  EXPECT_TRUE(graph.wait(f, graph.add(unit, 1)).empty());
  graph.begin_section(f);
  graph.end_section(f);
  graph.expect_no_sections();
  graph.remove(f);
  EXPECT_FALSE(graph.has_reports());
}

TEST_F(GraphSection, AForbiddenWaitInside) {
  const NodeId f = graph.add(fence, 1);
  graph.begin_section(f);
  EXPECT_TRUE(graph.wait(f, graph.add(memory, 7)).empty());
  expect_one(Report::What::wait_in_section,
             "fence 1 is visible, and before it signals nothing may wait for a memory: fence 1 waits for memory 7");
}

TEST_F(GraphSection, AForbiddenWaitThatWasThereBefore) {
  const NodeId f = graph.add(fence, 1);
  EXPECT_TRUE(graph.wait(f, graph.add(memory, 7)).empty());
  EXPECT_FALSE(graph.has_reports());
  graph.begin_section(f);
  EXPECT_EQ(reports().size(), 1U);
}

TEST_F(GraphSection, ThroughOthersWhicheverEdgeCameLast) {
  for (unsigned last = 0; last < 3; ++last) {
    Graph g;
    const ClassId fence_class = g.define("fence");
    const ClassId unit_class = g.define("unit");
    const ClassId wave_class = g.define("wave");
    const ClassId fault_class = g.define("fault", Graph::InSection::forbidden);
    const NodeId f = g.add(fence_class, 1);
    const NodeId u = g.add(unit_class, 2);
    const NodeId w = g.add(wave_class, 3);
    const NodeId x = g.add(fault_class, 4);
    g.begin_section(f);
    const std::pair<NodeId, NodeId> edges[] = {{f, u}, {u, w}, {w, x}};
    for (unsigned i = 0; i < 3; ++i) {
      EXPECT_FALSE(g.has_reports());
      const auto& [from, to] = edges[(last + 1 + i) % 3];
      EXPECT_TRUE(g.wait(from, to).empty());
    }
    const auto told = g.take_reports();
    ASSERT_EQ(told.size(), 1U) << "edge " << last << " last";
    EXPECT_EQ(
        told[0].text,
        "fence 1 is visible, and before it signals nothing may wait for a fault: fence 1 waits for unit 2; unit 2 "
        "waits for wave 3; wave 3 waits for fault 4");
  }
}

TEST_F(GraphSection, OnlyTheFenceThatDoesItIsBlamed) {
  const NodeId outer = graph.add(fence, 1);
  const NodeId inner = graph.add(fence, 2);
  graph.begin_section(inner);
  graph.begin_section(outer);
  EXPECT_TRUE(graph.wait(outer, inner).empty());
  EXPECT_TRUE(graph.wait(inner, graph.add(memory, 1)).empty());
  const auto told = reports();
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(told[0].text.rfind("fence 2 is visible", 0), 0U);
}

TEST_F(GraphSection, OneAllowedAlternativeIsEnough) {
  const NodeId f = graph.add(fence, 1);
  const NodeId c = graph.add(choice, 1, Needs::any);
  graph.begin_section(f);
  EXPECT_TRUE(graph.wait(c, graph.add(unit, 1)).empty());
  EXPECT_TRUE(graph.wait(c, graph.add(memory, 1)).empty());
  EXPECT_TRUE(graph.wait(f, c).empty());
  EXPECT_FALSE(graph.has_reports());
  const NodeId d = graph.add(choice, 2, Needs::any);
  EXPECT_TRUE(graph.wait(d, graph.add(fault, 1)).empty());
  EXPECT_TRUE(graph.wait(d, graph.add(memory, 2)).empty());
  EXPECT_TRUE(graph.wait(f, d).empty());
  EXPECT_EQ(reports().size(), 1U);
}

TEST_F(GraphSection, EachKindOnce) {
  for (unsigned i = 0; i < 5; ++i) {
    const NodeId f = graph.add(fence, i);
    graph.begin_section(f);
    EXPECT_TRUE(graph.wait(f, graph.add(memory, i)).empty());
    graph.end_section(f);
  }
  EXPECT_EQ(reports().size(), 1U);
  const NodeId f = graph.add(fence, 9);
  graph.begin_section(f);
  EXPECT_TRUE(graph.wait(f, graph.add(fault, 9)).empty());
  EXPECT_EQ(reports().size(), 1U) << "a fault is another kind";
}

TEST_F(GraphSection, Twice) {
  const NodeId f = graph.add(fence, 1);
  graph.begin_section(f);
  graph.end_section(f);
  graph.end_section(f);
  expect_one(Report::What::signalled_twice, "fence 1 signalled twice");
  graph.begin_section(f);
  expect_one(Report::What::signalled_twice, "fence 1 became visible again after it had signalled");
}

TEST_F(GraphSection, Outside) {
  const NodeId f = graph.add(fence, 1);
  graph.end_section(f);
  expect_one(Report::What::signal_outside, "fence 1 signalled, but never became visible");
}

TEST_F(GraphSection, Never) {
  const NodeId f = graph.add(fence, 1);
  const NodeId g = graph.add(fence, 2);
  graph.begin_section(f);
  graph.begin_section(g);
  EXPECT_TRUE(graph.wait(graph.add(fault, 8), f).empty());
  graph.expect_no_sections();
  EXPECT_EQ(reports().size(), 2U);
  graph.remove(f);
  expect_one(Report::What::never_signalled, "fence 1 became visible and never signalled; fault 8 waits for it");
}

}  // namespace
}  // namespace ferry::graph
