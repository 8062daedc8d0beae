#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "client/heap/heap.h"
#include "test_spans.h"

namespace ferry::client {
namespace {

constexpr int thread_count = 6;

/// A block says its own size in its first and last word, so that an overlap shows whoever finds it.
struct Stamp {
  std::uint64_t bytes;
  std::uint64_t self;
};

void* stamp(void* pointer, std::size_t bytes) {
  const Stamp stamp{bytes, reinterpret_cast<std::uint64_t>(pointer) ^ bytes};
  std::memcpy(pointer, &stamp, sizeof stamp);
  std::memcpy(static_cast<std::byte*>(pointer) + bytes - sizeof stamp, &stamp, sizeof stamp);
  return pointer;
}

bool stamped(const void* pointer) {
  Stamp first;
  Stamp last;
  std::memcpy(&first, pointer, sizeof first);
  if (first.self != (reinterpret_cast<std::uint64_t>(pointer) ^ first.bytes)) return false;
  std::memcpy(&last, static_cast<const std::byte*>(pointer) + first.bytes - sizeof last, sizeof last);
  return last.bytes == first.bytes && last.self == first.self;
}

std::size_t some_size(std::mt19937_64& random) {
  const std::size_t scale = std::size_t{32} << (random() % 14);
  return scale + random() % scale;
}

template <typename Body>
void on_threads(int count, Body body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back([=] { body(i); });
  for (std::thread& thread : threads) thread.join();
}

TEST(HeapThreads, BlocksFreedByOtherThreadsStayWhole) {
  TestHeap t;
  std::vector<std::atomic<void*>> exchange(512);
  std::atomic<int> broken{0};
  on_threads(thread_count, [&](int id) {
    std::mt19937_64 random(static_cast<std::uint64_t>(id) + 1);
    for (int i = 0; i < 30000; ++i) {
      const std::size_t bytes = some_size(random);
      void* fresh = i % 3 == 0 ? t.heap.allocate_zeroed(bytes) : t.heap.allocate(bytes);
      if (fresh == nullptr) {
        ++broken;
        continue;
      }
      void* old = exchange[random() % exchange.size()].exchange(stamp(fresh, bytes));
      if (old == nullptr) continue;
      if (!stamped(old)) ++broken;
      if (t.heap.free(old) != FreeResult::freed) ++broken;
    }
  });
  for (auto& slot : exchange) {
    void* old = slot.load();
    if (old == nullptr) continue;
    EXPECT_TRUE(stamped(old));
    EXPECT_EQ(t.heap.free(old), FreeResult::freed);
  }
  EXPECT_EQ(broken.load(), 0);
  EXPECT_EQ(t.heap.stats().live_objects, 0U);
  EXPECT_EQ(t.heap.stats().bad_frees, 0U);
}

TEST(HeapThreads, BurstsOfOneClassGoThroughTheCentralList) {
  TestHeap t;
  std::atomic<int> broken{0};
  on_threads(thread_count, [&](int id) {
    std::vector<void*> blocks(1500);
    for (int round = 0; round < 60; ++round) {
      for (std::size_t i = 0; i < blocks.size(); ++i) {
        const std::size_t bytes = i % 2 == 0 ? 64 : 40000;
        blocks[i] = t.heap.allocate(bytes);
        if (blocks[i] == nullptr) ++broken;
        if (blocks[i] != nullptr) stamp(blocks[i], bytes);
      }
      for (std::size_t i = 0; i < blocks.size(); ++i) {
        void* block = blocks[(i + static_cast<std::size_t>(id) * 100) % blocks.size()];
        if (!stamped(block)) ++broken;
        if (t.heap.free(block) != FreeResult::freed) ++broken;
      }
    }
  });
  EXPECT_EQ(broken.load(), 0);
  EXPECT_EQ(t.heap.stats().live_objects, 0U);
}

TEST(HeapThreads, OfManyWhoFreeTheSamePointerOneSucceeds) {
  TestHeap t;
  for (const std::size_t bytes : {std::size_t{24}, std::size_t{50000}, std::size_t{1} << 20}) {
    constexpr int rounds = 2000;
    std::vector<void*> pointers(rounds);
    for (void*& pointer : pointers) pointer = t.heap.allocate(bytes);
    std::atomic<int> freed{0};
    std::atomic<int> arrived{0};
    on_threads(2, [&](int) {
      for (int round = 0; round < rounds; ++round) {
        // Spinning: two who are woken from a sleep would never come at the same time.
        ++arrived;
        for (int spins = 0; arrived.load() < 2 * (round + 1); ++spins) {
          if (spins > 2000) std::this_thread::yield();
        }
        if (t.heap.free(pointers[static_cast<std::size_t>(round)]) == FreeResult::freed) ++freed;
      }
    });
    EXPECT_EQ(freed.load(), rounds) << bytes;
    EXPECT_EQ(t.heap.stats().live_objects, 0U);
  }
}

TEST(HeapThreads, AThreadThatEndsLeavesNothingBehind) {
  TestHeap t;
  std::size_t after_first = 0;
  for (int generation = 0; generation < 100; ++generation) {
    std::thread([&] {
      std::vector<void*> blocks;
      for (int i = 0; i < 2000; ++i) blocks.push_back(t.heap.allocate(static_cast<std::size_t>(16 + i)));
      for (void* block : blocks) (void)t.heap.free(block);
    }).join();
    if (generation == 0) after_first = t.heap.stats().span_bytes;
  }
  const HeapStats stats = t.heap.stats();
  EXPECT_EQ(stats.live_objects, 0U);
  EXPECT_LE(stats.span_bytes, after_first) << "what a cache held was not taken back";
  EXPECT_LE(stats.metadata_bytes, std::size_t{8} << 20) << "caches of ended threads were not reused";
}

// Destructors of other thread-specific data run after the cache is gone, and allocate.
TEST(HeapThreads, AllocatingAfterTheCacheIsGoneWorks) {
  static TestHeap* shared = nullptr;
  TestHeap t;
  shared = &t;
  static std::atomic<int> late{0};
  late = 0;
  static pthread_key_t key;
  ASSERT_EQ(pthread_key_create(&key,
                               [](void* left) {
                                 for (int i = 0; i < 100; ++i) {
                                   void* block = shared->heap.allocate(static_cast<std::size_t>(100 * i));
                                   if (block != nullptr && shared->heap.free(block) == FreeResult::freed) ++late;
                                 }
                                 // The later rounds are surely after the heap's own destructor.
                                 const auto rounds = reinterpret_cast<std::uintptr_t>(left) - 1;
                                 if (rounds != 0) pthread_setspecific(key, reinterpret_cast<void*>(rounds));
                               }),
            0);
  std::thread([&] {
    (void)t.heap.free(t.heap.allocate(100));
    pthread_setspecific(key, reinterpret_cast<void*>(3));
  }).join();
  pthread_key_delete(key);
  EXPECT_EQ(late.load(), 300);
  EXPECT_EQ(t.heap.stats().live_objects, 0U);
}

TEST(HeapThreads, AllLocksHoldOffEverybodyElse) {
  TestHeap t;
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int id = 0; id < 3; ++id) {
    threads.emplace_back([&, id] {
      std::mt19937_64 random(static_cast<std::uint64_t>(id));
      std::vector<void*> mine(64, nullptr);
      while (!stop.load(std::memory_order_relaxed)) {
        void*& slot = mine[random() % mine.size()];
        (void)t.heap.free(slot);
        slot = t.heap.allocate(some_size(random) * 8);
      }
      for (void* block : mine) (void)t.heap.free(block);
    });
  }
  for (int i = 0; i < 200; ++i) {
    t.heap.lock_all();
    std::size_t first = 0;
    std::size_t second = 0;
    const auto add = [](void* sum, void*, std::size_t bytes, SpanKind) { *static_cast<std::size_t*>(sum) += bytes; };
    t.heap.visit_spans(add, &first, true);
    std::this_thread::yield();
    t.heap.visit_spans(add, &second, true);
    t.heap.unlock_all();
    ASSERT_EQ(first, second);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(t.heap.stats().live_objects, 0U);
}

}  // namespace
}  // namespace ferry::client
