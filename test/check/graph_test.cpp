// Livelocks in graphs of states, drawn by hand.
#include <gtest/gtest.h>

#include "check/graph_of_states.h"

namespace ferry::check {
namespace {

class Graph : public StateGraph {
 public:
  explicit Graph(std::uint32_t states) {
    bool fresh = false;
    for (std::uint32_t s = 0; s < states; ++s) (void)state(s + 100, fresh);
  }
  void way(std::uint32_t from, std::uint32_t to, std::uint64_t key, bool progress = false, bool optional = false) {
    (*this)[from].out.push_back({key, 0, to, progress, optional});
  }
  std::vector<std::uint64_t> cycle() const {
    std::uint32_t entry = none;
    return fair_cycle(entry);
  }
};

TEST(FairCycle, ARoundWithoutProgressIsALivelock) {
  Graph g(3);
  g.way(0, 1, 1);
  g.way(1, 2, 2);
  g.way(2, 1, 3);
  EXPECT_EQ(g.cycle().size(), 2U);
}

TEST(FairCycle, ARoundWithProgressIsNone) {
  Graph g(2);
  g.way(0, 1, 1);
  g.way(1, 0, 2, true);
  EXPECT_TRUE(g.cycle().empty());
}

TEST(FairCycle, ARoundThatPassesOverSomebodyIsNotFair) {
  // In state 1 event 9 could happen, and would end it.
  Graph g(3);
  g.way(0, 1, 1);
  g.way(1, 0, 2);
  g.way(1, 2, 9, true);
  EXPECT_TRUE(g.cycle().empty());
}

TEST(FairCycle, ButNobodyHasToFail) {
  Graph g(3);
  g.way(0, 1, 1);
  g.way(1, 0, 2);
  g.way(1, 2, 9, false, true);
  EXPECT_EQ(g.cycle().size(), 2U);
}

TEST(FairCycle, IsFoundInsideOneThatIsNotFair) {
  // 0 <-> 1 is fair. 2 belongs to the same component, and there something else could happen.
  Graph g(4);
  g.way(0, 1, 1);
  g.way(1, 0, 2);
  g.way(1, 2, 3, false, true);
  g.way(2, 0, 4);
  g.way(2, 3, 9, true);
  EXPECT_EQ(g.cycle().size(), 2U);
}

TEST(FairCycle, AStateThatLeadsToItselfIsOne) {
  Graph g(2);
  g.way(0, 1, 1);
  g.way(1, 1, 2);
  EXPECT_EQ(g.cycle(), std::vector<std::uint64_t>{2});
}

TEST(Ways, AreShortest) {
  Graph g(5);
  g.way(0, 1, 1);
  g.way(1, 2, 2);
  g.way(2, 4, 3);
  g.way(0, 3, 4);
  g.way(3, 4, 5);
  EXPECT_EQ(g.way_to(4), (std::vector<std::uint64_t>{4, 5}));
  const std::vector<Finding> findings{{Verdict::deadlock, "far"}, {Verdict::deadlock, "near"}};
  g[2].finding = 0;
  g[1].finding = 1;
  EXPECT_EQ(g.nearest(findings, Verdict::deadlock), 1U);
  EXPECT_EQ(g.nearest(findings, Verdict::crash), none);
}

}  // namespace
}  // namespace ferry::check
