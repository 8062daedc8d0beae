// The device's agent, its start and its end.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include "base/random.h"
#include "base/status.h"
#include "fake_manager.h"

namespace ferry::device::test {
namespace {

wire::DownRecord command(wire::DownKind kind, std::uint64_t first_page, std::uint64_t pages) {
  wire::DownRecord record{};
  record.kind = static_cast<std::uint32_t>(kind);
  record.address = default_window_base + first_page * page_bytes;
  record.length_bytes = pages * page_bytes;
  return record;
}

wire::DownRecord map_command(std::uint64_t first_page, std::uint64_t pages, wire::File file, std::uint64_t file_page,
                             bool writable) {
  wire::DownRecord record = command(wire::DownKind::map, first_page, pages);
  record.file = static_cast<std::uint8_t>(file);
  record.file_offset = file_page * page_bytes;
  record.rights = writable ? 1 : 0;
  return record;
}

struct Pages {
  std::uint64_t* data;
};
void read_pages(const void* captures, std::uint64_t first, std::uint64_t count) {
  const auto* volatile data = static_cast<const Pages*>(captures)->data;
  for (std::uint64_t i = first; i < first + count; ++i)
    (void)*const_cast<volatile const std::uint64_t*>(data + i * 512);
}
void write_pages(const void* captures, std::uint64_t first, std::uint64_t count) {
  auto* data = static_cast<const Pages*>(captures)->data;
  for (std::uint64_t i = first; i < first + count; ++i) data[i * 512] = i;
}

TEST(Agent, MapsWholeBlocksThatNeedNoFaults) {
  FakeManager manager;
  auto* words = manager.managed_array<std::uint64_t>();
  EXPECT_EQ(manager.command(map_command(0, 512, wire::File::system, 0, true)), 0);
  EXPECT_EQ(manager.command(map_command(512, 512, wire::File::vram, 1024, true)), 0);
  EXPECT_EQ(manager.run(write_pages, Pages{words}, 1024, 64).code, 0U);
  EXPECT_EQ(manager.faults(), 0U);
  EXPECT_EQ(words[511 * 512], 511U);
  EXPECT_EQ(words[600 * 512], 0U);
  EXPECT_EQ(reinterpret_cast<std::uint64_t*>(manager.vram())[(1024 + 88) * 512], 600U);
}

TEST(Agent, RevokedPagesFaultAgainAndRearmedOnesCanBeGivenSingly) {
  FakeManager manager;
  auto* words = manager.managed_array<std::uint64_t>();
  ASSERT_EQ(manager.run(write_pages, Pages{words}, 1024, 64).code, 0U);
  ASSERT_EQ(manager.faults(), 1024U);
  ASSERT_EQ(manager.run(write_pages, Pages{words}, 1024, 64).code, 0U);
  ASSERT_EQ(manager.faults(), 1024U);
  // Rearm of what was never revoked empties it too.
  EXPECT_EQ(manager.command(command(wire::DownKind::rearm, 0, 512)), 0);
  ASSERT_EQ(manager.run(write_pages, Pages{words}, 1024, 64).code, 0U);
  EXPECT_EQ(manager.faults(), 1536U);
  EXPECT_EQ(manager.command({command(wire::DownKind::revoke, 0, 1024), command(wire::DownKind::rearm, 0, 1024)}),
            (std::vector<int>{0, 0}));
  ASSERT_EQ(manager.run(write_pages, Pages{words}, 1024, 64).code, 0U);
  EXPECT_EQ(manager.faults(), 2560U);
}

TEST(Agent, TouchesOfRevokedPagesAreFaultsOfTheirKind) {
  std::vector<std::uint8_t> access;
  FakeManager manager({}, [&](FakeManager& m, unsigned cu, const wire::UpRecord& fault) {
    access.push_back(fault.access);
    wire::DownRecord extent{};
    extent.address = fault.address & ~(page_bytes - 1);
    extent.length_bytes = page_bytes;
    extent.file = static_cast<std::uint8_t>(wire::File::vram);
    extent.rights = fault.access;
    extent.action = access.size();
    m.resume_map(cu, fault, extent);
  });
  auto* words = manager.managed_array<std::uint64_t>();
  EXPECT_EQ(manager.command(command(wire::DownKind::revoke, 0, 4)), 0);
  ASSERT_EQ(manager.run(read_pages, Pages{words}, 4, 1).code, 0U);
  EXPECT_EQ(access, (std::vector<std::uint8_t>{0, 0, 0, 0}));
  ASSERT_EQ(manager.run(write_pages, Pages{words}, 4, 1).code, 0U);
  EXPECT_EQ(access, (std::vector<std::uint8_t>{0, 0, 0, 0, 1, 1, 1, 1}));
}

TEST(Agent, BatchesOfRevokesInAnyOrderLeaveNothing) {
  std::uint64_t action = 1;
  FakeManager manager({}, [&](FakeManager& m, unsigned cu, const wire::UpRecord& fault) {
    wire::DownRecord extent{};
    extent.address = fault.address & ~(page_bytes - 1);
    extent.length_bytes = page_bytes;
    extent.file_offset = extent.address - default_window_base;
    extent.rights = 1;
    extent.action = action++;
    m.resume_map(cu, fault, extent);
  });
  auto* words = manager.managed_array<std::uint64_t>();
  Random random(3);
  for (unsigned round = 0; round < 20; ++round) {
    ASSERT_EQ(manager.run(write_pages, Pages{words}, 200, 10).code, 0U);
    std::vector<wire::DownRecord> batch;
    std::uint64_t revoked = 0;
    for (std::uint64_t page = 0; page < 200;) {
      const std::uint64_t pages = std::min<std::uint64_t>(1 + random.below(4), 200 - page);
      if (random.chance(700)) {
        batch.push_back(command(wire::DownKind::revoke, page, pages));
        revoked += pages;
      }
      page += pages;
    }
    for (std::size_t i = batch.size(); i > 1; --i) std::swap(batch[i - 1], batch[random.below(i)]);
    for (const int error : manager.command(batch)) ASSERT_EQ(error, 0);
    const std::uint64_t before = manager.faults();
    ASSERT_EQ(manager.run(write_pages, Pages{words}, 200, 10).code, 0U);
    ASSERT_EQ(manager.faults() - before, revoked);
  }
}

TEST(Agent, BatchesOfZapsTakeGivenPagesBackAndLeaveThemArmed) {
  FakeManager manager;
  auto* words = manager.managed_array<std::uint64_t>();
  for (unsigned round = 0; round < 5; ++round) {
    ASSERT_EQ(manager.run(write_pages, Pages{words}, 1024, 64).code, 0U);
    std::vector<wire::DownRecord> batch;
    for (std::uint64_t page = 0; page < 200; page += 2) batch.push_back(command(wire::DownKind::zap, page, 1));
    wire::DownRecord bad = command(wire::DownKind::zap, 4, 1);
    bad.address += 8;
    batch.insert(batch.begin() + 50, bad);
    const std::vector<int> errors = manager.command(batch);
    for (std::size_t i = 0; i < errors.size(); ++i) ASSERT_EQ(errors[i], i == 50 ? EINVAL : 0) << i;
    const std::uint64_t before = manager.faults();
    ASSERT_EQ(manager.run(write_pages, Pages{words}, 1024, 64).code, 0U);
    ASSERT_EQ(manager.faults() - before, 100U);
    ASSERT_EQ(manager.command(command(wire::DownKind::rearm, 0, 1024)), 0);
  }
}

struct Sums {
  std::uint64_t* pages;
  std::uint64_t count;
  std::uint64_t seed;
};

/// Adds to random pages through whatever is done to the page tables meanwhile.
void add_randomly(const void* captures, std::uint64_t first, std::uint64_t count) {
  const auto& c = *static_cast<const Sums*>(captures);
  for (std::uint64_t i = first; i < first + count; ++i) {
    Random random(c.seed + i);
    for (unsigned k = 0; k < 16; ++k) {
      std::atomic_ref<std::uint64_t>(c.pages[random.below(c.count) * 512]).fetch_add(1, std::memory_order_relaxed);
    }
  }
}

TEST(Agent, NoUpdateIsLostWhilePagesAreTakenFromRunningWaves) {
  FakeManager::Options options;
  options.cus = 3;
  std::uint64_t action = 1;
  // Armed pages are given singly, others mapped by the wave: both show the system file.
  FakeManager manager(options, [&](FakeManager& m, unsigned cu, const wire::UpRecord& fault) {
    if (m.try_continue_page(fault.address)) return m.resume(cu, fault);
    wire::DownRecord extent{};
    extent.address = fault.address & ~(page_bytes - 1);
    extent.length_bytes = page_bytes;
    extent.file_offset = extent.address - default_window_base;
    extent.rights = 1;
    extent.action = action++;
    m.resume_map(cu, fault, extent);
  });
  auto* words = manager.managed_array<std::uint64_t>();
  constexpr std::uint64_t pages = 600;
  constexpr std::uint64_t items = 40'000;
  constexpr unsigned rounds = 4;
  Random random(11);
  for (unsigned round = 0; round < rounds; ++round) {
    const auto launch = manager.launch(0, add_randomly, Sums{words, pages, round * items}, items, 50);
    while (manager.queues().queues[0].completed.load() <= launch) {
      std::vector<wire::DownRecord> batch;
      for (unsigned i = 0; i < 20; ++i) {
        const std::uint64_t first = random.below(pages);
        const std::uint64_t count = 1 + random.below(std::min<std::uint64_t>(pages - first, 40));
        const wire::DownKind kinds[] = {wire::DownKind::revoke, wire::DownKind::rearm};
        batch.push_back(command(kinds[random.below(2)], first, count));
      }
      for (const int error : manager.command(batch)) ASSERT_EQ(error, 0);
    }
    ASSERT_EQ(manager.wait(0, launch).code, 0U);
  }
  std::uint64_t sum = 0;
  for (std::uint64_t i = 0; i < pages; ++i) sum += words[i * 512];
  EXPECT_EQ(sum, rounds * items * 16);
  EXPECT_GT(manager.faults(), pages);
}

TEST(Agent, RefusesWhatIsNoExtent) {
  FakeManager manager;
  for (const auto kind : {wire::DownKind::map, wire::DownKind::revoke, wire::DownKind::rearm, wire::DownKind::zap}) {
    EXPECT_EQ(manager.command(command(kind, 0, 0)), EINVAL);
    EXPECT_EQ(manager.command(command(kind, window_bytes / page_bytes - 1, 2)), EINVAL);
    wire::DownRecord bad = command(kind, 0, 1);
    bad.address += 8;
    EXPECT_EQ(manager.command(bad), EINVAL);
    bad.address = 0x1000;
    EXPECT_EQ(manager.command(bad), EINVAL);
  }
  EXPECT_EQ(manager.command(command(wire::DownKind::map_home, 0, 1)), EINVAL) << "a command for applications";
}

TEST(Agent, RevokesAtTheLimitOfMappings) {
  FakeManager::Options options;
  FakeManager manager(options);
  // Every second page read only: each is a mapping of its own. 65,530 is the kernel's default limit.
  int error = 0;
  std::uint64_t page = 0;
  std::vector<wire::DownRecord> batch;
  for (; error == 0 && page < window_bytes / page_bytes; page += 400) {
    batch.clear();
    for (std::uint64_t i = 0; i < 200; ++i) {
      batch.push_back(map_command(page + 2 * i, 1, wire::File::system, page + 2 * i, false));
    }
    for (const int e : manager.command(batch)) error = e != 0 ? e : error;
  }
  if (error == 0) GTEST_SKIP() << "vm.max_map_count is too high here to be reached within the window";
  EXPECT_EQ(error, ENOMEM);
  // In the middle of what is still one mapping.
  const std::uint64_t free_pages = window_bytes / page_bytes - 1000;
  for (std::uint64_t i = 0; i < 20; ++i) {
    EXPECT_EQ(manager.command(command(wire::DownKind::revoke, free_pages + 3 * i, 1)), 0);
  }
}

TEST(Lifetime, EndsWhenTheManagerOrTheOwnerHangsUpOrSaysQuit) {
  {
    FakeManager manager;
    manager.hang_up();
    EXPECT_EQ(manager.join_device(), 0);
  }
  {
    FakeManager manager;
    manager.hang_up_owner();
    EXPECT_EQ(manager.join_device(), 0);
  }
  {
    FakeManager manager;
    manager.quit();
    EXPECT_EQ(manager.join_device(), 0);
  }
}

TEST(Lifetime, EndsWithWavesThatRunAndThatArePastHelp) {
  FakeManager::Options options;
  options.cus = 2;
  std::atomic<unsigned> parked{0};
  FakeManager manager(options, [&](FakeManager&, unsigned, const wire::UpRecord&) { ++parked; });
  const auto kernel = [](const void* captures, std::uint64_t first, std::uint64_t count) {
    if (first < 4) write_pages(captures, first, count);
    for (volatile bool forever = true; forever;) {}
  };
  manager.launch(0, kernel, Pages{manager.managed_array<std::uint64_t>()}, 64, 1);
  while (parked.load() == 0) std::this_thread::yield();
  manager.hang_up();
  EXPECT_EQ(manager.join_device(), 0);
}

TEST(Lifetime, RefusesAnotherVersion) {
  FakeManager::Options options;
  options.control_version = wire::wire_version + 1;
  ::testing::internal::CaptureStderr();
  FakeManager manager(options);
  const int status = manager.join_device();
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 70) << status;
  EXPECT_NE(said.find("another version"), std::string::npos) << said;
}

}  // namespace
}  // namespace ferry::device::test
