// What adoption may not do to the program's other threads and to its limits, while it replaces mappings under them:
// docs/design/0019-adoption.md.
#include <fcntl.h>
#include <ferry/svm.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <ferry/ferry.hpp>
#include <ferry/svm.hpp>
#include <filesystem>
#include <fstream>
#include <functional>
#include <latch>
#include <string>
#include <thread>
#include <vector>

namespace ferry::test {
namespace {

constexpr std::size_t mib = std::size_t{1} << 20;
constexpr std::size_t block_bytes = 2 * mib;

/// Private anonymous memory that no library knows.
class Pages {
 public:
  explicit Pages(std::size_t bytes)
      : bytes_(bytes), at_(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {}
  ~Pages() { ::munmap(at_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  template <typename T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(at_);
  }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_;
  void* at_;
};

/// Threads that call body() until they are told to stop. Returns when each has begun.
class Crowd {
 public:
  explicit Crowd(std::vector<std::function<void()>> bodies) : begun_(static_cast<std::ptrdiff_t>(bodies.size())) {
    for (auto& body : bodies) {
      threads_.emplace_back([this, body = std::move(body)] {
        body();
        begun_.count_down();
        while (!stop_.load(std::memory_order_relaxed)) body();
      });
    }
    begun_.wait();
  }
  ~Crowd() {
    stop_ = true;
    for (auto& t : threads_) t.join();
  }
  Crowd(const Crowd&) = delete;
  Crowd& operator=(const Crowd&) = delete;

 private:
  std::atomic<bool> stop_{false};
  std::latch begun_;
  std::vector<std::thread> threads_;
};

TEST(AdoptionAndThreads, NoSystemCallEndsEarlyForIt) {
#if !defined(__x86_64__)
  GTEST_SKIP() << "on this processor a call that a signal has ended cannot be made again: its first argument is lost";
#endif
  std::array<std::atomic<int>, 6> ended{};
  static const char* const calls[] = {"poll(0)", "poll", "clock_nanosleep", "epoll_wait", "sem_timedwait", "select"};
  const auto count = [&](std::size_t call, bool failed) {
    if (failed && errno == EINTR) ++ended[call];
  };
  // What is looked at, not waited for.
  const auto wait_for_time = &::clock_nanosleep;
  const int epoll = ::epoll_create1(EPOLL_CLOEXEC);
  ASSERT_GE(epoll, 0);
  sem_t semaphore;
  ASSERT_EQ(::sem_init(&semaphore, 0, 0), 0);
  {
    const Crowd crowd({
        [&] { count(0, ::poll(nullptr, 0, 0) < 0); },
        [&] { count(1, ::poll(nullptr, 0, 1) < 0); },
        [&] {
          const timespec t{0, 20'000};
          const int result = wait_for_time(CLOCK_MONOTONIC, 0, &t, nullptr);
          errno = result;
          count(2, result != 0);
        },
        [&] {
          epoll_event event{};
          count(3, ::epoll_wait(epoll, &event, 1, 1) < 0);
        },
        [&] {
          timespec t{};
          ::clock_gettime(CLOCK_REALTIME, &t);
          t.tv_nsec += 20'000;
          if (t.tv_nsec >= 1'000'000'000) t = {t.tv_sec + 1, t.tv_nsec - 1'000'000'000};
          count(4, ::sem_timedwait(&semaphore, &t) < 0);
        },
        [&] {
          timeval t{0, 20};
          count(5, ::select(0, nullptr, nullptr, nullptr, &t) < 0);
        },
    });
    const Pages pages(64 * 1024);
    ferry_error e{};
    for (int round = 0; round < 400; ++round) {
      ASSERT_EQ(ferry_adopt(pages.as<char>(), pages.bytes(), &e), FERRY_OK) << e.text;
      ASSERT_EQ(ferry_release(pages.as<char>(), pages.bytes(), &e), FERRY_OK) << e.text;
    }
  }
  for (std::size_t i = 0; i < ended.size(); ++i) EXPECT_EQ(ended[i].load(), 0) << calls[i];
  ::sem_destroy(&semaphore);
  ::close(epoll);
}

TEST(AdoptionAndThreads, WhatTheyMapMeanwhileIsTheirs) {
  // A release needs room of its own for a moment, which the kernel could give to any other thread's mmap.
  std::atomic<int> wrong{0};
  const auto map_and_fill = [&](std::size_t bytes) {
    return [&wrong, bytes] {
      const Pages pages(bytes);
      auto* p = pages.as<volatile unsigned>();
      for (std::size_t i = 0; i < bytes / 4; i += 1024) p[i] = static_cast<unsigned>(i) + 1;
      for (std::size_t i = 0; i < bytes / 4; i += 1024) wrong += p[i] != static_cast<unsigned>(i) + 1 ? 1 : 0;
    };
  };
  const Crowd crowd({map_and_fill(64 * 1024), map_and_fill(128 * 1024), map_and_fill(16 * 1024)});
  const Pages pages(128 * 1024);
  auto* p = pages.as<unsigned>();
  ferry_error e{};
  for (unsigned round = 1; round <= 300; ++round) {
    for (std::size_t i = 0; i < pages.bytes() / 4; i += 512) p[i] = round;
    ASSERT_EQ(ferry_adopt(p, pages.bytes(), &e), FERRY_OK) << e.text;
    ASSERT_EQ(ferry_release(p, pages.bytes(), &e), FERRY_OK) << e.text;
    for (std::size_t i = 0; i < pages.bytes() / 4; i += 512) ASSERT_EQ(p[i], round);
  }
  EXPECT_EQ(wrong.load(), 0);
}

/// The thread that replaces mappings comes to its turn seldom while this lives: it shares a processor with another process
/// that is always busy, and has less of a claim to it. As on a crowded machine, whatever may happen in the midst of it does.
class SlowAdopter {
 public:
  SlowAdopter() {
    const int cpu = ::sched_getcpu();
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    busy_ = ::fork();
    if (busy_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::sched_setaffinity(0, sizeof one, &one);
      for (volatile unsigned turns = 0;;) turns = turns + 1;
    }
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
      std::string name;
      std::ifstream(task.path() / "comm") >> name;
      if (name != "ferry-adopter") continue;
      thread_ = std::stoi(task.path().filename());
      ::sched_getaffinity(thread_, sizeof before_, &before_);
      ::sched_setaffinity(thread_, sizeof one, &one);
      ::setpriority(PRIO_PROCESS, static_cast<id_t>(thread_), 10);
    }
  }
  ~SlowAdopter() {
    ::kill(busy_, SIGKILL);
    ::waitpid(busy_, nullptr, 0);
    // An ordinary user does not get the priority back, which is as well: the thread goes on.
    ::setpriority(PRIO_PROCESS, static_cast<id_t>(thread_), 0);
    ::sched_setaffinity(thread_, sizeof before_, &before_);
  }
  SlowAdopter(const SlowAdopter&) = delete;
  SlowAdopter& operator=(const SlowAdopter&) = delete;
  [[nodiscard]] bool found() const { return busy_ > 0 && thread_ != 0; }

 private:
  pid_t busy_ = -1;
  int thread_ = 0;
  cpu_set_t before_{};
};

/// New memory where the program had some, as a C library does it: nobody is asked.
void renew(char* at, std::size_t bytes) {
  const long got =
      ::syscall(SYS_mmap, at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  ASSERT_EQ(reinterpret_cast<char*>(got), at);
}

TEST(AdoptionAndThreads, WhomADeviceWakesMeanwhileMapsItsOwn) {
  // Threads have memory beside what a device touches, which is adopted with it while they sleep until a kernel has ended: no
  // thread of the program wakes them. What they then map there and write is not replaced by what was there before.
  constexpr std::size_t bytes = 32 * 4096;
  constexpr std::size_t middle_bytes = 12 * bytes;
  const Pages all(2 * block_bytes);
  auto* const block =
      reinterpret_cast<char*>((all.as<char>() - static_cast<char*>(nullptr) + block_bytes - 1) & ~(block_bytes - 1));
  char* const middle = block + 2 * bytes;
  std::atomic<int> wrong{0};
  std::atomic<std::uint64_t> turns{0};
  const auto wait_and_map = [&](char* at) {
    return [&, at, round = 0U]() mutable {
      static thread_local ferry::queue q;
      const auto wait = [&] {
        q.launch({.items = 1}, [](ferry::item) {
           for (volatile unsigned i = 0; i < 100'000;) i = i + 1;
         }).wait();
      };
      wait();
      renew(at, bytes);
      auto* const p = reinterpret_cast<volatile unsigned*>(at);
      ++round;
      for (std::size_t i = 0; i < bytes / 4; i += 1024) p[i] = round;
      wait();
      for (std::size_t i = 0; i < bytes / 4; i += 1024) wrong += p[i] != round ? 1 : 0;
      ++turns;
    };
  };
  int first = 1;
  ferry_error e{};
  ASSERT_EQ(ferry_adopt(&first, sizeof first, &e), FERRY_OK) << e.text;  // its thread has begun
  ASSERT_EQ(ferry_release(&first, sizeof first, &e), FERRY_OK) << e.text;
  const SlowAdopter slow;
  ASSERT_TRUE(slow.found());
  ferry::queue q;
  {
    const Crowd crowd({wait_and_map(block), wait_and_map(block + bytes), wait_and_map(middle + middle_bytes),
                       wait_and_map(middle + middle_bytes + bytes)});
    auto* const p = reinterpret_cast<unsigned*>(middle);
    for (unsigned round = 1; round <= 100 && !HasFailure(); ++round) {
      renew(middle, middle_bytes);
      for (std::size_t i = 0; i < middle_bytes / 4; ++i) p[i] = round;
      try {
        q.launch({.items = 1}, [p](ferry::item) { p[0] += 1; }).wait();
      } catch (const ferry::error& error) {
        ADD_FAILURE() << error.what();
      }
      EXPECT_EQ(p[0], round + 1);
      int others = 0;
      for (std::size_t i = 1; i < middle_bytes / 4; ++i) others += p[i] != round ? 1 : 0;
      EXPECT_EQ(others, 0);
    }
  }
  EXPECT_EQ(wrong.load(), 0) << "of " << turns.load();
}

TEST(AdoptionAndThreads, WhatIsDiscardedWhileItIsAdoptedReadsAsZeros) {
  // A thread may be stopped between its look whether the memory is adopted and the system call.
  const Pages all(2 * block_bytes);
  auto* const block =
      reinterpret_cast<char*>((all.as<char>() - static_cast<char*>(nullptr) + block_bytes - 1) & ~(block_bytes - 1));
  char* const others = block + mib;
  constexpr std::size_t bytes = 4 * 4096;
  std::atomic<int> wrong{0};
  const auto discard = [&](char* at) {
    return [&wrong, at] {
      auto* const p = reinterpret_cast<volatile unsigned*>(at);
      for (std::size_t i = 0; i < bytes / 4; i += 1024) p[i] = 7;
      if (::madvise(at, bytes, MADV_DONTNEED) != 0) ++wrong;
      for (std::size_t i = 0; i < bytes / 4; i += 1024) wrong += p[i] != 0 ? 1 : 0;
    };
  };
  ferry::queue q;
  ferry_error e{};
  const Crowd crowd({discard(others), discard(others + bytes), discard(others + 2 * bytes)});
  for (int round = 0; round < 60; ++round) {
    q.launch({.items = 1}, [block](ferry::item) { block[0] += 1; }).wait();
    ASSERT_EQ(ferry_release(block, block_bytes, &e), FERRY_OK) << e.text;
  }
  EXPECT_EQ(wrong.load(), 0);
}

/// Lowers a limit of the process while it lives.
class Limit {
 public:
  Limit(__rlimit_resource what, rlim_t most) : what_(what) {
    ::getrlimit(what, &before_);
    rlimit now = before_;
    now.rlim_cur = std::min(most, before_.rlim_max);
    ::setrlimit(what, &now);
  }
  ~Limit() { ::setrlimit(what_, &before_); }
  Limit(const Limit&) = delete;
  Limit& operator=(const Limit&) = delete;

 private:
  __rlimit_resource what_;
  rlimit before_{};
};

TEST(AdoptionAndThreads, WhatCannotBeGivenBackStaysAsItWas) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer needs memory of its own meanwhile";
#endif
  // `stdout` lies in the program, is of the C library, and never leaves system memory.
  for (void* where : {static_cast<void*>(&stdout), static_cast<void*>(nullptr)}) {
    const Pages pages(64 * 1024);
    const bool in_place = where != nullptr;
    auto* p = in_place ? static_cast<char*>(where) : pages.as<char>();
    const std::size_t bytes = in_place ? sizeof stdout : pages.bytes();
    if (!in_place) std::memset(p, 7, bytes);
    ferry_error e{};
    ASSERT_EQ(ferry_adopt(p, bytes, &e), FERRY_OK) << e.text;
    {
      const Limit data(RLIMIT_DATA, 4096);
      EXPECT_NE(ferry_release(p, bytes, &e), FERRY_OK);
    }
    // A device has it as before.
    ferry::parallel_for(1, [p, in_place](std::size_t) {
      if (in_place) {
        static_cast<void>(*const_cast<volatile char*>(p));
      } else {
        p[0] = 8;
      }
    });
    ferry_page_info info{};
    ASSERT_EQ(ferry_query(p, &info, &e), FERRY_OK) << e.text;
    EXPECT_EQ(info.managed, 1);
    EXPECT_EQ(info.vram_device, in_place ? -1 : 0);
    ASSERT_EQ(ferry_release(p, bytes, &e), FERRY_OK) << e.text;
    if (!in_place) {
      EXPECT_EQ(p[0], 8);
      EXPECT_EQ(p[1], 7);
    }
  }
}

TEST(AdoptionAndThreads, WithoutADescriptorForItNobodyIsTakenToBeStopped) {
  // One descriptor is left, then two, ...: what the list of threads needs is there, and what tells of each may not be.
  std::atomic<int> wrong{0};
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop.load(std::memory_order_relaxed)) {
      const Pages pages(64 * 1024);
      auto* p = pages.as<std::atomic<unsigned>>();
      for (std::size_t i = 0; i < pages.bytes() / 4; i += 64) p[i].store(5, std::memory_order_relaxed);
      for (std::size_t i = 0; i < pages.bytes() / 4; i += 64)
        wrong += p[i].load(std::memory_order_relaxed) != 5 ? 1 : 0;
    }
  });
  ferry::parallel_for(1, [](std::size_t) {});
  std::vector<int> taken;
  const Pages counted(64 * 1024);
  auto* words = counted.as<std::atomic<std::uint32_t>>();
  constexpr std::size_t count = 64 * 1024 / 4;
  std::atomic<std::uint64_t> added{0};
  {
    const Crowd crowd({[&] {
      for (std::size_t i = 0; i < count; i += 97) words[i].fetch_add(1, std::memory_order_relaxed);
      added += (count + 96) / 97;
    }});
    const Limit files(RLIMIT_NOFILE, 64);
    for (int fd = ::dup(0); fd >= 0; fd = ::dup(0)) taken.push_back(fd);
    ferry_error e{};
    for (int left = 0; left < 6; ++left) {
      for (int round = 0; round < 20; ++round) {
        if (ferry_adopt(words, counted.bytes(), &e) == FERRY_OK) ferry_release(words, counted.bytes(), &e);
      }
      ::close(taken.back());
      taken.pop_back();
    }
  }
  for (const int fd : taken) ::close(fd);
  ferry_error e{};
  EXPECT_EQ(ferry_release(words, counted.bytes(), &e), FERRY_OK) << e.text;
  stop = true;
  other.join();
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += words[i].load();
  EXPECT_EQ(sum, added.load());
  EXPECT_EQ(wrong.load(), 0);
}

TEST(AdoptionAndThreads, AtTheLimitOfMappingsItIsDoneOrNotAndNothingIsLost) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer needs mappings of its own meanwhile";
#endif
  long most = 0;
  if (FILE* f = std::fopen("/proc/sys/vm/max_map_count", "r"); f != nullptr) {
    if (std::fscanf(f, "%ld", &most) != 1) most = 0;
    std::fclose(f);
  }
  if (most == 0 || most > 200'000) GTEST_SKIP() << "vm.max_map_count is " << most << ": too many to use them up";
  ferry_error e{};
  const Pages pages(512 * 1024);
  auto* p = pages.as<unsigned>();
  ASSERT_EQ(ferry_adopt(p, pages.bytes(), &e), FERRY_OK) << e.text;
  ASSERT_EQ(ferry_release(p, pages.bytes(), &e), FERRY_OK) << e.text;
  // Neighbours with unequal protection are separate mappings.
  const std::size_t bytes = static_cast<std::size_t>(most) * 4096;
  auto* many =
      static_cast<char*>(::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  ASSERT_NE(many, MAP_FAILED);
  std::size_t used = 0;
  while (used + 2 < static_cast<std::size_t>(most) && ::mprotect(many + used * 4096, 4096, PROT_READ) == 0) used += 2;
  EXPECT_LT(used + 2, static_cast<std::size_t>(most)) << "the limit was never met";
  int adopted = 0;
  unsigned value = 0;
  for (int freed = 0; freed < 40 && used >= 2; ++freed) {
    ++value;
    for (std::size_t i = 0; i < pages.bytes() / 4; i += 256) p[i] = value;
    const bool had = ferry_adopt(p, pages.bytes(), &e) == FERRY_OK;
    adopted += had ? 1 : 0;
    for (std::size_t i = 0; i < pages.bytes() / 4; i += 256) ASSERT_EQ(p[i], value) << "with " << freed << " freed";
    static_cast<void>(ferry_release(p, pages.bytes(), &e));
    for (std::size_t i = 0; i < pages.bytes() / 4; i += 256) ASSERT_EQ(p[i], value) << "with " << freed << " freed";
    used -= 2;
    ASSERT_EQ(::mprotect(many + used * 4096, 4096, PROT_NONE), 0);
  }
  ::munmap(many, bytes);
  EXPECT_GT(adopted, 0);
  EXPECT_LT(adopted, 40) << "there was room all the time";
  ASSERT_EQ(ferry_adopt(p, pages.bytes(), &e), FERRY_OK) << e.text;
  ferry::parallel_for(1, [p](std::size_t) { p[0] += 1; });
  EXPECT_EQ(p[0], value + 1);
}

}  // namespace
}  // namespace ferry::test
