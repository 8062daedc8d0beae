// Names, the list of waits, and the digest.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/random.h"
#include "graph/graph.h"

namespace ferry::graph {
namespace {

TEST(GraphWords, Names) {
  Graph graph;
  const ClassId fault = graph.define("fault");
  const NodeId a = graph.add(fault, 17);
  EXPECT_EQ(graph.name(a), "fault 17");
  graph.describe(a, "of wave % on unit %", 3, 0);
  EXPECT_EQ(graph.name(a), "fault 17 of wave 3 on unit 0");
  graph.describe(a, std::string_view("of nobody"));
  EXPECT_EQ(graph.name(a), "fault 17 of nobody");
  graph.describe(a, std::string_view());
  EXPECT_EQ(graph.name(a), "fault 17");
  EXPECT_EQ(graph.name(graph.add(fault, unnumbered)), "fault");
  EXPECT_EQ(graph.name(graph.add(fault, 0)), "fault 0");
  graph.describe(a, std::string_view("gone with its node"));
  graph.remove(a);
  EXPECT_EQ(graph.name(graph.add(fault, 4)), "fault 4");
}

TEST(GraphWords, DumpIsSortedAndSaysWhichWillDo) {
  Graph graph;
  const ClassId memory = graph.define("memory");
  const ClassId fence = graph.define("fence");
  const NodeId m = graph.add(memory, unnumbered, Needs::any);
  EXPECT_TRUE(graph.wait(m, graph.add(fence, 2)).empty());
  EXPECT_TRUE(graph.wait(graph.add(fence, 9), m, "needs").empty());
  EXPECT_EQ(graph.dump(), "fence 9 needs memory\nmemory waits for fence 2\n");
  EXPECT_TRUE(graph.wait(m, graph.add(fence, 1)).empty());
  EXPECT_EQ(
      graph.dump(),
      "fence 9 needs memory\nmemory waits for fence 1 (any of 2 will do)\nmemory waits for fence 2 (any of 2 will "
      "do)\n");
}

TEST(GraphWords, ReportsAreBounded) {
  Graph graph;
  const ClassId fence = graph.define("fence");
  for (unsigned i = 0; i < Graph::reports_max + 100; ++i) graph.end_section(graph.add(fence, i));
  EXPECT_EQ(graph.take_reports().size(), Graph::reports_max);
  EXPECT_FALSE(graph.has_reports());
}

/// Nodes 0 to 9 with the same edges, made in an order of the seed's choosing, with others in between that go again.
std::uint64_t digest_of(std::uint64_t seed, bool one_more) {
  Graph graph;
  const ClassId a = graph.define("a");
  const ClassId b = graph.define("b");
  Random random(seed);
  std::vector<unsigned> order;
  for (unsigned i = 0; i < 10; ++i) {
    order.insert(order.begin() + static_cast<std::ptrdiff_t>(random.below(order.size() + 1)), i);
  }
  std::vector<NodeId> nodes(10);
  for (const unsigned i : order) {
    const NodeId passing = graph.add(a, 99);
    nodes[i] = graph.add(i % 2 == 0 ? a : b, i, i % 3 == 0 ? Needs::any : Needs::all);
    if (random.chance(500)) graph.remove(passing);
    for (const NodeId other : nodes) static_cast<void>(graph.wait(passing, other));
    graph.remove(passing);
  }
  for (const unsigned i : order) static_cast<void>(graph.wait(nodes[i], nodes[(i * 3 + 1) % 10]));
  if (one_more) static_cast<void>(graph.wait(nodes[0], nodes[1]));
  return graph.digest();
}

TEST(GraphWords, DigestKnowsTheGraphNotTheIds) {
  const std::uint64_t expected = digest_of(0, false);
  for (std::uint64_t seed = 1; seed < 50; ++seed) EXPECT_EQ(digest_of(seed, false), expected) << "seed " << seed;
  EXPECT_NE(digest_of(0, true), expected) << "a wait counted twice is another graph";
  Graph graph;
  const NodeId node = graph.add(graph.define("a"), 1);
  const std::uint64_t before = graph.digest();
  graph.begin_section(node);
  EXPECT_NE(graph.digest(), before);
  graph.end_section(node);
  EXPECT_NE(graph.digest(), before);
  EXPECT_NE(Graph().digest(), before);
}

}  // namespace
}  // namespace ferry::graph
