#include "client/heap/heap.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "test_spans.h"

namespace ferry::client {
namespace {

struct Block {
  std::byte* at;
  std::size_t bytes;  ///< that were asked for
  std::byte pattern;
};

class HeapModel {
 public:
  explicit HeapModel(Heap& heap) : heap_(heap) {}

  void add(void* pointer, std::size_t bytes, std::size_t align, bool zeroed, std::byte pattern) {
    ASSERT_NE(pointer, nullptr) << bytes << " aligned " << align;
    auto* at = static_cast<std::byte*>(pointer);
    ASSERT_EQ(reinterpret_cast<std::uintptr_t>(at) % align, 0U);
    ASSERT_TRUE(heap_.owns(pointer));
    const std::size_t usable = heap_.usable_size(pointer);
    ASSERT_GE(usable, std::max<std::size_t>(bytes, 1));
    const auto next = live_.lower_bound(at);
    ASSERT_TRUE(next == live_.end() || at + usable <= next->first) << "overlaps the next";
    if (next != live_.begin()) {
      const Block& before = std::prev(next)->second;
      ASSERT_LE(before.at + heap_.usable_size(before.at), at) << "overlaps the one before";
    }
    if (zeroed) {
      ASSERT_TRUE(std::all_of(at, at + bytes, [](std::byte b) { return b == std::byte{0}; })) << bytes;
    }
    std::memset(at, static_cast<int>(pattern), bytes);
    live_[at] = {at, bytes, pattern};
  }
  void check(const Block& block, std::size_t bytes) const {
    const auto whole = [&](std::byte b) { return b == block.pattern; };
    ASSERT_TRUE(std::all_of(block.at, block.at + bytes, whole)) << "a block of " << block.bytes << " was overwritten";
  }
  Block pick(std::mt19937_64& random) {
    auto which = live_.begin();
    std::advance(which, static_cast<std::ptrdiff_t>(random() % std::min<std::size_t>(live_.size(), 64)));
    if (random() % 2 == 0) which = std::prev(live_.end());
    return which->second;
  }
  void forget(const Block& block) { live_.erase(block.at); }
  [[nodiscard]] std::map<std::byte*, Block>& live() { return live_; }

 private:
  Heap& heap_;
  std::map<std::byte*, Block> live_;
};

std::size_t random_size(std::mt19937_64& random) {
  const std::size_t scale = std::size_t{1} << (random() % 20);
  return random() % 64 == 0 ? 0 : scale + random() % scale;
}

class HeapPrograms : public testing::TestWithParam<std::uint64_t> {};

TEST_P(HeapPrograms, AgreeWithAModel) {
  TestHeap t;
  if (GetParam() % 2 == 0) t.heap.set_large_cache(std::size_t{16} << 20);
  std::mt19937_64 random(GetParam());
  HeapModel model(t.heap);
  for (int step = 0; step < 8000 && !HasFatalFailure(); ++step) {
    const auto pattern = static_cast<std::byte>(1 + random() % 255);
    const auto what = random() % 100;
    if (what < 45 || model.live().empty()) {
      const std::size_t bytes = random_size(random);
      const std::size_t align = random() % 4 == 0 ? std::size_t{1} << (random() % 22) : 16;
      const bool zeroed = random() % 2 == 0;
      void* pointer = zeroed ? t.heap.allocate_zeroed(bytes, align) : t.heap.allocate(bytes, align);
      model.add(pointer, bytes, std::max<std::size_t>(align, 16), zeroed, pattern);
    } else if (what < 60) {
      const Block old = model.pick(random);
      const std::size_t bytes = random_size(random);
      void* pointer = t.heap.reallocate(old.at, bytes);
      ASSERT_NE(pointer, nullptr);
      model.check({static_cast<std::byte*>(pointer), old.bytes, old.pattern}, std::min(bytes, old.bytes));
      model.forget(old);
      model.add(pointer, bytes, 16, false, pattern);
    } else {
      const Block old = model.pick(random);
      model.check(old, old.bytes);
      model.forget(old);
      ASSERT_EQ(t.heap.free(old.at), FreeResult::freed);
    }
    if (step % 1000 == 0) {
      const HeapStats stats = t.heap.stats();
      ASSERT_EQ(stats.live_objects, model.live().size());
      ASSERT_EQ(stats.span_bytes, t.spans.held_bytes());
    }
  }
  for (const auto& [at, block] : model.live()) {
    model.check(block, block.bytes);
    ASSERT_EQ(t.heap.free(at), FreeResult::freed);
  }
  HeapStats stats = t.heap.stats();
  EXPECT_EQ(stats.live_objects, 0U);
  EXPECT_EQ(stats.live_bytes, 0U);
  EXPECT_EQ(stats.bad_frees, 0U);
  t.heap.flush_thread_cache();
  t.heap.release_spare_spans();
  stats = t.heap.stats();
  // One empty slab a class is kept.
  std::size_t kept_max = 0;
  for (const SizeClass& shape : size_classes) kept_max += heap_unit_bytes << shape.order;
  EXPECT_LE(stats.slab_bytes, kept_max);
  EXPECT_EQ(stats.large_bytes, 0U);
}

INSTANTIATE_TEST_SUITE_P(Seeds, HeapPrograms, testing::Range<std::uint64_t>(1, 9));

// The reason for this heap: nothing of it may lie in, or look into, memory that may be in VRAM.
TEST(Heap, NoPageOfAnySpanIsTouchedByAllocateAndFree) {
  for (const std::size_t cache : {std::size_t{0}, std::size_t{32} << 20}) {
    TestHeap t;
    t.heap.set_large_cache(cache);
    std::mt19937_64 random(7);
    std::vector<void*> pointers;
    for (int i = 0; i < 20000; ++i) pointers.push_back(t.heap.allocate(random_size(random)));
    t.spans.protect(PROT_NONE);
    std::shuffle(pointers.begin(), pointers.end(), random);
    for (int round = 0; round < 4; ++round) {
      for (std::size_t i = 0; i < pointers.size() / 2; ++i) {
        ASSERT_EQ(t.heap.free(pointers[i]), FreeResult::freed);
        ASSERT_NE(t.heap.free(pointers[i]), FreeResult::freed);
        (void)t.heap.lookup(pointers[i]);
        pointers[i] = t.heap.allocate(random_size(random), std::size_t{1} << (random() % 13));
        ASSERT_NE(pointers[i], nullptr);
        ASSERT_NE(t.heap.usable_size(pointers[i]), 0U);
      }
      std::shuffle(pointers.begin(), pointers.end(), random);
      (void)t.heap.stats();
    }
    for (void* pointer : pointers) ASSERT_EQ(t.heap.free(pointer), FreeResult::freed);
    t.heap.flush_thread_cache();
    t.heap.release_spare_spans();
    t.spans.protect(PROT_READ | PROT_WRITE);
  }
}

TEST(Heap, ZeroedMemoryFreshFromTheSourceIsNotWritten) {
  TestHeap t;
  t.spans.protect(PROT_NONE);
  for (std::size_t bytes = 1; bytes < (4U << 20); bytes = bytes * 2 + 1)
    ASSERT_NE(t.heap.allocate_zeroed(bytes), nullptr);
}

TEST(Heap, RecycledMemoryIsZeroedOnRequest) {
  TestHeap t;
  t.heap.set_large_cache(std::size_t{64} << 20);
  for (int round = 0; round < 3; ++round) {
    std::vector<std::pair<std::byte*, std::size_t>> blocks;
    for (std::size_t bytes = 1; bytes < (4U << 20); bytes = bytes * 3 / 2 + 1) {
      auto* at = static_cast<std::byte*>(t.heap.allocate_zeroed(bytes));
      ASSERT_TRUE(std::all_of(at, at + bytes, [](std::byte b) { return b == std::byte{0}; })) << bytes;
      std::memset(at, 0xee, t.heap.usable_size(at));
      blocks.emplace_back(at, bytes);
    }
    for (const auto& [at, bytes] : blocks) ASSERT_EQ(t.heap.free(at), FreeResult::freed);
    t.heap.flush_thread_cache();  // so that slabs retire, and other classes get their units
  }
}

TEST(Heap, SlabsOfRecycledUnitsKnowThatTheyAreDirty) {
  TestHeap t;
  // Fill and empty whole slabs of one class, then let another class take the units.
  std::vector<void*> blocks;
  for (int i = 0; i < 20000; ++i) {
    blocks.push_back(t.heap.allocate(64));
    std::memset(blocks.back(), 0xaa, 64);
  }
  for (void* block : blocks) ASSERT_EQ(t.heap.free(block), FreeResult::freed);
  t.heap.flush_thread_cache();
  const std::size_t held = t.spans.held_bytes();
  for (int i = 0; i < 1000; ++i) {
    auto* at = static_cast<std::byte*>(t.heap.allocate_zeroed(1024));
    ASSERT_TRUE(std::all_of(at, at + 1024, [](std::byte b) { return b == std::byte{0}; })) << i;
  }
  EXPECT_LE(t.spans.held_bytes(), held) << "the units were to be recycled, or this shows nothing";
}

TEST(Heap, ADoubleFreeIsReportedWithItsAddressAndHarmsNothing) {
  for (const std::size_t bytes :
       {std::size_t{1}, std::size_t{100}, std::size_t{40000}, std::size_t{300000}, std::size_t{5} << 20}) {
    for (const bool settled : {false, true}) {
      TestHeap t;
      void* neighbour = t.heap.allocate(bytes);
      std::memset(neighbour, 0x5a, bytes);
      void* pointer = t.heap.allocate(bytes);
      ASSERT_EQ(t.heap.free(pointer), FreeResult::freed);
      if (settled) {
        t.heap.flush_thread_cache();
        t.heap.release_spare_spans();
      }
      EXPECT_EQ(t.heap.free(pointer), FreeResult::double_free) << bytes;
      EXPECT_EQ(t.heap.reallocate(pointer, 2 * bytes), nullptr);
      EXPECT_EQ(t.heap.usable_size(pointer), 0U);
      const Reports::Report expected{FreeResult::double_free, pointer};
      EXPECT_EQ(t.reports.all, (std::vector{expected, expected}));
      EXPECT_EQ(t.heap.stats().bad_frees, 2U);
      std::set<void*> distinct{neighbour};
      for (int i = 0; i < 600; ++i) ASSERT_TRUE(distinct.insert(t.heap.allocate(bytes)).second);
      for (std::size_t i = 0; i < bytes; ++i) ASSERT_EQ(static_cast<unsigned char*>(neighbour)[i], 0x5a);
    }
  }
}

TEST(Heap, PointersThatAreNotAllocatedAreReported) {
  TestHeap t;
  auto* small = static_cast<std::byte*>(t.heap.allocate(200));
  auto* medium = static_cast<std::byte*>(t.heap.allocate(100000));
  auto* large = static_cast<std::byte*>(t.heap.allocate(std::size_t{3} << 20));
  int on_stack = 0;
  std::vector<int> elsewhere(100);
  std::vector<Reports::Report> expected;
  const auto bad = [&](FreeResult what, void* pointer) {
    EXPECT_EQ(t.heap.free(pointer), what);
    EXPECT_EQ(t.heap.usable_size(pointer), 0U);
    expected.push_back({what, pointer});
  };
  bad(FreeResult::invalid_pointer, small + 1);
  bad(FreeResult::invalid_pointer, small + 16);
  bad(FreeResult::invalid_pointer, medium + 4096);
  bad(FreeResult::invalid_pointer, medium + 65536);
  bad(FreeResult::invalid_pointer, large + 16);
  bad(FreeResult::invalid_pointer, large + heap_page_bytes);
  bad(FreeResult::invalid_pointer, large + heap_span_bytes);
  bad(FreeResult::invalid_pointer, reinterpret_cast<void*>(t.window.base() + t.window.bytes() - 16));
  bad(FreeResult::foreign, &on_stack);
  bad(FreeResult::foreign, elsewhere.data());
  bad(FreeResult::foreign, reinterpret_cast<void*>(t.window.base() + t.window.bytes()));
  bad(FreeResult::foreign, reinterpret_cast<void*>(t.window.base() - 1));
  bad(FreeResult::foreign, reinterpret_cast<void*>(UINTPTR_MAX));
  EXPECT_EQ(t.reports.all, expected);
  for (std::byte* pointer : {small, medium, large}) EXPECT_EQ(t.heap.free(pointer), FreeResult::freed);
  EXPECT_EQ(t.heap.free(nullptr), FreeResult::freed);
  EXPECT_EQ(t.reports.all.size(), expected.size());
}

TEST(Heap, ZeroBytesAreAUniquePointer) {
  TestHeap t;
  std::set<void*> seen;
  for (int i = 0; i < 1000; ++i) {
    void* pointer = t.heap.allocate(0);
    ASSERT_NE(pointer, nullptr);
    ASSERT_TRUE(seen.insert(pointer).second);
  }
  void* aligned = t.heap.allocate(0, 1 << 20);
  ASSERT_NE(aligned, nullptr);
  EXPECT_EQ(t.heap.free(aligned), FreeResult::freed);
}

TEST(Heap, WhatCannotBeIsRefusedAndNothingBreaks) {
  TestHeap t(std::size_t{256} << 20);
  for (const std::size_t bytes :
       {SIZE_MAX, SIZE_MAX - 15, SIZE_MAX - 65535, SIZE_MAX / 2, std::size_t{1} << 40, (std::size_t{256} << 20) + 1}) {
    EXPECT_EQ(t.heap.allocate(bytes), nullptr) << bytes;
    EXPECT_EQ(t.heap.allocate_zeroed(bytes, 4096), nullptr);
    void* pointer = t.heap.allocate(10);
    EXPECT_EQ(t.heap.reallocate(pointer, bytes), nullptr);
    EXPECT_EQ(t.heap.free(pointer), FreeResult::freed) << "a realloc that fails leaves the block";
  }
  EXPECT_EQ(t.heap.allocate(16, std::size_t{1} << 62), nullptr);
  EXPECT_NE(t.heap.allocate(16), nullptr);
}

TEST(Heap, GoesOnAfterItsSourceRanDry) {
  TestHeap t;
  std::vector<void*> held;
  t.spans.refuse(true);
  EXPECT_EQ(t.heap.allocate(16), nullptr);
  EXPECT_EQ(t.heap.allocate(std::size_t{1} << 20), nullptr);
  t.spans.refuse(false);
  for (int i = 0; i < 1000; ++i) held.push_back(t.heap.allocate(1000));
  t.spans.refuse(true);
  while (void* pointer = t.heap.allocate(1000)) held.push_back(pointer);
  EXPECT_GT(held.size(), 1000U);
  for (void* pointer : held) ASSERT_EQ(t.heap.free(pointer), FreeResult::freed);
  EXPECT_NE(t.heap.allocate(1000), nullptr) << "from what was freed";
  t.spans.refuse(false);
  EXPECT_NE(t.heap.allocate(std::size_t{1} << 20), nullptr);
}

TEST(Heap, WhatIsKeptForSpeedIsGivenUpBeforeAnAllocationFails) {
  TestHeap t(std::size_t{64} << 20);
  t.heap.set_large_cache(std::size_t{64} << 20);
  std::vector<void*> blocks;
  for (int i = 0; i < 12; ++i) blocks.push_back(t.heap.allocate(std::size_t{4} << 20));
  for (void* block : blocks) ASSERT_EQ(t.heap.free(block), FreeResult::freed);
  ASSERT_EQ(t.heap.stats().span_bytes, std::size_t{48} << 20) << "kept";
  EXPECT_NE(t.heap.allocate(std::size_t{60} << 20), nullptr);
}

TEST(Heap, LargeBlocksGoBackAtOnceUnlessCached) {
  TestHeap t;
  void* block = t.heap.allocate(std::size_t{3} << 20);
  EXPECT_EQ(t.spans.held_bytes(), std::size_t{3} << 20);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block) % heap_span_bytes, 0U) << "does not share a block with others";
  EXPECT_EQ(t.heap.free(block), FreeResult::freed);
  EXPECT_EQ(t.spans.held_bytes(), 0U);
  t.heap.set_large_cache(std::size_t{8} << 20);
  block = t.heap.allocate(std::size_t{3} << 20);
  EXPECT_EQ(t.heap.free(block), FreeResult::freed);
  EXPECT_EQ(t.spans.held_bytes(), std::size_t{3} << 20);
  EXPECT_EQ(t.heap.allocate(std::size_t{3} << 20), block);
  EXPECT_EQ(t.heap.free(block), FreeResult::freed);
  t.heap.set_large_cache(0);
  EXPECT_EQ(t.spans.held_bytes(), 0U);
}

TEST(Heap, GrowingALargeBlockInSmallStepsCopiesRarely) {
  TestHeap t;
  void* block = t.heap.allocate(std::size_t{1} << 20);
  int moves = 0;
  for (std::size_t bytes = std::size_t{1} << 20; bytes < std::size_t{64} << 20; bytes += 4096) {
    void* grown = t.heap.reallocate(block, bytes);
    ASSERT_NE(grown, nullptr);
    moves += grown != block;
    block = grown;
  }
  EXPECT_LE(moves, 25);
}

TEST(Heap, ShrinkingGivesMemoryBack) {
  TestHeap t;
  void* block = t.heap.allocate(std::size_t{64} << 20);
  std::memset(block, 0x77, 1000);
  block = t.heap.reallocate(block, 1000);
  ASSERT_NE(block, nullptr);
  EXPECT_LE(t.spans.held_bytes(), heap_span_bytes);
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(static_cast<unsigned char*>(block)[i], 0x77);
}

TEST(Heap, LookupNamesWhatLiesAtAnAddress) {
  TestHeap t;
  auto* small = static_cast<std::byte*>(t.heap.allocate(100));
  auto* large = static_cast<std::byte*>(t.heap.allocate(std::size_t{3} << 20));
  HeapObject object = t.heap.lookup(small + 50);
  EXPECT_EQ(object.state, HeapObject::State::live);
  EXPECT_EQ(object.start, small);
  EXPECT_EQ(object.bytes, t.heap.usable_size(small));
  object = t.heap.lookup(large + (2U << 20) + 5);
  EXPECT_EQ(object.state, HeapObject::State::live);
  EXPECT_EQ(object.start, large);
  EXPECT_EQ(object.bytes, std::size_t{3} << 20);
  (void)t.heap.free(small);
  (void)t.heap.free(large);
  EXPECT_EQ(t.heap.lookup(small + 50).state, HeapObject::State::free);
  EXPECT_EQ(t.heap.lookup(large).state, HeapObject::State::free);
  EXPECT_EQ(t.heap.lookup(&t).state, HeapObject::State::outside);
  EXPECT_EQ(t.heap.lookup(reinterpret_cast<void*>(t.window.base() + t.window.bytes() - 1)).state,
            HeapObject::State::unused);
}

TEST(Heap, FreeLaterIsDoneByTheNextRefill) {
  TestHeap t;
  void* small = t.heap.allocate(64);
  void* large = t.heap.allocate(std::size_t{1} << 20);
  t.heap.free_later(small);
  t.heap.free_later(large);
  EXPECT_NE(t.heap.usable_size(large), 0U);
  for (int i = 0; i < 2000; ++i) ASSERT_NE(t.heap.allocate(48), nullptr);
  EXPECT_EQ(t.heap.usable_size(large), 0U);
  EXPECT_EQ(t.heap.usable_size(small), 0U);
  EXPECT_EQ(t.heap.stats().deferred_lost, 0U);
}

TEST(Heap, FreeLaterWithoutRoomLosesMemoryAndCountsIt) {
  TestHeap t;
  std::vector<void*> blocks;
  for (int i = 0; i < 3000; ++i) blocks.push_back(t.heap.allocate(32));
  for (void* block : blocks) t.heap.free_later(block);
  const std::uint64_t lost = t.heap.stats().deferred_lost;
  EXPECT_GT(lost, 0U);
  for (int i = 0; i < 1000; ++i) ASSERT_NE(t.heap.allocate(48), nullptr);
  EXPECT_EQ(t.heap.stats().live_objects, 1000 + lost);
}

TEST(Heap, VisitsEverySpanOnce) {
  TestHeap t;
  t.heap.set_large_cache(std::size_t{64} << 20);
  for (int i = 0; i < 5000; ++i) (void)t.heap.allocate(5000);
  for (int i = 0; i < 5; ++i) (void)t.heap.allocate(std::size_t{1} << 20);
  (void)t.heap.free(t.heap.allocate(std::size_t{2} << 20));
  std::map<std::uintptr_t, std::size_t> seen;
  t.heap.visit_spans(
      [](void* context, void* span, std::size_t bytes, SpanKind) {
        auto& all = *static_cast<std::map<std::uintptr_t, std::size_t>*>(context);
        EXPECT_TRUE(all.emplace(reinterpret_cast<std::uintptr_t>(span), bytes).second);
      },
      &seen);
  std::size_t total = 0;
  for (const auto& [at, bytes] : seen) total += bytes;
  EXPECT_EQ(total, t.spans.held_bytes());
}

}  // namespace
}  // namespace ferry::client
