// Who can never proceed.
// An all-node is stuck if one of those it waits for is, an any-node if all are; whoever waits for nothing is not. Of the
// sets that satisfy this the largest is meant: circles hold themselves up. It is found from the other side, by
// taking away whoever can proceed until nothing changes.
#include <algorithm>

#include "graph/impl.h"

namespace ferry::graph {

namespace {
enum State : std::uint8_t { unseen, open, unsure, free_, undecided, stuck_, walked };
}  // namespace

void Graph::Impl::new_epoch() {
  if (++epoch == 0) {
    std::fill(marks.begin(), marks.end(), Mark{});
    epoch = 1;
  }
}

// Depth first, each node once. A node is free if it waits for nothing, an all-node if all its targets turned out free,
// an any-node at the first that did. Whoever meets a node that is still open, `from` among them, is unsure; so is an
// all-node with an unsure target. Unsure is no verdict: circle_through() has the last word.
bool Graph::Impl::surely_free(Index from, Index to) {
  if (to == from) return false;
  if (nodes[to].first_out == nil) return true;
  new_epoch();
  marks[from] = {.epoch = epoch, .state = open};
  marks[to] = {.epoch = epoch, .state = open};
  frames.clear();
  frames.push_back({to, nodes[to].first_out});
  while (true) {
    Frame& frame = frames.back();
    const bool any = nodes[frame.node].any;
    State verdict = undecided;
    if (frame.edge == nil) {
      verdict = any ? unsure : free_;
    } else {
      const Index target = edges[frame.edge].to;
      Mark& mark = marks[target];
      State seen = mark.epoch == epoch ? static_cast<State>(mark.state) : unseen;
      if (seen == unseen && nodes[target].first_out == nil) seen = free_;
      if (seen == unseen) {
        mark = {.epoch = epoch, .state = open};
        frames.push_back({target, nodes[target].first_out});
        continue;
      }
      if (any == (seen == free_)) {
        verdict = any ? free_ : unsure;
      } else {
        frame.edge = edges[frame.edge].next_out;
        continue;
      }
    }
    marks[frame.node].state = verdict;
    frames.pop_back();
    if (frames.empty()) return verdict == free_;
    // The edge that led here is looked at once more, with the verdict.
  }
}

void Graph::Impl::collect(Index root) {
  const auto add = [this](Index node) {
    if (marks[node].epoch == epoch) return;
    marks[node] = {.epoch = epoch, .state = undecided, .left = nodes[node].outs};
    reach.push_back(node);
  };
  add(root);
  for (std::size_t i = reach.empty() ? 0 : reach.size() - 1; i < reach.size(); ++i) {
    for (Index e = nodes[reach[i]].first_out; e != nil; e = edges[e].next_out) add(edges[e].to);
  }
}

// As if the edges of `from` in `without` were not there.
void Graph::Impl::decide(Index from, std::span<const Index> without) {
  queue.clear();
  if (!without.empty()) marks[from].left -= static_cast<std::uint32_t>(without.size());
  for (const Index node : reach) {
    if (marks[node].left != 0) continue;
    marks[node].state = free_;
    queue.push_back(node);
  }
  for (std::size_t i = 0; i < queue.size(); ++i) {
    for (Index e = nodes[queue[i]].first_in; e != nil; e = edges[e].next_in) {
      const Index waiter = edges[e].from;
      Mark& mark = marks[waiter];
      if (mark.epoch != epoch || mark.state != undecided) continue;
      if (waiter == from && std::find(without.begin(), without.end(), e) != without.end()) continue;
      if (--mark.left != 0 && !nodes[waiter].any) continue;
      mark.state = free_;
      queue.push_back(waiter);
    }
  }
  for (const Index node : reach) {
    if (marks[node].state == undecided) marks[node].state = stuck_;
  }
}

bool Graph::Impl::is_stuck(Index node) const {
  return marks[node].epoch == epoch && (marks[node].state == stuck_ || marks[node].state == walked);
}

// The shortest way from `from` through one of `first_edges` and stuck nodes back to `from`.
Circle Graph::Impl::shortest(Index from, std::span<const Index> first_edges) {
  for (const Index node : reach) {
    if (marks[node].state == walked) marks[node].state = stuck_;
  }
  queue.clear();
  Index last = nil;
  const auto visit = [&](Index e) {
    const Index target = edges[e].to;
    if (target == from) {
      last = e;
    } else if (marks[target].epoch == epoch && marks[target].state == stuck_) {
      marks[target].state = walked;
      marks[target].reached_by = e;
      queue.push_back(target);
    }
  };
  for (const Index e : first_edges) {
    if (last == nil) visit(e);
  }
  for (std::size_t i = 0; i < queue.size() && last == nil; ++i) {
    for (Index e = nodes[queue[i]].first_out; e != nil && last == nil; e = edges[e].next_out) visit(e);
  }
  Circle circle;
  for (Index e = last; e != nil;) {
    circle.push_back({id_of(edges[e].from), id_of(edges[e].to), edges[e].how});
    e = edges[e].from == from ? nil : marks[edges[e].from].reached_by;
  }
  std::reverse(circle.begin(), circle.end());
  return circle;
}

Circle Graph::Impl::shortest_through(Index node) {
  std::vector<Index> outs;
  for (Index e = nodes[node].first_out; e != nil; e = edges[e].next_out) outs.push_back(e);
  return shortest(node, outs);
}

Circle Graph::Impl::circle_of_new(Index from, std::span<const Index> first_edges) {
  if (unordered_edges == 0) return {};
  bool is_free = true;
  for (const Index e : first_edges) is_free = is_free && surely_free(from, edges[e].to);
  return is_free ? Circle{} : circle_through(from, first_edges);
}

Circle Graph::Impl::circle_through(Index from, std::span<const Index> first_edges) {
  new_epoch();
  reach.clear();
  collect(from);
  decide();
  if (!is_stuck(from)) return {};
  if (Circle circle = shortest(from, first_edges); !circle.empty()) return circle;

  // `from` is stuck behind another circle. That can be the end of an any-node that hoped for it: look for circles among
  // those that are stuck now and would not be without these edges.
  const auto decide_all = [this, from](std::span<const Index> without) {
    new_epoch();
    reach.clear();
    for (Index node = 0; node < nodes.size(); ++node) {
      if (nodes[node].alive) collect(node);
    }
    decide(from, without);
  };
  decide_all(first_edges);
  std::vector<Index> hopeful;
  std::copy_if(reach.begin(), reach.end(), std::back_inserter(hopeful), [this](Index n) { return !is_stuck(n); });
  decide_all({});
  Circle best;
  for (const Index node : hopeful) {
    if (!is_stuck(node)) continue;
    Circle circle = shortest_through(node);
    if (!circle.empty() && (best.empty() || circle.size() < best.size())) best = std::move(circle);
  }
  return best;
}

Circle Graph::Impl::circle_of(Index node) {
  if (unordered_edges == 0) return {};
  new_epoch();
  reach.clear();
  collect(node);
  decide();
  if (!is_stuck(node)) return {};
  // `reach` is in order of distance, so the first circle found is the nearest.
  for (std::size_t i = 0; i < reach.size(); ++i) {
    if (!is_stuck(reach[i])) continue;
    if (Circle circle = shortest_through(reach[i]); !circle.empty()) return circle;
  }
  return {};
}

}  // namespace ferry::graph
