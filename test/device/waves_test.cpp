// Waves that fault, park and go on.
#include <gtest/gtest.h>

#include <cfenv>
#include <cstring>
#include <numeric>

#include "base/random.h"
#include "base/status.h"
#include "device/wave.h"
#include "fake_manager.h"

namespace ferry::device::test {
namespace {

struct Words {
  std::uint64_t* data;
  std::uint64_t stride;
};

/// Adds its index + 1 to one word a page.
void add_kernel(const void* captures, std::uint64_t first, std::uint64_t count) {
  const Words words = *static_cast<const Words*>(captures);
  for (std::uint64_t i = first; i < first + count; ++i) words.data[i * words.stride] += i + 1;
}

class WavesOnCus : public ::testing::TestWithParam<unsigned> {};

TEST_P(WavesOnCus, EveryItemRunsOnceThroughThousandsOfFaults) {
  FakeManager::Options options;
  options.cus = GetParam();
  FakeManager manager(options);
  auto* words = manager.managed_array<std::uint64_t>();
  const std::uint64_t pages = options.managed_bytes / page_bytes;
  for (std::uint64_t round = 1; round <= 3; ++round) {
    const auto result = manager.run(add_kernel, Words{words, 512}, pages, 7);
    ASSERT_EQ(result.code, 0U) << describe(result);
    for (std::uint64_t i = 0; i < pages; ++i) ASSERT_EQ(words[i * 512], round * (i + 1)) << "page " << i;
  }
  EXPECT_GE(manager.faults(), pages);
}

TEST_P(WavesOnCus, GridsOfOddSizesRunWhole) {
  FakeManager::Options options;
  options.cus = GetParam();
  FakeManager manager(options);
  auto* words = manager.managed_array<std::uint64_t>();
  std::vector<std::uint64_t> expected(100'000);
  for (const auto& [items, per_wave] : {std::pair{1, 1}, {0, 5}, {1000, 1}, {1001, 1000}, {99'999, 64}, {3, 100}}) {
    const auto n = static_cast<std::uint64_t>(items);
    const auto result = manager.run(add_kernel, Words{words, 1}, n, static_cast<std::uint64_t>(per_wave));
    ASSERT_EQ(result.code, 0U) << describe(result);
    for (std::uint64_t i = 0; i < n; ++i) expected[i] += i + 1;
    ASSERT_EQ(std::memcmp(words, expected.data(), expected.size() * 8), 0) << items << " items";
  }
}

TEST_P(WavesOnCus, ManySmallLaunchesInOrder) {
  FakeManager::Options options;
  options.cus = GetParam();
  FakeManager manager(options);
  auto* words = manager.managed_array<std::uint64_t>();
  // Not commutative: 2 x + 1 in a chain shows any launch that is lost, doubled or early.
  const auto kernel = [](const void* captures, std::uint64_t, std::uint64_t) {
    auto* word = static_cast<const Words*>(captures)->data;
    *word = *word * 3 + 1;
  };
  std::uint64_t expected = 0;
  std::uint64_t last = 0;
  for (unsigned i = 0; i < 5000; ++i) {
    if (i >= 60) manager.wait(0, last - 59);
    last = manager.launch(0, kernel, Words{words, 0}, 1, 1);
    expected = expected * 3 + 1;
  }
  manager.wait(0, last);
  EXPECT_EQ(words[0], expected);
}

INSTANTIATE_TEST_SUITE_P(Cus, WavesOnCus, ::testing::Values(1, 2, 4));

TEST(Waves, AllSlotsParkAndAreAnsweredInAnyOrder) {
  FakeManager::Options options;
  options.waves_per_cu = 64;
  std::vector<wire::UpRecord> parked;
  FakeManager manager(options, [&](FakeManager& m, unsigned cu, const wire::UpRecord& fault) {
    parked.push_back(fault);
    if (parked.size() < 64) return;
    Random random(7);
    while (!parked.empty()) {
      const std::size_t i = random.below(parked.size());
      m.continue_page(parked[i].address);
      m.resume(cu, parked[i]);
      parked[i] = parked.back();
      parked.pop_back();
    }
  });
  auto* words = manager.managed_array<std::uint64_t>();
  const auto result = manager.run(add_kernel, Words{words, 512}, 64 * 8, 1);
  ASSERT_EQ(result.code, 0U) << describe(result);
  for (std::uint64_t i = 0; i < 64 * 8; ++i) ASSERT_EQ(words[i * 512], i + 1);
  EXPECT_EQ(manager.faults(), 64U * 8U);
}

TEST(Waves, FaultsSayReadOrWriteAndTheByte) {
  std::vector<wire::UpRecord> seen;
  FakeManager manager({}, [&](FakeManager& m, unsigned cu, const wire::UpRecord& fault) {
    seen.push_back(fault);
    FakeManager::give_page(m, cu, fault);
  });
  auto* bytes = manager.managed_array<unsigned char>();
  const auto kernel = [](const void* captures, std::uint64_t, std::uint64_t) {
    auto* p = *static_cast<volatile unsigned char* const*>(captures);
    const unsigned char read = p[123];
    p[page_bytes + 456] = static_cast<unsigned char>(read + 1);
  };
  const auto result = manager.run(kernel, bytes, 1, 1);
  ASSERT_EQ(result.code, 0U) << describe(result);
  ASSERT_EQ(seen.size(), 2U);
  EXPECT_EQ(seen[0].address, default_window_base + 123);
  EXPECT_EQ(seen[0].access, 0);
  EXPECT_EQ(seen[1].address, default_window_base + page_bytes + 456);
  EXPECT_EQ(seen[1].access, 1);
  EXPECT_GT(seen[1].generation, seen[0].generation);
  EXPECT_GE(seen[1].time_ns, seen[0].time_ns);
}

TEST(Waves, StaleAnswersAreDropped) {
  std::uint64_t first_generation = 0;
  FakeManager manager({}, [&](FakeManager& m, unsigned cu, const wire::UpRecord& fault) {
    if (first_generation == 0) first_generation = fault.generation;
    wire::UpRecord old = fault;
    old.generation = fault.generation + 1;
    m.resume(cu, old, static_cast<std::uint32_t>(Code::no_memory));
    old.generation = first_generation;
    if (first_generation != fault.generation) m.resume(cu, old, static_cast<std::uint32_t>(Code::no_memory));
    old.slot = 9999;
    m.resume(cu, old, static_cast<std::uint32_t>(Code::no_memory));
    wire::DownRecord extent{};
    extent.address = default_window_base;
    extent.length_bytes = page_bytes;
    extent.action = fault.generation;
    old = fault;
    old.generation += 7;
    m.resume_map(cu, old, extent);
    FakeManager::give_page(m, cu, fault);
    // And a second answer to what has been answered.
    m.resume(cu, fault, static_cast<std::uint32_t>(Code::no_memory));
  });
  auto* words = manager.managed_array<std::uint64_t>();
  const auto result = manager.run(add_kernel, Words{words, 512}, 200, 200);
  ASSERT_EQ(result.code, 0U) << describe(result);
  EXPECT_EQ(manager.faults(), 200U);
  for (std::uint64_t g = first_generation; g < first_generation + 200; ++g) EXPECT_EQ(manager.map_error(g), ESTALE);
}

wire::DownRecord extent(std::uint64_t offset, std::uint64_t bytes, wire::File file, std::uint64_t file_offset,
                        bool writable, std::uint64_t action) {
  wire::DownRecord record{};
  record.file = static_cast<std::uint8_t>(file);
  record.rights = writable ? 1 : 0;
  record.address = default_window_base + offset;
  record.length_bytes = bytes;
  record.file_offset = file_offset;
  record.action = action;
  return record;
}

TEST(Waves, MapVramExtentsThemselvesAndUpgradeOnWrite) {
  unsigned writes = 0;
  std::uint64_t action = 1;
  FakeManager manager({}, [&](FakeManager& m, unsigned cu, const wire::UpRecord& fault) {
    const std::uint64_t block = (fault.address - default_window_base) / block_bytes;
    writes += fault.access;
    m.resume_map(cu, fault,
                 extent(block * block_bytes, block_bytes, wire::File::vram, (7 - block) * block_bytes,
                        fault.access != 0, action++));
  });
  auto* words = manager.managed_array<std::uint64_t>();
  auto* vram = reinterpret_cast<std::uint64_t*>(manager.vram());
  const std::uint64_t block_words = block_bytes / 8;
  for (std::uint64_t block = 0; block < 8; ++block) {
    for (std::uint64_t i = 0; i < block_words; ++i) vram[(7 - block) * block_words + i] = block * 1000 + i;
  }
  const auto result = manager.run(add_kernel, Words{words, 1}, 8 * block_words, 8192);
  ASSERT_EQ(result.code, 0U) << describe(result);
  for (std::uint64_t block = 0; block < 8; ++block) {
    for (std::uint64_t i = 0; i < block_words; ++i) {
      ASSERT_EQ(vram[(7 - block) * block_words + i], block * 1000 + i + block * block_words + i + 1);
      ASSERT_EQ(words[block * block_words + i], 0U) << "the system page was written";
    }
  }
  EXPECT_GE(writes, 8U);
  EXPECT_EQ(manager.map_error(1), 0);
}

TEST(Waves, StayParkedWhenTheirMappingFails) {
  FakeManager manager({}, [&](FakeManager& m, unsigned cu, const wire::UpRecord& fault) {
    // Past the window's end, not aligned, empty.
    m.resume_map(cu, fault, extent(window_bytes - page_bytes, 2 * page_bytes, wire::File::system, 0, true, 1));
    m.resume_map(cu, fault, extent(3, page_bytes, wire::File::system, 0, true, 2));
    m.resume_map(cu, fault, extent(0, 0, wire::File::system, 0, true, 3));
    FakeManager::give_page(m, cu, fault);
  });
  const auto result = manager.run(add_kernel, Words{manager.managed_array<std::uint64_t>(), 512}, 1, 1);
  ASSERT_EQ(result.code, 0U) << describe(result);
  for (std::uint64_t action = 1; action <= 3; ++action) EXPECT_EQ(manager.map_error(action), EINVAL);
}

struct StateOf {
  std::uint64_t* pages;
  std::uint64_t* good;
};

/// Every wave has its own errno, rounding mode and exception in flight, and faults in the middle of each.
void state_kernel(const void* captures, std::uint64_t first, std::uint64_t) {
  const auto& c = *static_cast<const StateOf*>(captures);
  const int wave = static_cast<int>(first);
  static const int modes[] = {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO};
  std::uint64_t good = 0;
  const auto touch = [&](unsigned page) { c.pages[(first * 3 + page) * 512] = 1; };
  errno = 1000 + wave;
  std::fesetround(modes[wave % 4]);
  try {
    try {
      throw wave;
    } catch (int thrown) {
      touch(0);
      if (thrown == wave) good |= 1;
      if (std::uncaught_exceptions() == 0) good |= 2;
      try {
        throw wave + 1;
      } catch (...) {
        touch(1);
      }
      throw;
    }
  } catch (int again) {
    touch(2);
    if (again == wave) good |= 4;
  }
  if (errno == 1000 + wave) good |= 8;
  if (std::fegetround() == modes[wave % 4]) good |= 16;
  std::fesetround(FE_TONEAREST);
  c.good[first] = good;
}

TEST(Waves, KeepErrnoRoundingAndExceptionsAcrossParking) {
  FakeManager::Options options;
  options.waves_per_cu = 32;
  std::vector<wire::UpRecord> parked;
  FakeManager manager(options, [&](FakeManager& m, unsigned cu, const wire::UpRecord& fault) {
    const auto* good_page = m.managed() + (3 * 32) * page_bytes;
    if (fault.address >= reinterpret_cast<std::uint64_t>(good_page)) return FakeManager::give_page(m, cu, fault);
    parked.push_back(fault);
    if (parked.size() < 32) return;
    for (auto it = parked.rbegin(); it != parked.rend(); ++it) FakeManager::give_page(m, cu, *it);
    parked.clear();
  });
  auto* words = manager.managed_array<std::uint64_t>();
  StateOf captures{words, words + 3 * 32 * 512};
  const auto result = manager.run(state_kernel, captures, 32, 1);
  ASSERT_EQ(result.code, 0U) << describe(result);
  for (unsigned i = 0; i < 32; ++i) EXPECT_EQ(captures.good[i], 31U) << "wave " << i;
}

TEST(Waves, KnowWhoTheyAre) {
  FakeManager manager;
  struct Seen {
    WaveInfo* info;
    char* name;
    std::uint64_t* device;
  } seen{manager.managed_array<WaveInfo>(), manager.managed_array<char>(page_bytes),
         manager.managed_array<std::uint64_t>(2 * page_bytes)};
  const auto kernel = [](const void* captures, std::uint64_t first, std::uint64_t count) {
    if (first != 30) return;
    const auto& s = *static_cast<const Seen*>(captures);
    *s.info = *current_wave();
    std::strcpy(s.name, current_wave()->kernel);
    *s.device = in_device() ? count : 0;
  };
  const auto result = manager.run(kernel, seen, 35, 10, "who");
  ASSERT_EQ(result.code, 0U) << describe(result);
  EXPECT_EQ(seen.info->wave, 3U);
  EXPECT_EQ(seen.info->first, 30U);
  EXPECT_EQ(seen.info->count, 5U);
  EXPECT_EQ(seen.info->launch, 0U);
  EXPECT_EQ(*seen.device, 5U);
  EXPECT_STREQ(seen.name, "who");
  EXPECT_EQ(current_wave(), nullptr);
  EXPECT_FALSE(in_device());
}

}  // namespace
}  // namespace ferry::device::test
