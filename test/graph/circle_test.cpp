// Circles of nodes: which edge closes one, and how it is told.
#include <gtest/gtest.h>

#include <vector>

#include "graph/graph.h"

namespace ferry::graph {
namespace {

struct GraphCircle : testing::Test {
  Graph graph;
  ClassId fault = graph.define("fault");
  ClassId memory = graph.define("memory");
  ClassId fence = graph.define("fence");
  ClassId unit = graph.define("compute unit");
};

TEST_F(GraphCircle, ALineIsNone) {
  const NodeId a = graph.add(fault, 1);
  const NodeId b = graph.add(memory, 1);
  const NodeId c = graph.add(fence, 1);
  EXPECT_TRUE(graph.wait(a, b).empty());
  EXPECT_TRUE(graph.wait(b, c).empty());
  EXPECT_TRUE(graph.stuck(a).empty());
  EXPECT_FALSE(graph.has_reports());
  EXPECT_EQ(graph.node_count(), 3U);
  EXPECT_EQ(graph.edge_count(), 2U);
}

TEST_F(GraphCircle, TheEdgeThatClosesItTellsItWhole) {
  const NodeId a = graph.add(fault, 17);
  graph.describe(a, "of wave %", 3);
  const NodeId m = graph.add(memory, unnumbered, Needs::any);
  const NodeId f = graph.add(fence, 42);
  const NodeId u = graph.add(unit, 1);
  EXPECT_TRUE(graph.wait(f, u).empty());
  EXPECT_TRUE(graph.wait(u, a, "is held by").empty());
  EXPECT_TRUE(graph.wait(a, m).empty());
  const Circle would = graph.would_close(m, f);
  EXPECT_EQ(would.size(), 4U);
  EXPECT_FALSE(graph.has_reports());
  const Circle circle = graph.wait(m, f);
  ASSERT_EQ(circle.size(), 4U);
  EXPECT_EQ(
      graph.sentences(circle),
      "memory waits for fence 42; fence 42 waits for compute unit 1; compute unit 1 is held by fault 17 of wave 3; "
      "fault 17 of wave 3 waits for memory");
  const auto reports = graph.take_reports();
  ASSERT_EQ(reports.size(), 1U);
  EXPECT_EQ(reports[0].what, Report::What::circle);
  EXPECT_EQ(reports[0].text, "deadlock: " + graph.sentences(circle));
  EXPECT_EQ(graph.stuck(u).size(), 4U);
  graph.done(f, u);
  EXPECT_TRUE(graph.stuck(m).empty());
}

TEST_F(GraphCircle, ANodeThatWaitsForItself) {
  const NodeId a = graph.add(fence, 1);
  const Circle circle = graph.wait(a, a);
  ASSERT_EQ(circle.size(), 1U);
  EXPECT_EQ(circle[0].from, a);
  EXPECT_EQ(circle[0].to, a);
}

TEST_F(GraphCircle, AnyNodesAreStuckOnlyIfAllTheirHopesAre) {
  const NodeId m = graph.add(memory, 1, Needs::any);
  const NodeId f = graph.add(fence, 1);
  const NodeId g = graph.add(fence, 2);
  EXPECT_TRUE(graph.wait(f, m).empty());
  EXPECT_TRUE(graph.wait(m, g).empty());
  EXPECT_TRUE(graph.wait(m, f).empty()) << "fence 2 will do";
  EXPECT_TRUE(graph.stuck(m).empty());
  const Circle circle = graph.wait(g, m);
  ASSERT_EQ(circle.size(), 2U) << "no hope left";
  EXPECT_EQ(graph.sentences(circle),
            "fence 2 waits for memory 1; memory 1 waits for fence 2 or one other, which can as little go on");
}

TEST_F(GraphCircle, WaitAnyNamesAllAtOnce) {
  const NodeId m = graph.add(memory, 1, Needs::any);
  const NodeId f = graph.add(fence, 1);
  const NodeId g = graph.add(fence, 2);
  EXPECT_TRUE(graph.wait(f, m).empty());
  const std::vector<NodeId> both{f, g};
  EXPECT_TRUE(graph.wait_any(m, both).empty());
  graph.done_all(m);
  EXPECT_EQ(graph.edge_count(), 1U);
  const std::vector<NodeId> one{f};
  EXPECT_EQ(graph.wait_any(m, one).size(), 2U);
}

TEST_F(GraphCircle, AnAnyNodeThatLosesItsLastHopeToACircleElsewhere) {
  // memory hopes for a, which may go on, or for f, which waits for memory. Then a gets stuck behind b and c.
  const NodeId m = graph.add(memory, 1, Needs::any);
  const NodeId a = graph.add(fence, 1);
  const NodeId f = graph.add(fence, 2);
  const NodeId b = graph.add(fence, 3);
  const NodeId c = graph.add(fence, 4);
  EXPECT_TRUE(graph.wait(m, a).empty());
  EXPECT_TRUE(graph.wait(f, m).empty());
  EXPECT_TRUE(graph.wait(m, f).empty());
  EXPECT_TRUE(graph.wait(b, c).empty());
  EXPECT_EQ(graph.wait(c, b).size(), 2U);
  const Circle circle = graph.wait(a, b);
  ASSERT_EQ(circle.size(), 2U) << graph.dump();
  EXPECT_TRUE((circle[0].from == m && circle[0].to == f) || (circle[0].from == f && circle[0].to == m));
}

TEST_F(GraphCircle, StuckBehindACircleIsNoCircleOfOnesOwn) {
  const NodeId a = graph.add(fence, 1);
  const NodeId b = graph.add(fence, 2);
  const NodeId c = graph.add(fault, 3);
  EXPECT_TRUE(graph.wait(a, b).empty());
  EXPECT_EQ(graph.wait(b, a).size(), 2U);
  EXPECT_TRUE(graph.wait(c, a).empty());
  EXPECT_EQ(graph.stuck(c).size(), 2U) << "but it is stuck";
}

TEST_F(GraphCircle, TheShortestWalkIsTold) {
  const NodeId a = graph.add(fence, 1);
  NodeId last = a;
  for (unsigned i = 0; i < 5; ++i) {
    const NodeId next = graph.add(unit, i);
    EXPECT_TRUE(graph.wait(last, next).empty());
    last = next;
  }
  const NodeId end = graph.add(memory, 1);
  EXPECT_TRUE(graph.wait(last, end).empty());
  EXPECT_TRUE(graph.wait(a, end).empty());
  EXPECT_EQ(graph.wait(end, a).size(), 2U);
}

TEST_F(GraphCircle, WaitsAreCounted) {
  const NodeId a = graph.add(fence, 1);
  const NodeId b = graph.add(fence, 2);
  EXPECT_TRUE(graph.wait(a, b).empty());
  EXPECT_TRUE(graph.wait(a, b).empty());
  EXPECT_EQ(graph.edge_count(), 1U);
  graph.done(a, b);
  EXPECT_EQ(graph.would_close(b, a).size(), 2U);
  graph.done(a, b);
  EXPECT_EQ(graph.edge_count(), 0U);
  EXPECT_TRUE(graph.would_close(b, a).empty());
  graph.done(a, b);
  EXPECT_EQ(graph.edge_count(), 0U);
}

TEST_F(GraphCircle, IdsOfRemovedNodesAreNobody) {
  const NodeId a = graph.add(fence, 1);
  const NodeId b = graph.add(fence, 2);
  EXPECT_TRUE(graph.wait(a, b).empty());
  graph.remove(b);
  EXPECT_FALSE(graph.exists(b));
  EXPECT_EQ(graph.edge_count(), 0U);
  const NodeId c = graph.add(fence, 3);
  EXPECT_NE(c, b) << "the slot is reused, the id is not";
  EXPECT_FALSE(graph.exists(b));
  EXPECT_TRUE(graph.wait(a, b).empty());
  EXPECT_EQ(graph.edge_count(), 0U);
  graph.done(a, b);
  graph.done_all(b);
  graph.let_go(b);
  graph.remove(b);
  graph.remove(no_node);
  graph.begin_section(b);
  graph.end_section(b);
  EXPECT_TRUE(graph.name(b).empty());
  EXPECT_EQ(graph.node_count(), 2U);
}

TEST_F(GraphCircle, LettingGoEndsEveryWaitForANode) {
  const NodeId f = graph.add(fence, 1);
  for (unsigned i = 0; i < 5; ++i) EXPECT_TRUE(graph.wait(graph.add(fault, i), f).empty());
  EXPECT_TRUE(graph.wait(f, graph.add(unit, 1)).empty());
  graph.let_go(f);
  EXPECT_EQ(graph.edge_count(), 1U);
}

// Not a matter of the stack alone: with a search for each edge this takes minutes.
TEST_F(GraphCircle, LongLinesFromEitherEnd) {
  std::vector<NodeId> line;
  for (unsigned i = 0; i < 100'000; ++i) line.push_back(graph.add(fence, i));
  for (std::size_t i = line.size() - 1; i > 0; --i) ASSERT_TRUE(graph.wait(line[i - 1], line[i]).empty());
  // Others join at the front, while what they wait for was made later than they.
  std::vector<NodeId> units;
  for (unsigned i = 0; i < 1000; ++i) units.push_back(graph.add(unit, i));
  for (const NodeId held : units) {
    const NodeId holder = graph.add(fault, 1);
    ASSERT_TRUE(graph.wait(held, holder, "is held by").empty());
    ASSERT_TRUE(graph.wait(holder, line.front()).empty());
  }
  EXPECT_EQ(graph.wait(line.back(), units.back()).size(), line.size() + 2);
}

TEST_F(GraphCircle, LongLinesDoNotExhaustTheStack) {
  std::vector<NodeId> line;
  for (unsigned i = 0; i < 100'000; ++i) line.push_back(graph.add(fence, i));
  for (std::size_t i = 1; i < line.size(); ++i) ASSERT_TRUE(graph.wait(line[i - 1], line[i]).empty());
  EXPECT_TRUE(graph.wait(graph.add(fault, 1), line.front()).empty());
  EXPECT_EQ(graph.wait(line.back(), line.front()).size(), line.size());
}

}  // namespace
}  // namespace ferry::graph
