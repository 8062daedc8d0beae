#include "manager/span_set.h"

#include <gtest/gtest.h>

#include <bitset>

#include "base/random.h"

namespace ferry::manager {
namespace {

constexpr std::size_t pages = 96;

/// Against a set of pages and one of firsts.
TEST(SpanSets, AreAsPagesOneByOne) {
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    Random random{seed};
    SpanSet set;
    std::bitset<pages> in;
    for (unsigned step = 0; step < 200; ++step) {
      const Page first = random.below(pages);
      const PageSpan span{first, 1 + random.below(std::min<std::uint64_t>(pages - first, 12))};
      bool any = false;
      for (Page p = span.first; p < span.end(); ++p) any |= in.test(p);
      ASSERT_EQ(set.overlaps(span), any) << seed << ", step " << step;
      Page last_end = 0;
      set.for_each_in(span, [&](PageSpan s) {
        EXPECT_TRUE(s.overlaps(span));
        EXPECT_GE(s.first, last_end);
        last_end = s.end();
        for (Page p = s.first; p < s.end(); ++p) EXPECT_TRUE(in.test(p));
      });
      switch (random.below(3)) {
        case 0:
          if (any) break;
          set.add(span);
          for (Page p = span.first; p < span.end(); ++p) in.set(p);
          break;
        case 1:
          set.cut(span);
          for (Page p = span.first; p < span.end(); ++p) in.reset(p);
          break;
        default: {
          const PageSpan at = set.at(first);
          EXPECT_EQ(at.count_pages != 0, set.erase(first));
          for (Page p = at.first; p < at.end(); ++p) {
            EXPECT_TRUE(in.test(p));
            in.reset(p);
          }
          break;
        }
      }
    }
    EXPECT_EQ(set.empty(), in.none());
  }
}

}  // namespace
}  // namespace ferry::manager
