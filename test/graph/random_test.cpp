// The graph against a detector that knows nothing but the definition and looks at everything each time.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/random.h"
#include "graph/graph.h"

namespace ferry::graph {
namespace {

struct Naive {
  std::map<NodeId, bool> any;
  std::map<std::pair<NodeId, NodeId>, unsigned> edges;

  [[nodiscard]] std::set<NodeId> stuck() const {
    std::set<NodeId> set;
    for (const auto& [node, unused] : any) set.insert(node);
    for (bool changed = true; changed;) {
      changed = false;
      for (const auto& [node, is_any] : any) {
        if (!set.contains(node)) continue;
        unsigned all = 0;
        unsigned bad = 0;
        for (const auto& [edge, unused] : edges) {
          if (edge.first != node) continue;
          ++all;
          bad += set.contains(edge.second) ? 1 : 0;
        }
        if (all != 0 && (is_any ? bad == all : bad != 0)) continue;
        set.erase(node);
        changed = true;
      }
    }
    return set;
  }

  /// Edges of the shortest way from `from` to `to` inside `set`; 0: there is none.
  [[nodiscard]] std::size_t distance(NodeId from, NodeId to, const std::set<NodeId>& set) const {
    std::set<NodeId> seen{from};
    std::vector<NodeId> ring{from};
    for (std::size_t length = 1; !ring.empty(); ++length) {
      std::vector<NodeId> next;
      for (const NodeId node : ring) {
        for (const auto& [edge, unused] : edges) {
          if (edge.first != node || !set.contains(edge.second)) continue;
          if (edge.second == to) return length;
          if (seen.insert(edge.second).second) next.push_back(edge.second);
        }
      }
      ring = std::move(next);
    }
    return 0;
  }

  /// Length of the circle that the edge is part of, or that it made; 0: none.
  [[nodiscard]] std::size_t closed_by(NodeId from, NodeId to) const {
    const std::set<NodeId> now = stuck();
    if (now.contains(from) && now.contains(to)) {
      if (from == to) return 1;
      if (const std::size_t back = distance(to, from, now); back != 0) return back + 1;
    }
    Naive without = *this;
    without.edges.erase({from, to});
    const std::set<NodeId> before = without.stuck();
    std::size_t best = 0;
    for (const NodeId node : now) {
      if (before.contains(node)) continue;
      const std::size_t length = distance(node, node, now);
      if (length != 0 && (best == 0 || length < best)) best = length;
    }
    return best;
  }

  void expect_circle(const Circle& circle) const {
    const std::set<NodeId> now = stuck();
    for (std::size_t i = 0; i < circle.size(); ++i) {
      EXPECT_EQ(circle[i].to, circle[(i + 1) % circle.size()].from);
      EXPECT_TRUE(edges.contains({circle[i].from, circle[i].to}));
      EXPECT_TRUE(now.contains(circle[i].from));
    }
  }
};

TEST(GraphRandom, AgreesWithTheDefinition) {
  unsigned circles = 0;
  unsigned circles_through_any = 0;
  unsigned any_saved = 0;
  for (std::uint64_t seed = 0; seed < 6000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(seed);
    Graph graph;
    std::vector<ClassId> classes;
    for (unsigned i = 0; i < 4; ++i) classes.push_back(graph.define("class" + std::to_string(i)));
    Naive naive;
    std::vector<NodeId> nodes;
    std::vector<NodeId> gone;
    const unsigned any_per_mille = static_cast<unsigned>(random.below(4)) * 300;
    const std::size_t size = 2 + random.below(10);
    for (unsigned step = 0; step < 40; ++step) {
      const auto pick = [&] { return nodes[random.below(nodes.size())]; };
      if (nodes.size() < size && (nodes.size() < 2 || random.chance(300))) {
        const bool any = random.chance(any_per_mille);
        nodes.push_back(graph.add(classes[random.below(4)], step, any ? Needs::any : Needs::all));
        naive.any[nodes.back()] = any;
      } else if (random.chance(600)) {
        const NodeId from = pick();
        const NodeId to = pick();
        const bool had = naive.edges.contains({from, to});
        const std::uint64_t before = graph.digest();
        const Circle would = graph.would_close(from, to);
        ASSERT_EQ(graph.digest(), before);
        const Circle circle = graph.wait(from, to);
        ++naive.edges[{from, to}];
        ASSERT_EQ(circle.size(), naive.closed_by(from, to)) << graph.dump() << (had ? "again" : "");
        ASSERT_EQ(would.size(), circle.size());
        naive.expect_circle(circle);
        if (!circle.empty()) {
          ++circles;
          circles_through_any +=
              std::any_of(circle.begin(), circle.end(), [&](const Step& s) { return naive.any[s.from]; }) ? 1 : 0;
        } else if (naive.any[from] && naive.distance(to, from, {nodes.begin(), nodes.end()}) != 0) {
          ++any_saved;
        }
      } else if (random.chance(400) && !naive.edges.empty()) {
        auto edge = naive.edges.begin();
        std::advance(edge, static_cast<std::ptrdiff_t>(random.below(naive.edges.size())));
        graph.done(edge->first.first, edge->first.second);
        if (--edge->second == 0) naive.edges.erase(edge);
      } else if (random.chance(300)) {
        const NodeId node = pick();
        const bool outward = random.chance(500);
        outward ? graph.done_all(node) : graph.let_go(node);
        std::erase_if(naive.edges, [&](const auto& e) { return (outward ? e.first.first : e.first.second) == node; });
      } else if (random.chance(400) && nodes.size() > 2) {
        const NodeId node = pick();
        graph.remove(node);
        std::erase(nodes, node);
        naive.any.erase(node);
        std::erase_if(naive.edges, [&](const auto& e) { return e.first.first == node || e.first.second == node; });
        gone.push_back(node);
      } else {
        const std::set<NodeId> stuck = naive.stuck();
        for (const NodeId node : nodes) {
          const Circle circle = graph.stuck(node);
          ASSERT_EQ(!circle.empty(), stuck.contains(node));
          naive.expect_circle(circle);
        }
      }
      ASSERT_EQ(graph.node_count(), nodes.size());
      ASSERT_EQ(graph.edge_count(), naive.edges.size());
      for (const NodeId node : gone) ASSERT_FALSE(graph.exists(node));
    }
  }
  // The cases that matter did happen.
  EXPECT_GT(circles, 1000U);
  EXPECT_GT(circles_through_any, 300U);
  EXPECT_GT(any_saved, 300U);
}

}  // namespace
}  // namespace ferry::graph
