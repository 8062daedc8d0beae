// Events through the public interface: what a program is told of its own memory, in order, by whichever way it reads.
#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <ferry/svm.hpp>
#include <thread>

#include "e2e.h"

namespace ferry::test {
namespace {

constexpr std::size_t mib = std::size_t{1} << 20;
constexpr auto patience = std::chrono::seconds(60);

bool within(const event& e, const void* p, std::size_t bytes) {
  const auto* from = static_cast<const char*>(e.pointer);
  return from < static_cast<const char*>(p) + bytes && from + e.bytes > static_cast<const char*>(p);
}

/// Reads until `wanted` has come, or the patience has passed.
template <typename Wanted>
std::vector<event> read_until(const events& from, Wanted&& wanted) {
  std::vector<event> all;
  const auto end = std::chrono::steady_clock::now() + patience;
  while (std::chrono::steady_clock::now() < end) {
    for (const event& e : from.read(std::chrono::milliseconds(500))) {
      all.push_back(e);
      if (wanted(e)) return all;
    }
  }
  ADD_FAILURE() << "the event has not come; " << all.size() << " others have";
  return all;
}

struct Memory {
  explicit Memory(std::size_t size) : bytes(size) {
    p = static_cast<unsigned char*>(ferry_alloc_aligned(bytes, 2 * mib, FERRY_AUTOMATIC, nullptr));
    if (p != nullptr) std::memset(p, 1, bytes);
  }
  ~Memory() { ferry_free(p, nullptr); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  std::size_t bytes;
  unsigned char* p = nullptr;
};

TEST(Events, AFaultOfADeviceAndTheMoveThatServesIt) {
  const Memory m(4 * mib);
  const events seen;
  queue q(0);
  q.parallel_for(1, [p = m.p](std::size_t) { p[5] = 7; }).wait();
  const auto all =
      read_until(seen, [&](const event& e) { return kind_of(e) == event_kind::fault_end && within(e, m.p, m.bytes); });
  const auto find = [&](event_kind kind) {
    return std::find_if(all.begin(), all.end(),
                        [&](const event& e) { return kind_of(e) == kind && within(e, m.p, m.bytes); });
  };
  const auto start = find(event_kind::fault_start);
  const auto move = find(event_kind::migrate_start);
  const auto moved = find(event_kind::migrate_end);
  const auto end = find(event_kind::fault_end);
  ASSERT_NE(start, all.end());
  ASSERT_NE(move, all.end());
  EXPECT_LT(start, move);
  EXPECT_LT(move, end);
  EXPECT_EQ(start->from, 0);
  EXPECT_EQ(start->write, 1U);
  EXPECT_EQ(start->pointer, m.p);
  EXPECT_STREQ(trigger_of(*start), "device fault");
  EXPECT_EQ(move->from, FERRY_TO_CPU);
  EXPECT_EQ(move->to, 0);
  EXPECT_STREQ(trigger_of(*move), "device fault");
  EXPECT_EQ(end->error, static_cast<std::uint32_t>(FERRY_OK));
  if (moved != all.end()) {
    EXPECT_GE(moved->time_ns, move->time_ns);
  }
}

TEST(Events, AKernelsErrorIsTheErrorOfItsFault) {
  FERRY_SKIP_CRASHES();
  unsigned char* gone = nullptr;
  {
    const Memory m(4 * mib);
    gone = m.p;
  }
  const events seen({event_kind::fault_end});
  const auto failure = kernel_error_of([gone] { parallel_for(1, [gone](std::size_t) { gone[0] = 1; }); });
  EXPECT_EQ(failure.code(), errc::kernel_fault);
  const auto all = read_until(seen, [&](const event& e) { return e.error != FERRY_OK; });
  EXPECT_EQ(all.back().pointer, gone);
  for (const event& e : all) EXPECT_EQ(kind_of(e), event_kind::fault_end) << "no other kind was asked for";
}

TEST(Events, APrefetchItsMoveAndTheWayBack) {
  const Memory m(4 * mib);
  const events seen;
  ferry::prefetch(m.p, m.bytes, to_device(1));
  auto all = read_until(seen, [&](const event& e) { return kind_of(e) == event_kind::migrate_end; });
  EXPECT_EQ(kind_of(all.front()), event_kind::prefetch);
  EXPECT_EQ(all.front().to, 1);
  EXPECT_EQ(all.front().pointer, m.p);
  EXPECT_EQ(all.front().bytes, m.bytes);
  m.p[3] = 9;  // the CPU takes a page back
  all = read_until(seen, [&](const event& e) {
    return kind_of(e) == event_kind::fault_end && e.from == FERRY_TO_CPU && within(e, m.p, m.bytes);
  });
  EXPECT_TRUE(std::any_of(all.begin(), all.end(), [&](const event& e) {
    return kind_of(e) == event_kind::fault_start && e.from == FERRY_TO_CPU && within(e, m.p, m.bytes);
  }));
}

TEST(Events, TheDescriptorIsReadableWhileThereIsSomething) {
  const Memory m(8 * mib);
  const events seen({event_kind::prefetch});
  pollfd p{seen.fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&p, 1, 0), 0);
  for (int i = 0; i < 3; ++i) ferry::prefetch(m.p, m.bytes, to_cpu);
  ASSERT_EQ(::poll(&p, 1, 60'000), 1);
  event e{};
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(::poll(&p, 1, 60'000), 1) << i;
    ASSERT_EQ(ferry_events_read(seen.handle(), &e, 1, FERRY_FOREVER), 1U);
  }
  EXPECT_EQ(ferry_events_read(seen.handle(), &e, 1, 0), 0U);
  EXPECT_EQ(::poll(&p, 1, 0), 0);
}

TEST(Events, AReaderThatDoesNotReadHoldsNobodyUpAndIsToldWhatItMissed) {
  const Memory m(2 * mib);
  const events seen({event_kind::prefetch});
  constexpr unsigned made = 3 * 4096;
  for (unsigned i = 0; i < made; ++i) ferry::prefetch(m.p, 4096, to_cpu);
  std::uint64_t told = 0;
  std::uint64_t lost = 0;
  for (auto batch = seen.read(); !batch.empty(); batch = seen.read()) {
    for (const event& e : batch) {
      if (kind_of(e) == event_kind::lost) {
        lost += e.count;
      } else {
        ++told;
      }
    }
  }
  EXPECT_GT(lost, 0U);
  EXPECT_EQ(told + lost, made);
  ferry::prefetch(m.p, 4096, to_cpu);
  const auto next = seen.read(patience);
  ASSERT_EQ(next.size(), 1U) << "what was lost is told once";
  EXPECT_EQ(kind_of(next[0]), event_kind::prefetch);
}

TEST(Events, ManyThreadsMayReadOneStream) {
  const Memory m(2 * mib);
  const events seen({event_kind::prefetch});
  constexpr unsigned made = 2000;
  std::atomic<unsigned> taken{0};
  std::vector<std::jthread> readers;
  for (unsigned t = 0; t < 3; ++t) {
    readers.emplace_back([&] {
      while (taken.load() < made) {
        taken += static_cast<unsigned>(seen.read(std::chrono::milliseconds(20)).size());
      }
    });
  }
  for (unsigned i = 0; i < made; ++i) ferry::prefetch(m.p, 4096, to_cpu);
  readers.clear();
  EXPECT_EQ(taken.load(), made);
}

TEST(Events, WordsForKindsAndTriggers) {
  for (std::uint32_t kind = 0; kind <= FERRY_EVENT_LOST; ++kind) EXPECT_STRNE(ferry_event_kind_text(kind), "unknown");
  EXPECT_STREQ(ferry_event_kind_text(FERRY_EVENT_LOST + 1), "unknown");
  EXPECT_STREQ(ferry_event_trigger_text(~0U), "unknown");
}

TEST(Events, MasksThatAreNone) {
  ferry_error e;
  EXPECT_EQ(ferry_events_open(0, &e), nullptr);
  EXPECT_EQ(e.code, FERRY_BAD_RANGE);
  EXPECT_EQ(ferry_events_open(~std::uint64_t{0}, &e), nullptr);
  EXPECT_EQ(e.code, FERRY_BAD_RANGE);
}

}  // namespace
}  // namespace ferry::test
