// Memory as a program sees it: allocation, containers, placement, prefetch, where pages are; past the size of VRAM.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <thread>

#include "e2e.h"

namespace ferry::test {
namespace {

TEST(Memory, AllocationsAreAlignedSeparateAndReusable) {
  std::mt19937_64 random(1);
  std::vector<std::pair<unsigned char*, std::size_t>> live;
  for (int round = 0; round < 2000; ++round) {
    if (live.size() > 100 || (!live.empty() && random() % 3 == 0)) {
      const std::size_t at = random() % live.size();
      const auto [p, bytes] = live[at];
      const auto stamp = static_cast<unsigned char>(bytes);
      ASSERT_EQ(p[0], stamp);
      ASSERT_EQ(p[bytes - 1], stamp);
      ferry::free(p);
      live[at] = live.back();
      live.pop_back();
      continue;
    }
    const std::size_t bytes = std::size_t{1} << (random() % 22);
    auto* p = static_cast<unsigned char*>(ferry::alloc(bytes));
    ASSERT_EQ(reinterpret_cast<std::uintptr_t>(p) % 16, 0U);
    p[0] = p[bytes - 1] = static_cast<unsigned char>(bytes);
    live.emplace_back(p, bytes);
  }
  for (const auto& [p, bytes] : live) ferry::free(p);
}

TEST(Memory, AlignmentIsKept) {
  for (std::size_t alignment = 16; alignment <= (2 << 20); alignment *= 2) {
    void* p = ferry::alloc_aligned(100, alignment);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % alignment, 0U);
    ferry::free(p);
  }
  EXPECT_EQ(code_of([] { (void)ferry::alloc_aligned(100, 24); }), FERRY_BAD_RANGE);
  EXPECT_EQ(code_of([] { (void)ferry::alloc_aligned(100, 4 << 20); }), FERRY_BAD_RANGE);
}

TEST(Memory, BadRequestsAreErrorsAndHarmNothing) {
  EXPECT_EQ(code_of([] { (void)ferry::alloc(0); }), FERRY_BAD_RANGE);
  EXPECT_EQ(code_of([] { (void)ferry::alloc(SIZE_MAX / 2); }), FERRY_NO_MEMORY);
  auto* p = static_cast<char*>(ferry::alloc(100'000));
  std::memset(p, 7, 100'000);
  EXPECT_EQ(code_of([&] { ferry::free(p + 16); }), FERRY_NOT_ALLOCATED);
  int local = 0;
  EXPECT_EQ(code_of([&] { ferry::free(&local); }), FERRY_BAD_RANGE);
  ferry::free(nullptr);
  EXPECT_EQ(p[99'999], 7);
  ferry::free(p);
  EXPECT_EQ(code_of([&] { ferry::free(p); }), FERRY_NOT_ALLOCATED);
  EXPECT_EQ(code_of([&] { ferry::prefetch(&local, 4, ferry::to_device(0)); }), FERRY_NOT_ALLOCATED);
  EXPECT_EQ(code_of([&] { ferry::prefetch(p, 0, ferry::to_device(0)); }), FERRY_BAD_RANGE);
  Vector<int> v(100);
  EXPECT_EQ(code_of([&] { ferry::prefetch(v.data(), 4, ferry::to_device(77)); }), FERRY_BAD_RANGE);
}

TEST(Memory, LockedPagesAreTakenFromTheCpuLikeOthers) {
  constexpr std::size_t n = 1000;
  Vector<std::uint64_t> v(n, 1);
  if (::mlock(v.data(), n * sizeof v[0]) != 0) GTEST_SKIP() << "no memory may be locked here";
  for (std::uint64_t round = 1; round <= 4; ++round) {
    ferry::parallel_for(n, [p = v.data()](std::size_t i) { p[i] += i; });
    for (std::size_t i = 0; i < n; ++i) {
      ASSERT_EQ(v[i], 1 + round * i + (round - 1) * 2) << "round " << round << ", element " << i;
      v[i] += 2;
    }
  }
  ::munlock(v.data(), n * sizeof v[0]);
}

TEST(Memory, TwiceTheDevicesMemoryComesBackRight) {
  const std::size_t n = elements_of_vram<std::uint32_t>(200);
  Vector<std::uint32_t> v(n);
  std::iota(v.begin(), v.end(), 0U);
  for (std::uint32_t round = 1; round <= 3; ++round) {
    ferry::parallel_for(n, [p = v.data()](std::size_t i) { p[i] = p[i] * 3 + 1; });
    if (round == 2) {
      // The CPU writes in between, one word a page.
      for (std::size_t i = 0; i < n; i += 1024) v[i] ^= 0x80000000U;
    }
  }
  for (std::size_t i = 0; i < n; ++i) {
    auto want = static_cast<std::uint32_t>(i);
    for (int round = 1; round <= 3; ++round) {
      want = want * 3 + 1;
      if (round == 2 && i % 1024 == 0) want ^= 0x80000000U;
    }
    ASSERT_EQ(v[i], want) << "element " << i;
  }
}

TEST(Memory, ContainersOfContainersAreFollowed) {
  auto rows = ferry::make_unique<Vector<Vector<int>>>();
  for (int r = 0; r < 1000; ++r) {
    rows->emplace_back(static_cast<std::size_t>(r % 37));
    std::iota(rows->back().begin(), rows->back().end(), r);
  }
  Vector<long> sums(rows->size());
  ferry::parallel_for(rows->size(), [rows = rows.get(), out = sums.data()](std::size_t i) {
    long sum = 0;
    for (int& x : (*rows)[i]) sum += x++;
    out[i] = sum;
  });
  for (std::size_t r = 0; r < rows->size(); ++r) {
    const auto n = static_cast<long>(r % 37);
    ASSERT_EQ(sums[r], n * static_cast<long>(r) + n * (n - 1) / 2);
    if (n != 0) {
      ASSERT_EQ((*rows)[r][0], static_cast<int>(r) + 1);
    }
  }
}

TEST(Memory, MapsOfBothKindsAreSearchedAndTheirValuesChanged) {
  auto tree = ferry::make_unique<Map<int, int>>();
  auto hash = ferry::make_unique<HashMap<int, int>>();
  constexpr int count = 50'000;
  for (int i = 0; i < count; ++i) {
    (*tree)[i * 7] = i;
    (*hash)[i * 7] = -i;
  }
  Vector<int> found(count);
  ferry::parallel_for(count, [t = tree.get(), h = hash.get(), out = found.data()](std::size_t i) {
    const int key = static_cast<int>(i) * 7;
    auto a = t->find(key);
    auto b = h->find(key);
    out[i] = a != t->end() && b != h->end() && a->second == -b->second && t->count(key + 1) == 0 ? 1 : 0;
    if (a != t->end()) a->second += 1;
  });
  EXPECT_EQ(std::accumulate(found.begin(), found.end(), 0), count);
  for (int i = 0; i < count; ++i) ASSERT_EQ(tree->at(i * 7), i + 1);
  // The CPU goes on with the containers as its own.
  for (int i = 0; i < count; i += 2) {
    tree->erase(i * 7);
    hash->erase(i * 7);
  }
  EXPECT_EQ(tree->size(), static_cast<std::size_t>(count / 2));
}

TEST(Memory, LinkedNodesAreWalked) {
  struct Node {
    Node* next;
    std::uint64_t value;
  };
  Vector<Node> nodes(20'000);
  std::vector<std::size_t> order(nodes.size());
  std::iota(order.begin(), order.end(), 0U);
  std::shuffle(order.begin(), order.end(), std::mt19937(5));
  for (std::size_t i = 0; i < order.size(); ++i) {
    nodes[order[i]] = {i + 1 < order.size() ? &nodes[order[i + 1]] : nullptr, order[i]};
  }
  Vector<std::uint64_t> sum(1);
  ferry::parallel_for(1, [head = &nodes[order[0]], out = sum.data()](std::size_t) {
    for (const Node* n = head; n != nullptr; n = n->next) *out += n->value;
  });
  EXPECT_EQ(sum[0], std::uint64_t{nodes.size()} * (nodes.size() - 1) / 2);
}

TEST(Memory, AtomicsAreSharedWithRunningThreads) {
  struct Shared {
    std::atomic<std::uint64_t> counter{0};
    std::atomic<bool> stop{false};
  };
  auto shared = ferry::make_unique<Shared>();
  std::uint64_t by_threads = 0;
  std::jthread thread([&] {
    while (!shared->stop.load(std::memory_order_relaxed)) {
      shared->counter.fetch_add(1, std::memory_order_relaxed);
      ++by_threads;
    }
  });
  std::uint64_t by_device = 0;
  for (int round = 0; round < 20; ++round) {
    ferry::parallel_for(10'000,
                        [s = shared.get()](std::size_t) { s->counter.fetch_add(1, std::memory_order_relaxed); });
    by_device += 10'000;
  }
  shared->stop.store(true);
  thread.join();
  EXPECT_EQ(shared->counter.load(), by_threads + by_device);
}

TEST(Memory, PlacementInSystemMemoryStaysThere) {
  constexpr std::size_t n = 100'000;
  auto* p = static_cast<int*>(ferry::alloc(n * sizeof(int), ferry::placement::system));
  for (std::size_t i = 0; i < n; ++i) p[i] = 1;
  ferry::parallel_for(n, [p](std::size_t i) { p[i] += static_cast<int>(i); });
  for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(p[i], static_cast<int>(i) + 1);
  const auto info = ferry::query(p);
  EXPECT_EQ(info.managed, 1);
  EXPECT_EQ(info.vram_device, -1);
  EXPECT_EQ(info.system_current, 1);
  ferry::free(p);
}

TEST(Memory, PrefetchBringsPagesAndQueryTellsWhere) {
  const std::size_t n = (2 << 20) / sizeof(int);
  auto* p = static_cast<int*>(ferry::alloc_aligned(n * sizeof(int), 2 << 20));
  for (std::size_t i = 0; i < n; ++i) p[i] = static_cast<int>(i);
  EXPECT_EQ(ferry::query(p).vram_device, -1);
  ferry::prefetch(p, n * sizeof(int), ferry::to_device(0));
  auto info = ferry::query(p);
  EXPECT_EQ(info.vram_device, 0);
  EXPECT_STREQ(info.cause, "prefetch");
  EXPECT_NE(ferry::explain(p).find("VRAM of device 0"), std::string::npos) << ferry::explain(p);
  ferry::prefetch(p, n * sizeof(int), ferry::to_cpu);
  info = ferry::query(p);
  EXPECT_EQ(info.system_current, 1);
  for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(p[i], static_cast<int>(i));
  ferry::free(p);
  EXPECT_EQ(ferry::query(p).managed, 0);
  int local = 0;
  EXPECT_EQ(ferry::query(&local).managed, 0);
  EXPECT_NE(ferry::explain(&local).find("not managed"), std::string::npos);
}

TEST(Memory, FreshMemoryOfFreedPagesIsNotShownToTheDeviceAsItWas) {
  constexpr std::size_t bytes = 8 << 20;
  for (int round = 0; round < 10; ++round) {
    auto* p = static_cast<unsigned char*>(ferry::alloc(bytes));
    ferry::parallel_for(bytes, [p, round](std::size_t i) { p[i] = static_cast<unsigned char>(round + 1); });
    ASSERT_EQ(p[0], round + 1);
    ASSERT_EQ(p[bytes - 1], round + 1);
    if (round % 2 == 0) ferry::prefetch(p, bytes, ferry::to_device(0));
    ferry::free(p);
  }
}

TEST(Memory, SystemCallsReadAndWriteIt) {
  // Pages in VRAM are brought home by the call itself, or by a touch before it where the machine cannot.
  constexpr std::size_t n = 3 << 20;
  Vector<char> v(n, 'a');
  ferry::parallel_for(n, [p = v.data()](std::size_t i) { p[i] = static_cast<char>('a' + i % 26); });
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  std::string got;
  std::jthread reader([&] {
    char buffer[65536];
    for (ssize_t k; (k = ::read(pipe[0], buffer, sizeof buffer)) > 0;) got.append(buffer, static_cast<std::size_t>(k));
  });
  for (std::size_t done = 0; done < n;) {
    volatile char touch = v[done];
    (void)touch;
    const ssize_t k = ::write(pipe[1], v.data() + done, std::min<std::size_t>(4096 - done % 4096, n - done));
    ASSERT_GT(k, 0) << std::strerror(errno);
    done += static_cast<std::size_t>(k);
  }
  ::close(pipe[1]);
  reader.join();
  ::close(pipe[0]);
  ASSERT_EQ(got.size(), n);
  for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(got[i], static_cast<char>('a' + i % 26));
}

TEST(Memory, ManyThreadsAllocateLaunchAndFreeAtOnce) {
  std::vector<std::jthread> threads;
  std::atomic<int> wrong{0};
  for (unsigned t = 0; t < 6; ++t) {
    threads.emplace_back([t, &wrong] {
      std::mt19937 random(t);
      for (int round = 0; round < 30; ++round) {
        const std::size_t n = 1 + random() % 200'000;
        Vector<std::uint32_t> v(n, t);
        ferry::parallel_for(n, [p = v.data(), round](std::size_t i) {
          p[i] += static_cast<std::uint32_t>(i) + static_cast<std::uint32_t>(round);
        });
        for (std::size_t i = 0; i < n; ++i) {
          if (v[i] != t + i + static_cast<std::uint32_t>(round)) wrong.fetch_add(1);
        }
      }
    });
  }
  threads.clear();
  EXPECT_EQ(wrong.load(), 0);
}

}  // namespace
}  // namespace ferry::test
