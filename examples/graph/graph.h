// A directed graph in standard containers, in managed memory: a vector of vectors for each direction.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ferry/ferry.hpp>

namespace example {

using Vertex = std::uint32_t;

template <typename T>
using Managed = std::vector<T, ferry::allocator<T>>;
using Adjacency = Managed<Managed<Vertex>>;

struct Graph {
  std::string name;
  Adjacency out;  ///< out[v]: the heads of v's edges
  Adjacency in;   ///< in[v]: the tails of the edges that end in v
  [[nodiscard]] std::size_t vertices() const { return out.size(); }
  [[nodiscard]] std::uint64_t edges() const;
  [[nodiscard]] std::uint64_t bytes() const;  ///< held in managed memory, by both directions
};

using Edge = std::pair<Vertex, Vertex>;

/// Builds both directions; vectors are reserved to their exact size.
Graph make_graph(std::string name, std::size_t vertices, const std::vector<Edge>& edges);

/// Packages and their Depends, Pre-Depends, Recommends and Suggests, from apt's lists on this machine, or from dpkg's
/// status where there are none.
Graph debian_packages();

/// Graph500's Kronecker graph: 2^scale vertices, edge_factor edges for each, initiator (0.57, 0.19, 0.19, 0.05).
Graph kronecker(unsigned scale, unsigned edge_factor, std::uint64_t seed);

}  // namespace example
