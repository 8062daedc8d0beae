// Globals of the program on devices, at their own addresses, and what is told of those that are not: docs/design/0019-adoption.md.
// VRAM is smaller than the larger ones.
#include <fcntl.h>
#include <ferry/svm.h>
#include <getopt.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ferry/ferry.hpp>
#include <ferry/svm.hpp>
#include <ferry/work.hpp>
#include <functional>
#include <latch>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

extern char __data_start[];  // of the linker: where the program's writable data begin
extern char _end[];          // and end

namespace ferry::test {

// Not in the anonymous namespace, so that no compiler knows who else writes them.
int initialised = 5;
int zeroed;
std::array<std::atomic<std::uint32_t>, 40'000> counters{};                  // .bss
std::array<std::atomic<std::uint32_t>, 40'000> counters_from_seven{{{7}}};  // .data
std::array<std::uint32_t, (24U << 20) / sizeof(std::uint32_t)> larger_than_vram;
thread_local int of_a_thread = 11;

int made_before_main = static_cast<int>(::getppid());
const int constant_made_before_main = static_cast<int>(::getppid()) + 1;
int table_of_program[] = {1, 2, 3, 5, 8, 13};
extern const std::array<std::uint32_t, 4096> read_only_table;
const std::array<std::uint32_t, 4096> read_only_table = [] {
  std::array<std::uint32_t, 4096> t{};
  for (std::uint32_t i = 0; i < t.size(); ++i) t[i] = i * i;
  return t;
}();
const char* const names[] = {"zero", "one", "two"};  // with relocations: read-only once the program runs

namespace {

constexpr std::size_t mib = std::size_t{1} << 20;

std::string error_of_kernel(const std::function<void()>& body) {
  try {
    body();
  } catch (const ferry::kernel_error& e) {
    return e.what();
  }
  return "no error";
}

int& counted_in_a_function() {
  static int n = static_cast<int>(::getpid()) * 0 + 100;
  return ++n;
}

/// Read through memory, whatever the compiler believes to know.
template <typename T>
T now(const T& value) {
  return *const_cast<const volatile T*>(&value);
}

TEST(Globals, AreTheProgramsOnADevice) {
  initialised = 6;
  zeroed = 40;
  std::array<int, 6> seen{};
  auto* out = static_cast<int*>(ferry::alloc(4096));
  ferry::parallel_for(1, [out](std::size_t) {
    out[0] = now(initialised);
    out[1] = now(zeroed);
    out[2] = now(made_before_main);
    out[3] = now(constant_made_before_main);
    initialised += 10;
    zeroed += 2;
  });
  std::copy_n(out, seen.size(), seen.begin());
  ferry::free(out);
  EXPECT_EQ(seen[0], 6);
  EXPECT_EQ(seen[1], 40);
  EXPECT_EQ(seen[2], made_before_main);
  EXPECT_EQ(seen[3], made_before_main + 1);
  EXPECT_EQ(now(initialised), 16);
  EXPECT_EQ(now(zeroed), 42);
}

TEST(Globals, OfFunctionsAreTheProgramsToo) {
  const int before = counted_in_a_function();
  ferry::parallel_for(1, [](std::size_t) { counted_in_a_function(); });
  EXPECT_EQ(counted_in_a_function(), before + 2);
  // Made by a kernel: the program finds it made.
  struct Made {
    static int& count() {
      static int n = 1000 + static_cast<int>(::getpid() > 0);
      return n;
    }
  };
  ferry::parallel_for(1, [](std::size_t) { Made::count() += 5; });
  EXPECT_EQ(Made::count(), 1006);
}

TEST(Globals, NoUpdateIsLostByThreadsAndKernelsAtOnce) {
  for (auto* array : {&counters, &counters_from_seven}) {
    std::uint64_t before = 0;
    for (const auto& c : *array) before += c.load();
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
          (*array)[(x >> 20) % array->size()].fetch_add(1, std::memory_order_relaxed);
          if (mine == 0) begun.count_down();
        }
        added += mine;
      });
    }
    begun.wait();
    constexpr int rounds = 4;
    for (int round = 0; round < rounds; ++round) {
      ferry::parallel_for(array->size(),
                          [array](std::size_t i) { (*array)[i].fetch_add(1, std::memory_order_relaxed); });
      ferry_error e{};
      // Given back and had again while all write.
      const ferry_code done =
          round % 2 == 0 ? ferry_release(array, sizeof *array, &e) : ferry_adopt(array, sizeof *array, &e);
      EXPECT_EQ(done, FERRY_OK) << e.text;
    }
    stop = true;
    for (auto& t : threads) t.join();
    std::uint64_t sum = 0;
    for (const auto& c : *array) sum += c.load();
    EXPECT_GT(added.load(), 0U);
    EXPECT_EQ(sum, before + rounds * array->size() + added.load());
  }
}

TEST(Globals, LargerThanVramComeAndGo) {
  for (std::size_t i = 0; i < larger_than_vram.size(); ++i) larger_than_vram[i] = static_cast<std::uint32_t>(i);
  for (int round = 0; round < 2; ++round) {
    ferry::parallel_for(larger_than_vram.size(), [](std::size_t i) { larger_than_vram[i] += 3; });
  }
  for (std::size_t i = 0; i < larger_than_vram.size(); ++i) ASSERT_EQ(larger_than_vram[i], i + 6) << i;
}

TEST(Globals, ReadOnlyDataNeedNothing) {
  auto* out = static_cast<std::uint64_t*>(ferry::alloc(4096));
  ferry::parallel_for(1, [out](std::size_t) {
    out[0] = 0;
    for (const std::uint32_t& v : read_only_table) out[0] += now(v);
    out[1] = std::strlen(now(names[2]));
  });
  std::uint64_t sum = 0;
  for (std::uint64_t i = 0; i < read_only_table.size(); ++i) sum += i * i;
  EXPECT_EQ(out[0], sum);
  EXPECT_EQ(out[1], 3U);
  ferry::free(out);
  ferry_error e{};
  for (const void* constant : {static_cast<const void*>(&read_only_table[1000]), static_cast<const void*>(&names[1])}) {
    EXPECT_EQ(ferry_adopt(const_cast<void*>(constant), 8, &e), FERRY_UNSUPPORTED);
    EXPECT_NE(std::string(e.text).find("the same bytes"), std::string::npos) << e.text;
  }
  // And they are not the program's alone to be changed by a kernel.
  const std::string text = error_of_kernel([] {
    ferry::parallel_for(1, [p = const_cast<std::uint32_t*>(&read_only_table[1000])](std::size_t) {
      *const_cast<volatile std::uint32_t*>(p) = 1;
    });
  });
  EXPECT_NE(text.find("write to"), std::string::npos) << text;
  EXPECT_EQ(now(read_only_table[1000]), 1'000'000U);
}

TEST(Globals, AreAdoptedAndReleasedByName) {
  ferry_error e{};
  for (int round = 0; round < 3; ++round) {
    ASSERT_EQ(ferry_adopt(table_of_program, sizeof table_of_program, &e), FERRY_OK) << e.text;
    ASSERT_EQ(ferry_adopt(&zeroed, sizeof zeroed, &e), FERRY_OK) << e.text;
    const int before = table_of_program[2];
    ferry::parallel_for(1, [](std::size_t) { table_of_program[2] += 1; });
    EXPECT_EQ(now(table_of_program[2]), before + 1);
    ASSERT_EQ(ferry_release(table_of_program, sizeof table_of_program, &e), FERRY_OK) << e.text;
    ASSERT_EQ(ferry_release(&zeroed, sizeof zeroed, &e), FERRY_OK) << e.text;
  }
}

TEST(Globals, TwoDevicesHaveTheSame) {
  initialised = 0;
  larger_than_vram[77] = 0;
  for (int round = 0; round < 4; ++round) {
    for (unsigned device = 0; device < 2; ++device) {
      ferry::queue q(device);
      q.launch({.items = 64}, [](ferry::item) {
         std::atomic_ref(initialised).fetch_add(1);
         std::atomic_ref(larger_than_vram[77]).fetch_add(1);
       }).wait();
    }
  }
  EXPECT_EQ(now(initialised), 512);
  EXPECT_EQ(now(larger_than_vram[77]), 512U);
}

TEST(Globals, AForksChildHasThemAsTheyWere) {
  ferry::parallel_for(1, [](std::size_t) {
    zeroed = 70;
    initialised = 71;
  });
  const pid_t child = ::fork();
  if (child == 0) {
    if (now(zeroed) != 70 || now(initialised) != 71) ::_exit(1);
    zeroed = 80;
    initialised = 81;
    ::_exit(now(zeroed) == 80 && now(initialised) == 81 ? 0 : 2);
  }
  ASSERT_GT(child, 0);
  ferry::parallel_for(1, [](std::size_t) { zeroed += 1; });
  int how = 0;
  ASSERT_EQ(::waitpid(child, &how, 0), child);
  EXPECT_EQ(how, 0);
  EXPECT_EQ(now(zeroed), 71);
  EXPECT_EQ(now(initialised), 71);
}

TEST(Globals, OfLibrariesAreTheDevicesOwnAndRefused) {
  ferry_error e{};
  EXPECT_EQ(ferry_adopt(stdout, 1, &e), FERRY_UNSUPPORTED);
  EXPECT_NE(std::string(e.text).find("shared library"), std::string::npos) << e.text;
  // The C library's variables that the linker has moved into the program are the program's for its kernels, and the device's
  // own for its C library, which goes on working.
  optind = 33;
  ASSERT_EQ(::setenv("FERRY_TEST_AFTER_MAIN", "1", 1), 0);
  auto* out = static_cast<int*>(ferry::alloc(4096));
  ferry::parallel_for(1, [out](std::size_t) {
    out[0] = now(optind);
    out[1] = std::getenv("PATH") != nullptr ? 1 : 0;
    out[2] = now(stderr) != nullptr ? std::fprintf(stderr, "%s", "") : -1;
  });
  EXPECT_EQ(out[0], 33);
  EXPECT_EQ(out[1], 1);
  EXPECT_EQ(out[2], 0);
  ferry::free(out);
  optind = 1;
}

TEST(Globals, ExceptionsAndThreadLocalDataInKernels) {
  auto* out = static_cast<int*>(ferry::alloc(4096));
  ferry::parallel_for(1, [out](std::size_t) {
    try {
      if (now(initialised) < 100'000) throw std::runtime_error("thrown");
    } catch (const std::exception& e) {
      out[0] = static_cast<int>(std::strlen(e.what()));
    }
    out[1] = now(of_a_thread);
  });
  EXPECT_EQ(out[0], 6);
  EXPECT_EQ(out[1], 11);
  ferry::free(out);
}

TEST(Globals, WithoutRetryFaultsTheyAreMappedBefore) {
  ferry::set_retry_faults(false);
  zeroed = 90;
  auto* out = static_cast<int*>(ferry::alloc(4096));
  ferry::parallel_for(1, [out](std::size_t) {
    out[0] = now(zeroed);
    zeroed = 91;
    try {
      if (now(zeroed) == 91) throw std::runtime_error("thrown");
    } catch (const std::exception& e) {
      out[1] = static_cast<int>(std::strlen(e.what()));
    }
  });
  ferry::set_retry_faults(true);
  EXPECT_EQ(out[0], 90);
  EXPECT_EQ(out[1], 6);
  EXPECT_EQ(now(zeroed), 91);
  ferry::free(out);
}

TEST(Globals, AGraphicsJobThatTouchesOneFails) {
  auto* far = &larger_than_vram[larger_than_vram.size() / 2];
  *far = 5;
  ferry_error e{};
  // What a device has mapped already its graphics jobs reach, too.
  ASSERT_EQ(ferry_release(&larger_than_vram, sizeof larger_than_vram, &e), FERRY_OK) << e.text;
  // Without any buffer. Its own code calls libraries all the same.
  ferry::submit_graphics({}, 1, [](std::size_t) { (void)std::strtol(now(names[1]), nullptr, 10); }).wait();
  ferry_code code = FERRY_OK;
  try {
    ferry::submit_graphics({}, 1, [far](std::size_t) { *static_cast<volatile std::uint32_t*>(far) = 6; }).wait();
  } catch (const ferry::error& e) {
    code = static_cast<ferry_code>(e.code());
  }
  EXPECT_EQ(code, FERRY_KERNEL_FAULT);
  EXPECT_EQ(now(*far), 5U);
}

/// The code of graphics jobs calls libraries and throws: it has the tables for it, or the job fails.
ferry::fence submit_throwing_job(const ferry::job_options& options = {}) {
  return ferry::submit_graphics(options, 1, [](std::size_t i) {
    if (std::strtol(now(names[1]), nullptr, 10) == static_cast<long>(i)) throw std::runtime_error("thrown");
  });
}

std::string outcome(const ferry::fence& job) {
  try {
    job.wait();
  } catch (const ferry::error& e) {
    return static_cast<ferry_code>(e.code()) == FERRY_KERNEL_THREW ? "thrown" : e.what();
  }
  return "no error";
}

void fork_and_wait() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  int how = 0;
  ASSERT_EQ(::waitpid(child, &how, 0), child);
  EXPECT_EQ(how, 0);
}

TEST(Globals, AGraphicsJobsCodeHasWhatItNeedsAfterAForkToo) {
  for (int round = 0; round < 3; ++round) {
    EXPECT_EQ(outcome(submit_throwing_job()), "thrown") << "round " << round;
    fork_and_wait();  // everything adopted is given back for it
  }
}

TEST(Globals, AGraphicsJobsCodeHasWhatItNeedsWhenWhatLiesBesideItIsReleased) {
  char* const all = __data_start;
  const auto bytes = static_cast<std::size_t>(_end - __data_start);
  ferry_error e{};
  const ferry::timeline line;
  for (std::uint64_t round = 1; round <= 3; ++round) {
    EXPECT_EQ(outcome(submit_throwing_job()), "thrown") << "round " << round;
    ASSERT_EQ(ferry_release(all, bytes, &e), FERRY_OK) << e.text;
    EXPECT_EQ(outcome(submit_throwing_job()), "thrown") << "after a release, round " << round;
    ferry::job_options later;
    later.wait_points.push_back(line.at(round));
    const ferry::fence waits = submit_throwing_job(later);
    ASSERT_EQ(ferry_release(all, bytes, &e), FERRY_OK) << e.text;
    line.signal(round);
    EXPECT_EQ(outcome(waits), "thrown") << "while it waited, round " << round;
  }
}

TEST(Globals, AGraphicsJobThatWaitsWhileTheProgramForksHasThemToo) {
  const ferry::timeline line;
  for (std::uint64_t round = 1; round <= 3; ++round) {
    ferry::job_options later;
    later.wait_points.push_back(line.at(round));
    const ferry::fence waits = submit_throwing_job(later);
    fork_and_wait();
    line.signal(round);
    EXPECT_EQ(outcome(waits), "thrown") << "round " << round;
  }
}

TEST(ReadOnlyMemory, IsReadByKernelsAndWrittenByNobody) {
  auto* p = static_cast<int*>(::mmap(nullptr, 4 * mib, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(p, MAP_FAILED);
  for (std::size_t i = 0; i < mib; ++i) p[i] = static_cast<int>(i);
  ASSERT_EQ(::mprotect(p, 4 * mib, PROT_READ), 0);
  auto* sum = static_cast<std::atomic<std::uint64_t>*>(ferry::alloc(4096));
  for (int round = 1; round <= 2; ++round) {
    sum->store(0);
    ferry::parallel_for(mib, [p, sum](std::size_t i) { sum->fetch_add(static_cast<std::uint64_t>(p[i])); });
    EXPECT_EQ(sum->load(), std::uint64_t{mib} * (mib - 1) / 2);
    const std::string text =
        error_of_kernel([p] { ferry::parallel_for(1, [p](std::size_t) { *const_cast<volatile int*>(p) = 9; }); });
    EXPECT_NE(text.find("write to"), std::string::npos) << text;
    EXPECT_EQ(now(p[0]), 0);
    const int zero = ::open("/dev/zero", O_RDONLY | O_CLOEXEC);
    EXPECT_EQ(::read(zero, p, 8), -1);
    EXPECT_EQ(errno, EFAULT);
    ::close(zero);
    ferry_error e{};
    ASSERT_EQ(ferry_release(p, 4 * mib, &e), FERRY_OK) << e.text;
    ASSERT_EQ(ferry_adopt(p, 4 * mib, &e), FERRY_OK) << e.text;
  }
  ferry::free(sum);
  ::munmap(p, 4 * mib);
}

TEST(HugePages, AreAdoptedWholeAndSmallFromThenOn) {
  auto* p = static_cast<std::uint32_t*>(
      ::mmap(nullptr, 8 * mib, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0));
  if (p == MAP_FAILED) GTEST_SKIP() << "no huge pages are set aside here (vm.nr_hugepages)";
  constexpr std::size_t count = 8 * mib / sizeof(std::uint32_t);
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> added{0};
  std::latch begun(1);
  std::thread other([&] {
    std::uint64_t mine = 0;
    for (std::uint64_t x = 1; !stop.load(std::memory_order_relaxed); ++mine) {
      x = x * 6364136223846793005U + 1442695040888963407U;
      std::atomic_ref(p[(x >> 20) % count]).fetch_add(1, std::memory_order_relaxed);
      if (mine == 0) begun.count_down();
    }
    added += mine;
  });
  begun.wait();
  ferry_error e{};
  // A part of one huge page takes the rest of it along.
  EXPECT_EQ(ferry_adopt(p + 2 * mib / 4 + 5000, 8192, &e), FERRY_OK) << e.text;
  for (int round = 0; round < 3; ++round) {
    ferry::parallel_for(count, [p](std::size_t i) { std::atomic_ref(p[i]).fetch_add(1, std::memory_order_relaxed); });
    if (round == 1) {
      EXPECT_EQ(ferry_release(p, 8 * mib, &e), FERRY_OK) << e.text;
    }
  }
  stop = true;
  other.join();
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += p[i];
  EXPECT_EQ(sum, 3 * count + added.load());
  ::munmap(p, 8 * mib);
}

TEST(ReadOnlyMemory, MayBeWrittenOnceTheProgramMay) {
  auto* p = static_cast<int*>(::mmap(nullptr, mib, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(p, MAP_FAILED);
  auto* out = static_cast<int*>(ferry::alloc(4096));
  ferry::parallel_for(1, [p, out](std::size_t) { out[0] = p[100]; });
  EXPECT_EQ(out[0], 0);
  ASSERT_EQ(::mprotect(p, mib, PROT_READ | PROT_WRITE), 0);
  p[100] = 4;
  ferry::parallel_for(1, [p](std::size_t) { p[100] += 5; });
  EXPECT_EQ(p[100], 9);
  ferry::free(out);
  ::munmap(p, mib);
}

}  // namespace
}  // namespace ferry::test
