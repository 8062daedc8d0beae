// Kernels as a program sees them: grids, queues, completions, output, and the errors of those that fail.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

#include "e2e.h"

namespace ferry::test {
namespace {

TEST(Kernels, EveryItemRunsOnce) {
  for (const std::size_t n : {0U, 1U, 2U, 63U, 64U, 65U, 1000U, 1'000'003U}) {
    Vector<std::uint8_t> hits(n + 1);
    ferry::parallel_for(n, [p = hits.data()](std::size_t i) { ++p[i]; });
    for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(hits[i], 1) << i << " of " << n;
    ASSERT_EQ(hits[n], 0);
  }
}

TEST(Kernels, GridTellsWaveAndLocalIndex) {
  struct Seen {
    std::uint64_t global, wave, local, grid;
  };
  constexpr std::uint64_t items = 1000;
  Vector<Seen> seen(items);
  ferry::queue q;
  for (const std::uint64_t wave : {1U, 7U, 64U, 2000U}) {
    q.launch({.items = items, .wave = wave}, [p = seen.data()](ferry::item it) {
       p[it.global()] = {it.global(), it.wave(), it.local(), it.grid()};
     }).wait();
    for (std::uint64_t i = 0; i < items; ++i) {
      ASSERT_EQ(seen[i].global, i);
      ASSERT_EQ(seen[i].wave, i / wave);
      ASSERT_EQ(seen[i].local, i % wave);
      ASSERT_EQ(seen[i].grid, items);
    }
  }
}

int twice(int x) { return 2 * x; }

TEST(Kernels, FunctionsAndMutableLambdasAreKernels) {
  Vector<int> v(100);
  ferry::parallel_for(v.size(), [p = v.data(), calls = 0](std::size_t i) mutable { p[i] = ++calls > 0 ? 1 : 0; });
  EXPECT_EQ(std::count(v.begin(), v.end(), 1), 100);
  ferry::parallel_for(v.size(), [p = v.data(), f = &twice](std::size_t i) { p[i] = f(static_cast<int>(i)); });
  EXPECT_EQ(v[99], 198);
  EXPECT_FALSE(ferry::in_device());
  ferry::parallel_for(v.size(), [p = v.data()](std::size_t i) { p[i] = ferry::in_device() ? 1 : 0; });
  EXPECT_EQ(std::count(v.begin(), v.end(), 1), 100);
}

TEST(Kernels, OneQueueRunsInOrder) {
  Vector<std::uint64_t> v(10'000);
  ferry::queue q;
  ferry::completion last;
  for (std::uint64_t k = 0; k < 200; ++k) {  // more than the queue holds
    last = q.parallel_for(v.size(), [p = v.data(), k](std::size_t i) { p[i] = p[i] * 3 + k; });
  }
  last.wait();
  EXPECT_TRUE(last.done());
  std::uint64_t want = 0;
  for (std::uint64_t k = 0; k < 200; ++k) want = want * 3 + k;
  for (const auto x : v) ASSERT_EQ(x, want);
}

TEST(Kernels, QueuesRunBesideEachOther) {
  // The first kernel waits for the second one: in one queue they would never end.
  auto flag = ferry::make_unique<std::atomic<int>>(0);
  ferry::queue a;
  ferry::queue b;
  const auto first = a.parallel_for(1, [f = flag.get()](std::size_t) {
    while (f->load() == 0) {}
  });
  EXPECT_FALSE(first.done());
  b.parallel_for(1, [f = flag.get()](std::size_t) { f->store(1); }).wait();
  first.wait();
}

TEST(Kernels, DevicesReadWhatTheOtherWrote) {
  if (ferry::device_count() < 2) GTEST_SKIP() << "one device";
  Vector<std::uint64_t> v(300'000);
  ferry::queue first(0);
  ferry::queue second(1);
  for (std::uint64_t round = 0; round < 6; ++round) {
    auto& q = round % 2 == 0 ? first : second;
    q.parallel_for(v.size(), [p = v.data(), round](std::size_t i) { p[i] = p[i] * 3 + i + round; }).wait();
  }
  for (std::size_t i = 0; i < v.size(); ++i) {
    std::uint64_t want = 0;
    for (std::uint64_t round = 0; round < 6; ++round) want = want * 3 + i + round;
    ASSERT_EQ(v[i], want);
  }
}

TEST(Kernels, SixteenQueuesAndNoMore) {
  std::vector<ferry::queue> queues;
  const int code = code_of([&] {
    for (int i = 0; i < 17; ++i) queues.emplace_back();
  });
  EXPECT_EQ(code, FERRY_NO_MEMORY);
  ASSERT_EQ(queues.size(), 16U);
  Vector<int> v(16);
  std::vector<ferry::completion> all;
  for (std::size_t i = 0; i < 16; ++i) all.push_back(queues[i].parallel_for(1, [p = &v[i]](std::size_t) { *p = 1; }));
  for (const auto& c : all) c.wait();
  EXPECT_EQ(std::count(v.begin(), v.end(), 1), 16);
  queues.clear();
  const ferry::queue again;
  EXPECT_EQ(code_of([] { const ferry::queue q(99); }), FERRY_BAD_RANGE);
}

TEST(Kernels, AnExceptionComesBackWithItsText) {
  const auto e = kernel_error_of([] {
    ferry::parallel_for(
        1000,
        [](std::size_t i) {
          if (i == 500) throw std::runtime_error("item 500 is bad");
        },
        "thrower");
  });
  EXPECT_EQ(e.code(), errc::kernel_threw);
  EXPECT_EQ(e.kernel(), "thrower");
  EXPECT_NE(std::string(e.what()).find("item 500 is bad"), std::string::npos) << e.what();
}

TEST(Kernels, BadPointersComeBackAsErrorsThatNameThem) {
  FERRY_SKIP_CRASHES();
  auto* inside = static_cast<int*>(ferry::alloc(100));  // before: it could take the place of what is freed
  auto* freed = static_cast<int*>(ferry::alloc(8 << 20));
  ferry::free(freed);
  struct Case {
    const char* name;
    int* pointer;
  };
  const Case cases[] = {
      {"null", nullptr},
      {"freed", freed},
      {"unmapped", reinterpret_cast<int*>(0x4000'0000'0000)},
      {"not canonical", reinterpret_cast<int*>(0x8000'0000'0000'0000)},
      {"never allocated", reinterpret_cast<int*>(reinterpret_cast<std::uintptr_t>(inside) + (std::uintptr_t{1} << 40))},
  };
  for (const auto& c : cases) {
    for (const bool write : {false, true}) {
      const auto e = kernel_error_of([&] {
        ferry::parallel_for(
            100,
            [p = c.pointer, write](std::size_t i) {
              volatile int* v = p;
              if (i == 42 && write) *v = 1;
              if (i == 42 && !write) (void)*v;
            },
            c.name);
      });
      EXPECT_EQ(e.code(), errc::kernel_fault) << c.name << ": " << e.what();
      EXPECT_EQ(e.kernel(), c.name);
      if (std::string(c.name) != "not canonical") {  // the processor does not tell which
        EXPECT_EQ(e.address(), reinterpret_cast<std::uint64_t>(c.pointer)) << c.name << ": " << e.what();
      }
    }
  }
  ferry::free(inside);
  // The device goes on.
  Vector<int> v(1000);
  ferry::parallel_for(v.size(), [p = v.data()](std::size_t i) { p[i] = 1; });
  EXPECT_EQ(std::count(v.begin(), v.end(), 1), 1000);
}

TEST(Kernels, CrashesOfOtherKindsComeBackToo) {
  FERRY_SKIP_CRASHES();
  const auto divided = kernel_error_of([] {
    Vector<int> zero(1);
    ferry::parallel_for(
        1,
        [p = zero.data()](std::size_t i) {
          volatile int by = *p;
          *p = static_cast<int>(i + 1) / by;
        },
        "divide");
  });
  EXPECT_EQ(divided.code(), errc::kernel_fault) << divided.what();
  const auto aborted = kernel_error_of([] {
    ferry::parallel_for(
        1, [](std::size_t) { std::abort(); }, "abort");
  });
  EXPECT_EQ(aborted.code(), errc::kernel_fault) << aborted.what();
  const auto grown = kernel_error_of([] {
    auto v = ferry::make_unique<Vector<int>>();
    ferry::parallel_for(
        1, [v = v.get()](std::size_t) { v->push_back(1); }, "grow");
  });
  EXPECT_EQ(grown.code(), errc::kernel_threw) << grown.what();
  EXPECT_NE(std::string(grown.what()).find("kernel cannot"), std::string::npos) << grown.what();
}

TEST(Kernels, AFailureCancelsWhatStandsBehindItInItsQueueOnly) {
  auto go = ferry::make_unique<std::atomic<int>>(0);
  ferry::queue a;
  ferry::queue b;
  Vector<int> v(2);
  const auto failing = a.parallel_for(
      1,
      [f = go.get()](std::size_t) {
        while (f->load() == 0) {}
        throw std::runtime_error("first");
      },
      "failing");
  const auto behind = a.parallel_for(
      1, [p = v.data()](std::size_t) { p[0] = 1; }, "behind");
  const auto beside = b.parallel_for(1, [p = v.data()](std::size_t) { p[1] = 1; });
  go->store(1);
  EXPECT_EQ(kernel_error_of([&] { failing.wait(); }).code(), errc::kernel_threw);
  const auto cancelled = kernel_error_of([&] { behind.wait(); });
  EXPECT_EQ(cancelled.code(), errc::cancelled);
  EXPECT_EQ(cancelled.kernel(), "behind");
  beside.wait();
  EXPECT_EQ(v[0], 0);
  EXPECT_EQ(v[1], 1);
  // Seen, so the queue runs again. And an error may be asked for again.
  a.parallel_for(1, [p = v.data()](std::size_t) { p[0] = 2; }).wait();
  EXPECT_EQ(v[0], 2);
  EXPECT_EQ(kernel_error_of([&] { failing.wait(); }).code(), errc::kernel_threw);
}

TEST(Kernels, UnseenFailuresDoNotStopTheQueue) {
  ferry::queue q;
  std::vector<ferry::completion> failed;
  for (int i = 0; i < 100; ++i) {
    failed.push_back(q.parallel_for(
        1, [](std::size_t) { throw 1; }, "throws"));
    while (!failed.back().done()) std::this_thread::yield();
  }
  for (const auto& c : failed) EXPECT_EQ(kernel_error_of([&] { c.wait(); }).code(), errc::kernel_threw);
}

TEST(Kernels, OutputArrivesWholeAndInTime) {
  ::testing::internal::CaptureStdout();
  ferry::parallel_for(200, [](std::size_t i) { ferry::print("line {:03} of {}\n", i, "kernel"); });
  ferry::print("after\n");
  std::fflush(stdout);
  const std::string out = ::testing::internal::GetCapturedStdout();
  for (int i = 0; i < 200; ++i) {
    char line[64];
    std::snprintf(line, sizeof line, "line %03d of kernel\n", i);
    EXPECT_NE(out.find(line), std::string::npos) << line;
  }
  EXPECT_EQ(out.substr(out.size() - 6), "after\n");
}

TEST(Kernels, MoreOutputThanTheRingHoldsIsReadWhileTheKernelRuns) {
  ::testing::internal::CaptureStdout();
  constexpr std::size_t lines = 40'000;
  ferry::parallel_for(lines, [](std::size_t i) {
    ferry::print("{:08} xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n", i);
  });
  std::fflush(stdout);
  const std::string out = ::testing::internal::GetCapturedStdout();
  EXPECT_EQ(static_cast<std::size_t>(std::count(out.begin(), out.end(), '\n')), lines);
}

TEST(Kernels, ManyThreadsRunBesideEachOther) {
  std::vector<std::jthread> threads;
  std::atomic<int> failures{0};
  std::atomic<int> wrong{0};
  for (unsigned t = 0; t < 12; ++t) {  // more than there are queues for it
    threads.emplace_back([&, t] {
      for (int round = 0; round < 20; ++round) {
        if (t % 4 == 0) {
          failures += code_of([] { ferry::parallel_for(10, [](std::size_t) { throw 1; }); }) == FERRY_KERNEL_THREW;
        } else {
          Vector<int> v(5000);
          const int code = code_of([&] { ferry::parallel_for(v.size(), [p = v.data()](std::size_t i) { p[i] = 1; }); });
          if (code != 0 || std::count(v.begin(), v.end(), 1) != 5000) ++wrong;
        }
      }
    });
  }
  threads.clear();
  EXPECT_EQ(failures.load(), 3 * 20);
  EXPECT_EQ(wrong.load(), 0);
}

}  // namespace
}  // namespace ferry::test
