// What was said about each page of one client, such as its Attributes, as spans of equal neighbours. Pages that nobody
// said anything about have the default value and cost nothing.
//
// Programs say few different things about many spans: each value that is in use has a number, and a tree has the numbers
// of pages (page_tree.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/types.h"
#include "core/svm/page_tree.h"
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

  /// Nobody has said anything about any page.
  [[nodiscard]] bool empty() const { return tree_.spans() == 0; }
  [[nodiscard]] Value at(Page page) const { return value_of(tree_.at(page)); }
  /// The longest run of equal values that `page` is part of, cut off at the ends of `within`. REQUIRES: it is inside.
  [[nodiscard]] Run run_at(Page page, PageSpan within) const {
    const PageTree::Run run = tree_.run_at(page, within);
    return {run.span, value_of(run.id)};
  }
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
  [[nodiscard]] std::uint64_t span_count() const { return tree_.spans(); }
  /// Memory of all of it.
  [[nodiscard]] std::size_t bytes() const {
    return tree_.bytes() + values_.capacity() * (sizeof(Value) + sizeof(std::uint32_t)) +
           slots_.capacity() * sizeof(Id);
  }
  /// Equal for equal contents, however they came about.
  [[nodiscard]] std::uint64_t digest() const;
  /// Aborts where the tree is broken. O(everything).
  void verify() const;

 private:
  using Id = PageTree::Id;

  [[nodiscard]] Value value_of(Id id) const { return id == 0 ? Value{} : values_[id]; }
  Id number_of(const Value& value);
  void make_room();
  [[nodiscard]] std::size_t slot_of(const Value& value) const;

  PageTree tree_;
  std::vector<Value> values_;  ///< by number; the first is the default. Some may be no page's any more
  std::vector<Id> free_;       ///< numbers without a value
  std::vector<Id> slots_;      ///< hash table, a power of two, at most half full: numbers by value; 0: none
};

using AttributeMap = PageMap<Attributes>;

}  // namespace ferry::core
