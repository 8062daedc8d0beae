#include "check/graph_of_states.h"

#include <algorithm>

namespace ferry::check {

std::uint32_t StateGraph::state(std::uint64_t digest, bool& is_new) {
  const auto [it, fresh] = index_.try_emplace(digest, static_cast<std::uint32_t>(nodes_.size()));
  is_new = fresh;
  if (fresh) nodes_.emplace_back();
  return it->second;
}

/// Breadth first: each state's predecessor on a shortest way, and the order in which they were met.
void StateGraph::distances(std::vector<std::uint32_t>& from, std::vector<std::uint64_t>& by,
                           std::vector<std::uint32_t>& order) const {
  from.assign(nodes_.size(), none);
  by.assign(nodes_.size(), 0);
  order.clear();
  if (nodes_.empty()) return;
  order.push_back(0);
  from[0] = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    for (const Transition& t : nodes_[order[i]].out) {
      if (t.to == none || from[t.to] != none) continue;
      from[t.to] = order[i];
      by[t.to] = t.key;
      order.push_back(t.to);
    }
  }
}

std::vector<std::uint64_t> StateGraph::way_to(std::uint32_t target) const {
  std::vector<std::uint32_t> from;
  std::vector<std::uint64_t> by;
  std::vector<std::uint32_t> order;
  distances(from, by, order);
  std::vector<std::uint64_t> keys;
  for (std::uint32_t at = target; at != 0 && from[at] != none; at = from[at]) keys.push_back(by[at]);
  std::reverse(keys.begin(), keys.end());
  return keys;
}

std::uint32_t StateGraph::nearest(const std::vector<Finding>& findings, Verdict verdict) const {
  std::vector<std::uint32_t> from;
  std::vector<std::uint64_t> by;
  std::vector<std::uint32_t> order;
  distances(from, by, order);
  for (const std::uint32_t state : order) {
    if (nodes_[state].finding != none && findings[nodes_[state].finding].verdict == verdict) return state;
  }
  return none;
}

std::vector<std::uint64_t> StateGraph::cycle_in(const std::vector<std::uint32_t>& component) const {
  // Every event that is taken anywhere in the component belongs to the livelock; one round that comes back is enough to
  // show it.
  std::vector<bool> inside(nodes_.size(), false);
  for (const std::uint32_t s : component) inside[s] = true;
  std::vector<std::uint32_t> from(nodes_.size(), none);
  std::vector<std::uint64_t> by(nodes_.size(), 0);
  const std::uint32_t start = component.front();
  std::vector<std::uint32_t> order{start};
  for (std::size_t i = 0; i < order.size(); ++i) {
    for (const Transition& t : nodes_[order[i]].out) {
      if (t.to == none || t.progress || !inside[t.to]) continue;
      if (t.to == start) {
        std::vector<std::uint64_t> keys{t.key};
        for (std::uint32_t at = order[i]; at != start; at = from[at]) keys.push_back(by[at]);
        std::reverse(keys.begin(), keys.end());
        return keys;
      }
      if (from[t.to] != none) continue;
      from[t.to] = order[i];
      by[t.to] = t.key;
      order.push_back(t.to);
    }
  }
  return {};
}

/// Tarjan's algorithm, with a stack of its own.
std::vector<std::vector<std::uint32_t>> StateGraph::components(const std::vector<std::uint32_t>& states) const {
  const auto count = static_cast<std::uint32_t>(nodes_.size());
  std::vector<std::uint32_t> number(count, none);
  std::vector<std::uint32_t> low(count, 0);
  std::vector<bool> usable(count, false);
  for (const std::uint32_t s : states) usable[s] = true;
  std::vector<std::uint32_t> open;
  std::vector<std::vector<std::uint32_t>> out;
  struct Frame {
    std::uint32_t state;
    std::uint32_t next;
  };
  std::vector<Frame> stack;
  std::uint32_t clock = 0;
  for (const std::uint32_t root : states) {
    if (number[root] != none) continue;
    stack.push_back({root, 0});
    number[root] = low[root] = clock++;
    open.push_back(root);
    while (!stack.empty()) {
      Frame& frame = stack.back();
      const std::uint32_t state = frame.state;
      const auto& ways = nodes_[state].out;
      if (frame.next < ways.size()) {
        const Transition& t = ways[frame.next++];
        if (t.to == none || t.progress || !usable[t.to]) continue;
        if (number[t.to] == none) {
          number[t.to] = low[t.to] = clock++;
          open.push_back(t.to);
          stack.push_back({t.to, 0});
        } else {
          low[state] = std::min(low[state], number[t.to]);
        }
        continue;
      }
      stack.pop_back();
      if (!stack.empty()) low[stack.back().state] = std::min(low[stack.back().state], low[state]);
      if (low[state] != number[state]) continue;
      std::vector<std::uint32_t> component;
      std::uint32_t top = none;
      do {
        top = open.back();
        open.pop_back();
        usable[top] = false;
        component.push_back(top);
      } while (top != state);
      const bool has_way =
          component.size() > 1 || std::any_of(nodes_[state].out.begin(), nodes_[state].out.end(),
                                              [state](const Transition& t) { return t.to == state && !t.progress; });
      if (has_way) out.push_back(std::move(component));
    }
  }
  return out;
}

std::vector<std::uint64_t> StateGraph::fair_cycle(std::uint32_t& entry) const {
  // Strong fairness, as for Streett automata: a state where something could happen that happens nowhere in its component
  // can only be passed finitely often. It is left out, and what remains is looked at again.
  std::vector<std::uint32_t> all(nodes_.size());
  for (std::uint32_t s = 0; s < all.size(); ++s) all[s] = s;
  std::vector<std::vector<std::uint32_t>> todo = components(all);
  std::vector<std::uint32_t> mark(nodes_.size(), none);
  std::uint32_t round = 0;
  while (!todo.empty()) {
    const std::vector<std::uint32_t> component = std::move(todo.back());
    todo.pop_back();
    ++round;
    for (const std::uint32_t s : component) mark[s] = round;
    std::vector<std::uint64_t> taken;
    for (const std::uint32_t s : component) {
      for (const Transition& t : nodes_[s].out) {
        if (t.to != none && !t.progress && mark[t.to] == round) taken.push_back(t.key);
      }
    }
    std::sort(taken.begin(), taken.end());
    std::vector<std::uint32_t> kept;
    for (const std::uint32_t s : component) {
      const auto& ways = nodes_[s].out;
      const bool all_taken = std::all_of(ways.begin(), ways.end(), [&taken](const Transition& t) {
        return t.optional || std::binary_search(taken.begin(), taken.end(), t.key);
      });
      if (all_taken) kept.push_back(s);
    }
    if (kept.size() == component.size()) {
      entry = component.front();
      return cycle_in(component);
    }
    for (auto& smaller : components(kept)) todo.push_back(std::move(smaller));
  }
  return {};
}

}  // namespace ferry::check
