// Kernels that fail: what is said about them, and that the device and other launches go on.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "base/status.h"
#include "device/type_name.h"
#include "fake_manager.h"

namespace ferry::device::test {
namespace {

using ::testing::Test;

struct Case {
  const char* name;
  wire::KernelEntry entry;
  Code code;
  std::vector<const char*> says;
  bool has_address;
};

std::uint64_t page_of_test_text();

volatile int zero = 0;
/// An address that the compiler cannot see through.
template <typename T>
volatile T* at(std::uint64_t address) {
  asm volatile("" : "+r"(address));
  return reinterpret_cast<volatile T*>(address);
}
volatile std::uint64_t sink = 0;

void null_read(const void*, std::uint64_t first, std::uint64_t) {
  if (first == 3) sink = *at<std::uint64_t>(first * 8);
}
void null_write(const void*, std::uint64_t, std::uint64_t) { *at<std::uint64_t>(0) = 1; }
void null_call(const void*, std::uint64_t, std::uint64_t) {
  reinterpret_cast<void (*)()>(const_cast<char*>(at<char>(0)))();
}
void unmapped(const void*, std::uint64_t, std::uint64_t) { sink = *at<std::uint64_t>(0x1234'5678'9000); }
void no_address(const void*, std::uint64_t, std::uint64_t) { sink = *at<std::uint64_t>(0xdead'beef'dead'beef); }
void write_text(const void*, std::uint64_t, std::uint64_t) { *at<unsigned char>(page_of_test_text()) = 1; }
void call_managed(const void* captures, std::uint64_t, std::uint64_t) { (*static_cast<void (*const*)()>(captures))(); }
void divide(const void*, std::uint64_t, std::uint64_t) { sink = static_cast<std::uint64_t>(7 / zero); }
void trap(const void*, std::uint64_t, std::uint64_t) { __builtin_trap(); }
void aborts(const void*, std::uint64_t, std::uint64_t) { std::abort(); }
[[gnu::noipa]] void thrower(int x) {
  if (x == 0) throw x;
}
void throws_through_noexcept(const void*, std::uint64_t, std::uint64_t) {
  [](int x) noexcept { thrower(x); }(zero);
}
void throws(const void*, std::uint64_t first, std::uint64_t) {
  if (first == 5) throw std::runtime_error("five is right out");
}
void throws_number(const void*, std::uint64_t, std::uint64_t) { throw 42; }

[[gnu::noinline]] std::uint64_t recurse(std::uint64_t depth) {
  volatile char frame[512];
  frame[0] = static_cast<char>(depth);
  if (depth == ~std::uint64_t{0}) return 0;
  return recurse(depth + 1) + static_cast<std::uint64_t>(frame[0]);
}
void overflow(const void*, std::uint64_t, std::uint64_t) { sink = recurse(0); }

std::uint64_t page_of_test_text() { return reinterpret_cast<std::uint64_t>(&null_read); }

void good(const void* captures, std::uint64_t first, std::uint64_t) {
  (*static_cast<std::uint64_t* const*>(captures))[first] += 1;
}

const Case cases[] = {
    {"null_read", null_read, Code::kernel_fault, {"read from 0x18", "null page", "wave 3"}, true},
    {"null_write", null_write, Code::kernel_fault, {"write to 0x0", "null page"}, false},
    {"null_call", null_call, Code::kernel_fault, {"call of 0x0", "null page"}, false},
    {"unmapped", unmapped, Code::kernel_fault, {"read from 0x123456789000", "neither managed"}, true},
    {"no_address", no_address, Code::kernel_fault, {"pointer that is no address"}, false},
    {"write_text", write_text, Code::kernel_fault, {"write to", "program text of", "crash_test"}, true},
    {"call_managed",
     call_managed,
     Code::kernel_fault,
     {"call of 0x200000000", "managed memory that is not executable"},
     true},
    {"divide", divide, Code::kernel_fault, {"division by zero", "crash_test+0x"}, false},
    {"trap", trap, Code::kernel_fault, {"illegal instruction"}, false},
    {"aborts", aborts, Code::kernel_fault, {"abort()"}, false},
    {"noexcept", throws_through_noexcept, Code::kernel_fault, {"abort()"}, false},
    {"overflow", overflow, Code::kernel_fault, {"stack overflow", "256 KiB"}, true},
    {"throws", throws, Code::kernel_threw, {"five is right out"}, false},
    {"throws_number", throws_number, Code::kernel_threw, {"exception of type int"}, false},
};

void expect_failure(const Case& c, const wire::LaunchResult& result) {
  EXPECT_EQ(static_cast<Code>(result.code), c.code) << c.name << ": " << describe(result);
  for (const char* part : c.says) {
    EXPECT_NE(std::strstr(result.text, part), nullptr) << c.name << " does not say '" << part << "': " << result.text;
  }
  if (c.code == Code::kernel_fault) {
    EXPECT_NE(std::strstr(result.text, c.name), nullptr) << result.text;
  }
  EXPECT_EQ(result.address != 0, c.has_address) << c.name << ": " << std::hex << result.address;
}

struct Local {};

TEST(TypeName, IsReadableWhereItIsSimple) {
  EXPECT_EQ(type_name(typeid(int).name()), "int");
  EXPECT_EQ(type_name(typeid(unsigned long).name()), "unsigned long");
  EXPECT_EQ(type_name(typeid(const char*).name()), "const char*");
  EXPECT_EQ(type_name(typeid(std::string).name()), "std::string");
  EXPECT_EQ(type_name(typeid(div_t).name()), "div_t");
  EXPECT_EQ(type_name(typeid(Local).name()), typeid(Local).name());  // in a namespace: as it is
  EXPECT_EQ(type_name(""), "");
  EXPECT_EQ(type_name("7"), "7");
  EXPECT_EQ(type_name("99999x"), "99999x");
}

TEST(Crashes, EachIsToldAndTheDeviceGoesOn) {
  FakeManager::Options options;
  options.cus = 2;
  FakeManager manager(options);
  auto* words = manager.managed_array<std::uint64_t>();
  std::uint64_t rounds = 0;
  // Twice: what a failed wave leaves behind must not matter to the next one.
  for (unsigned round = 0; round < 2; ++round) {
    for (const Case& c : cases) {
      expect_failure(c, manager.run(c.entry, words, 8, 1, c.name));
      const auto result = manager.run(good, words, 100, 1);
      ASSERT_EQ(result.code, 0U) << "after " << c.name << ": " << describe(result);
      ++rounds;
      for (unsigned i = 0; i < 100; ++i) ASSERT_EQ(words[i], rounds) << "after " << c.name;
    }
  }
}

TEST(Crashes, ExceptionNamesItsWave) {
  FakeManager manager;
  const auto result = manager.run(throws, 0, 64, 1);
  EXPECT_EQ(static_cast<Code>(result.code), Code::kernel_threw);
  EXPECT_EQ(result.wave, 5U);
  EXPECT_STREQ(result.text, "five is right out");
}

TEST(Crashes, TheStackOfTheApplicationIsOutOfReach) {
  std::uint64_t local = 1;
  FakeManager manager;
  const auto kernel = [](const void* captures, std::uint64_t, std::uint64_t) {
    **static_cast<volatile std::uint64_t* const*>(captures) = 2;
  };
  const auto result = manager.run(kernel, &local, 1, 1);
  EXPECT_EQ(static_cast<Code>(result.code), Code::kernel_fault) << describe(result);
  EXPECT_NE(std::strstr(result.text, "stack of the application"), nullptr) << result.text;
  EXPECT_EQ(local, 1U);
}

/// Stays a few kilobytes above the guard until the clock has struck.
[[gnu::noinline]] std::uint64_t stay_near_the_end(std::uint64_t depth) {
  volatile char frame[1024];
  frame[0] = static_cast<char>(depth);
  if (depth > 0) return stay_near_the_end(depth - 1) + static_cast<std::uint64_t>(frame[0]);
  const std::uint64_t until = linux::monotonic_ns() + 200'000'000;
  while (linux::monotonic_ns() < until) {}
  return 0;
}

TEST(Crashes, ATickNearTheEndOfTheStackIsAnOverflowToo) {
  FakeManager manager;
  const auto kernel = [](const void* captures, std::uint64_t, std::uint64_t) {
    sink = stay_near_the_end(*static_cast<const std::uint64_t*>(captures));
  };
  // Deeper and deeper, until it does not end well.
  wire::LaunchResult result{};
  for (std::uint64_t depth = 225; depth < 260 && result.code == 0; depth += 1) {
    result = manager.run(kernel, depth, 1, 1);
  }
  EXPECT_EQ(static_cast<Code>(result.code), Code::kernel_fault);
  EXPECT_NE(std::strstr(result.text, "stack overflow"), nullptr) << result.text;
}

TEST(Crashes, AnswersThatRefuseFailTheWave) {
  for (const Code code : {Code::not_allocated, Code::no_memory}) {
    FakeManager manager({}, [code](FakeManager& m, unsigned cu, const wire::UpRecord& fault) {
      m.resume(cu, fault, static_cast<std::uint32_t>(code));
    });
    auto* words = manager.managed_array<std::uint64_t>(5 * page_bytes);
    const auto result = manager.run(good, words, 1, 1);
    EXPECT_EQ(static_cast<Code>(result.code), code == Code::not_allocated ? Code::kernel_fault : code);
    EXPECT_NE(std::strstr(result.text, to_string(code)), nullptr) << result.text;
    EXPECT_EQ(result.address, reinterpret_cast<std::uint64_t>(words));
  }
}

struct Mixed {
  std::uint64_t* pages;
  std::uint64_t bad_wave;
};

TEST(Crashes, ParkedWavesOfAFailedLaunchAreDroppedAndTheirSlotsLiveOn) {
  FakeManager::Options options;
  options.cus = 2;
  options.waves_per_cu = 8;
  FakeManager manager(options);
  auto* words = manager.managed_array<std::uint64_t>();
  const auto kernel = [](const void* captures, std::uint64_t first, std::uint64_t) {
    const auto& m = *static_cast<const Mixed*>(captures);
    for (unsigned i = 0; i < 4; ++i) m.pages[((first * 4 + i) % 4096) * 512] = first;
    if (first == m.bad_wave) throw std::runtime_error("bad wave");
  };
  for (std::uint64_t bad = 0; bad < 100; ++bad) {
    const auto result = manager.run(kernel, Mixed{words, bad}, 1'000'000'000, 1);
    ASSERT_EQ(static_cast<Code>(result.code), Code::kernel_threw) << describe(result);
    ASSERT_EQ(result.wave, bad);
    wire::DownRecord all{};
    all.kind = static_cast<std::uint32_t>(wire::DownKind::rearm);
    all.address = default_window_base;
    all.length_bytes = options.managed_bytes;
    ASSERT_EQ(manager.command(all), 0);
  }
  const auto result = manager.run(kernel, Mixed{words, ~0ULL}, 2000, 1);
  EXPECT_EQ(result.code, 0U) << describe(result);
}

TEST(Crashes, LaunchesBehindAFailureAreCancelledAndLaterOnesRun) {
  FakeManager manager;
  auto* words = manager.managed_array<std::uint64_t>();
  // Waits until it is let go, so that the others are behind it when it fails.
  const auto waits = [](const void* captures, std::uint64_t, std::uint64_t) {
    std::atomic_ref<std::uint64_t> go(**static_cast<std::uint64_t* const*>(captures));
    while (go.load() == 0) {}
    throw std::runtime_error("first");
  };
  const auto first = manager.launch(0, waits, words + 4096, 1, 1);
  const auto second = manager.launch(0, good, words, 1, 1);
  const auto third = manager.launch(0, good, words, 1, 1);
  const auto other_queue = manager.launch(1, good, words, 1, 1);
  EXPECT_EQ(manager.wait(1, other_queue).code, 0U);
  std::atomic_ref<std::uint64_t>(words[4096]).store(1);
  EXPECT_EQ(static_cast<Code>(manager.wait(0, first).code), Code::kernel_threw);
  EXPECT_EQ(static_cast<Code>(manager.wait(0, second).code), Code::cancelled);
  EXPECT_EQ(static_cast<Code>(manager.wait(0, third).code), Code::cancelled);
  EXPECT_EQ(manager.run(good, words, 1, 1).code, 0U);
  EXPECT_EQ(words[0], 2U);
}

TEST(Crashes, PacketsThatCannotRunAreRefused) {
  FakeManager manager;
  EXPECT_EQ(static_cast<Code>(manager.run(nullptr, 0, 1, 1).code), Code::bad_range);
  EXPECT_EQ(static_cast<Code>(manager.run(good, 0, ~0ULL, 1).code), Code::bad_range);
  const auto nothing = [](const void*, std::uint64_t, std::uint64_t) {};
  EXPECT_EQ(manager.run(nothing, 0, 10, 0).code, 0U) << "no items a wave means one";
  // Written past the checks of any client.
  wire::Queue& queue = manager.queues().queues[0];
  const std::uint64_t launch = queue.submitted.load();
  wire::LaunchPacket& packet = queue.packets[launch % wire::queue_entries];
  std::memset(static_cast<void*>(&packet), 0xff, sizeof packet);
  const std::uint64_t ran = manager.launch(1, nothing, 0, 1, 1);
  queue.submitted.store(launch + 1);
  manager.queues().doorbell.fetch_add(1);
  linux::futex_wake(manager.queues().doorbell, 1);
  EXPECT_EQ(static_cast<Code>(manager.wait(0, launch).code), Code::bad_range);
  EXPECT_EQ(manager.wait(1, ran).code, 0U);
  // More launches than a ring holds: the queue rests, the others go on.
  queue.submitted.store(launch + 1000);
  EXPECT_EQ(manager.wait(1, manager.launch(1, nothing, 0, 1, 1)).code, 0U);
  EXPECT_EQ(queue.completed.load(), launch + 1);
}

}  // namespace
}  // namespace ferry::device::test
