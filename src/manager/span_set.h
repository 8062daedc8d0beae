// Spans of pages that do not overlap, by their first page: what an application may have very many of is looked up in a time
// that grows with the logarithm of their number. Main thread only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>

#include "base/types.h"

namespace ferry::manager {

class SpanSet {
 public:
  [[nodiscard]] bool empty() const { return spans_.empty(); }
  [[nodiscard]] std::size_t size() const { return spans_.size(); }
  /// REQUIRES: !overlaps(span).
  void add(PageSpan span) { spans_.emplace(span.first, span.count_pages); }
  /// The span that begins there goes. False: there is none.
  bool erase(Page first) { return spans_.erase(first) != 0; }
  /// Of no pages: none begins there.
  [[nodiscard]] PageSpan at(Page first) const {
    const auto it = spans_.find(first);
    return it == spans_.end() ? PageSpan{first, 0} : PageSpan{it->first, it->second};
  }
  [[nodiscard]] bool overlaps(PageSpan span) const { return first_in(span) != spans_.end(); }
  /// Calls fn(span) for those that overlap, whole, in rising order. Nothing may be added or removed meanwhile.
  template <typename Fn>
  void for_each_in(PageSpan span, Fn&& fn) const {
    for (auto it = first_in(span); it != spans_.end() && it->first < span.end(); ++it)
      fn(PageSpan{it->first, it->second});
  }
  /// The pages are in none of them any more.
  void cut(PageSpan span) {
    for (auto it = first_in(span); it != spans_.end() && it->first < span.end();) {
      const Page first = it->first;
      const Page end = first + it->second;
      it = spans_.erase(it);
      if (first < span.first) spans_.emplace(first, span.first - first);
      if (end > span.end()) spans_.emplace(span.end(), end - span.end());
    }
  }

 private:
  using Map = std::map<Page, std::uint64_t>;
  [[nodiscard]] Map::const_iterator first_in(PageSpan span) const {
    auto it = spans_.upper_bound(span.first);
    if (it != spans_.begin() && span.first - std::prev(it)->first < std::prev(it)->second) return std::prev(it);
    return it != spans_.end() && it->first < span.end() ? it : spans_.end();
  }
  Map spans_;
};

}  // namespace ferry::manager
