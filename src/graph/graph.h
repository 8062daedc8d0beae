// The wait graph: who cannot proceed before whom, the circle when one closes, and its lockdep: classes of waits are
// remembered for the whole run, so that a circle among classes is told although this run got away with it.
// For the core, for the locks of the platform in debug builds, and for drivers outside (include/ferry/progress.h).
// Owns names and edges only: it never blocks, makes no system call, and knows nothing of memory. One thread at a time.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ferry::graph {

/// A kind of thing that waits or is waited for: "fault", "fence", "compute unit". Made once, never removed.
using ClassId = std::uint8_t;
inline constexpr unsigned max_classes = 64;

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

struct ClassStep {
  ClassId from = 0;
  ClassId to = 0;
};

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

  /// A node; `number` is what people call it ("fence 42"). `of`: a second number if not 0 ("fault 17 of wave 3").
  NodeId add(ClassId cls, std::uint64_t number, Needs needs = Needs::all);
  /// The node and all its edges go. Ids of removed nodes are ignored by every call.
  void remove(NodeId node);
  [[nodiscard]] bool exists(NodeId node) const;
  /// More words for one node, such as "of wave 3 on compute unit 1". Copied; empty removes them.
  void describe(NodeId node, std::string_view words);

  /// From now on `from` cannot proceed before `to`. Counted: as many done() as wait() end it.
  /// Returns the circle that this edge closed (the edge stays), or an empty one. O(what `to` waits for).
  [[nodiscard]] Circle wait(NodeId from, NodeId to, const char* how = "waits for");
  void done(NodeId from, NodeId to);
  /// All that `from` waits for is over.
  void done_all(NodeId from);
  /// What wait() would return, without adding the edge: for policies that refuse.
  [[nodiscard]] Circle would_close(NodeId from, NodeId to) const;
  /// A circle that `node` is stuck behind, if there is one now.
  [[nodiscard]] Circle stuck(NodeId node) const;
  /// Only the classes' memory, for waits that end by themselves (the machine's answers): a bit is set, nothing else.
  void note(ClassId from, ClassId to);

  /// Begin: a fence becomes visible; it is now owed a signal. `node` is the fence, which others wait for.
  void begin_section(NodeId fence);
  /// The fence signalled. Reports signalled_twice or signal_outside where that is so.
  void end_section(NodeId fence);

  /// "fault 17 of wave 3 waits for memory; memory waits for fence 42; ..."
  [[nodiscard]] std::string sentences(const Circle& circle) const;
  [[nodiscard]] std::string name(NodeId node) const;

  /// Reports so far, oldest first, each class circle once. They stay until taken.
  [[nodiscard]] std::vector<Report> take_reports();
  [[nodiscard]] bool has_reports() const;

  /// Everything that is waited for now, a sentence an edge: for `ferry explain`.
  [[nodiscard]] std::string dump() const;
  [[nodiscard]] std::uint64_t node_count() const;
  [[nodiscard]] std::uint64_t edge_count() const;
  /// Equal for equal graphs however their ids were given out (class, number and edges count): for state hashing.
  [[nodiscard]] std::uint64_t digest() const;

 private:
  struct Impl;
  Impl* impl_;
};

}  // namespace ferry::graph
