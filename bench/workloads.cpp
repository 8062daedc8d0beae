#include "workloads.h"

#include <random>
#include <utility>
#include <vector>

namespace ferry::bench {

namespace {

/// One edge: `scale` times a quadrant is drawn with the probabilities of Graph500 (0.57, 0.19, 0.19, 0.05).
std::pair<std::uint32_t, std::uint32_t> draw_edge(unsigned scale, std::mt19937_64& random) {
  std::uint32_t from = 0;
  std::uint32_t to = 0;
  for (unsigned bit = 0; bit < scale; ++bit) {
    const std::uint64_t draw = random() % 100;
    from = (from << 1U) | (draw >= 76 ? 1U : 0U);
    to = (to << 1U) | ((draw >= 57 && draw < 76) || draw >= 95 ? 1U : 0U);
  }
  return {from, to};
}

}  // namespace

void make_kronecker(unsigned scale, unsigned edge_factor, std::uint64_t seed, std::uint64_t* offsets,
                    std::uint32_t* targets) {
  const std::size_t vertices = std::size_t{1} << scale;
  // An odd factor: a bijection modulo the number of vertices, which scatters the heavy ones.
  const auto scatter = [&](std::uint32_t v) {
    return static_cast<std::uint32_t>((v * 0x9e3779b1ULL) & (vertices - 1));
  };
  std::mt19937_64 random(seed);
  std::vector<std::pair<std::uint32_t, std::uint32_t>> edges(edge_factor * vertices);
  std::vector<std::uint64_t> position(vertices + 1);
  for (auto& [from, to] : edges) {
    const auto [drawn_from, drawn_to] = draw_edge(scale, random);
    from = scatter(drawn_from);
    to = scatter(drawn_to);
    ++position[from + 1];
    ++position[to + 1];
  }
  for (std::size_t vertex = 0; vertex < vertices; ++vertex) position[vertex + 1] += position[vertex];
  for (std::size_t vertex = 0; vertex <= vertices; ++vertex) offsets[vertex] = position[vertex];
  for (const auto& [from, to] : edges) {
    targets[position[from]++] = to;
    targets[position[to]++] = from;
  }
}

}  // namespace ferry::bench
