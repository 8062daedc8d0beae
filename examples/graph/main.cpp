// Breadth-first search and PageRank over graphs in std::vector<std::vector<...>>, on the device, checked on the CPU.
// The kernels are plain lambdas; they follow the vectors' own pointers into managed memory.
#include <CLI/CLI.hpp>

#include <atomic>
#include <cmath>
#include <deque>

#include "common/example.h"
#include "graph.h"

namespace example {
namespace {

constexpr std::int32_t unreached = -1;
constexpr double damping = 0.85;

Vertex busiest(const Graph& graph) {
  Vertex best = 0;
  for (Vertex v = 0; v < graph.vertices(); ++v) {
    if (graph.out[v].size() > graph.out[best].size()) {
      best = v;
    }
  }
  return best;
}

// --- on the device ----------------------------------------------------------------------------------------------------

Managed<std::int32_t> search_on_device(const Graph& graph, Vertex source) {
  Managed<std::int32_t> levels(graph.vertices(), unreached);
  // One word that both sides touch after every level: it lives where both reach it.
  auto* found = static_cast<std::uint32_t*>(ferry::alloc(sizeof(std::uint32_t), ferry::placement::system));
  levels[source] = 0;
  std::int32_t depth = 0;
  do {
    *found = 0;
    ferry::parallel_for(
        graph.vertices(),
        [out = graph.out.data(), levels = levels.data(), found, depth](std::size_t v) {
          if (levels[v] != depth) {
            return;
          }
          for (const Vertex to : out[v]) {
            std::int32_t expected = unreached;
            if (std::atomic_ref(levels[to]).compare_exchange_strong(expected, depth + 1, std::memory_order_relaxed)) {
              std::atomic_ref(*found).store(1, std::memory_order_relaxed);
            }
          }
        },
        "bfs level");
    ++depth;
  } while (std::atomic_ref(*found).load() != 0);
  ferry::free(found);
  return levels;
}

Managed<double> rank_on_device(const Graph& graph, int iterations) {
  const std::size_t n = graph.vertices();
  Managed<double> rank(n, 1.0 / static_cast<double>(n));
  Managed<double> share(n);
  const double base = (1 - damping) / static_cast<double>(n);
  for (int i = 0; i < iterations; ++i) {
    ferry::parallel_for(
        n,
        [out = graph.out.data(), rank = rank.data(), share = share.data()](std::size_t v) {
          share[v] = out[v].empty() ? 0 : rank[v] / static_cast<double>(out[v].size());
        },
        "pagerank share");
    ferry::parallel_for(
        n,
        [in = graph.in.data(), rank = rank.data(), share = share.data(), base](std::size_t v) {
          double sum = 0;
          for (const Vertex from : in[v]) {
            sum += share[from];
          }
          rank[v] = base + damping * sum;
        },
        "pagerank gather");
  }
  return rank;
}

// --- on the CPU, another way --------------------------------------------------------------------------------------------

std::vector<std::int32_t> search_on_cpu(const Graph& graph, Vertex source) {
  std::vector<std::int32_t> levels(graph.vertices(), unreached);
  std::deque<Vertex> queue{source};
  levels[source] = 0;
  while (!queue.empty()) {
    const Vertex v = queue.front();
    queue.pop_front();
    for (const Vertex to : graph.out[v]) {
      if (levels[to] == unreached) {
        levels[to] = levels[v] + 1;
        queue.push_back(to);
      }
    }
  }
  return levels;
}

std::vector<double> rank_on_cpu(const Graph& graph, int iterations) {
  const std::size_t n = graph.vertices();
  std::vector<double> rank(n, 1.0 / static_cast<double>(n));
  std::vector<double> next(n);
  for (int i = 0; i < iterations; ++i) {
    next.assign(n, (1 - damping) / static_cast<double>(n));
    for (std::size_t v = 0; v < n; ++v) {
      const double share = damping * rank[v] / static_cast<double>(std::max<std::size_t>(graph.out[v].size(), 1));
      for (const Vertex to : graph.out[v]) {
        next[to] += share;
      }
    }
    rank.swap(next);
  }
  return rank;
}

int run(const Graph& graph, int iterations) {
  const std::uint64_t bytes = graph.bytes() + graph.vertices() * (sizeof(std::int32_t) + 2 * sizeof(double));
  describe(graph.name, bytes);
  fmt::print("  {} vertices, {} edges\n", graph.vertices(), graph.edges());
  const Vertex source = busiest(graph);

  Timer search_time;
  const auto levels = search_on_device(graph, source);
  const double search_seconds = search_time.seconds();
  Timer rank_time;
  const auto ranks = rank_on_device(graph, iterations);
  const double rank_seconds = rank_time.seconds();

  const auto levels_wanted = search_on_cpu(graph, source);
  const auto ranks_wanted = rank_on_cpu(graph, iterations);
  std::uint64_t wrong_levels = 0;
  std::uint64_t wrong_ranks = 0;
  std::uint64_t reached = 0;
  for (std::size_t v = 0; v < graph.vertices(); ++v) {
    wrong_levels += levels[v] != levels_wanted[v] ? 1 : 0;
    reached += levels[v] != unreached ? 1 : 0;
    // The sums are made in another order on either side.
    wrong_ranks += std::abs(ranks[v] - ranks_wanted[v]) > 1e-9 * ranks_wanted[v] ? 1 : 0;
  }
  fmt::print("  search from vertex {} reaches {}: {:.3f} s; PageRank, {} iterations: {:.3f} s\n", source, reached,
             search_seconds, iterations, rank_seconds);
  const int a = verdict("  breadth-first search", wrong_levels, graph.vertices());
  const int b = verdict("  PageRank", wrong_ranks, graph.vertices());
  return a | b;
}

}  // namespace
}  // namespace example

int main(int argc, char** argv) {
  CLI::App app{
      "Breadth-first search and PageRank on the device, over standard containers, checked on the CPU.\n"
      "Example: ferry run --vram 64M -- graph --scale 18"};
  unsigned scale = 0;
  unsigned edge_factor = 0;
  std::uint64_t data_mib = 0;
  int iterations = 5;
  bool no_packages = false;
  app.add_option("--scale", scale, "Kronecker graph of 2^scale vertices (default: what fits the data)")
      ->check(CLI::Range(4, 26));
  app.add_option("--edge-factor", edge_factor, "edges for each vertex (Graph500: 16; default: what gives --data)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--data", data_mib, "MiB of managed data of the Kronecker graph (default: twice the device's memory)")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--iterations", iterations, "of PageRank")->check(CLI::Range(1, 1000));
  app.add_flag("--no-packages", no_packages, "leave the Debian package graph out");
  CLI11_PARSE(app, argc, argv);
  try {
    const std::uint64_t bytes = example::data_bytes(data_mib);
    // A vertex costs two vectors and 20 bytes of results, an edge 8 bytes (both directions).
    constexpr std::uint64_t vertex_bytes = 2 * sizeof(example::Managed<example::Vertex>) + 20;
    if (scale == 0) {
      for (scale = 10; (std::uint64_t{1} << (scale + 1)) * (vertex_bytes + 8 * 16) <= bytes; ++scale) {}
    }
    if (edge_factor == 0) {
      const std::uint64_t per_vertex = bytes >> scale;
      edge_factor =
          static_cast<unsigned>(std::max<std::uint64_t>(per_vertex - std::min(per_vertex, vertex_bytes), 8) / 8);
    }
    int failed = 0;
    if (!no_packages) {
      failed |= example::run(example::debian_packages(), iterations);
    }
    failed |= example::run(example::kronecker(scale, edge_factor, 1), iterations);
    return failed;
  } catch (const std::exception& e) {
    fmt::print(stderr, "graph: {}\n", e.what());
    return EXIT_FAILURE;
  }
}
