// Memory that the program already has, on a device, at its own address: docs/design/0019-adoption.md. VRAM is smaller than
// what some of these use, so pages come and go as well.
#include <ferry/svm.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ferry/ferry.hpp>
#include <ferry/svm.hpp>
#include <functional>
#include <latch>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace ferry::test {
namespace {

constexpr std::size_t mib = std::size_t{1} << 20;

/// Private anonymous memory that no library knows.
class Pages {
 public:
  explicit Pages(std::size_t bytes, int prot = PROT_READ | PROT_WRITE, int flags = MAP_PRIVATE | MAP_ANONYMOUS)
      : bytes_(bytes), at_(::mmap(nullptr, bytes, prot, flags, -1, 0)) {}
  ~Pages() { ::munmap(at_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  template <typename T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(at_);
  }

 private:
  std::size_t bytes_;
  void* at_;
};

std::string error_of_kernel(const std::function<void()>& body) {
  try {
    body();
  } catch (const ferry::kernel_error& e) {
    return e.what();
  }
  return "no error";
}

bool full_userfaultfd() { return ::geteuid() == 0; }

TEST(Adoption, LosesNoUpdateOfThreadsThatGoOnWriting) {
  constexpr std::size_t count = 8 * mib / sizeof(std::uint32_t);
  const Pages pages(count * sizeof(std::uint32_t));
  auto* words = pages.as<std::atomic<std::uint32_t>>();
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
        words[(x >> 20) % count].fetch_add(1, std::memory_order_relaxed);
        if (mine == 0) begun.count_down();
      }
      added += mine;
    });
  }
  begun.wait();
  ferry_error e{};
  ASSERT_EQ(ferry_adopt(words, count * sizeof *words, &e), FERRY_OK) << e.text;
  for (int round = 0; round < 3; ++round) {
    ferry::parallel_for(count, [words](std::size_t i) { words[i].fetch_add(1, std::memory_order_relaxed); });
  }
  ASSERT_EQ(ferry_release(words, count * sizeof *words, &e), FERRY_OK) << e.text;
  stop = true;
  for (auto& t : threads) t.join();
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += words[i].load();
  EXPECT_GT(added.load(), 0U);
  EXPECT_EQ(sum, 3 * count + added.load());
}

TEST(Adoption, AFaultOfADeviceAdoptsTheHeap) {
  std::vector<float> large(3 * mib, 1.0F);
  std::vector<int> small(100, 5);
  ferry::parallel_for(large.size(), [p = large.data(), q = small.data()](std::size_t i) {
    p[i] *= 2;
    if (i < 100) q[i] += static_cast<int>(i);
  });
  for (const float f : large) ASSERT_EQ(f, 2.0F);
  for (std::size_t i = 0; i < small.size(); ++i) ASSERT_EQ(small[i], 5 + static_cast<int>(i));
}

TEST(Adoption, FreedAndAllocatedAgainIsOtherMemory) {
  for (int round = 1; round <= 20; ++round) {
    // The C library unmaps it without asking anybody, and mostly gives the same address again.
    std::vector<int> v(mib, round);
    ferry::parallel_for(v.size(), [p = v.data()](std::size_t i) { p[i] += static_cast<int>(i); });
    for (std::size_t i = 0; i < v.size(); ++i) ASSERT_EQ(v[i], round + static_cast<int>(i)) << "round " << round;
  }
}

TEST(Adoption, UnmapsAreHeardOfWhenAForksChildHasLeft) {
  const Pages pages(2 * mib);
  auto* const p = pages.as<int>();
  constexpr std::size_t count = 2 * mib / sizeof(int);
  // What the child might need of the manager, so that memory is watched for it.
  auto* const managed = static_cast<int*>(ferry::alloc(mib));
  for (int round = 1; round <= 5; ++round) {
    managed[0] = round;
    std::array<int, 2> end{};
    ASSERT_EQ(::pipe(end.data()), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(end[1]);
      char none = 0;
      ::_exit(static_cast<int>(::read(end[0], &none, 1)));
    }
    ASSERT_GT(child, 0);
    ::close(end[0]);
    std::fill_n(p, count, round);
    ferry::parallel_for(count, [p](std::size_t i) { ++p[i]; });
    EXPECT_EQ(std::count(p, p + count, round + 1), static_cast<std::ptrdiff_t>(count));  // all of it is home again
    ::close(end[1]);
    int how = 0;
    ASSERT_EQ(::waitpid(child, &how, 0), child);
    ASSERT_EQ(how, 0);
    // The manager has read of the child's end when it has answered what was asked after it.
    for (int asked = 0; asked < 2; ++asked) ASSERT_EQ(ferry_populate(managed, mib, FERRY_TO_CPU, nullptr), FERRY_OK);
    // By number, as the C library does it: nobody is asked.
    ASSERT_EQ(::syscall(SYS_munmap, p, 2 * mib), 0);
    ASSERT_EQ(::syscall(SYS_mmap, p, 2 * mib, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
                        -1, 0),
              reinterpret_cast<long>(p));
    std::fill_n(p, count, -round);
    ferry::parallel_for(count, [p](std::size_t i) { --p[i]; });
    ASSERT_EQ(std::count(p, p + count, -round - 1), static_cast<std::ptrdiff_t>(count)) << "round " << round;
  }
  ferry::free(managed);
}

TEST(Adoption, GrowingAnAdoptedBlockOfTheCLibraryMovesItsContents) {
  auto* p = static_cast<std::uint32_t*>(std::malloc(2 * mib));
  std::memset(p, 0, 2 * mib);
  ferry::parallel_for(mib / 2, [p](std::size_t i) { p[i] = static_cast<std::uint32_t>(i); });
  p = static_cast<std::uint32_t*>(std::realloc(p, 16 * mib));
  for (std::size_t i = 0; i < mib / 2; ++i) ASSERT_EQ(p[i], i);
  ferry::parallel_for(4 * mib, [p](std::size_t i) { p[i] = static_cast<std::uint32_t>(i) + 1; });
  for (std::size_t i = 0; i < 4 * mib; ++i) ASSERT_EQ(p[i], i + 1);
  std::free(p);
}

TEST(Adoption, StacksOfThreadsAndOfTheProgram) {
  if (!full_userfaultfd()) GTEST_SKIP() << "no privilege for a full userfaultfd: stacks are refused";
  std::array<int, 64> mine{};
  ferry::parallel_for(mine.size(), [p = mine.data()](std::size_t i) { p[i] = static_cast<int>(i) + 1; });
  for (std::size_t i = 0; i < mine.size(); ++i) EXPECT_EQ(mine[i], static_cast<int>(i) + 1);
  for (int round = 0; round < 8; ++round) {
    // Joined while it sleeps: the word that its end wakes lies in the stack that is being adopted.
    std::thread([round] {
      std::array<int, 64> theirs{};
      ferry::parallel_for(theirs.size(), [p = theirs.data(), round](std::size_t) { p[0] = round; });
      EXPECT_EQ(theirs[0], round);
    }).join();
  }
}

TEST(Adoption, TheStackStillGrows) {
  if (!full_userfaultfd()) GTEST_SKIP() << "no privilege for a full userfaultfd: stacks are refused";
  int word = 1;
  ferry::parallel_for(1, [p = &word](std::size_t) { *p = 2; });
  struct Deep {
    static int go(int depth) {
      volatile char room[16384];
      room[0] = static_cast<char>(depth);
      return depth == 0 ? room[0] : go(depth - 1) + room[0] - room[0];
    }
  };
  EXPECT_EQ(Deep::go(200), 0);
  EXPECT_EQ(word, 2);
}

TEST(Adoption, ReleasedMemoryIsPrivateAndCanBeHadAgain) {
  const Pages pages(4 * mib);
  auto* p = pages.as<int>();
  for (int round = 1; round <= 3; ++round) {
    ferry::parallel_for(mib, [p](std::size_t i) { p[i] += 1; });
    ferry_error e{};
    ASSERT_EQ(ferry_release(p, 4 * mib, &e), FERRY_OK) << e.text;
    for (std::size_t i = 0; i < mib; ++i) ASSERT_EQ(p[i], round) << i;
  }
}

TEST(Adoption, MemoryThatIsReadMostlyIsReleasedWithItsBytes) {
  const Pages pages(4 * mib);
  auto* p = pages.as<int>();
  ferry::parallel_for(mib, [p](std::size_t i) { p[i] = static_cast<int>(i); });
  ferry::attributes().set(ferry::svm_flag::read_mostly).apply(p, 4 * mib);
  ferry::parallel_for(mib, [p](std::size_t i) {
    if (p[i] != static_cast<int>(i)) std::abort();
  });
  ferry_error e{};
  ASSERT_EQ(ferry_release(p, 4 * mib, &e), FERRY_OK) << e.text;
  for (std::size_t i = 0; i < mib; ++i) ASSERT_EQ(p[i], static_cast<int>(i));
}

TEST(Adoption, ForkCopiesOnWrite) {
  const Pages pages(4 * mib);
  auto* p = pages.as<int>();
  ferry::parallel_for(mib, [p](std::size_t i) { p[i] = 1; });
  const pid_t child = ::fork();
  if (child == 0) {
    for (std::size_t i = 0; i < mib; ++i) {
      if (p[i] != 1) ::_exit(1);
      p[i] = 2;
    }
    for (std::size_t i = 0; i < mib; ++i) {
      if (p[i] != 2) ::_exit(2);
    }
    ::_exit(0);
  }
  ASSERT_GT(child, 0);
  ferry::parallel_for(mib, [p](std::size_t i) { p[i] += 4; });
  int how = 0;
  ASSERT_EQ(::waitpid(child, &how, 0), child);
  EXPECT_EQ(how, 0);
  for (std::size_t i = 0; i < mib; ++i) ASSERT_EQ(p[i], 5);
}

TEST(Adoption, WhatCannotBeHadIsRefusedWithTheReason) {
  ferry_error e{};
  const Pages guard(4096, PROT_NONE);
  EXPECT_EQ(ferry_adopt(guard.as<char>(), 4096, &e), FERRY_UNSUPPORTED);
  EXPECT_NE(std::string(e.text).find("may not touch it"), std::string::npos) << e.text;
  const Pages shared(4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  if (::geteuid() == 0) {
    EXPECT_EQ(ferry_adopt(shared.as<char>(), 4096, &e), FERRY_OK) << e.text;
  } else {
    // Nobody but the kernel has its file.
    EXPECT_EQ(ferry_adopt(shared.as<char>(), 4096, &e), FERRY_UNSUPPORTED);
    EXPECT_NE(std::string(e.text).find("shared memory"), std::string::npos) << e.text;
  }
  EXPECT_EQ(ferry_adopt(stdout, 1, &e), FERRY_UNSUPPORTED);
  EXPECT_NE(std::string(e.text).find("shared library"), std::string::npos) << e.text;
  EXPECT_EQ(ferry_adopt(guard.as<char>(), 0, &e), FERRY_BAD_RANGE);
  EXPECT_EQ(ferry_adopt(reinterpret_cast<void*>(~std::uintptr_t{4095}), 8192, &e), FERRY_BAD_RANGE);
  EXPECT_EQ(ferry_adopt(nullptr, 8192, &e), FERRY_BAD_RANGE);
  auto* managed = static_cast<char*>(ferry::alloc(4096));
  EXPECT_EQ(ferry_adopt(managed, 4096, &e), FERRY_BAD_RANGE);
  ferry::free(managed);
  // A span with a hole: refused as a whole.
  const Pages pair(3 * 4096);
  ::munmap(pair.as<char>() + 4096, 4096);
  EXPECT_EQ(ferry_adopt(pair.as<char>(), 3 * 4096, &e), FERRY_UNSUPPORTED);
  EXPECT_NE(std::string(e.text).find("nothing mapped"), std::string::npos) << e.text;
}

TEST(Adoption, AKernelIsToldWhyItCannotHaveMemory) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer reports these kernels itself, and ends the device";
#endif
  const Pages guard(4096, PROT_NONE);
  const std::string text =
      error_of_kernel([&] { ferry::parallel_for(1, [p = guard.as<volatile char>()](std::size_t) { p[0] = 1; }); });
  EXPECT_NE(text.find("cannot be adopted: the program itself may not touch it"), std::string::npos) << text;
  int works = 0;
  std::vector<int> after(1000, 1);
  ferry::parallel_for(after.size(), [p = after.data()](std::size_t i) { p[i] = 2; });
  for (const int i : after) works += i == 2 ? 1 : 0;
  EXPECT_EQ(works, 1000);
}

TEST(Adoption, AnAddressThatIsUsedAgainAtOnceIsTheNewMemory) {
  void* const at = ::mmap(nullptr, mib, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(at, MAP_FAILED);
  auto* p = static_cast<int*>(at);
  ferry::queue q;
  for (int round = 1; round <= 50; ++round) {
    q.launch({.items = mib / 4}, [p, round](ferry::item i) { p[i.global()] += round; }).wait();
    EXPECT_EQ(std::count(p, p + mib / 4, round), static_cast<std::ptrdiff_t>(mib / 4)) << "round " << round;
    ASSERT_EQ(::munmap(at, mib), 0);
    ASSERT_EQ(::mmap(at, mib, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), at);
  }
  ASSERT_EQ(::munmap(at, mib), 0);
}

TEST(Adoption, NeighboursComeAndGoMeanwhile) {
  // What a device's fault adopts reaches beyond the page: into mappings that other threads unmap, map again and fill at the
  // same moment. Small ones side by side are one mapping to the kernel.
  constexpr std::size_t bytes = 16 * 4096;
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (unsigned round = 1; !stop.load(std::memory_order_relaxed); ++round) {
        const Pages pages(bytes);
        auto* p = pages.as<std::atomic<unsigned>>();
        const unsigned value = round * 4 + t;
        for (std::size_t i = 0; i < bytes / 4; i += 64) p[i].store(value, std::memory_order_relaxed);
        for (std::size_t i = 0; i < bytes / 4; i += 64) wrong += p[i].load(std::memory_order_relaxed) != value ? 1 : 0;
      }
    });
  }
  ferry::queue q;
  for (int round = 1; round <= 60; ++round) {
    const Pages pages(bytes);
    auto* p = pages.as<int>();
    const std::string error = error_of_kernel(
        [&] { q.launch({.items = bytes / 4}, [p, round](ferry::item i) { p[i.global()] += round; }).wait(); });
    EXPECT_EQ(error, "no error");
    for (std::size_t i = 0; i < bytes / 4; ++i) wrong += p[i] != round ? 1 : 0;
  }
  stop = true;
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong.load(), 0);
}

TEST(Adoption, WhatIsMappedWhileOtherMemoryIsGivenBackStays) {
  // So small that it fits wherever the other leaves room, for a moment, that is not the program's.
  constexpr std::size_t small_bytes = 16 * 4096;
  constexpr std::size_t bytes = 256 * 4096;
  const auto there_and_back = [] {
    const Pages pages(bytes);
    ferry_error e{};
    ASSERT_EQ(ferry_adopt(pages.as<char>(), bytes, &e), FERRY_OK) << e.text;
    *pages.as<int>() = 5;
    ASSERT_EQ(ferry_release(pages.as<char>(), bytes, &e), FERRY_OK) << e.text;
    ASSERT_EQ(*pages.as<int>(), 5);
  };
  there_and_back();  // from now on room lies above all that threads map, where the kernel looks first
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      std::vector<std::unique_ptr<Pages>> held;
      for (unsigned round = 1; !stop.load(std::memory_order_relaxed); ++round) {
        held.push_back(std::make_unique<Pages>(small_bytes));
        *held.back()->as<unsigned>() = round * 4 + t;
        if (held.size() < 20) continue;
        for (const auto& pages : held) wrong += *pages->as<unsigned>() % 4 != t ? 1 : 0;
        held.clear();
      }
    });
  }
  for (int round = 0; round < 150 && !HasFailure(); ++round) there_and_back();
  stop = true;
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong.load(), 0);
}

TEST(Adoption, ManyThreadsAndTheDeviceAtOnce) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&wrong, t] {
      std::vector<std::unique_ptr<Pages>> all;
      for (int round = 0; round < 5; ++round) {
        all.push_back(std::make_unique<Pages>(mib));
        auto* p = all.back()->as<int>();
        ferry_error e{};
        if (round % 2 == 0 && ferry_adopt(p, mib, &e) != FERRY_OK) ++wrong;
        ferry::queue q;
        q.launch({.items = mib / 4}, [p, t](ferry::item it) {
           p[it.global()] = t + static_cast<int>(it.global());
         }).wait();
        for (std::size_t i = 0; i < mib / 4; ++i) wrong += p[i] != t + static_cast<int>(i) ? 1 : 0;
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong.load(), 0);
}

}  // namespace
}  // namespace ferry::test
