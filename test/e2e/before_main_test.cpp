// Memory that the program made before main, on devices: what static constructors allocate and map, and what shares pages with
// it. docs/design/0019-adoption.md. Run with malloc of the C library's and of Ferry's, on machines of several kinds.
#include <dlfcn.h>
#include <ferry/svm.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ferry/ferry.hpp>
#include <ferry/svm.hpp>
#include <latch>
#include <map>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace ferry::test {

// Not in the anonymous namespace, so that no compiler knows who else writes them.
std::vector<int> small_vector(1000, 7);
std::vector<int> large_vector = [] {
  std::vector<int> v(1'000'000);
  std::iota(v.begin(), v.end(), 0);
  return v;
}();
std::map<int, std::string> table = [] {
  std::map<int, std::string> m;
  for (int i = 0; i < 500; ++i) m[i] = "a string that is too long to be kept in place: " + std::to_string(i);
  return m;
}();
std::string text = "another string that is too long to be kept in place";
/// Free again before main: the program's next allocations come from between what stays.
std::array<std::unique_ptr<std::array<char, 200>>, 64> holes = [] {
  std::array<std::unique_ptr<std::array<char, 200>>, 64> blocks;
  for (auto& b : blocks) b = std::make_unique<std::array<char, 200>>();
  for (std::size_t i = 0; i < blocks.size(); i += 2) blocks[i].reset();
  return blocks;
}();
std::uint32_t* const mapped = [] {
  void* p = ::mmap(nullptr, 64 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  auto* words = static_cast<std::uint32_t*>(p);
  words[5000] = 55;
  return words;
}();
void* const from_the_break = ::sbrk(4096);
/// The loader keeps what it knows of it in the heap, and looks there for whatever any library calls.
void* const opened = ::dlopen(FERRY_TEST_LIBRARY, RTLD_NOW | RTLD_GLOBAL);

namespace {

/// Read through memory, whatever the compiler believes to know.
template <typename T>
T now(const T& value) {
  return *const_cast<const volatile T*>(&value);
}

template <typename T>
T* zeroed_page() {
  return static_cast<T*>(std::memset(ferry::alloc(4096), 0, 4096));
}

TEST(BeforeMain, AVectorIsTheProgramsOnADevice) {
  for (std::vector<int>* v : {&small_vector, &large_vector}) {
    (*v)[3] = 30;
    const int last = v->back();
    ferry::parallel_for(v->size(), [v](std::size_t i) { (*v)[i] += i == 3 ? 1 : 2; });
    EXPECT_EQ(now((*v)[3]), 31);
    EXPECT_EQ(now(v->back()), last + 2);
    (*v)[4] = 40;
    auto* out = zeroed_page<int>();
    ferry::parallel_for(1, [v, out](std::size_t) {
      out[0] = now((*v)[4]);
      out[1] = now(v->back());
    });
    EXPECT_EQ(out[0], 40);
    EXPECT_EQ(out[1], last + 2);
    ferry::free(out);
  }
}

TEST(BeforeMain, AMapIsTheProgramsOnADevice) {
  table[1000] = "made by main, and too long to be kept in place as well";
  table[7][0] = 'X';
  auto* out = zeroed_page<std::uint64_t>();
  ferry::parallel_for(1, [out](std::size_t) {
    out[0] = table.size();
    for (auto& [number, words] : table) {
      out[1] += static_cast<std::uint64_t>(number) + words.size();
      if (number == 7) out[2] = static_cast<std::uint64_t>(words[0]);
      words[1] = '!';
    }
  });
  std::uint64_t sum = 0;
  for (const auto& [number, words] : table) {
    sum += static_cast<std::uint64_t>(number) + words.size();
    ASSERT_EQ(words[1], '!') << number;
  }
  EXPECT_EQ(out[0], table.size());
  EXPECT_EQ(out[1], sum);
  EXPECT_EQ(out[2], static_cast<std::uint64_t>('X'));
  ferry::free(out);
  table.erase(1000);
}

TEST(BeforeMain, WhatIsAllocatedBesideItIsTheProgramsToo) {
  // Of all small sizes: some of them lie in pages that the heap had before main.
  std::vector<std::unique_ptr<char[]>> blocks;
  for (std::size_t bytes = 16; bytes <= 1024; bytes += 8) {
    for (int i = 0; i < 4; ++i) {
      blocks.push_back(std::make_unique<char[]>(bytes));
      blocks.back()[0] = 'm';
    }
  }
  auto* seen = zeroed_page<std::uint64_t>();
  ferry::parallel_for(1, [&blocks, seen](std::size_t) {
    for (auto& b : blocks) {
      seen[0] += b[0] == 'm' ? 1 : 0;
      b[1] = 'k';
    }
  });
  EXPECT_EQ(seen[0], blocks.size());
  for (auto& b : blocks) ASSERT_EQ(b[1], 'k');
  ferry::free(seen);
}

TEST(BeforeMain, MappingsAndTheBreakAreTheProgramsToo) {
  auto* of_break = static_cast<char*>(from_the_break);
  mapped[6000] = 66;
  of_break[100] = 'b';
  auto* out = zeroed_page<std::uint32_t>();
  ferry::parallel_for(1, [of_break, out](std::size_t) {
    out[0] = mapped[5000];
    out[1] = mapped[6000];
    out[2] = static_cast<std::uint32_t>(of_break[100]);
    mapped[7000] = 77;
    of_break[101] = 'd';
  });
  EXPECT_EQ(out[0], 55U);
  EXPECT_EQ(out[1], 66U);
  EXPECT_EQ(out[2], static_cast<std::uint32_t>('b'));
  EXPECT_EQ(now(mapped[7000]), 77U);
  EXPECT_EQ(now(of_break[101]), 'd');
  ferry::free(out);
}

TEST(BeforeMain, ALibraryThatAConstructorOpensIsTheProgramsToo) {
  ASSERT_NE(opened, nullptr) << ::dlerror();
  using Parse = long (*)(const char*);
  using Calls = int (*)();
  const auto parse = reinterpret_cast<Parse>(::dlsym(opened, "ferry_test_parse"));
  const auto calls = reinterpret_cast<Calls>(::dlsym(opened, "ferry_test_calls"));
  ASSERT_NE(parse, nullptr);
  ASSERT_NE(calls, nullptr);
  const int before = calls();
  auto* sum = zeroed_page<long>();
  ferry::parallel_for(100, [parse, sum](std::size_t) { std::atomic_ref(*sum).fetch_add(parse("12")); });
  EXPECT_EQ(*sum, 1200);
  EXPECT_EQ(calls(), before + 100);
  ferry::free(sum);
}

TEST(BeforeMain, NoUpdateIsLostByThreadsAndKernelsAtOnce) {
  for (std::vector<int>* v : {&small_vector, &large_vector}) {
    std::int64_t before = std::accumulate(v->begin(), v->end(), std::int64_t{0});
    std::atomic<bool> stop{false};
    std::atomic<std::int64_t> added{0};
    std::vector<std::thread> threads;
    std::latch begun(3);
    for (unsigned t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        std::uint64_t x = t * 7919 + 1;
        std::int64_t mine = 0;
        for (; !stop.load(std::memory_order_relaxed); ++mine) {
          x = x * 6364136223846793005U + 1442695040888963407U;
          std::atomic_ref((*v)[(x >> 20) % v->size()]).fetch_add(1, std::memory_order_relaxed);
          // The heap's own pages come and go with them.
          std::string made(40 + x % 100, 'x');
          if (made[20] != 'x') std::abort();
          if (mine == 0) begun.count_down();
        }
        added += mine;
      });
    }
    begun.wait();
    constexpr int rounds = 4;
    for (int round = 0; round < rounds; ++round) {
      ferry::parallel_for(v->size(), [v](std::size_t i) { std::atomic_ref((*v)[i]).fetch_add(1); });
      if (round % 2 == 0) {
        ferry_error e{};
        // With Ferry's malloc it is managed memory as it is.
        if (reinterpret_cast<std::uintptr_t>(v->data()) < 0x300000000000 &&
            reinterpret_cast<std::uintptr_t>(v->data()) >= 0x200000000000) {
          continue;
        }
        EXPECT_EQ(ferry_release(v->data(), v->size() * sizeof(int), &e), FERRY_OK) << e.text;
      }
    }
    stop = true;
    for (auto& t : threads) t.join();
    EXPECT_EQ(std::accumulate(v->begin(), v->end(), std::int64_t{0}),
              before + rounds * static_cast<std::int64_t>(v->size()) + added.load());
  }
}

TEST(BeforeMain, AForksChildHasItAsItWas) {
  ferry::parallel_for(1, [](std::size_t) {
    small_vector[10] = 100;
    large_vector[500'000] = 101;
    text[0] = 'K';
  });
  const pid_t child = ::fork();
  if (child == 0) {
    if (now(small_vector[10]) != 100 || now(large_vector[500'000]) != 101 || now(text[0]) != 'K') ::_exit(1);
    small_vector[10] = 200;
    large_vector[500'000] = 201;
    text += " grows";
    ::_exit(now(small_vector[10]) == 200 && now(large_vector[500'000]) == 201 ? 0 : 2);
  }
  ASSERT_GT(child, 0);
  ferry::parallel_for(1, [](std::size_t) {
    small_vector[10] += 1;
    large_vector[500'000] += 1;
  });
  int how = 0;
  ASSERT_EQ(::waitpid(child, &how, 0), child);
  EXPECT_EQ(how, 0);
  EXPECT_EQ(now(small_vector[10]), 101);
  EXPECT_EQ(now(large_vector[500'000]), 102);
}

TEST(BeforeMain, WithoutRetryFaultsToo) {
  ferry::set_retry_faults(false);
  small_vector[20] = 1;
  large_vector[600'000] = 2;
  ferry::parallel_for(1, [](std::size_t) {
    small_vector[20] += 10;
    large_vector[600'000] += 10;
    text[1] = 'W';
  });
  ferry::set_retry_faults(true);
  EXPECT_EQ(now(small_vector[20]), 11);
  EXPECT_EQ(now(large_vector[600'000]), 12);
  EXPECT_EQ(now(text[1]), 'W');
}

TEST(BeforeMain, TwoDevicesHaveTheSame) {
  small_vector[30] = 0;
  large_vector[700'000] = 0;
  for (int round = 0; round < 4; ++round) {
    for (unsigned device = 0; device < 2; ++device) {
      ferry::queue q(device);
      q.launch({.items = 64}, [](ferry::item) {
         std::atomic_ref(small_vector[30]).fetch_add(1);
         std::atomic_ref(large_vector[700'000]).fetch_add(1);
       }).wait();
    }
  }
  EXPECT_EQ(now(small_vector[30]), 512);
  EXPECT_EQ(now(large_vector[700'000]), 512);
}

TEST(BeforeMain, TheDevicesOwnCLibraryWorksOn) {
  auto* out = zeroed_page<std::uint64_t>();
  // All of them at once, so that every compute unit's thread allocates.
  ferry::parallel_for(1000, [out](std::size_t i) {
    std::string made = "a string of the device's own: " + std::to_string(i);
    std::vector<std::size_t> numbers(100 + 300 * (i % 100), i);
    std::map<std::size_t, std::string> m;
    for (std::size_t n = 0; n < 20; ++n) m[n] = made;
    bool caught = false;
    try {
      if (now(small_vector[0]) != -1) throw std::runtime_error(made);
    } catch (const std::exception& e) {
      caught = made == e.what();
    }
    std::printf("%s", made.c_str());
    if (caught && m.at(19) == made && numbers.back() == i) std::atomic_ref(*out).fetch_add(1);
  });
  EXPECT_EQ(out[0], 1000U);
  ferry::free(out);
}

TEST(BeforeMain, WhatIsWrittenToStandardOutputBeforeMainIsTheProgramsAlone) {
  // A pipe, so that it stays in the buffer, which the C library allocates.
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  std::fflush(stdout);
  const int saved = ::dup(1);
  ::dup2(ends[1], 1);
  std::printf("of the program, ");
  ferry::parallel_for(1, [](std::size_t) { std::printf("of a kernel, which nobody sees"); });
  std::printf("and nobody else's");
  std::fflush(stdout);
  ::dup2(saved, 1);
  ::close(saved);
  ::close(ends[1]);
  std::string got(200, '\0');
  const ssize_t n = ::read(ends[0], got.data(), got.size());
  ::close(ends[0]);
  ASSERT_GT(n, 0);
  EXPECT_EQ(got.substr(0, static_cast<std::size_t>(n)), "of the program, and nobody else's");
}

/// The C library allocates the buffer of standard output when it is first written to: here before main.
[[maybe_unused]] const int written_before_main = std::printf("%s", " ") + std::fflush(stdout);

}  // namespace
}  // namespace ferry::test
