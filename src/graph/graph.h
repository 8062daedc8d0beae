// The wait graph: who cannot proceed before whom, the circle when one closes, and its lockdep: classes of waits are
// remembered for the whole run, so that a circle among classes is told although this run got away with it.
// For the core, for the locks of the platform in debug builds, and for drivers outside (include/ferry/progress.h).
// Owns names and edges only: it never blocks, makes no system call, and knows nothing of memory. One thread at a time.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ferry::graph {

/// A kind of thing that waits or is waited for: "fault", "fence", "compute unit". Made once, never removed.
using ClassId = std::uint8_t;
inline constexpr unsigned max_classes = 64;

/// A node's number where there is only one of its class, or where numbers tell nobody anything: not shown.
inline constexpr std::uint64_t unnumbered = ~std::uint64_t{0};

/// One of them. 0 is no node. Carries a generation: an id of a removed node is known as such.
using NodeId = std::uint64_t;
inline constexpr NodeId no_node = 0;

/// When a node that waits for several may go on.
enum class Needs : std::uint8_t {
  all,  ///< when every one it waits for has let it go
  any,  ///< when one of them has (memory: any victim will do). Stuck only if all of them are
};

/// One step of a circle: `from` waits for `to`.
struct Step {
  NodeId from = no_node;
  NodeId to = no_node;
  const char* how = "waits for";  ///< static text between the two names: "is held by", "needs"
};

/// Nodes that can never proceed, as a closed walk: each step's `to` is the next one's `from`. Empty: none.
using Circle = std::vector<Step>;

/// A rule of fences that was broken, or a circle of classes that has not happened yet.
struct Report {
  enum class What : std::uint8_t {
    circle,           ///< of nodes: a deadlock, now
    class_circle,     ///< of classes: one that could happen
    wait_in_section,  ///< a wait that is not allowed between a fence's becoming visible and its signal
    never_signalled,  ///< a section was left without a signal
    signalled_twice,
    signal_outside,  ///< a fence was signalled that never became visible
  } what = What::circle;
  std::string text;  ///< sentences, one a step, ready for people
};

class Graph {
 public:
  /// What a class may not do inside a signalling section (from a fence's becoming visible to its signal).
  enum class InSection : std::uint8_t {
    allowed,    ///< other fences, engine slots, compute units
    forbidden,  ///< memory that reclaim must find, reservation locks, faults, users: dma-fence's rules
  };

  Graph();
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// `name` is copied; shown before a node's number. REQUIRES: fewer than max_classes so far.
  ClassId define(std::string_view name, InSection in_section = InSection::allowed);
  /// Nodes of this class are held by those they wait for: compute units, engine slots, locks. Whoever waits for one
  /// while it holds another makes the classes' circle; one that waits, gets it, and then waits for nothing does not.
  /// To be said before the class has nodes.
  void resource(ClassId cls);
  /// Waits of `from` for `to` follow an order that everyone keeps, such as fences that only wait for fences published
  /// before: no circle of classes goes through them. Circles of nodes are found all the same.
  void ordered(ClassId from, ClassId to);

  /// A node; `number` is what people call it ("fence 42").
  NodeId add(ClassId cls, std::uint64_t number, Needs needs = Needs::all);
  /// The node and all its edges go. Ids of removed nodes are ignored by every call.
  void remove(NodeId node);
  [[nodiscard]] bool exists(NodeId node) const;
  /// REQUIRES: it exists.
  [[nodiscard]] ClassId class_of(NodeId node) const;
  [[nodiscard]] bool waits(NodeId from, NodeId to) const;
  /// More words for one node, such as "of wave 3 on compute unit 1". Copied; empty removes them.
  void describe(NodeId node, std::string_view words);
  /// The same without a copy, for paths that must be quick: `pattern` is static text, its first % becomes `first`, its
  /// second `second`, when somebody reads it.
  void describe(NodeId node, const char* pattern, std::uint64_t first, std::uint64_t second = 0);

  /// From now on `from` cannot proceed before `to`. Counted: as many done() as wait() end it.
  /// Returns the circle that this edge is part of (the edge stays), or an empty one; a new edge's circle is reported
  /// too. Nodes are kept in an order (order.cpp): where it is kept, nothing is searched; else O(the
  /// fewer of those who wait for `from` and those whom `to` waits for), and O(both) while there is a circle.
  /// An any-node's alternatives are named one by one: those that cannot be stuck first, or all with wait_any, else
  /// the first one is taken for the only one.
  [[nodiscard]] Circle wait(NodeId from, NodeId to, const char* how = "waits for");
  /// All of `to` at once, for an any-node.
  [[nodiscard]] Circle wait_any(NodeId from, std::span<const NodeId> to, const char* how = "waits for");
  /// Fewer alternatives can leave an any-node stuck; nobody is told, since the one that let go may just have freed it.
  /// stuck() tells.
  void done(NodeId from, NodeId to);
  /// All that `from` waits for is over.
  void done_all(NodeId from);
  /// All who wait for `to` need it no longer: a fence signalled, a lock is free.
  void let_go(NodeId to);
  /// What wait() would return, without adding the edge: for policies that refuse. Nothing is reported or remembered.
  [[nodiscard]] Circle would_close(NodeId from, NodeId to) const;
  /// The circle that `node` is part of, or else stuck behind, if there is one now.
  [[nodiscard]] Circle stuck(NodeId node) const;
  /// Only the classes' memory, for waits that end by themselves (the machine's answers): a bit is set, nothing else.
  /// `where` is copied the first time, and told if this wait becomes part of a circle of classes.
  void note(ClassId from, ClassId to, std::string_view where = {});

  /// Begin: a fence becomes visible; it is now owed a signal. `node` is the fence, which others wait for.
  /// While it is, it may not wait for a node of a class that is InSection::forbidden, itself or through others (through
  /// an any-node: only if each alternative leads to one). Each kind of such wait is reported once.
  void begin_section(NodeId fence);
  /// The fence signalled. Reports signalled_twice or signal_outside where that is so. Its waiters are told by let_go().
  void end_section(NodeId fence);
  /// Reports every section that is open as never_signalled: for the end of a run. remove() does it for one fence.
  void expect_no_sections();

  /// "fault 17 of wave 3 waits for memory; memory waits for fence 42; ..."
  [[nodiscard]] std::string sentences(const Circle& circle) const;
  [[nodiscard]] std::string name(NodeId node) const;

  /// Reports so far, oldest first, each class circle once. They stay until taken; at most reports_max are kept.
  static constexpr unsigned reports_max = 1000;
  [[nodiscard]] std::vector<Report> take_reports();
  [[nodiscard]] bool has_reports() const;

  /// Everything that is waited for now, a sentence an edge: for `ferry explain`.
  [[nodiscard]] std::string dump() const;
  [[nodiscard]] std::uint64_t node_count() const;
  [[nodiscard]] std::uint64_t edge_count() const;
  /// Equal for equal graphs however their ids were given out (class, number, section and edges count; what the classes
  /// remember does not): for state hashing.
  [[nodiscard]] std::uint64_t digest() const;

  struct Impl;

 private:
  Impl* impl_;
};

}  // namespace ferry::graph
