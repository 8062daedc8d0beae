// Globals of libraries that belong to the program, on devices: docs/design/0019-adoption.md.
#include <ferry/svm.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <ferry/ferry.hpp>
#include <ferry/svm.hpp>
#include <ferry/work.hpp>
#include <latch>
#include <thread>
#include <vector>

#include "own_library.h"

namespace ferry::test {
namespace {

template <typename T>
T now(const T& value) {
  return *const_cast<const volatile T*>(&value);
}

template <typename T>
T* zeroed_page() {
  return static_cast<T*>(std::memset(ferry::alloc(4096), 0, 4096));
}

TEST(Libraries, GlobalsAreTheProgramsOnADevice) {
  library_initialised = 40;
  library_hidden() = 50;
  library_of_a_function() = 60;
  for (int& v : library_vector) v = 70;
  run_library_kernel();
  EXPECT_EQ(now(library_initialised), 41);
  EXPECT_EQ(now(library_hidden()), 52);
  EXPECT_EQ(now(library_of_a_function()), 61);
  EXPECT_TRUE(std::all_of(library_vector.begin(), library_vector.end(), [](const int& v) { return now(v) == 71; }));
  // By the program's own kernels, too, which may name the very same bytes otherwise.
  auto* out = zeroed_page<int>();
  ferry::parallel_for(1, [out](std::size_t) {
    out[0] = library_initialised++;
    out[1] = library_hidden()++;
    out[2] = library_vector[2999]++;
  });
  EXPECT_EQ(out[0], 41);
  EXPECT_EQ(out[1], 52);
  EXPECT_EQ(out[2], 71);
  run_library_kernel();
  EXPECT_EQ(now(library_initialised), 43);
  EXPECT_EQ(now(library_hidden()), 55);
  EXPECT_EQ(now(library_vector[2999]), 73);
  ferry::free(out);
}

TEST(Libraries, NoUpdateIsLostByThreadsAndKernelsAtOnce) {
  for (auto* of : {&plain_zeroed, &plain_initialised}) {
    const std::size_t count = of == &plain_zeroed ? plain_count : 4000;
    std::uint64_t before = 0;
    for (std::size_t i = 0; i < count; ++i) before += of(i).load();
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> added{0};
    std::vector<std::thread> threads;
    std::latch begun(3);
    for (unsigned t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        std::uint64_t x = t * 7919 + 1;
        std::uint64_t mine = 0;
        for (; !stop.load(std::memory_order_relaxed); ++mine) {
          x = x * 6364136223846793005U + 1442695040888963407U;
          of((x >> 20) % count).fetch_add(1, std::memory_order_relaxed);
          if (mine == 0) begun.count_down();
        }
        added += mine;
      });
    }
    begun.wait();
    constexpr int rounds = 4;
    for (int round = 0; round < rounds; ++round) {
      ferry::parallel_for(count, [of](std::size_t i) { of(i).fetch_add(1, std::memory_order_relaxed); });
      ferry_error e{};
      if (round % 2 == 0) {
        EXPECT_EQ(ferry_release(&of(0), count * 4, &e), FERRY_OK) << e.text;
      } else {
        EXPECT_EQ(ferry_adopt(&of(0), count * 4, &e), FERRY_OK) << e.text;
      }
    }
    stop = true;
    for (auto& t : threads) t.join();
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += of(i).load();
    EXPECT_EQ(sum, before + rounds * count + added.load());
  }
}

TEST(Libraries, TheirCallsOfOtherLibrariesWork) {
  const int before = plain_calls();
  auto* out = zeroed_page<long>();
  ferry::parallel_for(1, [out](std::size_t) { out[0] = plain_parse("1234"); });
  EXPECT_EQ(out[0], 1234);
  EXPECT_EQ(plain_parse("77"), 77);
  ferry::parallel_for(64, [out](std::size_t) { std::atomic_ref(out[1]).fetch_add(plain_parse("3")); });
  EXPECT_EQ(out[1], 192);
  EXPECT_GE(plain_calls(), before + 3);
  ferry::free(out);
  // Where nothing may fault, their tables are mapped before.
  ferry::submit_graphics({}, 1, [](std::size_t) {}).wait();
}

TEST(Libraries, AForksChildHasThemAsTheyWere) {
  ferry::parallel_for(1, [](std::size_t) {
    library_hidden() = 170;
    plain_zeroed(9).store(171);
    plain_initialised(3999).store(172);
  });
  const pid_t child = ::fork();
  if (child == 0) {
    if (now(library_hidden()) != 170 || plain_zeroed(9) != 171U || plain_initialised(3999) != 172U) ::_exit(1);
    library_hidden() = 180;
    plain_zeroed(9) = 181;
    ::_exit(now(library_hidden()) == 180 && plain_zeroed(9) == 181U ? 0 : 2);
  }
  ASSERT_GT(child, 0);
  ferry::parallel_for(1, [](std::size_t) {
    ++library_hidden();
    plain_zeroed(9).fetch_add(1);
  });
  int how = 0;
  ASSERT_EQ(::waitpid(child, &how, 0), child);
  EXPECT_EQ(how, 0);
  EXPECT_EQ(now(library_hidden()), 171);
  EXPECT_EQ(plain_zeroed(9).load(), 172U);
}

TEST(Libraries, WithoutRetryFaultsToo) {
  ferry::set_retry_faults(false);
  library_hidden() = 90;
  plain_initialised(5).store(91);
  run_library_kernel();
  ferry::parallel_for(1, [](std::size_t) { plain_initialised(5).fetch_add(1); });
  ferry::set_retry_faults(true);
  EXPECT_EQ(now(library_hidden()), 92);
  EXPECT_EQ(plain_initialised(5).load(), 92U);
}

TEST(Libraries, OfTheRuntimeStayTheDevicesOwn) {
  ferry_error e{};
  EXPECT_EQ(ferry_adopt(stdout, 1, &e), FERRY_UNSUPPORTED);
  EXPECT_NE(std::string(e.text).find("shared library"), std::string::npos) << e.text;
}

}  // namespace
}  // namespace ferry::test
