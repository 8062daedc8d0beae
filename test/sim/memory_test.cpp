// The machine's checkers, each shown a wrong state: a checker that cannot fail checks nothing.
#include "sim/memory.h"

#include <gtest/gtest.h>

#include "sim/violation.h"

namespace ferry::sim {
namespace {
using core::Place;

constexpr Page base = 512;
constexpr Page page = base + 3;

constexpr DeviceEntry in_place{DeviceKind::system, true, 0};
constexpr DeviceEntry vram(VramPage at, bool writable, DeviceId owner = 0) {
  return {DeviceKind::vram, writable, at, owner};
}

template <typename Fn>
void expect_broken(Invariant invariant, const char* words, Fn&& fn) {
  try {
    fn();
    FAIL() << "nothing was noticed; expected I-" << static_cast<unsigned>(invariant) << " " << to_string(invariant);
  } catch (const Violation& violation) {
    EXPECT_EQ(violation.invariant, invariant) << violation.text;
    EXPECT_NE(violation.text.find(words), std::string::npos) << violation.text;
  }
}

class MemoryTest : public ::testing::Test {
 protected:
  MemoryTest() : memory(2, 2, base, 2 * block_pages, 2) {
    memory.client_open(0, 1);
    memory.client_open(1, 2);
    memory.alloc(0, {base, block_pages});
    memory.alloc(1, {base, block_pages});
  }
  /// Page `page` of client 1 moves to VRAM page `at` of the device, as it should.
  void migrate(DeviceId device, VramPage at, bool writable, Page which = page) {
    memory.revoke_cpu(0, which);
    memory.use_vram(0, device, at, 1);
    memory.copy(0, device, which, Place::vram, at);
    memory.map_device(0, device, which, vram(at, writable, device));
  }

  Memory memory;
};

TEST_F(MemoryTest, GoodMigrationBothWaysPasses) {
  EXPECT_EQ(memory.cpu_access(0, page, Op::write), Touch::done);
  migrate(0, 7, true);
  EXPECT_EQ(memory.cpu_access(0, page, Op::read), Touch::fault);
  EXPECT_EQ(memory.device_access(0, 0, page, Op::add), Touch::done);
  memory.revoke_device(0, 0, page);
  memory.copy(0, 0, page, Place::system, 7);
  memory.map_cpu(0, page);
  EXPECT_EQ(memory.cpu_access(0, page, Op::add), Touch::done);
  EXPECT_EQ(memory.cpu_access(0, page, Op::read), Touch::done);
  memory.check_all();
}

TEST_F(MemoryTest, ReadOnlyMappingFaultsOnWrite) {
  migrate(0, 7, false);
  EXPECT_EQ(memory.device_access(0, 0, page, Op::read), Touch::done);
  EXPECT_EQ(memory.device_access(0, 0, page, Op::write), Touch::fault);
}

TEST_F(MemoryTest, AccessOfWhatIsNotThereIsTheProgramsOwnFault) {
  EXPECT_EQ(memory.cpu_access(0, base + block_pages, Op::read), Touch::segv);
}

TEST_F(MemoryTest, I01LosingTheOnlyCopy) {
  memory.cpu_access(0, page, Op::write);
  migrate(0, 7, true);
  memory.device_access(0, 0, page, Op::write);
  memory.revoke_device(0, 0, page);
  memory.revoke_cpu(0, page + 1);
  expect_broken(Invariant::current_copy, "VRAM page was used for another page",
                [&] { memory.copy(0, 0, page + 1, Place::vram, 7); });
}

TEST_F(MemoryTest, I01ReleasingTheChunkOfTheOnlyCopy) {
  migrate(0, 7, true);
  memory.device_access(0, 0, page, Op::write);
  memory.revoke_device(0, 0, page);
  expect_broken(Invariant::current_copy, "chunk was released", [&] { memory.wipe_chunk(0, 0, 0); });
}

TEST_F(MemoryTest, I01FailedCopyOverTheOnlyCopy) {
  memory.cpu_access(0, page, Op::write);
  memory.revoke_cpu(0, page);
  expect_broken(Invariant::current_copy, "a copy that failed", [&] { memory.tear(0, 0, page, Place::system, 7); });
}

TEST_F(MemoryTest, I01DiscardingTheOnlyCopy) {
  memory.cpu_access(0, page, Op::write);
  memory.revoke_cpu(0, page);
  expect_broken(Invariant::current_copy, "discarded", [&] { memory.discard_system(0, page); });
}

TEST_F(MemoryTest, I02CpuMappedBesideVram) {
  migrate(0, 7, false);
  expect_broken(Invariant::exclusive_writer, "becomes writable for the CPU", [&] { memory.map_cpu(0, page); });
}

TEST_F(MemoryTest, I02VramMappedBesideTheCpu) {
  memory.use_vram(0, 0, 7, 1);
  memory.revoke_cpu(0, page);
  memory.copy(0, 0, page, Place::vram, 7);
  memory.map_cpu(0, page);
  expect_broken(Invariant::exclusive_writer, "CPU threads can write",
                [&] { memory.map_device(0, 0, page, vram(7, false)); });
}

TEST_F(MemoryTest, I02TwoDevicesOneWriter) {
  migrate(0, 7, false);
  memory.use_vram(0, 1, 9, 1);
  memory.copy(0, 1, page, Place::vram, 9);
  expect_broken(Invariant::exclusive_writer, "devices 0 and 1",
                [&] { memory.map_device(0, 1, page, vram(9, true, 1)); });
}

TEST_F(MemoryTest, I02InPlaceSharingIsFine) {
  memory.map_device(0, 0, page, in_place);
  memory.map_device(0, 1, page, in_place);
  EXPECT_EQ(memory.device_access(0, 0, page, Op::add), Touch::done);
  EXPECT_EQ(memory.device_access(0, 1, page, Op::add), Touch::done);
  EXPECT_EQ(memory.cpu_access(0, page, Op::add), Touch::done);
}

TEST_F(MemoryTest, I03StaleSystemCopyOnTheCpu) {
  migrate(0, 7, true);
  memory.device_access(0, 0, page, Op::write);
  memory.revoke_device(0, 0, page);
  expect_broken(Invariant::maps_current, "system copy is stale", [&] { memory.map_cpu(0, page); });
}

TEST_F(MemoryTest, I03FreshVramOnTheDevice) {
  memory.revoke_cpu(0, page);
  memory.use_vram(0, 0, 7, 1);
  expect_broken(Invariant::maps_current, "fresh VRAM", [&] { memory.map_device(0, 0, page, vram(7, false)); });
}

TEST_F(MemoryTest, I03TornCopyOnTheDevice) {
  memory.revoke_cpu(0, page);
  memory.use_vram(0, 0, 7, 1);
  memory.tear(0, 0, page, Place::vram, 7);
  expect_broken(Invariant::maps_current, "failed copy", [&] { memory.map_device(0, 0, page, vram(7, false)); });
}

TEST_F(MemoryTest, I04OneChunkTooMany) {
  memory.use_vram(0, 0, 0, block_pages);
  memory.use_vram(1, 0, 0, block_pages);
  memory.use_vram(0, 1, 0, block_pages);  // another device
  expect_broken(Invariant::budget, "one more", [&] { memory.use_vram(0, 0, block_pages, 1); });
}

TEST_F(MemoryTest, I04ReleasedChunkMakesRoom) {
  memory.use_vram(0, 0, 0, 2 * block_pages);
  memory.wipe_chunk(0, 0, 0);
  memory.uncharge_chunk(0, 0, 0);
  memory.use_vram(1, 0, 0, 1);
  EXPECT_EQ(memory.chunks_used(0), 2U);
}

TEST_F(MemoryTest, I05VramPageOfTwoPages) {
  migrate(0, 7, false);
  expect_broken(Invariant::slot_single_use, "mapped for pages",
                [&] { memory.map_device(0, 0, page + 1, vram(7, false)); });
}

TEST_F(MemoryTest, I05CopyOverAMappedVramPage) {
  migrate(0, 7, false);
  memory.revoke_cpu(0, page + 1);
  expect_broken(Invariant::slot_single_use, "copied over VRAM page",
                [&] { memory.copy(0, 0, page + 1, Place::vram, 7); });
}

TEST_F(MemoryTest, I05ReleaseOfAMappedChunk) {
  migrate(0, 7, false);
  expect_broken(Invariant::slot_single_use, "released while device", [&] { memory.wipe_chunk(0, 0, 0); });
}

TEST_F(MemoryTest, I08ChunkLeftBehind) {
  memory.use_vram(0, 1, 0, 1);
  expect_broken(Invariant::all_given_back, "were not released", [&] { memory.client_close(0); });
}

TEST_F(MemoryTest, I08MappingLeftBehind) {
  memory.map_device(0, 1, page, in_place);
  expect_broken(Invariant::all_given_back, "still maps", [&] { memory.client_close(0); });
}

/// With a budget: nobody reaches what was just allocated, and two pages fit into the store.
class CountedMemoryTest : public ::testing::Test {
 protected:
  CountedMemoryTest() : memory(1, 1, base, 2 * block_pages, 2) {
    memory.count_system(2);
    memory.client_open(0, 1);
    memory.alloc(0, {base, block_pages});
  }
  void write(Page at) {
    memory.map_cpu(0, at);
    ASSERT_EQ(memory.cpu_access(0, at, Op::write), Touch::done);
    memory.revoke_cpu(0, at);
  }

  Memory memory;
};

TEST_F(CountedMemoryTest, GoodWayThroughTheStorePasses) {
  EXPECT_EQ(memory.cpu_access(0, page, Op::read), Touch::fault);
  EXPECT_EQ(memory.resident_pages(0), 0U);
  write(page);
  EXPECT_TRUE(memory.resident(0, page));
  EXPECT_TRUE(memory.store(0, page));
  EXPECT_TRUE(memory.store_is_current(0, page));
  memory.discard_system(0, page);
  EXPECT_EQ(memory.resident_pages(0), 0U);
  memory.load(0, page);
  memory.discard_store(0, page);
  memory.map_cpu(0, page);
  EXPECT_EQ(memory.cpu_access(0, page, Op::read), Touch::done);
  EXPECT_EQ(memory.resident_pages(0), 1U);
  EXPECT_EQ(memory.stored_pages(), 0U);
  memory.check_all();
}

TEST_F(CountedMemoryTest, AFullStoreTakesNothing) {
  EXPECT_TRUE(memory.store(0, page));
  EXPECT_TRUE(memory.store(0, page + 1));
  EXPECT_FALSE(memory.store(0, page + 2));
  EXPECT_TRUE(memory.store(0, page)) << "what is there already takes no more room";
}

TEST_F(CountedMemoryTest, I01DroppingWhatIsNotStored) {
  write(page);
  expect_broken(Invariant::current_copy, "discarded", [&] { memory.discard_system(0, page); });
}

TEST_F(CountedMemoryTest, I01ForgettingTheOnlyCopy) {
  write(page);
  memory.store(0, page);
  memory.discard_system(0, page);
  expect_broken(Invariant::current_copy, "the store forgot it", [&] { memory.discard_store(0, page); });
}

TEST_F(CountedMemoryTest, I01LoadingWhatIsStale) {
  write(page);
  memory.store(0, page);
  write(page);
  expect_broken(Invariant::current_copy, "a load", [&] { memory.load(0, page); });
}

TEST_F(CountedMemoryTest, I11StoringWhatTheCpuCanWrite) {
  memory.map_cpu(0, page);
  expect_broken(Invariant::quiet_source, "stored while CPU threads can write", [&] { memory.store(0, page); });
}

TEST_F(CountedMemoryTest, I11StoringWhatTheCpuCanRead) {
  memory.map_cpu(0, page, Prot::read);
  expect_broken(Invariant::quiet_source, "stored while CPU threads can read", [&] { memory.store(0, page); });
}

TEST_F(CountedMemoryTest, ACpuThatOnlyReadsFaultsToWrite) {
  memory.map_cpu(0, page, Prot::read);
  EXPECT_EQ(memory.cpu_access(0, page, Op::read), Touch::done);
  EXPECT_EQ(memory.cpu_access(0, page, Op::write), Touch::fault);
  EXPECT_EQ(memory.cpu_access(0, page, Op::add), Touch::fault);
  memory.map_cpu(0, page);
  memory.protect_cpu(0, page);
  EXPECT_EQ(memory.cpu_access(0, page, Op::write), Touch::fault);
}

TEST_F(CountedMemoryTest, I11StoringWhatADeviceMaps) {
  memory.map_device(0, 0, page, in_place);
  expect_broken(Invariant::quiet_source, "stored while device 0 maps it", [&] { memory.store(0, page); });
}

TEST_F(CountedMemoryTest, I15StoredPagesOfTheLastUse) {
  memory.store(0, page);
  memory.begin_free(0, {page, 1});
  memory.end_free(0, {page, 1});
  expect_broken(Invariant::free_is_final, "the store still has", [&] { memory.alloc(0, {page, 1}); });
}

TEST_F(CountedMemoryTest, I17LoadingWhatIsNotThere) {
  expect_broken(Invariant::answers_right, "the store does not have it", [&] { memory.load(0, page); });
}

/// A mapping that outlived its page: the one way to a stale read that no other check of Memory stands in front of.
class StaleMappingTest : public MemoryTest {
 protected:
  void SetUp() override {
    memory.cpu_access(0, page, Op::write);
    migrate(0, 7, true);
    memory.begin_free(0, {page, 1});
    memory.discard_system(0, page);
    memory.alloc(0, {page, 1});  // without end_free(), which would have noticed
  }
};

TEST_F(StaleMappingTest, I10Read) {
  expect_broken(Invariant::reads_last_write, "device (VRAM) 0 reads write 1 of client 1",
                [&] { memory.device_access(0, 0, page, Op::read); });
}

TEST_F(StaleMappingTest, I10AddStartsFromAStaleValue) {
  expect_broken(Invariant::reads_last_write, "reads", [&] { memory.device_access(0, 0, page, Op::add); });
}

TEST_F(StaleMappingTest, I10WriteIsSeenByTheNextReader) {
  memory.device_access(0, 0, page, Op::write);
  expect_broken(Invariant::reads_last_write, "CPU thread", [&] { memory.cpu_access(0, page, Op::read); });
}

TEST_F(MemoryTest, I11CopyWhileTheCpuCanWrite) {
  expect_broken(Invariant::quiet_source, "CPU threads can write", [&] { memory.copy(0, 0, page, Place::vram, 7); });
}

TEST_F(MemoryTest, I11CopyWhileADeviceCanWriteInPlace) {
  memory.revoke_cpu(0, page);
  memory.map_device(0, 1, page, in_place);
  expect_broken(Invariant::quiet_source, "device 1 can write", [&] { memory.copy(0, 0, page, Place::vram, 7); });
}

TEST_F(MemoryTest, I11CopyHomeWhileTheDeviceCanWrite) {
  migrate(0, 7, true);
  expect_broken(Invariant::quiet_source, "home from", [&] { memory.copy(0, 0, page, Place::system, 7); });
}

TEST_F(MemoryTest, I11CopyHomeOverAMappedPage) {
  expect_broken(Invariant::quiet_source, "overwritten while the CPU maps it",
                [&] { memory.copy(0, 0, page, Place::system, 7); });
}

TEST_F(MemoryTest, I15MappedAfterFree) {
  memory.map_device(0, 0, page, in_place);
  memory.begin_free(0, {base, block_pages});
  expect_broken(Invariant::free_is_final, "while device 0 maps it", [&] { memory.end_free(0, {base, block_pages}); });
}

TEST_F(MemoryTest, I15ContentsSurviveAFree) {
  memory.cpu_access(0, page, Op::write);
  memory.begin_free(0, {base, block_pages});
  memory.end_free(0, {base, block_pages});
  expect_broken(Invariant::free_is_final, "left there by its last use", [&] { memory.alloc(0, {base, block_pages}); });
}

TEST_F(MemoryTest, I15MapOfFreedPage) {
  expect_broken(Invariant::free_is_final, "not allocated",
                [&] { memory.map_device(0, 0, base + block_pages, in_place); });
}

TEST_F(MemoryTest, I17InPlaceAllocationIsNotMoved) {
  memory.alloc(0, {base + block_pages, 1}, true);
  memory.revoke_cpu(0, base + block_pages);
  expect_broken(Invariant::answers_right, "stay in system memory",
                [&] { memory.copy(0, 0, base + block_pages, Place::vram, 7); });
}

TEST_F(MemoryTest, FreedAndAllocatedAgainReadsAsZero) {
  memory.cpu_access(0, page, Op::write);
  memory.begin_free(0, {base, block_pages});
  for (Page p = base; p < base + block_pages; ++p) memory.discard_system(0, p);
  memory.end_free(0, {base, block_pages});
  memory.alloc(0, {base, block_pages});
  EXPECT_EQ(memory.cpu_access(0, page, Op::read), Touch::done);
}

TEST_F(MemoryTest, EndOfAProcessTakesItsMappings) {
  migrate(0, 7, true);
  memory.device_died(0, 0);
  EXPECT_EQ(memory.device_access(0, 0, page, Op::read), Touch::fault);
  memory.copy(0, 0, page, Place::system, 7);  // its VRAM is served to the CPU from where it is
  memory.cpu_died(0);
  EXPECT_EQ(memory.cpu_access(0, page, Op::read), Touch::segv);
}

TEST_F(MemoryTest, I60PinnedPageLeaves) {
  memory.cpu_access(0, page, Op::write);
  memory.pin(0, page, no_device);
  memory.dma(0, page, Op::add);
  memory.revoke_cpu(0, page);
  memory.use_vram(0, 0, 7, 1);
  expect_broken(Invariant::pinned_stays, "copied to VRAM", [&] { memory.copy(0, 0, page, Place::vram, 7); });
}

TEST_F(MemoryTest, I60PinnedWhereItIsNot) {
  memory.cpu_access(0, page, Op::write);
  expect_broken(Invariant::pinned_stays, "is not there", [&] { memory.pin(0, page, 0); });
}

TEST_F(MemoryTest, I70DeviceWritesWhatIsProtected) {
  migrate(0, 7, true);
  memory.begin_protect(0, {page, 1}, core::span_read);
  EXPECT_EQ(memory.device_access(0, 0, page, Op::write), Touch::done) << "not answered yet";
  memory.end_protect(0, {page, 1});
  EXPECT_EQ(memory.device_access(0, 0, page, Op::read), Touch::done);
  expect_broken(Invariant::protected_pages, "writes page", [&] { memory.device_access(0, 0, page, Op::write); });
}

TEST_F(MemoryTest, I72DiscardedPageStillRead) {
  memory.cpu_access(0, page, Op::write);
  memory.begin_zero(0, {page, 1});
  expect_broken(Invariant::discarded_pages, "the CPU reads", [&] { memory.end_zero(0, {page, 1}); });
}

TEST_F(MemoryTest, I72DiscardedPageStillReadByADevice) {
  memory.cpu_access(0, page, Op::write);
  migrate(0, 7, true);
  memory.begin_zero(0, {page, 1});
  memory.discard_system(0, page);
  expect_broken(Invariant::discarded_pages, "device 0 reads", [&] { memory.end_zero(0, {page, 1}); });
}

/// What the core says of a page in system memory.
core::Residency at_home() {
  core::Residency r;
  r.allocated = r.system_current = true;
  return r;
}

/// Written pages that nobody reaches any more, the first of which is to be moved to the second.
void begin_move(Memory& memory) {
  for (const Page p : {page, page + 9}) {
    memory.cpu_access(0, p, Op::write);
    memory.revoke_cpu(0, p);
  }
  memory.begin_move(0, {page, 1}, page + 9);
}

TEST_F(MemoryTest, I74GoodMovePasses) {
  begin_move(memory);
  memory.copy_system(0, page, page + 9, false);
  memory.discard_system(0, page);
  memory.end_move(0, page, at_home(), page + 9, at_home(), true);
  memory.map_cpu(0, page + 9);
  EXPECT_EQ(memory.cpu_access(0, page + 9, Op::read), Touch::done);
}

TEST_F(MemoryTest, I74MovedPageIsLost) {
  begin_move(memory);
  memory.discard_system(0, page);
  expect_broken(Invariant::moved_pages, "was moved",
                [&] { memory.end_move(0, page, at_home(), page + 9, at_home(), true); });
}

TEST_F(MemoryTest, I74MovedPageIsInBothPlaces) {
  begin_move(memory);
  memory.copy_system(0, page, page + 9, false);
  expect_broken(Invariant::moved_pages, "was moved",
                [&] { memory.end_move(0, page, at_home(), page + 9, at_home(), true); });
}

TEST_F(MemoryTest, I74PageWhoseCounterpartWasFreedHasAnothersBytes) {
  memory.cpu_access(0, page + 20, Op::write);
  memory.revoke_cpu(0, page + 20);
  begin_move(memory);
  memory.begin_free(0, {page, 1});
  memory.copy_system(0, page + 20, page + 9, false);
  expect_broken(Invariant::moved_pages, "half was freed",
                [&] { memory.end_move(0, page, at_home(), page + 9, at_home(), true); });
}

TEST_F(MemoryTest, I80DeviceReachesWhatForks) {
  migrate(0, 7, false);
  expect_broken(Invariant::fork_is_quiet, "while device 0 reaches", [&] { memory.fork(0); });
}

TEST_F(MemoryTest, I81ChildGetsWhatWasWrittenLater) {
  memory.cpu_access(0, page, Op::write);
  memory.fork(0);
  EXPECT_TRUE(memory.child_needs(0, page));
  memory.map_cpu(0, page);
  memory.cpu_access(0, page, Op::write);
  expect_broken(Invariant::fork_sees_own, "at the fork it was", [&] { memory.give_children(0, page, {}); });
}

TEST_F(MemoryTest, I81ChildReadsWhatItNeverGot) {
  memory.cpu_access(0, page, Op::write);
  memory.fork(0);
  expect_broken(Invariant::fork_sees_own, "reads", [&] { memory.child_access(0, 0, page, Op::read); });
}

}  // namespace
}  // namespace ferry::sim
