// The classes' memory against searches that know nothing of it.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "graph/graph.h"

namespace ferry::graph {
namespace {

TEST(GraphClassesRandom, ToldIfAndOnlyIfTheNewWaitClosesACircle) {
  unsigned told = 0;
  for (std::uint64_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(seed);
    Graph graph;
    const unsigned count = 2 + static_cast<unsigned>(random.below(6));
    for (unsigned i = 0; i < count; ++i) static_cast<void>(graph.define("class" + std::to_string(i)));
    std::set<std::pair<unsigned, unsigned>> edges;
    const auto reaches = [&](unsigned from, unsigned to) {
      std::set<unsigned> seen{from};
      std::vector<unsigned> todo{from};
      while (!todo.empty()) {
        const unsigned at = todo.back();
        todo.pop_back();
        if (at == to) return true;
        for (const auto& [a, b] : edges) {
          if (a == at && seen.insert(b).second) todo.push_back(b);
        }
      }
      return false;
    };
    for (unsigned step = 0; step < 2 * count; ++step) {
      const auto from = static_cast<unsigned>(random.below(count));
      const auto to = static_cast<unsigned>(random.below(count));
      const bool is_new = edges.insert({from, to}).second;
      graph.note(static_cast<ClassId>(from), static_cast<ClassId>(to));
      const auto reports = graph.take_reports();
      ASSERT_EQ(reports.size(), is_new && reaches(to, from) ? 1U : 0U) << from << " to " << to;
      told += static_cast<unsigned>(reports.size());
    }
  }
  EXPECT_GT(told, 2000U);
}

/// What a task takes, in this order, and keeps to its end.
using Script = std::vector<unsigned>;

/// Can the tasks, run at once, come to a point where none goes on? Every interleaving is tried.
bool can_deadlock(const std::vector<Script>& scripts, std::vector<std::size_t>& at,
                  std::set<std::vector<std::size_t>>& seen) {
  if (!seen.insert(at).second) return false;
  const auto taken = [&](unsigned lock) {
    for (std::size_t t = 0; t < scripts.size(); ++t) {
      if (at[t] == scripts[t].size()) continue;  // ended: it holds nothing
      const auto end = scripts[t].begin() + static_cast<std::ptrdiff_t>(at[t]);
      if (std::find(scripts[t].begin(), end, lock) != end) return true;
    }
    return false;
  };
  bool all_ended = true;
  bool stuck = true;
  bool found = false;
  for (std::size_t t = 0; t < scripts.size() && !found; ++t) {
    if (at[t] == scripts[t].size()) continue;
    all_ended = false;
    if (taken(scripts[t][at[t]])) continue;
    stuck = false;
    ++at[t];
    found = can_deadlock(scripts, at, seen);
    --at[t];
  }
  return found || (stuck && !all_ended);
}

// Tasks run one after the other, so that nobody ever waits. If they could deadlock when run at once, it must be told.
TEST(GraphClassesRandom, NoDeadlockOfHoldersComesWithoutBeingForetold) {
  unsigned deadlocks = 0;
  unsigned clean = 0;
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(seed);
    constexpr unsigned lock_count = 4;
    std::vector<Script> scripts(2 + random.below(2));
    const bool careful = random.chance(300);
    for (Script& script : scripts) {
      for (unsigned lock = 0; lock < lock_count; ++lock) {
        if (random.chance(500)) {
          const std::size_t where = careful ? script.size() : random.below(script.size() + 1);
          script.insert(script.begin() + static_cast<std::ptrdiff_t>(where), lock);
        }
      }
    }
    Graph graph;
    const ClassId task = graph.define("task");
    std::array<NodeId, lock_count> locks{};
    for (unsigned i = 0; i < lock_count; ++i) {
      const ClassId cls = graph.define("lock" + std::to_string(i));
      graph.resource(cls);
      locks[i] = graph.add(cls, unnumbered);
    }
    for (std::size_t t = 0; t < scripts.size(); ++t) {
      const NodeId who = graph.add(task, t);
      for (const unsigned lock : scripts[t]) {
        ASSERT_TRUE(graph.wait(who, locks[lock]).empty());
        graph.done(who, locks[lock]);
        ASSERT_TRUE(graph.wait(locks[lock], who, "is held by").empty());
      }
      graph.remove(who);
    }
    std::vector<std::size_t> at(scripts.size());
    std::set<std::vector<std::size_t>> seen;
    const bool possible = can_deadlock(scripts, at, seen);
    const bool told = graph.has_reports();
    if (possible) {
      ASSERT_TRUE(told);
    }
    if (careful) {
      ASSERT_FALSE(told) << "one order for all";
    }
    deadlocks += possible ? 1 : 0;
    clean += told ? 0 : 1;
  }
  EXPECT_GT(deadlocks, 300U);
  EXPECT_GT(clean, 300U);
}

}  // namespace
}  // namespace ferry::graph
