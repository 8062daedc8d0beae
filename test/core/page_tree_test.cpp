// The tree beneath the attribute map against a std::map of borders: at every size of span, at the borders of leaves and of
// nodes of each height, at both ends of the address space, with numbers of every width.
#include "core/svm/page_tree.h"

#include <gtest/gtest.h>

#include <map>
#include <utility>
#include <vector>

#include "base/random.h"

namespace ferry::core::test {
namespace {

using Id = PageTree::Id;
constexpr Page limit = PageTree::page_limit;

/// Borders: from each key on, up to the next, pages have its value. Neighbours differ, and 0 is always there.
class Model {
 public:
  [[nodiscard]] Id at(Page page) const { return std::prev(borders_.upper_bound(page))->second; }
  [[nodiscard]] PageTree::Run run_at(Page page, PageSpan within) const {
    const auto next = borders_.upper_bound(page);
    const Page first = std::max(std::prev(next)->first, within.first);
    const Page end = std::min(next == borders_.end() ? limit : next->first, within.end());
    return {{first, end - first}, std::prev(next)->second};
  }
  void set(PageSpan span, Id id) {
    const Id after = span.end() < limit ? at(span.end()) : 0;
    borders_.erase(borders_.lower_bound(span.first), borders_.upper_bound(span.end()));
    borders_[span.first] = id;
    if (span.end() < limit) borders_[span.end()] = after;
    for (auto it = std::next(borders_.begin()); it != borders_.end();) {
      it = it->second == std::prev(it)->second ? borders_.erase(it) : std::next(it);
    }
  }
  [[nodiscard]] std::uint64_t spans() const {
    std::uint64_t count = 0;
    for (const auto& [first, id] : borders_) count += id != 0 ? 1 : 0;
    return count;
  }
  [[nodiscard]] bool in_use(Id id) const {
    for (const auto& [first, other] : borders_) {
      if (other == id) return true;
    }
    return false;
  }
  [[nodiscard]] std::vector<Page> interesting() const {
    std::vector<Page> pages{0, limit - 1};
    for (const auto& [first, id] : borders_) {
      pages.push_back(first);
      if (first > 0) pages.push_back(first - 1);
    }
    return pages;
  }
  [[nodiscard]] std::size_t size() const { return borders_.size(); }

 private:
  std::map<Page, Id> borders_{{0, 0}};
};

/// A page at or near a border of a leaf or node, at some height, or near either end.
Page somewhere(Random& random) {
  constexpr unsigned shifts[] = {7, 16, 25, 34, 43};
  const Page near = random.below(random.chance(500) ? 4 : 300);
  switch (random.below(5)) {
    case 0: return near;
    case 1: return limit - 1 - near;
    default: {
      const unsigned shift = shifts[random.below(std::size(shifts))];
      const Page border = (1 + random.below(3)) << shift;
      return random.chance(500) ? border + near : border - std::min(border, near);
    }
  }
}

std::uint64_t some_length(Random& random, Page first) {
  std::uint64_t length = 1 + random.below(4);
  switch (random.below(6)) {
    case 0: length = 1 + random.below(400); break;
    case 1: length = std::uint64_t{1} << random.below(53); break;
    case 2: {
      const Page to = somewhere(random);
      length = to > first ? to - first : 1;
      break;
    }
    case 3: length = 128; break;
    default: break;
  }
  return std::min(std::max<std::uint64_t>(length, 1), limit - first);
}

Id some_id(Random& random, unsigned width) {
  // So few that equal ones often meet; the width of a leaf's numbers goes up and, with new leaves, down.
  constexpr Id bases[] = {1, 0x10, 0x100, 0x1'0000, 0x7f'0000};
  return random.chance(300) ? 0 : bases[random.below(width + 1)] + static_cast<Id>(random.below(3));
}

void expect_equal(const PageTree& tree, const Model& model, Random& random, std::uint64_t seed) {
  ASSERT_EQ(tree.spans(), model.spans()) << "seed " << seed;
  for (const Page page : model.interesting()) {
    ASSERT_EQ(tree.at(page), model.at(page)) << "page " << page << " seed " << seed;
    const Page first = page - random.below(std::min<Page>(page, 1000) + 1);
    const PageSpan within = random.chance(300)
                                ? PageSpan{0, limit}
                                : PageSpan{first, std::min(page - first + 1 + random.below(1000), limit - first)};
    const PageTree::Run is = tree.run_at(page, within);
    const PageTree::Run should = model.run_at(page, within);
    ASSERT_TRUE(is.span == should.span && is.id == should.id)
        << "run at " << page << " within " << within.first << "+" << within.count_pages << " is " << is.span.first
        << "+" << is.span.count_pages << ", not " << should.span.first << "+" << should.span.count_pages << ", seed "
        << seed;
  }
}

TEST(PageTree, agrees_with_a_map_of_borders) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    Random random(seed);
    PageTree tree;
    Model model;
    const unsigned width = static_cast<unsigned>(random.below(5));
    for (unsigned round = 0; round < 300; ++round) {
      const Page first = somewhere(random);
      const PageSpan span{first, some_length(random, first)};
      const Id id = some_id(random, width);
      tree.set(span, id);
      model.set(span, id);
      ASSERT_EQ(tree.at(span.first), id);
      ASSERT_EQ(tree.at(span.end() - 1), id);
      if (round % 10 != 0) continue;
      tree.verify();
      expect_equal(tree, model, random, seed);
      for (const Id any : {Id{1}, Id{0x11}, Id{0x101}, Id{0x1'0002}, Id{0x7f'0001}}) {
        ASSERT_EQ(tree.in_use(any), model.in_use(any)) << any << " seed " << seed;
      }
      if (HasFatalFailure()) return;
    }
    // Copies are trees of their own; what is moved away leaves an empty one.
    PageTree copy = tree;
    tree.set({0, limit}, 0);
    ASSERT_EQ(tree.spans(), 0U);
    tree.verify();
    tree.clear();
    ASSERT_EQ(tree.bytes(), 0U) << "what is gone is given back";
    copy.verify();
    expect_equal(copy, model, random, seed);
    PageTree moved = std::move(copy);
    moved.verify();
    expect_equal(moved, model, random, seed);
    if (HasFatalFailure()) return;
  }
}

/// Leaves are filled run by run and emptied again, from each end and from the middle.
TEST(PageTree, leaves_grow_and_shrink_through_every_size) {
  for (const Id base : {Id{1}, Id{0x10}, Id{0x100}, Id{0x1'0000}}) {
    for (const unsigned order : {0U, 1U, 2U}) {
      PageTree tree;
      Model model;
      Random random(base + order);
      const auto place = [&](unsigned i) { return order == 0 ? i : order == 1 ? 127 - i : (i * 53) % 128; };
      for (const bool fill : {true, false}) {
        for (unsigned i = 0; i < 128; ++i) {
          const Page page = 3 * 128 + place(i);
          const Id id = fill ? base + static_cast<Id>(page % 5) : 0;
          tree.set({page, 1}, id);
          model.set({page, 1}, id);
          tree.verify();
          expect_equal(tree, model, random, base + order);
          if (HasFatalFailure()) return;
        }
      }
      EXPECT_EQ(tree.spans(), 0U);
    }
  }
}

TEST(PageTree, the_whole_address_space_and_its_last_page) {
  PageTree tree;
  Random random(1);
  Model model;
  for (const PageSpan span : {PageSpan{0, limit}, PageSpan{limit - 1, 1}, PageSpan{0, 1},
                              PageSpan{limit / 2, limit / 2}, PageSpan{limit - 129, 129}, PageSpan{0, limit}}) {
    for (const Id id : {Id{7}, Id{0}, Id{0x1'0007}}) {
      tree.set(span, id);
      model.set(span, id);
      tree.verify();
      expect_equal(tree, model, random, id);
      if (HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace ferry::core::test
