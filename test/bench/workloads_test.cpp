// The measured kernels compute what they say, and the recorder sees what they touch.
#include "workloads.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <deque>
#include <set>
#include <vector>

namespace ferry::bench {
namespace {

struct PlainLauncher {
  template <typename Kernel>
  void operator()(std::size_t count, const Kernel& kernel) const {
    for (std::size_t i = 0; i < count; ++i) kernel(DirectMemory{}, i);
  }
};

struct Graph {
  explicit Graph(unsigned scale) : offsets((1UL << scale) + 1), targets(2UL * 8 * (1UL << scale)) {
    make_kronecker(scale, 8, 1, offsets.data(), targets.data());
  }
  [[nodiscard]] GraphView view() const { return {offsets.data(), targets.data(), offsets.size() - 1}; }
  std::vector<std::uint64_t> offsets;
  std::vector<std::uint32_t> targets;
};

TEST(Kronecker, EveryEdgeIsThereInBothDirections) {
  const Graph graph(8);
  ASSERT_EQ(graph.offsets.front(), 0U);
  ASSERT_EQ(graph.offsets.back(), graph.targets.size());
  std::multiset<std::pair<std::uint32_t, std::uint32_t>> edges;
  for (std::uint32_t v = 0; v < 256; ++v) {
    for (std::uint64_t e = graph.offsets[v]; e < graph.offsets[v + 1]; ++e) edges.emplace(v, graph.targets[e]);
  }
  for (const auto& [from, to] : edges) EXPECT_EQ(edges.count({from, to}), edges.count({to, from}));
}

TEST(BreadthFirstSearch, FindsTheLevelsOfAQueue) {
  const Graph graph(10);
  const std::size_t vertices = graph.offsets.size() - 1;
  std::vector<std::int32_t> expected(vertices, unreached);
  std::deque<std::uint32_t> queue{3};
  expected[3] = 0;
  while (!queue.empty()) {
    const std::uint32_t v = queue.front();
    queue.pop_front();
    for (std::uint64_t e = graph.offsets[v]; e < graph.offsets[v + 1]; ++e) {
      if (expected[graph.targets[e]] != unreached) continue;
      expected[graph.targets[e]] = expected[v] + 1;
      queue.push_back(graph.targets[e]);
    }
  }
  std::vector<std::int32_t> levels(vertices, unreached);
  std::uint32_t changed = 0;
  breadth_first_search(PlainLauncher{}, graph.view(), 3, levels.data(), &changed);
  EXPECT_EQ(levels, expected);
}

TEST(PageRank, KeepsItsFixedPointOnARing) {
  // On a ring every vertex ranks the same.
  const std::size_t vertices = 64;
  std::vector<std::uint64_t> offsets;
  std::vector<std::uint32_t> targets;
  for (std::uint32_t v = 0; v < vertices; ++v) {
    offsets.push_back(targets.size());
    targets.push_back((v + 1) % vertices);
    targets.push_back((v + vertices - 1) % vertices);
  }
  offsets.push_back(targets.size());
  std::vector<double> rank(vertices, 1.0 / vertices);
  std::vector<double> share(vertices);
  page_rank(PlainLauncher{}, {offsets.data(), targets.data(), vertices}, rank.data(), share.data(), 10);
  for (const double value : rank) EXPECT_NEAR(value, 1.0 / vertices, 1e-12);
}

TEST(Stencil, AveragesInsideAndLeavesTheEdgeAlone) {
  std::vector<double> a(16, 0.0);
  std::vector<double> b(16, 0.0);
  a[5] = 5.0;
  stencil(PlainLauncher{}, a.data(), b.data(), 4, 4, 1);
  EXPECT_DOUBLE_EQ(b[5], 1.0);
  EXPECT_DOUBLE_EQ(b[6], 1.0);
  EXPECT_DOUBLE_EQ(b[9], 1.0);
  EXPECT_DOUBLE_EQ(b[10], 0.0);
  EXPECT_DOUBLE_EQ(b[1], 0.0);
}

TEST(Recording, ComputesTheSameAndSeesEveryGranule) {
  const Graph graph(12);
  const std::size_t vertices = graph.offsets.size() - 1;
  std::vector<std::int32_t> plain(vertices, unreached);
  std::vector<std::int32_t> recorded(vertices, unreached);
  std::uint32_t changed = 0;
  breadth_first_search(PlainLauncher{}, graph.view(), 0, plain.data(), &changed);
  AccessRecorder recorder(4096);
  breadth_first_search(RecordingLauncher(recorder, 64), graph.view(), 0, recorded.data(), &changed);
  EXPECT_EQ(recorded, plain);
  // Its levels are all read, so each page of them is there, and some page is written.
  EXPECT_GE(recorder.granules(), vertices * sizeof(std::int32_t) / 4096);
  const MinResult roomy = belady_min(recorder.accesses(), recorder.granules());
  EXPECT_EQ(roomy.loads, recorder.granules());
  EXPECT_EQ(roomy.write_backs, 0U);
  EXPECT_GT(belady_min(recorder.accesses(), recorder.granules() / 2).loads, roomy.loads);
}

}  // namespace
}  // namespace ferry::bench
