// What was waited for by what, by class, for the whole run: circles that have not happened yet.
// A circle is told if its classes can hold each other up as nodes do (circle.cpp): an arc with several targets, an
// any-node's, only counts if all of them can be stuck. Who was reached through a resource that it holds is followed
// only into waits that it was seen in while holding one: a job that waits for a unit, gets it and then waits for
// nothing more is no circle of jobs and units.
#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.h"
#include "graph/impl.h"

namespace ferry::graph {

namespace {
template <typename Function>
void for_bits(std::uint64_t bits, Function function) {
  for (; bits != 0; bits &= bits - 1) function(static_cast<ClassId>(std::countr_zero(bits)));
}
}  // namespace

bool Graph::Impl::known(Vertex from, std::uint64_t targets) const {
  if ((single_targets[from] & targets) != 0) return true;
  if (std::has_single_bit(targets)) return false;
  return std::any_of(arcs_of[from].begin(), arcs_of[from].end(),
                     [&](Index arc) { return (arcs[arc].targets & ~targets) == 0; });
}

void Graph::Impl::remember_new(Index from, std::uint64_t targets, Index edge, bool quiet) {
  const Node& node = nodes[from];
  if ((classes[node.cls].ordered & targets) != 0) return;
  const auto words = [&] {
    std::string text = name(edges[edge].from) + " " + edges[edge].how + " " + name(edges[edge].to);
    if (!std::has_single_bit(targets)) text += ", or for another of " + std::to_string(node.outs);
    return text;
  };
  const Vertex plain = vertex(node.cls, nil);
  if (!known(plain, targets)) learn(plain, targets, words(), quiet);
  for_bits(nodes[from].resource_classes, [&](ClassId resource) {
    const Vertex holding = vertex(nodes[from].cls, classes[resource].resource);
    if (known(holding, targets)) return;
    std::string text = words() + ", and holds ";
    bool first = true;
    for (Index e = nodes[from].first_in; e != nil; e = edges[e].next_in) {
      if (nodes[edges[e].from].cls != resource) continue;
      text += (first ? "" : ", ") + name(edges[e].from);
      first = false;
    }
    learn(holding, targets, std::move(text), quiet);
  });
  if ((resource_classes & bit(nodes[from].cls)) != 0) {
    const Index holder = edges[edge].to;
    if (nodes[holder].first_out != nil) remember_hold(holder, nodes[from].cls, edge, quiet);
  }
}

void Graph::Impl::remember_hold(Index holder, ClassId resource, Index edge, bool quiet) {
  const Vertex holding = vertex(nodes[holder].cls, classes[resource].resource);
  const auto one = [&](std::uint64_t targets, Index wait) {
    if ((classes[nodes[holder].cls].ordered & targets) != 0 || known(holding, targets)) return;
    learn(holding, targets,
          name(holder) + " " + edges[wait].how + " " + name(edges[wait].to) + ", and holds " + name(edges[edge].from),
          quiet);
  };
  if (nodes[holder].any) {
    one(nodes[holder].out_classes, nodes[holder].first_out);
  } else {
    for (Index e = nodes[holder].first_out; e != nil; e = edges[e].next_out) one(bit(nodes[edges[e].to].cls), e);
  }
}

void Graph::note(ClassId from, ClassId to, std::string_view where) {
  Impl& g = *impl_;
  FERRY_CHECK_LT(from, g.classes.size());
  FERRY_CHECK_LT(to, g.classes.size());
  if ((g.classes[from].ordered & bit(to)) != 0) return;
  const Vertex vertex = g.vertex(from, nil);
  if (!g.known(vertex, bit(to))) g.learn(vertex, bit(to), std::string(where), false);
}

void Graph::Impl::learn(Vertex from, std::uint64_t targets, std::string seen, bool quiet) {
  const auto arc = static_cast<Index>(arcs.size());
  arcs.push_back({from, targets, std::move(seen)});
  arcs_of[from].push_back(arc);
  if (std::has_single_bit(targets)) single_targets[from] |= targets;
  find_class_circle(arc, quiet);
}

// A new arc is rare, and there are some dozens: everything is worked out anew.
void Graph::Impl::find_class_circle(Index new_arc, bool quiet) {
  // Where an arc of `from` leads to: the target's class, reached by holding if `from` is a resource.
  const auto target = [this](Vertex from, ClassId cls) { return vertex(cls, classes[from % max_classes].resource); };
  const auto all_stuck = [&](const Arc& arc, const std::vector<bool>& set) {
    bool all = true;
    for_bits(arc.targets, [&](ClassId cls) { all = all && set[target(arc.from, cls)]; });
    return all;
  };
  const std::vector<bool> before = std::exchange(stuck_vertices, {});
  stuck_vertices.assign(single_targets.size(), false);
  for (const Arc& arc : arcs) stuck_vertices[arc.from] = true;
  for (bool changed = true; changed;) {
    changed = false;
    for (Vertex v = 0; v < stuck_vertices.size(); ++v) {
      if (!stuck_vertices[v]) continue;
      const auto& own = arcs_of[v];
      if (std::any_of(own.begin(), own.end(), [&](Index a) { return all_stuck(arcs[a], stuck_vertices); })) continue;
      stuck_vertices[v] = false;
      changed = true;
    }
  }

  struct Reached {
    Index arc = nil;
    Vertex by = nil;
  };
  struct Hop {
    Vertex from;
    Index arc;
    Vertex to;
  };
  // The shortest way from `start`, by `first` if that is not nil, back to it.
  const auto shortest_way = [&](Vertex start, Index first) {
    std::vector<Reached> reached(stuck_vertices.size());
    std::vector<Vertex> todo;
    bool closed = false;
    const auto follow = [&](Index a) {
      if (closed || !all_stuck(arcs[a], stuck_vertices)) return;
      for_bits(arcs[a].targets, [&](ClassId cls) {
        const Vertex v = target(arcs[a].from, cls);
        if (closed || reached[v].arc != nil) return;
        reached[v] = {a, arcs[a].from};
        closed = v == start;
        todo.push_back(v);
      });
    };
    for (const Index a : arcs_of[start]) {
      if (first == nil || a == first) follow(a);
    }
    for (std::size_t i = 0; i < todo.size() && !closed; ++i) {
      for (const Index a : arcs_of[todo[i]]) follow(a);
    }
    std::vector<Hop> hops;
    if (!closed) return hops;
    Vertex v = start;
    do {
      hops.push_back({reached[v].by, reached[v].arc, v});
      v = reached[v].by;
    } while (v != start);
    std::reverse(hops.begin(), hops.end());
    return hops;
  };

  std::vector<Hop> hops;
  const Vertex from = arcs[new_arc].from;
  if (stuck_vertices[from]) hops = shortest_way(from, new_arc);
  // Or the new arc leads into a circle known before, and takes the last hope from others, which are a circle now.
  for (Vertex v = 0; v < stuck_vertices.size() && hops.empty(); ++v) {
    if (stuck_vertices[v] && (v >= before.size() || !before[v])) hops = shortest_way(v, nil);
  }
  if (hops.empty()) return;

  std::vector<Index> key;
  for (const Hop& hop : hops) key.push_back(hop.from % max_classes);
  std::rotate(key.begin(), std::min_element(key.begin(), key.end()), key.end());
  if (!class_circles.insert(key).second || quiet) return;

  std::string text = "could deadlock: ";
  for (std::size_t i = 0; i < hops.size(); ++i) {
    const Hop& hop = hops[i];
    const auto from_class = static_cast<ClassId>(hop.from % max_classes);
    const auto to_class = static_cast<ClassId>(hop.to % max_classes);
    if (i != 0) text += "; ";
    text += classes[from_class].name;
    text += (resource_classes & bit(from_class)) != 0 ? " can be held by " : " can wait for ";
    text += classes[to_class].name;
    for_bits(arcs[hop.arc].targets & ~bit(to_class), [&](ClassId cls) { text += " or " + classes[cls].name; });
    if (!arcs[hop.arc].seen.empty()) text += " (first seen: " + arcs[hop.arc].seen + ")";
  }
  report(Report::What::class_circle, std::move(text));
}

}  // namespace ferry::graph
