// The map from pages to attributes: against a plain array, and what it costs.
#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "base/random.h"
#include "core/svm/attribute_map.h"

namespace ferry::core::test {
namespace {

Attributes located(Location preferred) {
  Attributes a;
  a.preferred = preferred;
  return a;
}

std::vector<AttributeMap::Run> runs_of(const AttributeMap& map, PageSpan span) {
  std::vector<AttributeMap::Run> runs;
  map.for_runs(span, [&](PageSpan s, const Attributes& a) { runs.push_back({s, a}); });
  return runs;
}

TEST(SvmMap, nothing_was_said_about_any_page_of_a_new_map) {
  const AttributeMap map;
  EXPECT_TRUE(map.empty());
  EXPECT_EQ(map.at(0), Attributes{});
  EXPECT_EQ(map.at((Page{1} << 52) - 1), Attributes{});
  EXPECT_TRUE(map.plain({0, Page{1} << 52}));
  EXPECT_EQ(runs_of(map, {5, 10}), (std::vector<AttributeMap::Run>{{{5, 10}, {}}}));
}

TEST(SvmMap, equal_neighbours_are_one_span_whatever_order_they_come_in) {
  AttributeMap map;
  map.set({10, 5}, located(1));
  map.set({20, 5}, located(1));
  EXPECT_EQ(map.span_count(), 2U);
  map.set({15, 5}, located(1));
  EXPECT_EQ(map.span_count(), 1U);
  EXPECT_EQ(runs_of(map, {0, 30}),
            (std::vector<AttributeMap::Run>{{{0, 10}, {}}, {{10, 15}, located(1)}, {{25, 5}, {}}}));
  AttributeMap other;
  other.set({10, 15}, located(1));
  EXPECT_EQ(map.digest(), other.digest());
}

TEST(SvmMap, a_hole_splits_and_default_attributes_cost_nothing) {
  AttributeMap map;
  map.set({0, 100}, located(2));
  map.erase({40, 10});
  EXPECT_EQ(map.span_count(), 2U);
  EXPECT_EQ(map.at(39), located(2));
  EXPECT_EQ(map.at(40), Attributes{});
  EXPECT_EQ(map.at(50), located(2));
  EXPECT_FALSE(map.plain({39, 2}));
  EXPECT_TRUE(map.plain({40, 10}));
  map.set({0, 100}, {});
  EXPECT_TRUE(map.empty());
  map.verify();
}

TEST(SvmMap, the_last_page_there_is) {
  AttributeMap map;
  const Page last = (Page{1} << 52) - 1;
  map.set({last, 1}, located(3));
  EXPECT_EQ(map.at(last), located(3));
  EXPECT_EQ(map.at(last - 1), Attributes{});
  map.verify();
}

TEST(SvmMap, a_move_carries_spans_even_onto_their_own_neighbours) {
  AttributeMap map;
  map.set({10, 4}, located(1));
  map.set({16, 4}, located(2));
  map.set({30, 10}, located(3));
  map.move({10, 10}, 26);
  EXPECT_EQ(runs_of(map, {0, 50}), (std::vector<AttributeMap::Run>{{{0, 26}, {}},
                                                                   {{26, 4}, located(1)},
                                                                   {{30, 2}, {}},
                                                                   {{32, 4}, located(2)},
                                                                   {{36, 4}, located(3)},
                                                                   {{40, 10}, {}}}));
  map.move({26, 10}, 28);
  EXPECT_EQ(runs_of(map, {26, 14}),
            (std::vector<AttributeMap::Run>{
                {{26, 2}, {}}, {{28, 4}, located(1)}, {{32, 2}, {}}, {{34, 4}, located(2)}, {{38, 2}, located(3)}}));
  map.verify();
}

/// Against an array of all pages, with leaves that grow, shrink and go.
TEST(SvmMap, random_changes_agree_with_a_plain_array) {
  constexpr std::uint64_t pages = 30'000;
  Random random(7);
  AttributeMap map;
  std::vector<Attributes> plain(pages);
  std::size_t largest = 0;
  for (unsigned round = 0; round < 40'000; ++round) {
    // Phases of small pieces, of large ones that swallow them, and of erasure.
    const unsigned phase = (round / 8'000) % 3;
    const std::uint64_t most = phase == 0 ? 2 : phase == 1 ? 40 : 400;
    const std::uint64_t first = random.below(pages);
    const PageSpan span{first, 1 + random.below(std::min(most, pages - first))};
    const std::uint64_t what = random.below(10);
    if (what < 6) {
      const Attributes a = located(static_cast<Location>(random.below(4)));
      map.set(span, phase == 2 ? Attributes{} : a);
      std::fill_n(plain.begin() + static_cast<std::ptrdiff_t>(first), span.count_pages, phase == 2 ? Attributes{} : a);
    } else if (what < 8) {
      const auto flip = [](Attributes& a) { a.flags ^= svm_gpu_ro; };
      map.change(span, [&](PageSpan, Attributes& a) { flip(a); });
      for (Page p = first; p < span.end(); ++p) {
        flip(plain[p]);
      }
    } else if (what == 8) {
      map.erase(span);
      std::fill_n(plain.begin() + static_cast<std::ptrdiff_t>(first), span.count_pages, Attributes{});
    } else {
      const Page to = random.below(pages - span.count_pages + 1);
      map.move(span, to);
      const std::vector<Attributes> moved(plain.begin() + static_cast<std::ptrdiff_t>(first),
                                          plain.begin() + static_cast<std::ptrdiff_t>(span.end()));
      std::fill_n(plain.begin() + static_cast<std::ptrdiff_t>(first), span.count_pages, Attributes{});
      std::copy(moved.begin(), moved.end(), plain.begin() + static_cast<std::ptrdiff_t>(to));
    }
    for (Page p = first > 3 ? first - 3 : 0; p < std::min(pages, span.end() + 3); ++p) {
      ASSERT_EQ(map.at(p), plain[p]) << "page " << p << " in round " << round;
    }
    largest = std::max(largest, map.bytes());
    if (round % 500 == 0) {
      map.verify();
      std::uint64_t spans = 0;
      for (Page p = 0; p < pages; ++p) {
        ASSERT_EQ(map.at(p), plain[p]) << "page " << p << " in round " << round;
        spans += plain[p] != Attributes{} && (p == 0 || plain[p - 1] != plain[p]) ? 1 : 0;
      }
      ASSERT_EQ(map.span_count(), spans);
      const AttributeMap copy = map;
      copy.verify();
      ASSERT_EQ(copy.digest(), map.digest());
      ASSERT_LE(copy.bytes(), map.bytes() + 1024);
    }
  }
  EXPECT_GT(largest, 16U * 1024) << "many leaves were meant to be there";
  map.erase({0, pages});
  EXPECT_TRUE(map.empty());
  EXPECT_LT(map.bytes(), 1024U) << "what is gone is given back";
  map.verify();
}

/// Against a list of borders, over spans of all sizes on all levels of the tree: whole entries are written, split and folded.
TEST(SvmMap, spans_of_every_size_agree_with_a_list_of_borders) {
  constexpr Page limit = Page{1} << 52;
  Random random(11);
  AttributeMap map;
  std::map<Page, Attributes> borders{{0, {}}};
  const auto border_at = [&](Page page) {
    if (page < limit) {
      borders.emplace(page, std::prev(borders.upper_bound(page))->second);
    }
  };
  for (unsigned round = 0; round < 20'000; ++round) {
    // A size of some power of two, often aligned to it, or nearly.
    const unsigned bits = static_cast<unsigned>(random.below(round % 1000 < 900 ? 24 : 52));
    const std::uint64_t count =
        random.below(3) == 0 ? 1 + random.below(std::uint64_t{1} << bits) : std::uint64_t{1} << bits;
    Page first = random.below(4) == 0 ? random.below(limit) : random.below(Page{1} << 26);
    first = random.below(3) == 0 ? first : first >> bits << bits;
    const PageSpan span{first, std::min(count, limit - first)};
    const Attributes a = located(static_cast<Location>(random.below(3)));
    const Attributes value = random.below(3) == 0 ? Attributes{} : a;
    map.set(span, value);
    border_at(span.first);
    border_at(span.end());
    borders.erase(borders.lower_bound(span.first), borders.lower_bound(span.end()));
    borders[span.first] = value;
    for (const Page page : {span.first, span.first + span.count_pages / 2, span.end() - 1, random.below(limit)}) {
      ASSERT_EQ(map.at(page), std::prev(borders.upper_bound(page))->second) << "page " << page << " in round " << round;
    }
    if (round % 200 == 0) {
      map.verify();
      std::vector<AttributeMap::Run> runs;
      for (auto it = borders.begin(); it != borders.end(); ++it) {
        const Page end = std::next(it) == borders.end() ? limit : std::next(it)->first;
        if (!runs.empty() && runs.back().value == it->second) {
          runs.back().span.count_pages += end - it->first;
        } else {
          runs.push_back({{it->first, end - it->first}, it->second});
        }
      }
      ASSERT_EQ(runs_of(map, {0, limit}), runs) << "in round " << round;
      std::uint64_t spans = 0;
      for (const AttributeMap::Run& run : runs) {
        spans += run.value == Attributes{} ? 0 : 1;
      }
      ASSERT_EQ(map.span_count(), spans);
      const AttributeMap copy = map;
      copy.verify();
      ASSERT_EQ(runs_of(copy, {0, limit}), runs);
    }
    if (round % 4'000 == 3'999) {
      map.erase({0, limit});
      borders = {{0, {}}};
      ASSERT_EQ(map.bytes(), 0U);
    }
  }
}

TEST(SvmMap, more_values_than_a_byte_or_two_can_number) {
  constexpr std::uint32_t values = 70'000;
  const auto value = [](std::uint32_t n) {
    Attributes a;
    a.access = n;
    return a;
  };
  AttributeMap map;
  for (std::uint32_t n = 0; n < values; ++n) {
    map.set({n, 1}, value(n));
  }
  map.verify();
  for (std::uint32_t n = 0; n < values; ++n) {
    ASSERT_EQ(map.at(n), value(n));
  }
  EXPECT_EQ(map.span_count(), values);
  // Numbers of what is gone are given out again: they do not grow with what was ever said.
  const std::size_t bytes = map.bytes();
  for (std::uint32_t n = 0; n < 4 * values; ++n) {
    map.set({n % values, 1}, value(values + n));
  }
  EXPECT_LT(map.bytes(), 3 * bytes);
  map.verify();
  for (std::uint32_t n = 3 * values; n < 4 * values; ++n) {
    ASSERT_EQ(map.at(n % values), value(values + n));
  }
}

TEST(SvmMap, far_apart_spans_cost_what_a_leaf_and_their_part_of_a_node_do) {
  constexpr std::uint64_t spans = 100'000;
  AttributeMap map;
  for (std::uint64_t i = 0; i < spans; ++i) {
    map.set({512 * i + i % 500, 1}, located(1));  // one in 2 MiB
  }
  EXPECT_EQ(map.span_count(), spans);
  EXPECT_LT(map.bytes(), 100 * spans);
  map.verify();
}

TEST(SvmMap, a_million_spans_with_gaps_cost_few_bytes_each) {
  constexpr std::uint64_t spans = 1'000'000;
  AttributeMap map;
  for (std::uint64_t i = 0; i < spans; ++i) {
    map.set({2 * i, 1}, located(1));
  }
  EXPECT_EQ(map.span_count(), spans);
  EXPECT_LT(map.bytes(), 10 * spans);
  map.verify();
  // In no order at all, leaves have the room in reserve that they were given as they grew.
  AttributeMap shuffled;
  for (std::uint64_t i = 0; i < spans; ++i) {
    shuffled.set({2 * (i * 611'953 % spans), 1}, located(1));
  }
  EXPECT_EQ(shuffled.digest(), map.digest());
  EXPECT_LT(shuffled.bytes(), 10 * spans);
  // Erasing all but every tenth must not leave nearly empty leaves behind.
  for (std::uint64_t i = 0; i < spans; ++i) {
    if (i % 10 != 0) {
      shuffled.erase({2 * i, 1});
    }
  }
  EXPECT_LT(shuffled.bytes(), 30 * shuffled.span_count());
  shuffled.verify();
}

}  // namespace
}  // namespace ferry::core::test
