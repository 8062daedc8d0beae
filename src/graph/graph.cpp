// Nodes and edges.
#include "graph/graph.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "graph/impl.h"

namespace ferry::graph {

Graph::Graph() : impl_(new Impl) {}
Graph::~Graph() { delete impl_; }

ClassId Graph::define(std::string_view name, InSection in_section) {
  Impl& g = *impl_;
  FERRY_CHECK_LT(g.classes.size(), max_classes);
  const auto cls = static_cast<ClassId>(g.classes.size());
  g.classes.push_back({.name = std::string(name), .forbidden = in_section == InSection::forbidden});
  if (in_section == InSection::forbidden) g.forbidden_classes |= bit(cls);
  if (g.single_targets.empty()) {
    g.single_targets.resize(max_classes);
    g.arcs_of.resize(max_classes);
  }
  return cls;
}

void Graph::resource(ClassId cls) {
  Impl& g = *impl_;
  FERRY_CHECK_LT(cls, g.classes.size());
  if (g.classes[cls].resource != nil) return;
  g.classes[cls].resource = static_cast<Index>(g.single_targets.size() / max_classes - 1);
  g.resource_classes |= bit(cls);
  g.single_targets.resize(g.single_targets.size() + max_classes);
  g.arcs_of.resize(g.single_targets.size());
}

void Graph::ordered(ClassId from, ClassId to) {
  FERRY_CHECK_LT(from, impl_->classes.size());
  FERRY_CHECK_LT(to, impl_->classes.size());
  impl_->classes[from].ordered |= bit(to);
}

NodeId Graph::add(ClassId cls, std::uint64_t number, Needs needs) {
  Impl& g = *impl_;
  FERRY_CHECK_LT(cls, g.classes.size());
  Index index = g.free_node;
  if (index == nil) {
    index = static_cast<Index>(g.nodes.size());
    g.nodes.emplace_back();
    g.marks.emplace_back();
  } else {
    g.free_node = g.nodes[index].first_out;
  }
  Node& node = g.nodes[index];
  const std::uint32_t generation = node.generation + 1;
  node = Node{};
  node.generation = generation;
  node.cls = cls;
  node.alive = true;
  node.any = needs == Needs::any;
  node.rank = ++g.highest;  // who comes later waits for who was there, most of the time
  node.number = number;
  ++g.node_count;
  return g.id_of(index);
}

void Graph::remove(NodeId id) {
  Impl& g = *impl_;
  const Index index = g.find(id);
  if (index == nil) return;
  if (g.nodes[index].section == Section::visible) {
    g.report_never_signalled(index);
    --g.open_sections;
  }
  while (g.nodes[index].first_out != nil) g.unlink(g.nodes[index].first_out);
  while (g.nodes[index].first_in != nil) g.unlink(g.nodes[index].first_in);
  if (g.nodes[index].worded) g.words.erase(index);
  g.nodes[index].alive = false;
  g.nodes[index].first_out = g.free_node;
  g.free_node = index;
  --g.node_count;
}

bool Graph::exists(NodeId node) const { return impl_->find(node) != nil; }

ClassId Graph::class_of(NodeId node) const {
  const Index index = impl_->find(node);
  FERRY_CHECK_NE(index, nil);
  return impl_->nodes[index].cls;
}

bool Graph::waits(NodeId from, NodeId to) const {
  const Index source = impl_->find(from);
  const Index target = impl_->find(to);
  return source != nil && target != nil && impl_->find_edge(source, target) != nil;
}

void Graph::describe(NodeId node, std::string_view words) {
  const Index index = impl_->find(node);
  if (index == nil) return;
  Node& n = impl_->nodes[index];
  n.pattern = nullptr;
  if (words.empty()) {
    if (n.worded) impl_->words.erase(index);
  } else {
    impl_->words[index] = words;
  }
  n.worded = !words.empty();
}

void Graph::describe(NodeId node, const char* pattern, std::uint64_t first, std::uint64_t second) {
  const Index index = impl_->find(node);
  if (index == nil) return;
  Node& n = impl_->nodes[index];
  n.pattern = pattern;
  n.first_number = first;
  n.second_number = second;
}

// Walks both lists at once, so that it costs what the shorter one does: memory that hundreds wait for is no burden to
// a fault that waits for two things.
Index Graph::Impl::find_edge(Index from, Index to) const {
  Index out = nodes[from].first_out;
  Index in = nodes[to].first_in;
  while (out != nil && in != nil) {
    if (edges[out].to == to) return out;
    if (edges[in].from == from) return in;
    out = edges[out].next_out;
    in = edges[in].next_in;
  }
  return nil;
}

Index Graph::Impl::link(Index from, Index to, const char* how) {
  Index index = free_edge;
  if (index == nil) {
    index = static_cast<Index>(edges.size());
    edges.emplace_back();
  } else {
    free_edge = edges[index].next_out;
  }
  Edge& edge = edges[index];
  Node& source = nodes[from];
  Node& target = nodes[to];
  edge.from = from;
  edge.to = to;
  edge.count = 1;
  edge.how = how;
  edge.unordered = false;
  edge.previous_out = nil;
  edge.next_out = source.first_out;
  if (edge.next_out != nil) edges[edge.next_out].previous_out = index;
  source.first_out = index;
  edge.previous_in = nil;
  edge.next_in = target.first_in;
  if (edge.next_in != nil) edges[edge.next_in].previous_in = index;
  target.first_in = index;
  ++source.outs;
  ++target.ins;
  ++edge_count;
  order(index);
  if (source.any) source.out_classes |= bit(target.cls);
  if ((resource_classes & bit(source.cls)) != 0) {
    ++target.resource_ins;
    target.resource_classes |= bit(source.cls);
  }
  return index;
}

void Graph::Impl::unlink(Index index) {
  Edge& edge = edges[index];
  Node& source = nodes[edge.from];
  Node& target = nodes[edge.to];
  (edge.previous_out == nil ? source.first_out : edges[edge.previous_out].next_out) = edge.next_out;
  if (edge.next_out != nil) edges[edge.next_out].previous_out = edge.previous_out;
  (edge.previous_in == nil ? target.first_in : edges[edge.previous_in].next_in) = edge.next_in;
  if (edge.next_in != nil) edges[edge.next_in].previous_in = edge.previous_in;
  --source.outs;
  --target.ins;
  --edge_count;
  if (edge.unordered) --unordered_edges;
  if (source.any) {
    source.out_classes = 0;
    for (Index e = source.first_out; e != nil; e = edges[e].next_out) source.out_classes |= bit(nodes[edges[e].to].cls);
  }
  if ((resource_classes & bit(source.cls)) != 0) {
    target.resource_classes = 0;
    if (--target.resource_ins != 0) {
      for (Index e = target.first_in; e != nil; e = edges[e].next_in) {
        target.resource_classes |= bit(nodes[edges[e].from].cls) & resource_classes;
      }
    }
  }
  edge.next_out = free_edge;
  free_edge = index;
}

Circle Graph::wait(NodeId from_id, NodeId to_id, const char* how) {
  Impl& g = *impl_;
  const Index from = g.find(from_id);
  const Index to = g.find(to_id);
  if (from == nil || to == nil) return {};
  if (const Index known = g.find_edge(from, to); known != nil) {
    ++g.edges[known].count;
    return g.circle_of_new(from, {&known, 1});
  }
  const Index edge = g.link(from, to, how);
  Circle circle;
  if (g.unordered_edges != 0) {
    circle = g.circle_of_new(from, {&edge, 1});
    if (!circle.empty()) g.report(Report::What::circle, "deadlock: " + g.sentences(circle));
  }
  g.remember(from, g.nodes[from].any ? g.nodes[from].out_classes : bit(g.nodes[to].cls), edge, !circle.empty());
  if (g.open_sections != 0) g.check_wait_in_section(from, to);
  return circle;
}

Circle Graph::wait_any(NodeId from_id, std::span<const NodeId> to_ids, const char* how) {
  Impl& g = *impl_;
  const Index from = g.find(from_id);
  if (from == nil) return {};
  std::vector<Index>& all = g.named;
  all.clear();
  Index added = nil;
  for (const NodeId to_id : to_ids) {
    const Index to = g.find(to_id);
    if (to == nil) continue;
    Index edge = g.find_edge(from, to);
    if (edge != nil) {
      ++g.edges[edge].count;
    } else {
      edge = g.link(from, to, how);
      added = edge;
    }
    all.push_back(edge);
  }
  Circle circle = g.circle_of_new(from, all);
  if (added == nil) return circle;
  if (!circle.empty()) g.report(Report::What::circle, "deadlock: " + g.sentences(circle));
  if (g.nodes[from].any) {
    g.remember(from, g.nodes[from].out_classes, added, !circle.empty());
  } else {
    for (const Index edge : all) g.remember(from, bit(g.nodes[g.edges[edge].to].cls), edge, !circle.empty());
  }
  if (g.open_sections != 0) {
    for (const Index edge : all) g.check_wait_in_section(from, g.edges[edge].to);
  }
  return circle;
}

void Graph::done(NodeId from_id, NodeId to_id) {
  Impl& g = *impl_;
  const Index from = g.find(from_id);
  const Index to = g.find(to_id);
  if (from == nil || to == nil) return;
  const Index edge = g.find_edge(from, to);
  if (edge == nil) return;
  if (--g.edges[edge].count == 0) g.unlink(edge);
}

void Graph::done_all(NodeId from) {
  const Index index = impl_->find(from);
  if (index == nil) return;
  while (impl_->nodes[index].first_out != nil) impl_->unlink(impl_->nodes[index].first_out);
}

void Graph::let_go(NodeId to) {
  const Index index = impl_->find(to);
  if (index == nil) return;
  while (impl_->nodes[index].first_in != nil) impl_->unlink(impl_->nodes[index].first_in);
}

Circle Graph::would_close(NodeId from_id, NodeId to_id) const {
  Impl& g = *impl_;
  const Index from = g.find(from_id);
  const Index to = g.find(to_id);
  if (from == nil || to == nil) return {};
  const Index known = g.find_edge(from, to);
  const Index edge = known != nil ? known : g.link(from, to, "waits for");
  Circle circle = g.circle_of_new(from, {&edge, 1});
  if (known == nil) g.unlink(edge);
  return circle;
}

Circle Graph::stuck(NodeId node) const {
  const Index index = impl_->find(node);
  return index == nil ? Circle{} : impl_->circle_of(index);
}

std::vector<Report> Graph::take_reports() { return std::exchange(impl_->reports, {}); }
bool Graph::has_reports() const { return !impl_->reports.empty(); }
std::uint64_t Graph::node_count() const { return impl_->node_count; }
std::uint64_t Graph::edge_count() const { return impl_->edge_count; }

namespace {
constexpr std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  std::uint64_t z = (a ^ (b * 0x9e3779b97f4a7c15)) + 0x632be59bd9b4e019;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}
}  // namespace

// Sums, so that neither slots nor the order of lists count.
std::uint64_t Graph::digest() const {
  const Impl& g = *impl_;
  std::uint64_t sum = 0;
  const auto label = [](const Node& node) { return mix(node.cls, node.number); };
  for (const Node& node : g.nodes) {
    if (!node.alive) continue;
    sum += mix(label(node), (static_cast<std::uint64_t>(node.section) << 1) | (node.any ? 1 : 0));
    for (Index e = node.first_out; e != nil; e = g.edges[e].next_out) {
      sum += mix(mix(label(node), label(g.nodes[g.edges[e].to])), g.edges[e].count + 0x100ULL);
    }
  }
  return sum;
}

}  // namespace ferry::graph
