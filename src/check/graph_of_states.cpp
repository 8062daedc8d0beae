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

std::vector<std::uint64_t> StateGraph::cycle_in(const std::vector<std::uint32_t>& component,
                                                const std::vector<std::uint32_t>& member, std::uint32_t number) const {
  // Every event that is taken anywhere in the component belongs to the livelock; one round that comes back is enough to
  // show it.
  std::vector<std::uint32_t> from(nodes_.size(), none);
  std::vector<std::uint64_t> by(nodes_.size(), 0);
  const std::uint32_t start = component.front();
  std::vector<std::uint32_t> order{start};
  for (std::size_t i = 0; i < order.size(); ++i) {
    for (const Transition& t : nodes_[order[i]].out) {
      if (t.to == none || t.progress || member[t.to] != number) continue;
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

std::vector<std::uint64_t> StateGraph::fair_cycle(std::uint32_t& entry) const {
  // Tarjan's strongly connected components over the transitions without progress, with a stack of its own.
  const auto count = static_cast<std::uint32_t>(nodes_.size());
  std::vector<std::uint32_t> number(count, none);
  std::vector<std::uint32_t> low(count, 0);
  std::vector<std::uint32_t> member(count, none);
  std::vector<std::uint32_t> open;
  std::vector<std::uint32_t> component;
  struct Frame {
    std::uint32_t state;
    std::uint32_t next;
  };
  std::vector<Frame> stack;
  std::uint32_t clock = 0;
  std::uint32_t components = 0;
  for (std::uint32_t root = 0; root < count; ++root) {
    if (number[root] != none) continue;
    stack.push_back({root, 0});
    number[root] = low[root] = clock++;
    open.push_back(root);
    while (!stack.empty()) {
      Frame& frame = stack.back();
      const std::uint32_t state = frame.state;
      const auto& out = nodes_[state].out;
      if (frame.next < out.size()) {
        const Transition& t = out[frame.next++];
        if (t.to == none || t.progress || member[t.to] != none) continue;
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
      component.clear();
      std::uint32_t top = none;
      do {
        top = open.back();
        open.pop_back();
        member[top] = components;
        component.push_back(top);
      } while (top != state);
      const std::uint32_t own = components++;
      // What could happen in every state of the component, and what does happen within it.
      std::vector<std::uint64_t> always;
      std::vector<std::uint64_t> taken;
      bool first = true;
      for (const std::uint32_t s : component) {
        std::vector<std::uint64_t> keys;
        for (const Transition& t : nodes_[s].out) {
          keys.push_back(t.key);
          if (t.to != none && !t.progress && member[t.to] == own) taken.push_back(t.key);
        }
        std::sort(keys.begin(), keys.end());
        if (first) {
          always = keys;
        } else {
          std::vector<std::uint64_t> both;
          std::set_intersection(always.begin(), always.end(), keys.begin(), keys.end(), std::back_inserter(both));
          always = std::move(both);
        }
        first = false;
      }
      if (taken.empty()) continue;
      std::sort(taken.begin(), taken.end());
      const bool fair = std::all_of(always.begin(), always.end(), [&taken](std::uint64_t key) {
        return std::binary_search(taken.begin(), taken.end(), key);
      });
      if (fair) {
        entry = component.front();
        return cycle_in(component, member, own);
      }
    }
  }
  return {};
}

}  // namespace ferry::check
