// What was said about each page of one client, such as its Attributes, as spans of equal neighbours. A B+ tree of borders:
// an entry says what holds from its page on, up to the next entry. Pages before the first entry, and of entries that say
// so, have the default value and cost nothing (a gap costs the one entry that ends the span before it).
//
// Wide nodes, for two reasons: a look-up among a million spans meets four of them, and a node that is at least a quarter
// full bounds what a span costs (verify() checks it).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/types.h"
#include "core/svm/types.h"

namespace ferry::core {

/// No thread-safety. Pages are below 2^52, as the core's are. Instances for more types: at the end of the .cpp.
template <typename Value>
class PageMap {
 public:
  struct Run {
    PageSpan span;
    Value value;
    friend constexpr bool operator==(const Run&, const Run&) = default;
  };

  PageMap();
  ~PageMap();
  PageMap(const PageMap& other);  ///< of a fork: nodes of the copy are full
  PageMap& operator=(const PageMap& other);
  PageMap(PageMap&& other) noexcept;
  PageMap& operator=(PageMap&& other) noexcept;

  /// Nobody has said anything about any page.
  [[nodiscard]] bool empty() const { return spans_ == 0; }
  [[nodiscard]] Value at(Page page) const;
  /// The longest run of equal values that `page` is part of, cut off at the ends of `within`. REQUIRES: it is inside.
  [[nodiscard]] Run run_at(Page page, PageSpan within) const;
  /// Calls fn(PageSpan, const Value&) for each run of the span, in order, defaults included: neighbours differ.
  /// `fn` may not change the map.
  template <typename Fn>
  void for_runs(PageSpan span, Fn&& fn) const {
    for (Page at = span.first; at < span.end();) {
      const Run run = run_at(at, {at, span.end() - at});
      fn(run.span, run.value);
      at = run.span.end();
    }
  }
  /// True: all pages of the span have the default value.
  [[nodiscard]] bool plain(PageSpan span) const { return empty() || run_at(span.first, span) == Run{span, Value{}}; }

  void set(PageSpan span, const Value& value);
  /// Calls fn(PageSpan, Value&) for each run of the span.
  template <typename Fn>
  void change(PageSpan span, Fn&& fn) {
    for (Page at = span.first; at < span.end();) {
      const Run run = run_at(at, {at, span.end() - at});
      Value changed = run.value;
      fn(run.span, changed);
      if (!(changed == run.value)) {
        set(run.span, changed);
      }
      at = run.span.end();
    }
  }
  void erase(PageSpan span) {
    if (!empty()) {
      set(span, {});
    }
  }
  /// `from` has the default value afterwards, what it had is that of as many pages from `to` on, whatever was said
  /// about these before. The two may overlap.
  void move(PageSpan from, Page to);
  void clear();

  /// Spans that are not default.
  [[nodiscard]] std::uint64_t span_count() const { return spans_; }
  /// Memory of all nodes.
  [[nodiscard]] std::size_t bytes() const { return leaves_ * sizeof(Leaf) + inners_ * sizeof(Inner); }
  /// Equal for equal contents, however they came about.
  [[nodiscard]] std::uint64_t digest() const;
  /// Aborts where the tree is broken. O(everything).
  void verify() const;

 private:
  static constexpr unsigned leaf_most = 32;  ///< keys and values fill eight cache lines, fetched all at once
  static constexpr unsigned inner_most = 64;
  static constexpr unsigned depth_most = 12;

  /// `keys` of an inner node: no key of the child is below it, none of the child before is at or above it. The first is
  /// the one that the node above has for it, and 0 in the root.
  struct Leaf {
    std::uint32_t count = 0;
    Leaf* before = nullptr;
    Leaf* next = nullptr;
    Page keys[leaf_most];
    Value values[leaf_most];
  };
  struct Inner {
    std::uint32_t count = 0;
    Page keys[inner_most];
    void* values[inner_most];
  };
  /// Where a leaf hangs: the inner nodes from the root down, and which child of each was taken.
  struct Path {
    Inner* node[depth_most];
    std::uint32_t child[depth_most];
    Leaf* leaf = nullptr;
  };

  [[nodiscard]] const Leaf& leaf_of(Page page) const;
  Path path_to(Page page);
  bool set_in_leaf(Leaf& leaf, PageSpan span, const Value& value);
  void erase_borders(Page first, Page last);
  void insert(Page key, const Value& value);
  void insert_child(Path& path, unsigned depth, Page key, void* child);
  void leaf_shrunk(Path& path);
  void remove_child(Path& path, unsigned depth, std::uint32_t child);
  [[nodiscard]] static Value value_before(const Leaf& leaf, std::uint32_t index);
  void free_nodes(void* node, unsigned depth);
  void verify_node(const void* node, unsigned depth, Page from, Page to, std::uint64_t& spans, std::size_t& leaves,
                   std::size_t& inners) const;

  void* root_ = nullptr;  ///< a Leaf where depth_ is 0, else an Inner; never null but after a move
  unsigned depth_ = 0;    ///< inner nodes on the way to a leaf
  std::uint64_t spans_ = 0;
  std::size_t leaves_ = 0;
  std::size_t inners_ = 0;
};

using AttributeMap = PageMap<Attributes>;

}  // namespace ferry::core
