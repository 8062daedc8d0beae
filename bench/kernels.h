// The kernels that ferry-bench times on a device and on plain threads. Both sides inline these very bodies, so a ratio
// between them speaks of Ferry and not of two compilations. They touch nothing but their arguments.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <utility>

namespace ferry::bench {

/// STREAM's triad, one element.
inline void triad_element(double* a, const double* b, const double* c, double scale, std::size_t i) {
  a[i] = b[i] + scale * c[i];
}

/// One link of the pointer chase: a cache line, so that no two steps share one.
struct alignas(64) ChaseNode {
  ChaseNode* next = nullptr;
  std::uint64_t value = 0;
  std::array<std::uint64_t, 6> padding{};
};
static_assert(sizeof(ChaseNode) == 64);

/// Follows `steps` links; the sum keeps the loads from being dropped.
inline std::uint64_t chase(const ChaseNode* node, std::size_t steps) {
  std::uint64_t sum = 0;
  for (std::size_t step = 0; step < steps; ++step) {
    sum += node->value;
    node = node->next;
  }
  return sum;
}

/// Links `count` nodes into one cycle in an order drawn from `seed` (Sattolo's shuffle: a single cycle, so that no
/// walker can fall into a short loop that fits a cache).
inline void link_chase_cycle(ChaseNode* nodes, std::size_t count, std::uint64_t seed) {
  for (std::size_t i = 0; i < count; ++i) {
    nodes[i].next = &nodes[i];
    nodes[i].value = i;
  }
  std::mt19937_64 random(seed);
  for (std::size_t i = count - 1; i > 0; --i) {
    const std::size_t other = std::uniform_int_distribution<std::size_t>(0, i - 1)(random);
    std::swap(nodes[i].next, nodes[other].next);
  }
}

}  // namespace ferry::bench
