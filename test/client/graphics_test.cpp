// Graphics jobs beside kernels, on the compute units that both share; kernels and program that wait for words.
// One device, whose policy the environment chooses.
#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <ferry/work.hpp>
#include <stdexcept>
#include <string_view>

#include "e2e.h"

namespace ferry::test {
namespace {

using std::chrono::milliseconds;
constexpr auto patience = std::chrono::seconds(60);
constexpr std::size_t pixels = std::size_t{1} << 18;

/// A word that stays where all sides reach it.
class Word {
 public:
  Word() : word_(static_cast<std::uint64_t*>(ferry::alloc(64, placement::system))) { *word_ = 0; }
  ~Word() { ferry::free(word_); }
  Word(const Word&) = delete;
  Word& operator=(const Word&) = delete;
  [[nodiscard]] std::uint64_t* get() const { return word_; }
  void signal(std::uint64_t value) const { ferry::signal(*word_, value); }
  [[nodiscard]] bool reaches(std::uint64_t value) const { return ferry::wait_until(*word_, value, patience); }

 private:
  std::uint64_t* word_;
};

/// A frame: every pixel gets the frame's number.
[[nodiscard]] fence draw(const buffer& target, std::uint32_t* p, std::uint32_t number, job_options options = {}) {
  options.buffers = {writes(target)};
  return submit_graphics(options, pixels,
                         [p, number](std::size_t i) { p[i] = number + static_cast<std::uint32_t>(i); });
}

void expect_frame(const std::uint32_t* p, std::uint32_t number) {
  for (std::size_t i = 0; i < pixels; ++i) ASSERT_EQ(p[i], number + i) << "pixel " << i;
}

/// Runs on all compute units until told, and says how far each wave is.
class EndlessKernel {
 public:
  EndlessKernel() : counters_(machine().cus * stride, 0) {
    running_ =
        queue_.launch({.items = machine().cus, .wave = 1}, [stop = stop_.get(), counters = counters_.data()](item it) {
          auto* count = counters + it.global() * stride;
          while (__atomic_load_n(stop, __ATOMIC_ACQUIRE) == 0) {
            __atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
          }
        });
  }
  ~EndlessKernel() { stop_.signal(1); }
  EndlessKernel(const EndlessKernel&) = delete;
  EndlessKernel& operator=(const EndlessKernel&) = delete;
  /// One of its waves gets on from here.
  [[nodiscard]] bool goes_on() const {
    const std::uint64_t seen = __atomic_load_n(&counters_[0], __ATOMIC_RELAXED);
    const auto give_up = std::chrono::steady_clock::now() + patience;
    while (__atomic_load_n(&counters_[0], __ATOMIC_RELAXED) == seen) {
      if (std::chrono::steady_clock::now() > give_up) return false;
      ::sched_yield();
    }
    return true;
  }
  void end() {
    stop_.signal(1);
    running_.wait();
  }

 private:
  static constexpr std::size_t stride = 512;  // a page each
  Word stop_;
  Vector<std::uint64_t> counters_;
  queue queue_;
  completion running_;
};

/// Cleared: all that compute may touch is mapped before it runs, so nothing of it faults under a job either.
bool faults_are_retried() {
  const char* hardware = std::getenv("FERRY_HARDWARE");
  return hardware == nullptr || std::string_view(hardware).find("no-retry") == std::string_view::npos;
}

TEST(Graphics, DrawsWhereItsBuffersAre) {
  for (const home where : {in_vram(0), in_system}) {
    const buffer target(pixels * 4, where);
    auto* p = target.map<std::uint32_t>();
    for (std::uint32_t number = 1; number <= 20; ++number) {
      draw(target, p, number).wait();
      expect_frame(p, number);
    }
  }
}

TEST(Graphics, FramesInOneBufferComeOneAfterTheOther) {
  const buffer target(pixels * 4, in_vram(0));
  auto* p = target.map<std::uint32_t>();
  p[0] = 0;
  std::vector<fence> frames;
  for (std::uint32_t number = 0; number < 30; ++number) {
    job_options options;
    options.buffers = {writes(target)};
    frames.push_back(submit_graphics(options, 1, [p](std::size_t) { p[0] = p[0] * 3 + 1; }));
  }
  for (const fence& f : frames) f.wait();
  std::uint32_t want = 0;
  for (unsigned number = 0; number < 30; ++number) want = want * 3 + 1;
  EXPECT_EQ(p[0], want);
}

TEST(Graphics, GoesOnBesideAKernelThatNeverEnds) {
  const buffer target(pixels * 4, in_vram(0));
  auto* p = target.map<std::uint32_t>();
  EndlessKernel kernel;
  for (std::uint32_t number = 1; number <= 10; ++number) {
    ASSERT_TRUE(kernel.goes_on());
    draw(target, p, number).wait();
    expect_frame(p, number);
  }
  ASSERT_TRUE(kernel.goes_on());
  kernel.end();
}

TEST(Graphics, GoesOnBesideAKernelThatFaultsAllTheTime) {
  const buffer target(pixels * 4, in_system);
  auto* p = target.map<std::uint32_t>();
  Vector<std::uint64_t> data(elements_of_vram<std::uint64_t>(150), 0);
  queue q;
  constexpr std::uint64_t rounds = 6;
  completion last;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    last = q.parallel_for(data.size(), [d = data.data()](std::size_t i) { d[i] += i; });
  }
  std::uint32_t number = 0;
  do {
    ++number;
    draw(target, p, number).wait();
    expect_frame(p, number);
  } while (!last.done() && number < 200);
  last.wait();
  for (std::size_t i = 0; i < data.size(); ++i) ASSERT_EQ(data[i], rounds * i);
}

TEST(Graphics, FailsAlone) {
  FERRY_SKIP_CRASHES();
  const buffer target(pixels * 4, in_vram(0));
  auto* p = target.map<std::uint32_t>();
  Vector<std::uint32_t> managed(100, 5);
  EndlessKernel kernel;
  job_options options;
  options.buffers = {writes(target)};
  if (faults_are_retried()) {
    EXPECT_EQ(code_of([&] { submit_graphics(options, 100, [m = managed.data()](std::size_t i) { m[i] = 1; }).wait(); }),
              FERRY_KERNEL_FAULT)
        << "managed memory faults, which a job may not";
    EXPECT_EQ(managed[0], 5U);
  }
  EXPECT_EQ(code_of([&] { submit_graphics(options, 1, [](std::size_t) { throw std::runtime_error("no"); }).wait(); }),
            FERRY_KERNEL_THREW);
  EXPECT_EQ(code_of([&] {
              submit_graphics(options, 1000, [](std::size_t i) { *reinterpret_cast<volatile int*>(i + 8) = 1; }).wait();
            }),
            FERRY_KERNEL_FAULT);
  const Word word;
  EXPECT_EQ(code_of([&] { submit_graphics(options, 1, [w = word.get()](std::size_t) { wait_until(*w, 1); }).wait(); }),
            FERRY_KERNEL_THREW)
      << "a job that waits for a user would hold up memory management";
  draw(target, p, 9).wait();
  expect_frame(p, 9);
  ASSERT_TRUE(kernel.goes_on());
  kernel.end();
}

TEST(Graphics, EndsAtItsTimeout) {
  const buffer target(pixels * 4, in_vram(0));
  auto* p = target.map<std::uint32_t>();
  EndlessKernel kernel;
  job_options options;
  options.buffers = {writes(target)};
  options.timeout = milliseconds(50);
  const auto endless = [](std::size_t) {
    for (std::atomic<unsigned> n{0};; n.fetch_add(1)) {}
  };
  EXPECT_EQ(code_of([&] { submit_graphics(options, 4, endless).wait(); }), FERRY_TIMED_OUT);
  draw(target, p, 3).wait();
  expect_frame(p, 3);
  kernel.end();
}

TEST(Graphics, WhatCannotBeStoppedEndsItsDevice) {
  const buffer target(pixels * 4, in_vram(0));
  auto* p = target.map<std::uint32_t>();
  job_options options;
  options.buffers = {writes(target)};
  options.timeout = milliseconds(50);
  const auto asleep = [](std::size_t) {
    for (;;) ::pause();
  };
  const int code = code_of([&] { submit_graphics(options, 1, asleep).wait(); });
  EXPECT_TRUE(code == FERRY_TIMED_OUT || code == FERRY_DEVICE_LOST) << code;
  // The next launch, or job, has a new device.
  Vector<int> v(1000, 1);
  const int again = code_of([&] { parallel_for(v.size(), [d = v.data()](std::size_t i) { ++d[i]; }); });
  if (again == FERRY_DEVICE_LOST) parallel_for(v.size(), [d = v.data()](std::size_t i) { ++d[i]; });
  EXPECT_EQ(std::count(v.begin(), v.end(), 2), 1000);
  draw(target, p, 4).wait();
  expect_frame(p, 4);
}

// --- words ------------------------------------------------------------------------------------------------------------

TEST(UserFences, ProgramAndKernelTalk) {
  for (const placement where : {placement::system, placement::automatic}) {
    auto* words = static_cast<std::uint64_t*>(ferry::alloc(4096, where));
    words[0] = words[256] = 0;
    Vector<std::uint64_t> data(100, 0);
    queue q;
    const completion done = q.parallel_for(1, [words, d = data.data()](std::size_t) {
      for (std::uint64_t round = 1; round <= 100; ++round) {
        ferry::wait_until(words[0], round);
        d[round - 1] = d[round - 1] * 2 + 1;
        ferry::signal(words[256], round);
      }
    });
    for (std::uint64_t round = 1; round <= 100; ++round) {
      data[round - 1] = round;
      ferry::signal(words[0], round);
      ASSERT_TRUE(ferry::wait_until(words[256], round, patience)) << "round " << round;
      ASSERT_EQ(data[round - 1], round * 2 + 1);
    }
    done.wait();
    ferry::free(words);
  }
}

TEST(UserFences, KernelsOfTwoQueuesWaitForEachOther) {
  const Word ping;
  const Word pong;
  queue a;
  queue b;
  const auto kernel = [](std::uint64_t* mine, std::uint64_t* other, std::uint64_t ahead) {
    for (std::uint64_t round = 1; round <= 200; ++round) {
      if (round > ahead) ferry::wait_until(*other, round - ahead);
      ferry::signal(*mine, round);
    }
  };
  const completion one = a.parallel_for(1, [=, m = ping.get(), o = pong.get()](std::size_t) { kernel(m, o, 1); });
  const completion two = b.parallel_for(1, [=, m = pong.get(), o = ping.get()](std::size_t) { kernel(m, o, 0); });
  one.wait();
  two.wait();
  EXPECT_EQ(*ping.get(), 200U);
  EXPECT_EQ(*pong.get(), 200U);
}

TEST(UserFences, MoreWavesThanRoomWaitForTheProgram) {
  const Word go;
  const std::size_t waves = std::size_t{machine().cus} * machine().waves_per_cu * 4;
  Vector<std::uint64_t> data(waves, 0);
  queue q;
  const completion done = q.launch({.items = waves, .wave = 1}, [g = go.get(), d = data.data()](item it) {
    ferry::wait_until(*g, 1);
    d[it.global()] = 1;
  });
  go.signal(1);
  done.wait();
  EXPECT_EQ(std::count(data.begin(), data.end(), 1U), static_cast<std::ptrdiff_t>(waves));
}

TEST(UserFences, TimesAndBadWords) {
  const Word word;
  EXPECT_FALSE(ferry::wait_until(*word.get(), 1, milliseconds(1)));
  word.signal(7);
  word.signal(5);
  EXPECT_EQ(*word.get(), 7U) << "a fence never goes back";
  EXPECT_TRUE(ferry::wait_until(*word.get(), 7, milliseconds(0)));
  ferry_error e;
  const auto* crooked = reinterpret_cast<const std::uint64_t*>(reinterpret_cast<const char*>(word.get()) + 4);
  EXPECT_EQ(ferry_wait_until(crooked, 1, 0, &e), FERRY_BAD_RANGE);
  EXPECT_EQ(ferry_signal(nullptr, 1, &e), FERRY_BAD_RANGE);
  Vector<int> result(1, 0);
  parallel_for(1, [w = word.get(), r = result.data()](std::size_t) {
    r[0] = ferry::wait_until(*w, 8, milliseconds(1)) ? 1 : 2;
  });
  EXPECT_EQ(result[0], 2);
}

}  // namespace
}  // namespace ferry::test
