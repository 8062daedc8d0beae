// Two devices and CPU threads that all write one page at once: no addition is lost, and the page does not go to and fro
// for ever. Runs with thrash control (FERRY_TEST_THRASH unset) and without ("off"), where the opposite has to show.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#include "svm.h"

namespace ferry::test {
namespace {

/// As the machine was configured for this run.
bool control() {
  const char* thrash = std::getenv("FERRY_TEST_THRASH");
  return thrash == nullptr || std::strcmp(thrash, "off") != 0;
}

std::uint64_t counter(const std::string& json, const std::string& name) {
  const std::size_t at = json.find('"' + name + '"');
  EXPECT_NE(at, std::string::npos) << name;
  return at == std::string::npos ? 0 : std::strtoull(json.c_str() + json.find(':', at) + 1, nullptr, 10);
}

struct Counts {
  std::uint64_t moves = 0;
  std::uint64_t pins = 0;
  std::uint64_t waits = 0;
  static Counts now() {
    const std::string json = ferry::stats();
    return {counter(json, "migrations_to_vram") + counter(json, "migrations_to_system"),
            counter(json, "contention_pins"), counter(json, "contention_waits")};
  }
  Counts operator-(const Counts& other) const { return {moves - other.moves, pins - other.pins, waits - other.waits}; }
};

constexpr std::uint64_t adds = 2000;
constexpr unsigned waves = 4;
constexpr unsigned threads = 3;

/// Each wave and thread adds to the first word of the page, which all share, and to one of its own beside it.
void hammer(std::uint64_t* words) {
  const auto add = [words](std::size_t who) {
    for (std::uint64_t i = 0; i < adds; ++i) {
      __atomic_fetch_add(words, 1, __ATOMIC_RELAXED);
      words[1 + who] = words[1 + who] + 1;
    }
  };
  queue first(0);
  queue second(1);
  completion ends[2] = {first.launch({.items = waves, .wave = 1}, [add](item i) { add(i.global()); }),
                        second.launch({.items = waves, .wave = 1}, [add](item i) { add(waves + i.global()); })};
  std::vector<std::jthread> cpus;
  for (unsigned t = 0; t < threads; ++t) cpus.emplace_back([add, t] { add(2 * waves + t); });
  cpus.clear();
  for (completion& end : ends) end.wait();
}

void expect_all(const std::uint64_t* words) {
  constexpr unsigned all = 2 * waves + threads;
  EXPECT_EQ(words[0], all * adds);
  for (unsigned who = 0; who < all; ++who) EXPECT_EQ(words[1 + who], adds) << who;
}

struct Kind {
  const char* name;
  std::function<void(void*)> prepare;
};
class Contention : public testing::TestWithParam<Kind> {};
INSTANTIATE_TEST_SUITE_P(
    Of, Contention,
    testing::Values(Kind{"plain", [](void*) {}},
                    Kind{"not_coherent", [](void* p) { attributes().clear(svm_flag::coherent).apply(p, page); }},
                    Kind{"ext_coherent", [](void* p) { attributes().set(svm_flag::ext_coherent).apply(p, page); }},
                    Kind{"preferred", [](void* p) { attributes().preferred(1).apply(p, page); }},
                    Kind{"at_home", [](void* p) { attributes().preferred(location::system()).apply(p, page); }},
                    Kind{"one_in_place",
                         [](void* p) { attributes().access(0, device_access::in_place).apply(p, page); }},
                    Kind{"prefetched", [](void* p) { ferry::prefetch(p, page, to_device(1)); }}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(Contention, EveryAdditionOfAllIsThere) {
  const Memory m;
  auto* words = reinterpret_cast<std::uint64_t*>(m.p());
  GetParam().prepare(words);
  for (unsigned round = 1; round <= 3; ++round) {
    std::memset(words, 0, page);
    hammer(words);
    expect_all(words);
    if (HasFailure()) return;
  }
}

TEST(ContentionAdopted, EveryAdditionOfAllIsThere) {
  void* const p = ::aligned_alloc(page, page);
  std::memset(p, 0, page);
  hammer(static_cast<std::uint64_t*>(p));
  expect_all(static_cast<const std::uint64_t*>(p));
  std::free(p);
}

/// CPU, device 0 and device 1 write the page one after the other, so often. Who is next stands in memory of its own.
void take_turns(volatile std::uint64_t* word, unsigned rounds) {
  auto* next = static_cast<unsigned*>(ferry::alloc(page, placement::system));
  *next = 0;
  const auto go = [word, next, rounds](unsigned self) {
    for (unsigned round = 0; round < rounds; ++round) {
      while (__atomic_load_n(next, __ATOMIC_ACQUIRE) != 3 * round + self) std::this_thread::yield();
      *word = *word + 1;
      __atomic_store_n(next, 3 * round + self + 1, __ATOMIC_RELEASE);
    }
  };
  queue first(0);
  queue second(1);
  completion ends[2] = {first.launch({.items = 1, .wave = 1}, [go](item) { go(1); }),
                        second.launch({.items = 1, .wave = 1}, [go](item) { go(2); })};
  go(0);
  for (completion& end : ends) end.wait();
  ferry::free(next);
}

TEST(ContentionTurns, WhatAllWantComesToRestWhereAllReachIt) {
  constexpr unsigned rounds = 50;
  const Memory m;
  const Counts before = Counts::now();
  take_turns(&m.word(0), rounds);
  const Counts seen = Counts::now() - before;
  EXPECT_EQ(m.word(0), 3 * rounds);
  if (control()) {
    EXPECT_EQ(seen.pins, 1U);
    EXPECT_LE(seen.moves, 12U);
    EXPECT_TRUE(m.info().contended);
    EXPECT_EQ(m.info().device_writable, 3U);
  } else {
    EXPECT_EQ(seen.pins, 0U);
    EXPECT_GE(seen.moves, 2 * rounds);
  }
}

TEST(ContentionTurns, ThrashIsToldOnceWithThePagesAndWhy) {
  const Memory m;
  const events seen({event_kind::thrash, event_kind::prefetch});
  take_turns(&m.word(7), 50);
  ferry::prefetch(m.at(300), page, to_cpu);  // told behind all that was before
  std::vector<event> thrash;
  for (bool all = false; !all;) {
    const auto some = seen.read(std::chrono::seconds(60));
    ASSERT_FALSE(some.empty()) << "the prefetch is not told";
    for (const event& e : some) {
      if (kind_of(e) == event_kind::thrash) thrash.push_back(e);
      all = all || (kind_of(e) == event_kind::prefetch && e.pointer == m.at(300));
    }
  }
  if (!control()) {
    EXPECT_TRUE(thrash.empty());
    return;
  }
  ASSERT_EQ(thrash.size(), 1U);
  const auto* const from = static_cast<const unsigned char*>(thrash[0].pointer);
  EXPECT_TRUE(from <= m.at(7) && from + thrash[0].bytes >= m.at(8)) << "the pages that are held";
  EXPECT_LE(thrash[0].bytes, block);
  EXPECT_STREQ(trigger_of(thrash[0]), "contention");
  EXPECT_NE(thrash[0].time_ns, 0U);
}

TEST(ContentionTurns, FalseSharing) {
  constexpr unsigned rounds = 50;
  const Memory m;
  const Counts before = Counts::now();
  take_turns(&m.word(0), rounds);
  take_turns(&m.word(0) + 1, rounds);
  const Counts seen = Counts::now() - before;
  EXPECT_EQ(m.word(0), 3 * rounds);
  EXPECT_EQ(*(&m.word(0) + 1), 3 * rounds);
  if (control()) {
    EXPECT_EQ(seen.pins, 1U) << "variables of one page are contended together";
  } else {
    EXPECT_GE(seen.moves, 4 * rounds);
  }
}

TEST(ContentionTurns, WhatMayNotBeHadInPlaceStaysForASlice) {
  constexpr unsigned rounds = 30;
  const Memory m;
  attributes().clear(svm_flag::coherent).apply(m.p(), m.bytes());
  const Counts before = Counts::now();
  take_turns(&m.word(0), rounds);
  const Counts seen = Counts::now() - before;
  EXPECT_EQ(m.word(0), 3 * rounds);
  EXPECT_GE(seen.moves, 2 * rounds) << "one has it at a time";
  if (control()) {
    EXPECT_GT(seen.waits, rounds);
  } else {
    EXPECT_EQ(seen.waits, 0U);
  }
}

}  // namespace
}  // namespace ferry::test
