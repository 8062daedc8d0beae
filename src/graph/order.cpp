// An order of the nodes in which everybody ranks above those it waits for. While all edges follow it there is no circle
// anywhere, and nobody has to search: a fault that joins a line of a thousand costs what the first one did.
// An edge against the order is repaired by moving who waits for `from`, or what `to` waits for, whichever is less; if
// `to` waits for `from` there is no such order, the edge is called unordered, and circle.cpp decides.
#include <algorithm>

#include "graph/impl.h"

namespace ferry::graph {

namespace {
enum State : std::uint8_t { below, above };
}  // namespace

void Graph::Impl::find_place(Index index) {
  Edge& edge = edges[index];
  Node& from = nodes[edge.from];
  Node& to = nodes[edge.to];
  if (edge.from != edge.to) {
    if (to.first_out == nil) {
      to.rank = --lowest;
      return;
    }
    if (from.first_in == nil) {
      from.rank = ++highest;
      return;
    }
    if (reorder(edge.from, edge.to)) return;
  }
  edge.unordered = true;
  ++unordered_edges;
}

// Both sides are searched in turn, an edge at a time, until one is exhausted: it then is all that has to move.
bool Graph::Impl::reorder(Index from, Index to) {
  new_epoch();
  std::vector<Index>& down = queue;
  down.assign(1, to);
  up.assign(1, from);
  marks[to] = {.epoch = epoch, .state = below};
  marks[from] = {.epoch = epoch, .state = above};
  std::size_t down_at = 0;
  std::size_t up_at = 0;
  Index down_edge = nodes[to].first_out;
  Index up_edge = nodes[from].first_in;
  const auto by_rank = [this](Index a, Index b) { return nodes[a].rank < nodes[b].rank; };
  while (true) {
    while (down_edge == nil) {
      if (++down_at == down.size()) {
        std::sort(down.begin(), down.end(), by_rank);
        for (auto node = down.rbegin(); node != down.rend(); ++node) nodes[*node].rank = --lowest;
        return true;
      }
      down_edge = nodes[down[down_at]].first_out;
    }
    while (up_edge == nil) {
      if (++up_at == up.size()) {
        std::sort(up.begin(), up.end(), by_rank);
        for (const Index node : up) nodes[node].rank = ++highest;
        return true;
      }
      up_edge = nodes[up[up_at]].first_in;
    }
    // The edge in hand is in the lists already, but leads from the one side to the other, not within one.
    const Index target = edges[down_edge].to;
    if (!edges[down_edge].unordered && marks[target].epoch != epoch) {
      marks[target] = {.epoch = epoch, .state = below};
      down.push_back(target);
    } else if (!edges[down_edge].unordered && marks[target].state == above) {
      return false;
    }
    down_edge = edges[down_edge].next_out;
    const Index waiter = edges[up_edge].from;
    if (!edges[up_edge].unordered && marks[waiter].epoch != epoch) {
      marks[waiter] = {.epoch = epoch, .state = above};
      up.push_back(waiter);
    } else if (!edges[up_edge].unordered && marks[waiter].state == below) {
      return false;
    }
    up_edge = edges[up_edge].next_in;
  }
}

}  // namespace ferry::graph
