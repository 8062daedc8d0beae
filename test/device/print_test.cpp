// Text from kernels.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <set>
#include <string>

#include "device/print.h"
#include "fake_manager.h"

namespace ferry::device::test {
namespace {

/// What the application does: takes everything that is there.
std::string read_all(wire::PrintRing& ring) {
  std::string text;
  const std::uint64_t end = ring.written.load(std::memory_order_acquire);
  std::uint64_t at = ring.read.load(std::memory_order_relaxed);
  for (; at != end; ++at) text += ring.bytes[at % wire::print_ring_bytes];
  ring.read.store(at, std::memory_order_release);
  return text;
}

void print_lines(const void*, std::uint64_t first, std::uint64_t count) {
  for (std::uint64_t i = first; i < first + count; ++i) {
    char line[64];
    const int bytes = std::snprintf(line, sizeof line, "item %lu %.*s\n", i, static_cast<int>(i % 30),
                                    "..............................");
    print_bytes(line, static_cast<std::size_t>(bytes));
  }
}

TEST(Print, LinesOfAllWavesArriveWhole) {
  FakeManager::Options options;
  options.cus = 4;
  FakeManager manager(options);
  const auto launch = manager.launch(0, print_lines, 0, 100'000, 100);
  wire::PrintRing& ring = manager.queues().print;
  std::string text;
  while (manager.queues().queues[0].completed.load() <= launch) text += read_all(ring);
  EXPECT_EQ(manager.wait(0, launch).code, 0U);
  text += read_all(ring);
  EXPECT_EQ(ring.dropped_bytes.load(), 0U);
  std::set<std::string> lines;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    ASSERT_NE(end, std::string::npos);
    lines.insert(text.substr(at, end - at));
    at = end + 1;
  }
  EXPECT_EQ(lines.size(), 100'000U);
  EXPECT_TRUE(lines.contains("item 31 ."));
  EXPECT_TRUE(lines.contains("item 99990 "));
}

TEST(Print, WithoutAReaderTextIsDroppedAndCountedAndTheKernelEnds) {
  FakeManager manager;
  const auto kernel = [](const void*, std::uint64_t, std::uint64_t) {
    char piece[1000];
    std::memset(piece, 'x', sizeof piece);
    print_bytes(piece, sizeof piece);
  };
  EXPECT_EQ(manager.run(kernel, 0, 2000, 1).code, 0U);
  wire::PrintRing& ring = manager.queues().print;
  EXPECT_EQ(ring.written.load() + ring.dropped_bytes.load(), 2'000'000U);
  EXPECT_GT(ring.dropped_bytes.load(), 0U);
  EXPECT_EQ(read_all(ring).size(), 2'000'000U - ring.dropped_bytes.load());
  EXPECT_EQ(manager.run(kernel, 0, 3, 1).code, 0U);
  EXPECT_EQ(read_all(ring), std::string(3000, 'x')) << "there is room again";
}

TEST(Print, TextMayLieInManagedMemoryThatFaults) {
  FakeManager::Options options;
  options.waves_per_cu = 8;
  FakeManager manager(options);
  std::memset(manager.managed(), 'm', options.managed_bytes);
  const auto kernel = [](const void* captures, std::uint64_t first, std::uint64_t) {
    print_bytes(*static_cast<const char* const*>(captures) + first * 5000, 5000);
  };
  EXPECT_EQ(manager.run(kernel, manager.managed_array<const char>(), 100, 1).code, 0U);
  EXPECT_EQ(read_all(manager.queues().print), std::string(500'000, 'm'));
  EXPECT_GT(manager.faults(), 100U);
}

TEST(Print, DoesNothingOutsideOfADevice) { print_bytes("nobody hears this", 17); }

}  // namespace
}  // namespace ferry::device::test
