// Circles of classes: told although no node was ever stuck, once each, and not where none can be.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "graph/graph.h"

namespace ferry::graph {
namespace {

/// The class circles told so far; anything else told is a failure.
std::vector<std::string> class_circles(Graph& graph) {
  std::vector<std::string> texts;
  for (Report& report : graph.take_reports()) {
    EXPECT_EQ(report.what, Report::What::class_circle) << report.text;
    texts.push_back(std::move(report.text));
  }
  return texts;
}

/// `from` waits for `to`, and it ends well.
void wait_once(Graph& graph, ClassId from, ClassId to, std::uint64_t number) {
  const NodeId a = graph.add(from, number);
  const NodeId b = graph.add(to, number + 1);
  EXPECT_TRUE(graph.wait(a, b).empty());
  graph.done(a, b);
  graph.remove(a);
  graph.remove(b);
}

TEST(GraphClasses, ACircleThatDidNotHappenIsToldOnceWithWhereEachPartWasSeen) {
  Graph graph;
  const ClassId fault = graph.define("fault");
  const ClassId memory = graph.define("memory");
  const ClassId fence = graph.define("fence");
  wait_once(graph, fault, memory, 1);
  wait_once(graph, memory, fence, 10);
  EXPECT_FALSE(graph.has_reports());
  wait_once(graph, fence, fault, 20);
  const auto told = class_circles(graph);
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(told[0],
            "could deadlock: fence can wait for fault (first seen: fence 20 waits for fault 21); fault can wait for "
            "memory (first seen: fault 1 waits for memory 2); memory can wait for fence (first seen: memory 10 waits "
            "for fence 11)");
  wait_once(graph, fence, fault, 30);
  wait_once(graph, memory, fence, 40);
  EXPECT_FALSE(graph.has_reports());
}

TEST(GraphClasses, AShorterCircleIsAnotherOne) {
  Graph graph;
  const ClassId a = graph.define("a");
  const ClassId b = graph.define("b");
  const ClassId c = graph.define("c");
  graph.note(a, b, "in the morning");
  graph.note(b, c);
  graph.note(c, a);
  EXPECT_EQ(class_circles(graph).size(), 1U);
  graph.note(b, a);
  const auto told = class_circles(graph);
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(told[0], "could deadlock: b can wait for a; a can wait for b (first seen: in the morning)");
}

TEST(GraphClasses, ADeadlockIsNotToldTwice) {
  Graph graph;
  const ClassId a = graph.define("a");
  const ClassId b = graph.define("b");
  const NodeId x = graph.add(a, 1);
  const NodeId y = graph.add(b, 1);
  EXPECT_TRUE(graph.wait(x, y).empty());
  EXPECT_FALSE(graph.wait(y, x).empty());
  const auto reports = graph.take_reports();
  ASSERT_EQ(reports.size(), 1U);
  EXPECT_EQ(reports[0].what, Report::What::circle);
}

TEST(GraphClasses, AClassThatWaitsForItselfIsACircleUnlessOrdered) {
  Graph graph;
  const ClassId fence = graph.define("fence");
  const ClassId lock = graph.define("lock");
  graph.ordered(fence, fence);
  wait_once(graph, fence, fence, 1);
  EXPECT_FALSE(graph.has_reports());
  wait_once(graph, lock, lock, 1);
  const auto told = class_circles(graph);
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(told[0], "could deadlock: lock can wait for lock (first seen: lock 1 waits for lock 2)");
}

TEST(GraphClasses, OrderedClassesStillDeadlockAsNodes) {
  Graph graph;
  const ClassId fence = graph.define("fence");
  graph.ordered(fence, fence);
  const NodeId a = graph.add(fence, 1);
  const NodeId b = graph.add(fence, 2);
  EXPECT_TRUE(graph.wait(a, b).empty());
  EXPECT_EQ(graph.wait(b, a).size(), 2U);
}

TEST(GraphClasses, AlternativesNamedTogetherCountTogether) {
  Graph graph;
  const ClassId memory = graph.define("memory");
  const ClassId fence = graph.define("fence");
  const ClassId machine = graph.define("machine");
  graph.note(fence, memory);
  const NodeId m = graph.add(memory, 1, Needs::any);
  const NodeId f = graph.add(fence, 1);
  const NodeId x = graph.add(machine, 1);
  const std::vector<NodeId> either{f, x};
  EXPECT_TRUE(graph.wait_any(m, either).empty());
  EXPECT_FALSE(graph.has_reports()) << "the machine answers whatever the fence does";
  graph.done_all(m);
  EXPECT_TRUE(graph.wait(m, x).empty());
  EXPECT_TRUE(graph.wait(m, f).empty());
  EXPECT_FALSE(graph.has_reports()) << "the safe one was named first";
  // When the machine can wait for memory too, nothing is left.
  graph.note(machine, memory);
  const auto told = class_circles(graph);
  ASSERT_EQ(told.size(), 1U);
  EXPECT_NE(told[0].find("memory can wait for machine or fence"), std::string::npos) << told[0];
  // And a memory that hopes for the fence alone is another kind.
  const NodeId lonely = graph.add(memory, 2, Needs::any);
  EXPECT_TRUE(graph.wait(lonely, f).empty());
  EXPECT_EQ(class_circles(graph).size(), 1U);
}

TEST(GraphClasses, WaitingForAResourceAndThenHoldingItIsNoCircle) {
  Graph graph;
  const ClassId job = graph.define("job");
  const ClassId unit = graph.define("unit");
  const ClassId machine = graph.define("machine");
  graph.resource(unit);
  const NodeId first = graph.add(job, 1);
  const NodeId second = graph.add(job, 2);
  const NodeId u = graph.add(unit, 0);
  EXPECT_TRUE(graph.wait(u, first, "is held by").empty());
  EXPECT_TRUE(graph.wait(first, graph.add(machine, 0)).empty());
  EXPECT_TRUE(graph.wait(second, u).empty());
  EXPECT_FALSE(graph.has_reports());
  // A job that wants another unit while it holds one is what two of them can deadlock over.
  EXPECT_TRUE(graph.wait(first, graph.add(unit, 1)).empty());
  const auto told = class_circles(graph);
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(told[0],
            "could deadlock: job can wait for unit (first seen: job 1 waits for unit 1, and holds unit 0); unit can be "
            "held by job (first seen: unit 0 is held by job 1)");
}

TEST(GraphClasses, HoldingIsKnownWhicheverCameFirst) {
  Graph graph;
  const ClassId fault = graph.define("fault");
  const ClassId memory = graph.define("memory");
  const ClassId fence = graph.define("fence");
  const ClassId unit = graph.define("unit");
  graph.resource(unit);
  // The wave faults and is then known to hold a unit; other faults, without one, proved nothing.
  const NodeId f = graph.add(fault, 1);
  EXPECT_TRUE(graph.wait(f, graph.add(memory, 1)).empty());
  wait_once(graph, memory, fence, 1);
  wait_once(graph, fence, unit, 1);
  EXPECT_FALSE(graph.has_reports());
  const NodeId u = graph.add(unit, 3);
  EXPECT_TRUE(graph.wait(u, f, "is held by").empty());
  const auto told = class_circles(graph);
  ASSERT_EQ(told.size(), 1U);
  EXPECT_NE(told[0].find("fault 1 waits for memory 1, and holds unit 3"), std::string::npos) << told[0];
}

TEST(GraphClasses, WhatWasHeldIsForgottenWhenItIsGivenBack) {
  Graph graph;
  const ClassId job = graph.define("job");
  const ClassId unit = graph.define("unit");
  graph.resource(unit);
  const NodeId j = graph.add(job, 1);
  const NodeId u = graph.add(unit, 0);
  const NodeId v = graph.add(unit, 1);
  EXPECT_TRUE(graph.wait(u, j, "is held by").empty());
  graph.done(u, j);
  EXPECT_TRUE(graph.wait(j, v).empty());
  EXPECT_FALSE(graph.has_reports());
}

}  // namespace
}  // namespace ferry::graph
