// What the files of the graph share: nodes and edges in slabs that are reused, so that nothing is allocated once a run
// has seen its largest graph; the classes' memory; scratch space of the searches.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "graph/graph.h"

namespace ferry::graph {

/// Of a node, edge, arc or vertex, in its slab.
using Index = std::uint32_t;
inline constexpr Index nil = ~Index{0};

[[nodiscard]] constexpr std::uint64_t bit(ClassId cls) { return std::uint64_t{1} << cls; }

/// `from` waits for `to`; in the list of what `from` waits for, and in the list of who waits for `to`.
struct Edge {
  Index from = nil;
  Index to = nil;
  Index next_out = nil;  ///< free edges: the next free one
  Index previous_out = nil;
  Index next_in = nil;
  Index previous_in = nil;
  std::uint32_t count = 0;
  bool unordered = false;  ///< `from` does not rank above `to` (order.cpp)
  const char* how = nullptr;
};

enum class Section : std::uint8_t { none, visible, signalled };

/// Whole lines of the cache, so that finding one is a shift.
struct alignas(64) Node {
  std::uint32_t generation = 0;
  ClassId cls = 0;
  bool alive = false;
  bool any = false;
  Section section = Section::none;
  bool worded = false;    ///< it has an entry in Impl::words
  Index first_out = nil;  ///< free nodes: the next free one
  Index first_in = nil;
  std::uint32_t outs = 0;
  std::uint32_t ins = 0;
  std::uint32_t resource_ins = 0;      ///< of `ins`, those from nodes of a resource class: what it holds
  std::uint64_t out_classes = 0;       ///< of all it waits for; kept up for any-nodes only
  std::uint64_t resource_classes = 0;  ///< of what it holds
  std::int64_t rank = 0;
  std::uint64_t number = 0;
  const char* pattern = nullptr;
  std::uint64_t first_number = 0;
  std::uint64_t second_number = 0;
};

/// A class in a circle of classes. Which of its waits follow depends on how it was reached: if through a resource that
/// it holds (`via`), only those that it was seen in while it held one of that class.
using Vertex = Index;

/// Something seen once: nodes of the vertex's class cannot proceed before all (one bit), or before any (several), of
/// the classes in `targets`.
struct Arc {
  Vertex from = 0;
  std::uint64_t targets = 0;
  std::string seen;
};

struct Class {
  std::string name;
  bool forbidden = false;  ///< inside a section
  Index resource = nil;    ///< its place among resource classes; nil: it is none
  std::uint64_t ordered = 0;
};

struct Graph::Impl {
  // graph.cpp
  [[nodiscard]] Index find(NodeId id) const {
    const auto low = static_cast<std::uint32_t>(id);
    if (low == 0 || low > nodes.size()) return nil;
    const Node& node = nodes[low - 1];
    return node.alive && node.generation == id >> 32 ? low - 1 : nil;
  }
  [[nodiscard]] NodeId id_of(Index node) const {
    return (static_cast<NodeId>(nodes[node].generation) << 32) | (node + 1);
  }
  [[nodiscard]] Index find_edge(Index from, Index to) const;
  Index link(Index from, Index to, const char* how);  ///< a new edge
  void unlink(Index edge);

  // order.cpp
  /// A new edge finds its place in the order, or is unordered: then it may be part of a circle.
  void order(Index edge) {
    if (nodes[edges[edge].from].rank <= nodes[edges[edge].to].rank) find_place(edge);
  }
  void find_place(Index edge);
  /// Brings `from` above `to`. False: `to` waits for `from`.
  bool reorder(Index from, Index to);

  // circle.cpp
  /// The edges of `from` in `first_edges` are new. Looks for nothing if all are in order.
  Circle circle_of_new(Index from, std::span<const Index> first_edges);
  /// The circle that an edge from `from` to one of `targets` is part of; they are in the graph.
  Circle circle_through(Index from, std::span<const Index> targets);
  Circle circle_of(Index node);  ///< that it is part of, or stuck behind

  // classes.cpp
  /// A wait of `from` for any of `targets` (classes), first seen in `edge`. quiet: what it closes is told already.
  void remember(Index from, std::uint64_t targets, Index edge, bool quiet) {
    const Node& node = nodes[from];
    // Seen before, by one that holds nothing and is no resource: most waits.
    if ((single_targets[node.cls] & targets) != 0 &&
        (node.resource_classes | (resource_classes & bit(node.cls))) == 0) {
      return;
    }
    remember_new(from, targets, edge, quiet);
  }
  void remember_new(Index from, std::uint64_t targets, Index edge, bool quiet);
  /// `holder` holds a node of class `resource` since `edge`: what it waits for, it waits for holding that.
  void remember_hold(Index holder, ClassId resource, Index edge, bool quiet);
  void learn(Vertex from, std::uint64_t targets, std::string seen, bool quiet);
  [[nodiscard]] bool known(Vertex from, std::uint64_t targets) const;
  [[nodiscard]] Vertex vertex(ClassId cls, Index resource) const {
    return (resource == nil ? 0 : resource + 1) * max_classes + cls;
  }
  void find_class_circle(Index arc, bool quiet);

  // section.cpp
  void check_wait_in_section(Index from, Index to);
  void check_section_begin(Index fence);
  void collect_section(Index root);
  void decide_forbidden();
  void report_never_signalled(Index fence);

  // words.cpp
  [[nodiscard]] std::string name(Index node) const;
  [[nodiscard]] std::string sentences(const Circle& circle) const;
  void report(Report::What what, std::string text);

  std::vector<Node> nodes;
  std::vector<Edge> edges;
  Index free_node = nil;
  Index free_edge = nil;
  std::uint64_t node_count = 0;
  std::uint64_t edge_count = 0;
  std::uint64_t unordered_edges = 0;  ///< 0: there is no circle anywhere
  std::int64_t highest = 0;
  std::int64_t lowest = 0;
  std::uint64_t open_sections = 0;
  std::unordered_map<Index, std::string> words;
  std::vector<Report> reports;

  std::vector<Class> classes;
  std::uint64_t forbidden_classes = 0;
  std::uint64_t resource_classes = 0;
  /// By vertex: classes of its arcs that have one target. The only thing that a wait of a known kind looks at.
  std::vector<std::uint64_t> single_targets;
  std::vector<std::vector<Index>> arcs_of;  ///< by vertex
  std::vector<Arc> arcs;
  std::vector<bool> stuck_vertices;            ///< by vertex: those that could be stuck
  std::set<std::vector<Index>> class_circles;  ///< reported, each turned so that its smallest class comes first
  std::set<std::uint32_t> section_waits;       ///< kinds reported

  /// Scratch. What a search says of a node is valid if its epoch is the search's.
  struct Mark {
    std::uint32_t epoch = 0;
    std::uint8_t state = 0;
    std::uint32_t left = 0;  ///< edges whose targets are still undecided
    Index reached_by = nil;  ///< edge
  };
  std::vector<Mark> marks;
  std::uint32_t epoch = 0;
  struct Frame {
    Index node;
    Index edge;
  };
  std::vector<Frame> frames;
  std::vector<Index> reach;
  std::vector<Index> queue;
  std::vector<Index> up;
  std::vector<Index> fences;
  std::vector<Index> named;  ///< wait_any()'s

  /// True: `from` waiting for `to` cannot be part of a circle, and nothing that `to` waits for is stuck.
  bool surely_free(Index from, Index to);
  void new_epoch();
  void collect(Index root);  ///< everything that it cannot proceed before, into `reach`
  void decide(Index from = nil, std::span<const Index> without = {});  ///< which nodes of `reach` are stuck
  [[nodiscard]] bool is_stuck(Index node) const;
  Circle shortest(Index from, std::span<const Index> first_edges);
  Circle shortest_through(Index node);
};

}  // namespace ferry::graph
