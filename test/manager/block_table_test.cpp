#include "manager/block_table.h"

#include <gtest/gtest.h>

#include <vector>

#include "manager/client.h"

namespace ferry::manager {
namespace {

TEST(BlockTable, FindsWhatWasMade) {
  BlockTable table(1 << 20);
  bool is_new = false;
  EXPECT_EQ(table.find(5), nullptr);
  EXPECT_EQ(table.find(std::uint64_t{1} << 40), nullptr);
  BlockState& a = table.make(5, is_new);
  EXPECT_TRUE(is_new);
  EXPECT_EQ(&table.make(5, is_new), &a);
  EXPECT_FALSE(is_new);
  table.make((1 << 20) - 1, is_new);
  table.make(1024, is_new);
  std::vector<BlockIndex> seen;
  table.for_each([&](BlockIndex b, BlockState&) { seen.push_back(b); });
  EXPECT_EQ(seen, (std::vector<BlockIndex>{5, 1024, (1 << 20) - 1}));
  seen.clear();
  table.for_each({5 * block_pages + 511, 2}, [&](BlockIndex b, BlockState&) { seen.push_back(b); });
  EXPECT_EQ(seen, (std::vector<BlockIndex>{5}));
  table.for_each({6 * block_pages, 0}, [&](BlockIndex, BlockState&) { FAIL(); });
}

TEST(BlockTable, PartOfASpanInABlock) {
  EXPECT_EQ(BlockTable::mask_in(1, {512, 512}), PageMask::all());
  EXPECT_EQ(BlockTable::mask_in(1, {0, 5000}), PageMask::all());
  EXPECT_EQ(BlockTable::mask_in(1, {500, 20}), PageMask::range(0, 8));
  EXPECT_EQ(BlockTable::mask_in(1, {1020, 20}), PageMask::range(508, 4));
  EXPECT_TRUE(BlockTable::mask_in(1, {0, 512}).none());
}

TEST(ManagedPages, NewBlockKnowsTheAllocationsInIt) {
  Client client;
  client.window_bytes = 64 * block_bytes;
  client.blocks = BlockTable(64);
  client.spans = {{10, 5}, {500, 1000}, {1600, 1}};
  EXPECT_EQ(client.block(0).managed, PageMask::range(10, 5) | PageMask::range(500, 12));
  EXPECT_EQ(client.block(1).managed, PageMask::all());
  EXPECT_EQ(client.block(2).managed, PageMask::range(0, 1500 - 1024));
  EXPECT_EQ(client.block(3).managed, PageMask::range(1600 - 1536, 1));
  EXPECT_TRUE(client.block(4).managed.none());
}

}  // namespace
}  // namespace ferry::manager
