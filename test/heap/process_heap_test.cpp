// Every test runs in a fork of this process, which itself never uses the heap of the process: so each finds it unborn.
#include "client/heap/process_heap.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/types.h"

namespace ferry::client {
namespace {

#define REQUIRE(condition)                                                 \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      _exit(1);                                                            \
    }                                                                      \
  } while (false)

#define EXPECT_IN_CHILD(body) \
  EXPECT_EXIT(                \
      {                       \
        body();               \
        _exit(0);             \
      },                      \
      testing::ExitedWithCode(0), "")

bool in_window(const void* pointer) {
  const auto at = reinterpret_cast<std::uintptr_t>(pointer);
  return at - process_window().base < process_window().bytes;
}

char* filled(std::size_t bytes, int value) {
  void* block = ferry_heap_malloc(bytes);
  REQUIRE(block != nullptr);
  REQUIRE(in_window(block));
  return static_cast<char*>(std::memset(block, value, bytes));
}

bool holds(const char* block, std::size_t bytes, int value) {
  for (std::size_t i = 0; i < bytes; ++i) {
    if (block[i] != static_cast<char>(value)) return false;
  }
  return true;
}

/// What a session does with spans, in small: one memfd for the window, mapped shared. Uses malloc as a session would.
class Managed {
 public:
  Managed() : file_(::memfd_create("window", MFD_CLOEXEC)) {
    REQUIRE(file_ >= 0);
    REQUIRE(::ftruncate(file_, static_cast<off_t>(process_window().bytes)) == 0);
  }
  Managed(const Managed&) = delete;
  Managed& operator=(const Managed&) = delete;

  ManagedSpanHooks hooks() {
    return {this,
            [](void* self, void* span, std::size_t bytes) noexcept {
              return static_cast<Managed*>(self)->convert(span, bytes);
            },
            [](void* self, void* span, std::size_t bytes) noexcept {
              return static_cast<Managed*>(self)->map(span, bytes);
            },
            [](void* self, void* span, std::size_t bytes) noexcept {
              static_cast<Managed*>(self)->drop(span, bytes);
              return true;
            },
            [](void* self) noexcept { ++static_cast<Managed*>(self)->before; },
            [](void* self) noexcept { ++static_cast<Managed*>(self)->in_parent; },
            [](void* self) noexcept {
              ++static_cast<Managed*>(self)->in_child;
              return false;  // not private: the child's malloc is libc's
            }};
  }
  [[nodiscard]] off_t offset(const void* span) const {
    return static_cast<off_t>(reinterpret_cast<std::uintptr_t>(span) - process_window().base);
  }
  /// What the file holds at a managed address, which is what another process would see.
  [[nodiscard]] char byte_at(const void* at) const {
    char byte = 0;
    REQUIRE(::pread(file_, &byte, 1, offset(at)) == 1);
    return byte;
  }

  std::map<void*, std::size_t> spans;
  int converted = 0;
  int dropped = 0;
  int before = 0;
  int in_parent = 0;
  int in_child = 0;
  int fail_after = -1;
  void* to_free = nullptr;

 private:
  bool convert(void* span, std::size_t bytes) noexcept {
    if (fail_after == 0) return false;
    if (fail_after > 0) --fail_after;
    if (::pwrite(file_, span, bytes, offset(span)) != static_cast<ssize_t>(bytes)) return false;
    ++converted;
    return map(span, bytes);
  }
  bool map(void* span, std::size_t bytes) noexcept {
    // All locks may be held: what is allocated here comes from libc, what is freed waits.
    void* own = ferry_heap_malloc(1000);
    REQUIRE(own != nullptr);
    REQUIRE(!in_window(own));
    own = ferry_heap_realloc(own, 100000);
    REQUIRE(!in_window(own));
    ferry_heap_free(own);
    if (to_free != nullptr) ferry_heap_free(std::exchange(to_free, nullptr));
    spans[span] = bytes;
    return ::mmap(span, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file_, offset(span)) == span &&
           ::madvise(span, bytes, MADV_DONTFORK) == 0;
  }
  void drop(void* span, std::size_t bytes) noexcept {
    REQUIRE(spans.erase(span) == 1);
    ++dropped;
    errno = EIO;
    REQUIRE(::fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset(span), static_cast<off_t>(bytes)) ==
            0);
  }

  int file_;
};

TEST(ProcessHeap, IsInTheWindowAndItsMetadataAreNot) {
  EXPECT_IN_CHILD([] {
    REQUIRE(in_window(ferry_heap_malloc(1)));
    REQUIRE(in_window(ferry_heap_malloc(std::size_t{10} << 20)));
    REQUIRE(in_window(ferry_heap_calloc(10, 10)));
    REQUIRE(in_window(ferry_heap_memalign(std::size_t{1} << 21, 10)));
    REQUIRE(!in_window(&process_heap()));
    REQUIRE(process_window().reserved);
  });
}

TEST(ProcessHeap, TheEnvironmentMovesTheWindow) {
  EXPECT_IN_CHILD([] {
    ::setenv("FERRY_WINDOW_BASE", "0x300000000000", 1);
    ::setenv("FERRY_WINDOW_BYTES", "40000000", 1);
    REQUIRE(process_window().base == 0x300000000000);
    REQUIRE(process_window().bytes == 0x40000000);
    REQUIRE(in_window(ferry_heap_malloc(100)));
    errno = 0;
    REQUIRE(ferry_heap_malloc(0x40000001) == nullptr);
    REQUIRE(errno == ENOMEM);
  });
}

TEST(ProcessHeap, AWrongEnvironmentIsReportedAndNotFollowed) {
  EXPECT_EXIT(
      {
        ::setenv("FERRY_WINDOW_BYTES", "0x12345", 1);
        REQUIRE(process_window().bytes == default_window_bytes);
        _exit(0);
      },
      testing::ExitedWithCode(0), "FERRY_WINDOW_BYTES=0x12345: not a multiple of 0x200000");
}

TEST(ProcessHeap, WithoutAWindowMallocIsLibcs) {
  EXPECT_IN_CHILD([] {
    ::setenv("FERRY_WINDOW_BASE", "0x300000000000", 1);
    ::setenv("FERRY_WINDOW_BYTES", "40000000", 1);
    auto* in_the_way = reinterpret_cast<void*>(0x300000000000 + 0x10000000);
    REQUIRE(::mmap(in_the_way, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) ==
            in_the_way);
    void* block = ferry_heap_malloc(1000);
    REQUIRE(block != nullptr);
    REQUIRE(!in_window(block));
    REQUIRE(ferry_heap_usable_size(block) >= 1000);
    block = ferry_heap_realloc(block, 100000);
    REQUIRE(block != nullptr);
    ferry_heap_free(block);
    REQUIRE(!process_window().reserved);
    REQUIRE(process_heap().allocate(10) == nullptr);
    REQUIRE(!begin_managed({}));
  });
}

TEST(ProcessHeap, FirstUseByManyThreadsAtOnce) {
  EXPECT_IN_CHILD([] {
    std::atomic<int> ready{0};
    std::vector<std::thread> threads;
    std::vector<void*> blocks(8);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      threads.emplace_back([&, i] {
        ++ready;
        while (ready.load() != static_cast<int>(blocks.size())) std::this_thread::yield();
        blocks[i] = ferry_heap_malloc(100);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (void* block : blocks) {
      REQUIRE(process_heap().owns(block));
      REQUIRE(process_heap().free(block) == FreeResult::freed);
    }
  });
}

TEST(ProcessHeap, ReallocAcrossTheBorder) {
  EXPECT_IN_CHILD([] {
    void* native = nullptr;
    {
      NativeMallocScope scope;
      NativeMallocScope nested;
      native = ferry_heap_malloc(100);
    }
    REQUIRE(!in_window(native));
    native = ferry_heap_realloc(native, 5000);
    REQUIRE(native != nullptr);
    REQUIRE(ferry_heap_usable_size(native) >= 5000);
    ferry_heap_free(native);
    char* block = filled(100, 7);
    {
      NativeMallocScope scope;
      block = static_cast<char*>(ferry_heap_realloc(block, 100000));
    }
    REQUIRE(!in_window(block));
    REQUIRE(holds(block, 100, 7));
    ferry_heap_free(block);
    for (int i = 0; i < 5000; ++i) REQUIRE(ferry_heap_malloc(112) != nullptr);
    REQUIRE(process_heap().stats().live_objects == 5000);
  });
}

TEST(ProcessHeap, ABadFreeIsReportedAndTheProgramGoesOn) {
  EXPECT_EXIT(
      {
        void* block = ferry_heap_malloc(100);
        ferry_heap_free(block);
        ferry_heap_free(block);
        ferry_heap_free(static_cast<char*>(ferry_heap_malloc(100)) + 8);
        REQUIRE(ferry_heap_malloc(100) != nullptr);
        _exit(0);
      },
      testing::ExitedWithCode(0), "free\\(0x2000[0-9a-f]*\\): is free already[^\n]*\n[^\n]*is not the start");
  EXPECT_EXIT(
      {
        ::setenv("FERRY_MALLOC_CHECK", "abort", 1);
        void* block = ferry_heap_malloc(100);
        ferry_heap_free(block);
        ferry_heap_free(block);
        _exit(0);
      },
      testing::KilledBySignal(SIGABRT), "double free");
}

TEST(ProcessHeap, FreeKeepsErrno) {
  EXPECT_IN_CHILD([] {
    for (const std::size_t bytes : {std::size_t{10}, std::size_t{100000}, std::size_t{4} << 20}) {
      void* block = ferry_heap_malloc(bytes);
      errno = 77;
      ferry_heap_free(block);
      REQUIRE(errno == 77);
    }
  });
}

TEST(ProcessHeap, ManyHolesLeaveTheProgramItsMappings) {
  EXPECT_IN_CHILD([] {
    std::vector<char*> blocks;
    for (int i = 0; i < 80000; ++i) {
      blocks.push_back(static_cast<char*>(ferry_heap_malloc(256 * 1024)));
      REQUIRE(blocks.back() != nullptr);
      if (i % 16 == 0) blocks.back()[5] = 'k';
    }
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      if (i % 2 == 1) ferry_heap_free(std::exchange(blocks[i], nullptr));
    }
    FILE* maps = std::fopen("/proc/self/maps", "re");
    REQUIRE(maps != nullptr);
    int lines = 0;
    for (int c = std::fgetc(maps); c != EOF; c = std::fgetc(maps)) lines += c == '\n';
    std::fclose(maps);
    REQUIRE(lines < 40000);
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      if (blocks[i] == nullptr) blocks[i] = static_cast<char*>(ferry_heap_calloc(1, 256 * 1024));
      REQUIRE(blocks[i] != nullptr);
      REQUIRE(blocks[i][5] == (i % 16 == 0 ? 'k' : 0));
    }
    for (char* block : blocks) REQUIRE(process_heap().free(block) == FreeResult::freed);
    REQUIRE(process_heap().stats().span_bytes == 0);
  });
}

TEST(ProcessHeap, AForkedChildHasItsOwnCopy) {
  EXPECT_IN_CHILD([] {
    char* block = filled(100, 1);
    char* large = filled(1000000, 1);
    const pid_t child = ::fork();
    if (child == 0) {
      REQUIRE(holds(block, 100, 1) && holds(large, 1000000, 1));
      std::memset(block, 2, 100);
      std::memset(large, 2, 1000000);
      for (int i = 0; i < 10000; ++i) ferry_heap_free(filled(static_cast<std::size_t>(i), 3));
      ferry_heap_free(block);
      ferry_heap_free(large);
      _exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child && status == 0);
    REQUIRE(holds(block, 100, 1) && holds(large, 1000000, 1));
  });
}

TEST(ProcessHeap, ForksWhileOtherThreadsAllocate) {
  EXPECT_IN_CHILD([] {
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (int id = 0; id < 3; ++id) {
      threads.emplace_back([&stop] {
        std::vector<void*> mine(300, nullptr);
        for (std::size_t i = 0; !stop.load(std::memory_order_relaxed); ++i) {
          void*& slot = mine[i * 7 % mine.size()];
          ferry_heap_free(slot);
          slot = ferry_heap_malloc(16 + i * 37 % 20000);
        }
        for (void* block : mine) ferry_heap_free(block);
      });
    }
    std::vector<char*> kept;
    for (std::size_t i = 0; i < 200; ++i) kept.push_back(filled(16 + i * 100, 9));
    for (int round = 0; round < 30; ++round) {
      const pid_t child = ::fork();
      if (child == 0) {
        // More than one slab of every class: what the lost threads' caches held is taken back on the way.
        std::vector<char*> blocks;
        for (std::size_t i = 0; i < 800; ++i) blocks.push_back(filled(16 + i * 37 % 20000, static_cast<int>(i)));
        for (std::size_t i = 0; i < 800; ++i) {
          REQUIRE(holds(blocks[i], 16 + i * 37 % 20000, static_cast<int>(i)));
          REQUIRE(process_heap().free(blocks[i]) == FreeResult::freed);
        }
        for (std::size_t i = 0; i < kept.size(); ++i) REQUIRE(holds(kept[i], 16 + i * 100, 9));
        _exit(0);
      }
      int status = 0;
      REQUIRE(::waitpid(child, &status, 0) == child && status == 0);
    }
    stop = true;
    for (std::thread& thread : threads) thread.join();
    for (char* block : kept) REQUIRE(process_heap().free(block) == FreeResult::freed);
    REQUIRE(process_heap().stats().live_objects == 0);
  });
}

TEST(ProcessHeap, WhatACacheHeldIsNotLostInTheChild) {
  EXPECT_IN_CHILD([] {
    std::atomic<int> step{0};
    std::thread other([&step] {
      std::vector<void*> blocks;
      for (int i = 0; i < 200; ++i) blocks.push_back(ferry_heap_malloc(64));
      for (void* block : blocks) ferry_heap_free(block);
      step = 1;
      step.notify_all();
      step.wait(1);
    });
    step.wait(0);
    const pid_t child = ::fork();
    if (child == 0) {
      // The other thread's cache keeps most of the first slab. All of its slots have to come before a second one.
      const std::uint64_t slabs = process_heap().stats().slab_bytes;
      const std::size_t slots = size_classes[class_of(64)].slots;
      for (std::size_t i = 0; i < slots; ++i) REQUIRE(ferry_heap_malloc(64) != nullptr);
      REQUIRE(process_heap().stats().slab_bytes == slabs);
      _exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child && status == 0);
    step = 2;
    step.notify_all();
    other.join();
  });
}

TEST(ProcessHeap, HandlersOfOthersMayAllocateDuringAFork) {
  EXPECT_IN_CHILD([] {
    const auto use = [] {
      std::vector<void*> blocks;
      for (int i = 0; i < 2000; ++i) blocks.push_back(ferry_heap_malloc(static_cast<std::size_t>(i)));
      for (void* block : blocks) ferry_heap_free(block);
    };
    // Before ours, so that they run when all locks are held, and after.
    ::pthread_atfork(use, use, use);
    void* block = ferry_heap_malloc(10);
    ::pthread_atfork(use, use, use);
    static void* given_up = block;
    ::pthread_atfork([] { ferry_heap_free(std::exchange(given_up, nullptr)); }, nullptr, nullptr);
    for (int i = 0; i < 20; ++i) {
      const pid_t child = ::fork();
      if (child == 0) {
        use();
        _exit(0);
      }
      int status = 0;
      REQUIRE(::waitpid(child, &status, 0) == child && status == 0);
    }
  });
}

TEST(ProcessHeap, DeviceModeIsLibcsMalloc) {
  EXPECT_IN_CHILD([] {
    char* block = filled(100, 1);
    char* large = filled(1000000, 1);
    heap_enter_device_mode();
    void* own = ferry_heap_malloc(100);
    REQUIRE(own != nullptr && !in_window(own));
    own = ferry_heap_realloc(own, 1000000);
    REQUIRE(own != nullptr && !in_window(own) && ferry_heap_usable_size(own) >= 1000000);
    ferry_heap_free(own);
    REQUIRE(!in_window(ferry_heap_memalign(4096, 10)));
    REQUIRE(!in_window(ferry_heap_calloc(1, 10)));
    ferry_heap_free(block);
    ferry_heap_free(block);
    ferry_heap_free(large);
    REQUIRE(holds(block, 100, 1) && holds(large, 1000000, 1));
    errno = 0;
    REQUIRE(ferry_heap_realloc(block, 200) == nullptr && errno == ENOMEM);
    std::thread([] { REQUIRE(!in_window(ferry_heap_malloc(10))); }).join();
  });
}

TEST(ProcessHeap, BecomesManagedWithAllItsContents) {
  EXPECT_IN_CHILD([] {
    std::vector<char*> blocks;
    for (std::size_t i = 0; i < 500; ++i) blocks.push_back(filled(1 + i * 997 % 300000, static_cast<int>(i)));
    void* freed = filled(1000000, 1);  // to free it takes a lock that is held meanwhile
    Managed managed;
    managed.to_free = freed;
    REQUIRE(begin_managed(managed.hooks()));
    REQUIRE(heap_is_managed());
    REQUIRE(managed.converted > 0);
    const auto check = [&] {
      for (std::size_t i = 0; i < blocks.size(); ++i) {
        REQUIRE(holds(blocks[i], 1 + i * 997 % 300000, static_cast<int>(i)));
        REQUIRE(managed.byte_at(blocks[i]) == static_cast<char>(i));
      }
    };
    check();

    char* fresh = static_cast<char*>(ferry_heap_calloc(1, 3000000));
    REQUIRE(fresh != nullptr && holds(fresh, 3000000, 0) && managed.spans.contains(fresh));
    fresh[5] = 'x';
    REQUIRE(managed.byte_at(fresh + 5) == 'x');
    errno = 77;
    ferry_heap_free(fresh);
    REQUIRE(errno == 77);
    REQUIRE(managed.dropped == 2 && !managed.spans.contains(fresh));
    for (std::size_t i = 0; i < 5000; ++i) {
      char* block = filled(1000, 5);
      REQUIRE(managed.byte_at(block) == 5);
    }
    for (std::size_t i = 0; i < blocks.size(); i += 2) ferry_heap_free(blocks[i]);
    for (std::size_t i = 0; i < blocks.size(); i += 2) blocks[i] = filled(1 + i * 997 % 300000, static_cast<int>(i));
    check();

    // The context closes and another opens, with another file.
    end_managed();
    REQUIRE(!heap_is_managed());
    check();
    char* between = filled(1000000, 'b');
    REQUIRE(!managed.spans.contains(between));
    Managed second;
    REQUIRE(begin_managed(second.hooks()));
    REQUIRE(second.spans.contains(between) && second.byte_at(between) == 'b');
    for (std::size_t i = 0; i < blocks.size(); ++i) REQUIRE(second.byte_at(blocks[i]) == static_cast<char>(i));
  });
}

TEST(ProcessHeap, BecomesManagedWhileThreadsAllocate) {
  EXPECT_IN_CHILD([] {
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (int id = 0; id < 3; ++id) {
      threads.emplace_back([&stop] {
        // Not touching what they get: converting memory in use is the session's art, not that of this test.
        std::vector<void*> mine(40, nullptr);
        for (std::size_t i = 0; !stop.load(std::memory_order_relaxed); ++i) {
          void*& slot = mine[i * 7 % mine.size()];
          REQUIRE(slot == nullptr || process_heap().free(slot) == FreeResult::freed);
          slot = ferry_heap_malloc(16 + i * 37 % 400000);
          REQUIRE(in_window(slot));
        }
        for (void* block : mine) ferry_heap_free(block);
      });
    }
    for (int round = 0; round < 20; ++round) {
      char* block = filled(200000, round);
      Managed managed;
      REQUIRE(begin_managed(managed.hooks()));
      for (int i = 0; i < 2000; ++i) ferry_heap_free(filled(static_cast<std::size_t>(i * 10), i));
      REQUIRE(managed.byte_at(block) == static_cast<char>(round));
      end_managed();
    }
    stop = true;
    for (std::thread& thread : threads) thread.join();
  });
}

TEST(ProcessHeap, AConversionThatFailsLeavesAWorkingPrivateHeap) {
  EXPECT_IN_CHILD([] {
    std::vector<char*> blocks;
    for (std::size_t i = 0; i < 20; ++i) blocks.push_back(filled(1000000, static_cast<int>(i)));
    Managed managed;
    managed.fail_after = 5;
    REQUIRE(!begin_managed(managed.hooks()));
    REQUIRE(!heap_is_managed());
    for (std::size_t i = 0; i < 20; ++i) REQUIRE(holds(blocks[i], 1000000, static_cast<int>(i)));
    char* fresh = filled(1000000, 3);
    REQUIRE(!managed.spans.contains(fresh));
    for (char* block : blocks) REQUIRE(process_heap().free(block) == FreeResult::freed);
  });
}

TEST(ProcessHeap, TheChildOfAManagedProcessLeavesTheHeapAlone) {
  EXPECT_IN_CHILD([] {
    char* block = filled(1000, 1);
    Managed managed;
    REQUIRE(begin_managed(managed.hooks()));
    const pid_t child = ::fork();
    if (child == 0) {
      REQUIRE(managed.before == 1 && managed.in_child == 1 && managed.in_parent == 0);
      void* own = ferry_heap_malloc(100);
      REQUIRE(own != nullptr && !in_window(own));
      ferry_heap_free(own);
      ferry_heap_free(block);
      _exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child && status == 0);
    REQUIRE(holds(block, 1000, 1));
    REQUIRE(in_window(ferry_heap_malloc(100)));
  });
}

}  // namespace
}  // namespace ferry::client
