// Buffers: holds, first use, faults, moves, budgets, the store, jobs that claim them, and everybody who dies meanwhile.
// Longer than 600 lines because its stories share one small machine and are read beside each other.
#include <gtest/gtest.h>

#include "buffer_machine.h"

namespace ferry::core::test {
namespace {

using Where = BufferInfo::Where;
constexpr Page at = 1'000'000;
constexpr JobBuffer reads(BufferId buffer) { return {buffer, Access::read}; }
constexpr JobBuffer writes(BufferId buffer) { return {buffer, Access::write}; }

// --- holds and addresses ---------------------------------------------------------------------------------------------

TEST(Buffers, what_cannot_be_is_refused) {
  BufferMachine m(buffer_config());
  EXPECT_EQ(m.create(1, 0).code, Code::bad_range);
  EXPECT_EQ(m.create(1, std::uint64_t{1} << 53).code, Code::bad_range);
  EXPECT_EQ(m.create(1, 4, 7).code, Code::bad_range) << "no such device";
  EXPECT_EQ(m.create(0, 4).code, Code::in_use);
  EXPECT_EQ(m.create(1, 4, no_device, 9).code, Code::client_gone);
  ASSERT_TRUE(m.create(1, 4).ok());
  EXPECT_EQ(m.create(1, 4).code, Code::in_use);
  m.open_client(2, 2);
  EXPECT_EQ(m.map(1, at, 2).code, Code::not_held);
  EXPECT_EQ(m.close(1, 2).code, Code::not_held);
  EXPECT_EQ(m.open_buffer(5, 2).code, Code::not_held);
  EXPECT_EQ(m.submit(with_buffers(copy_job(1), {reads(1)}), 2).code, Code::not_held);
  ASSERT_TRUE(m.open_buffer(1, 2).ok());
  EXPECT_TRUE(m.map(1, at, 2).ok());
  EXPECT_EQ(m.core.buffer_info(1).holders, 2U);
}

TEST(Buffers, addresses_of_buffers_and_allocations_exclude_each_other) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, 10).ok());
  ASSERT_TRUE(m.core.alloc(1, 1, {at + 20, 10}, Placement::automatic).ok());
  EXPECT_EQ(m.map(1, at + 11).code, Code::overlap);
  EXPECT_EQ(m.map(1, at + 29).code, Code::overlap);
  EXPECT_TRUE(m.map(1, at + 10).ok());
  EXPECT_EQ(m.map(1, at + 1).code, Code::overlap);
  EXPECT_TRUE(m.map(1, at).ok()) << "one buffer, two addresses";
  EXPECT_EQ(m.core.alloc(1, 1, {at + 19, 1}, Placement::automatic).code, Code::overlap);
  EXPECT_EQ(m.core.alloc(1, 1, {at - 5, 6}, Placement::automatic).code, Code::overlap);
  EXPECT_TRUE(m.core.alloc(1, 1, {at - 5, 5}, Placement::automatic).ok());
  EXPECT_EQ(m.map(1, (std::uint64_t{1} << 52) - 5).code, Code::bad_range);
}

// --- faults ----------------------------------------------------------------------------------------------------------

TEST(Buffers, a_fault_maps_the_buffer_and_wakes_each_wave_once) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.map(1, at).ok());
  EXPECT_EQ(m.where(1), Where::nowhere);
  m.fault(at + 3, Access::read, 1);
  m.fault(at + 4, Access::write, 2);
  ASSERT_NE(m.asked(Verb::map_buffer, 1), nullptr);
  EXPECT_EQ(m.open_count(Verb::map_buffer), 1U);
  EXPECT_EQ(m.asked(Verb::map_buffer, 1)->place, Place::system);
  EXPECT_EQ(m.asked(Verb::map_buffer, 1)->pages, (PageSpan{at, 8}));
  EXPECT_EQ(m.wakes(1), 0U);
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1));
  EXPECT_EQ(m.woken(1), Status{});
  EXPECT_EQ(m.woken(2), Status{});
  m.fault(at + 5, Access::write, 3);
  EXPECT_EQ(m.woken(3), Status{}) << "mapped already";
  EXPECT_EQ(m.wakes(1), 1U);
  m.fault(at + 8, Access::read, 4);
  EXPECT_EQ(m.woken(4), Status(Code::not_allocated)) << "past its end";
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Buffers, the_cpu_and_each_device_are_mapped_for_themselves) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.map(1, at).ok());
  m.cpu(at + 1);
  m.fault(at + 1, Access::read, 1, 0);
  m.fault(at + 1, Access::read, 2, 1);
  EXPECT_EQ(m.open_count(Verb::map_buffer), 3U);
  m.settle();
  EXPECT_EQ(m.cpu_wakes(at + 1), 1U);
  EXPECT_EQ(m.wakes(1), 1U);
  EXPECT_EQ(m.wakes(2), 1U);
}

TEST(Buffers, a_map_that_fails_fails_the_waves_and_is_undone_before_the_next) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.map(1, at).ok());
  m.fault(at, Access::read, 1);
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1, Code::no_mappings));
  EXPECT_EQ(m.woken(1), Status(Code::no_mappings));
  ASSERT_NE(m.asked(Verb::revoke_buffer, 1), nullptr);
  m.fault(at, Access::read, 2);
  EXPECT_EQ(m.asked(Verb::map_buffer, 1), nullptr) << "one question at a time";
  ASSERT_TRUE(m.reply_to(Verb::revoke_buffer, 1));
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1));
  EXPECT_EQ(m.woken(2), Status{});
  m.cpu(at);
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1, Code::no_memory));
  EXPECT_EQ(m.cpu_wakes(at), 1U) << "a thread cannot be told: it tries again";
  m.settle();
}

TEST(Buffers, waves_of_a_lost_process_are_forgotten_and_those_of_the_next_are_served) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.map(1, at).ok());
  m.fault(at, Access::read, 1);
  m.core.device_gone(++m.now, 1, 0);
  m.core.device_attach(1, 0);
  m.fault(at, Access::read, 2);
  EXPECT_EQ(m.open_count(Verb::map_buffer), 1U);
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1, Code::device_lost));
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1));
  EXPECT_EQ(m.wakes(1), 0U);
  EXPECT_EQ(m.woken(2), Status{});
  // The answer may come before the death is told.
  m.core.device_gone(++m.now, 1, 0);
  m.core.device_attach(1, 0);
  m.fault(at, Access::read, 3);
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1, Code::device_lost));
  EXPECT_TRUE(m.open.empty());
  m.core.device_gone(++m.now, 1, 0);
  m.take();
  m.core.verify();
  EXPECT_EQ(m.wakes(3), 0U);
  EXPECT_TRUE(m.core.quiescent());
}

// --- unmap and close -------------------------------------------------------------------------------------------------

TEST(Buffers, unmap_revokes_and_replies_and_its_pages_are_nobodys) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.map(1, at).ok());
  m.cpu(at);
  m.fault(at, Access::read, 1);
  m.settle();
  ASSERT_TRUE(m.unmap(at, 50).ok());
  EXPECT_EQ(m.unmap(at, 51).code, Code::not_allocated);
  EXPECT_EQ(m.open_count(Verb::revoke_buffer), 2U);
  m.fault(at, Access::read, 2);
  EXPECT_EQ(m.woken(2), Status(Code::not_allocated));
  EXPECT_EQ(m.core.alloc(1, 1, {at, 1}, Placement::automatic).code, Code::overlap);
  EXPECT_FALSE(m.replied(50).has_value());
  m.settle();
  EXPECT_EQ(m.replied(50), Status{});
  EXPECT_FALSE(m.replied(51).has_value());
  EXPECT_TRUE(m.core.alloc(1, 1, {at, 1}, Placement::automatic).ok());
  EXPECT_EQ(m.unmap(at, 52).code, Code::not_allocated);
}

TEST(Buffers, unmap_ends_the_wait_of_who_waits_for_a_map) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.map(1, at).ok());
  m.fault(at, Access::read, 1);
  m.cpu(at);
  ASSERT_TRUE(m.unmap(at, 50).ok());
  EXPECT_EQ(m.woken(1), Status(Code::not_allocated));
  EXPECT_EQ(m.cpu_wakes(at), 1U);
  m.settle();
  EXPECT_EQ(m.wakes(1), 1U);
  EXPECT_EQ(m.cpu_wakes(at), 1U);
  EXPECT_TRUE(m.replied(50).has_value());
}

TEST(Buffers, unmap_waits_for_jobs_of_the_client_that_use_it_and_not_for_others) {
  BufferMachine m(buffer_config());
  m.open_client(2, 2);
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.open_buffer(1, 2).ok());
  ASSERT_TRUE(m.map(1, at, 1).ok());
  ASSERT_TRUE(m.map(1, at, 2).ok());
  m.cpu(at, Access::write, 1);
  m.cpu(at, Access::write, 2);
  m.settle();
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {writes(1)}), 1).ok());
  ASSERT_TRUE(m.visible(1));
  ASSERT_TRUE(m.unmap(at, 60, 2).ok());
  ASSERT_TRUE(m.unmap(at, 61, 1).ok());
  ASSERT_TRUE(m.reply_to(Verb::revoke_buffer, 1));
  EXPECT_EQ(m.replied(60), Status{});
  EXPECT_EQ(m.asked(Verb::revoke_buffer, 1), nullptr);
  EXPECT_FALSE(m.replied(61).has_value());
  ASSERT_TRUE(m.finish(1));
  ASSERT_TRUE(m.reply_to(Verb::revoke_buffer, 1));
  EXPECT_EQ(m.replied(61), Status{});
}

TEST(Buffers, the_last_hold_takes_it_along_once_no_fence_uses_it) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {writes(1)})).ok());
  ASSERT_TRUE(m.close(1).ok());
  EXPECT_EQ(m.close(1).code, Code::not_held);
  EXPECT_TRUE(m.core.buffer_info(1).known);
  EXPECT_EQ(m.asked(Verb::release_buffer, 1), nullptr);
  ASSERT_TRUE(m.finish(1));
  ASSERT_TRUE(m.reply_to(Verb::release_buffer, 1));
  EXPECT_FALSE(m.core.buffer_info(1).known);
  EXPECT_TRUE(m.core.quiescent());
}

TEST(Buffers, holds_are_counted_for_each_client) {
  BufferMachine m(buffer_config());
  m.open_client(2, 2);
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.open_buffer(1, 1).ok());
  ASSERT_TRUE(m.open_buffer(1, 2).ok());
  ASSERT_TRUE(m.close(1, 1).ok());
  ASSERT_TRUE(m.close(1, 1).ok());
  EXPECT_EQ(m.close(1, 1).code, Code::not_held);
  EXPECT_EQ(m.core.buffer_info(1).holders, 1U);
  EXPECT_EQ(m.map(1, at, 1).code, Code::not_held);
  ASSERT_TRUE(m.close(1, 2).ok());
  EXPECT_FALSE(m.core.buffer_info(1).known) << "it never had memory";
}

TEST(Buffers, a_job_whose_client_gave_the_buffer_up_before_it_was_visible_fails) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.core.timeline_create(++m.now, 1, 5).ok());
  ASSERT_TRUE(m.create(1, 8).ok());
  JobSpec job = with_buffers(copy_job(1), {writes(1)});
  job.wait_points = {{5, 1}};
  ASSERT_TRUE(m.submit(job).ok());
  ASSERT_TRUE(m.close(1).ok());
  EXPECT_FALSE(m.core.buffer_info(1).known);
  ASSERT_TRUE(m.core.timeline_signal(++m.now, 1, {5, 1}).ok());
  m.take();
  m.core.verify();
  EXPECT_EQ(m.replied(1), Status(Code::not_held));
}

// --- VRAM ------------------------------------------------------------------------------------------------------------

TEST(Buffers, a_job_of_its_home_puts_it_into_vram_and_its_end_gives_the_chunks_back) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, block_pages + 1, 0).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {writes(1)})).ok());
  EXPECT_TRUE(m.runs(1));
  EXPECT_EQ(m.where(1), Where::vram);
  EXPECT_EQ(m.core.vram_used_pages(0), 2U * block_pages);
  EXPECT_EQ(m.core.stats().vram_peak_pages, 2U * block_pages);
  m.settle();
  ASSERT_TRUE(m.close(1).ok());
  ASSERT_NE(m.asked(Verb::release_buffer, 1), nullptr);
  EXPECT_EQ(m.asked(Verb::release_buffer, 1)->place, Place::vram);
  EXPECT_EQ(m.core.vram_used_pages(0), 2U * block_pages) << "until the machine has taken it";
  m.settle();
  EXPECT_EQ(m.core.vram_used_pages(0), 0U);
}

TEST(Buffers, without_room_in_vram_it_lies_in_system_memory_and_idle_chunks_come_back_for_the_next) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.core.alloc(1, 1, {0, 4 * block_pages}, Placement::automatic).ok());
  for (Page b = 0; b < 4; ++b) {
    m.fault(b * block_pages, Access::read);
    m.settle();
  }
  for (Page b = 0; b < 3; ++b) {
    m.cpu(b * block_pages);
    m.settle();
  }
  EXPECT_EQ(m.core.vram_used_pages(0), 4U * block_pages) << "chunks stay with their client";
  ASSERT_TRUE(m.create(1, 3 * block_pages, 0).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {writes(1)})).ok());
  EXPECT_TRUE(m.runs(1)) << "it does not wait";
  EXPECT_EQ(m.where(1), Where::system);
  EXPECT_EQ(m.open_count(Verb::release_chunk), 3U);
  m.settle();
  EXPECT_EQ(m.core.vram_used_pages(0), block_pages);
  ASSERT_TRUE(m.submit(with_buffers(copy_job(2), {writes(1)})).ok());
  ASSERT_NE(m.asked(Verb::move_buffer, 1), nullptr) << "now there is room";
  EXPECT_FALSE(m.visible(2));
  m.settle();
  EXPECT_EQ(m.where(1), Where::vram);
  EXPECT_EQ(m.core.stats().buffer_moves, 1U);
  ASSERT_TRUE(m.create(2, 5 * block_pages, 0).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(3), {writes(2)})).ok());
  EXPECT_EQ(m.where(2), Where::system) << "larger than all VRAM";
  m.settle();
}

TEST(Buffers, a_move_to_vram_that_fails_leaves_it_where_it_was_and_the_job_runs) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, 8, 0).ok());
  ASSERT_TRUE(m.map(1, at).ok());
  m.cpu(at);
  m.settle();
  ASSERT_EQ(m.where(1), Where::system);
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {writes(1)})).ok());
  ASSERT_TRUE(m.reply_to(Verb::revoke_buffer, 1));
  ASSERT_TRUE(m.reply_to(Verb::move_buffer, 1, Code::io_error));
  ASSERT_NE(m.asked(Verb::release_buffer, 1), nullptr);
  EXPECT_EQ(m.asked(Verb::release_buffer, 1)->place, Place::vram) << "what the move left behind";
  ASSERT_TRUE(m.reply_to(Verb::release_buffer, 1));
  EXPECT_EQ(m.where(1), Where::system);
  EXPECT_TRUE(m.runs(1));
  EXPECT_EQ(m.core.vram_used_pages(0), 0U);
  EXPECT_EQ(m.core.stats().copy_errors, 1U);
}

TEST(Buffers, another_device_finds_it_in_system_memory_if_it_is_idle_and_where_it_is_if_it_is_busy) {
  BufferMachine m(buffer_config());
  for (const BufferId b : {1, 2}) {
    ASSERT_TRUE(m.create(b, 8, 0).ok());
  }
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {writes(1), writes(2)})).ok());
  m.settle();
  ASSERT_TRUE(m.submit(with_buffers(copy_job(2), {writes(2)})).ok());
  ASSERT_TRUE(m.runs(2));
  ASSERT_TRUE(m.submit(on_device(with_buffers(copy_job(3), {reads(1), reads(2)}), 1)).ok());
  EXPECT_NE(m.asked(Verb::move_buffer, 1), nullptr);
  EXPECT_EQ(m.asked(Verb::move_buffer, 2), nullptr) << "a visible fence uses it";
  ASSERT_TRUE(m.reply_to(Verb::move_buffer, 1));
  ASSERT_TRUE(m.reply_to(Verb::release_buffer, 1));
  EXPECT_TRUE(m.visible(3));
  EXPECT_EQ(m.where(1), Where::system);
  EXPECT_EQ(m.where(2), Where::vram);
  m.settle();
  ASSERT_TRUE(m.submit(with_buffers(copy_job(4), {writes(1)})).ok());
  EXPECT_TRUE(m.runs(4));
  EXPECT_EQ(m.where(1), Where::system) << "two devices want it: it does not travel to and fro";
}

TEST(Buffers, granules_that_wait_for_vram_get_what_a_buffer_gives_back) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, 4 * block_pages, 0).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {writes(1)})).ok());
  m.settle();
  ASSERT_TRUE(m.core.alloc(1, 1, {0, block_pages}, Placement::automatic).ok());
  m.fault(0, Access::write, 1);
  m.settle();
  EXPECT_TRUE(m.went_on(1)) << "in place: nothing can be evicted";
  EXPECT_EQ(m.at(0).vram_device, no_device);
  ASSERT_TRUE(m.close(1).ok());
  m.settle();
  ASSERT_TRUE(m.core.alloc(1, 1, {block_pages, block_pages}, Placement::automatic).ok());
  m.fault(block_pages, Access::write, 2);
  m.settle();
  EXPECT_EQ(m.at(block_pages).vram_device, 0);
}

// --- the budget and the store ----------------------------------------------------------------------------------------

constexpr std::uint64_t budget = 64;
constexpr std::uint64_t room = 1024;

class Stored : public ::testing::Test {
 protected:
  Stored() {
    EXPECT_TRUE(m.create(1, 16).ok());
    EXPECT_TRUE(m.map(1, at).ok());
    m.cpu(at);
    m.settle();
  }
  static Config config(PlantedBug bug = PlantedBug::none) {
    Config c = buffer_config(budget, room);
    c.granularity_pages = 16;
    c.bug = bug;
    return c;
  }
  void store_it() {
    m.pressure(16);
    m.settle();
    ASSERT_EQ(m.where(1), Where::store);
  }
  BufferMachine m{config()};
};

TEST_F(Stored, memory_is_charged_when_it_is_used_and_given_back_when_it_has_left) {
  EXPECT_EQ(m.core.stats().system_pages, 16U);
  m.pressure(16);
  ASSERT_NE(m.asked(Verb::revoke_buffer, 1), nullptr);
  EXPECT_EQ(m.asked(Verb::move_buffer, 1), nullptr) << "a thread may still write it";
  ASSERT_TRUE(m.reply_to(Verb::revoke_buffer, 1));
  ASSERT_NE(m.asked(Verb::move_buffer, 1), nullptr);
  EXPECT_EQ(m.asked(Verb::move_buffer, 1)->to, Place::store);
  ASSERT_TRUE(m.reply_to(Verb::move_buffer, 1));
  EXPECT_EQ(m.core.stats().system_pages, 16U);
  ASSERT_NE(m.asked(Verb::release_buffer, 1), nullptr);
  EXPECT_EQ(m.asked(Verb::release_buffer, 1)->place, Place::system);
  ASSERT_TRUE(m.reply_to(Verb::release_buffer, 1));
  EXPECT_EQ(m.core.stats().system_pages, 0U);
  EXPECT_EQ(m.core.stats().stored_pages, 16U);
  EXPECT_EQ(m.core.stats().pages_to_store, 16U);
  EXPECT_EQ(m.where(1), Where::store);
  EXPECT_TRUE(m.core.quiescent());
}

TEST_F(Stored, a_fault_brings_it_back_and_wakes_once) {
  store_it();
  m.fault(at, Access::read, 1);
  m.cpu(at);
  ASSERT_NE(m.asked(Verb::move_buffer, 1), nullptr);
  EXPECT_EQ(m.asked(Verb::move_buffer, 1)->place, Place::store);
  EXPECT_EQ(m.asked(Verb::move_buffer, 1)->to, Place::system);
  ASSERT_TRUE(m.reply_to(Verb::move_buffer, 1));
  EXPECT_EQ(m.asked(Verb::release_buffer, 1)->place, Place::store);
  m.settle();
  EXPECT_EQ(m.wakes(1), 1U);
  EXPECT_EQ(m.where(1), Where::system);
  EXPECT_EQ(m.core.stats().stored_pages, 0U);
  EXPECT_EQ(m.core.stats().system_pages, 16U);
}

TEST_F(Stored, a_fault_while_it_leaves_waits_and_brings_it_back) {
  m.pressure(16);
  m.fault(at, Access::read, 1);
  m.cpu(at);
  m.settle();
  EXPECT_EQ(m.wakes(1), 1U);
  EXPECT_EQ(m.where(1), Where::system);
}

TEST_F(Stored, a_store_that_is_full_leaves_it_in_memory) {
  m.pressure(16);
  ASSERT_TRUE(m.reply_to(Verb::revoke_buffer, 1));
  ASSERT_TRUE(m.reply_to(Verb::move_buffer, 1, Code::no_space));
  m.settle();
  EXPECT_EQ(m.where(1), Where::system);
  EXPECT_EQ(m.core.stats().store_errors, 1U);
  EXPECT_EQ(m.core.stats().stored_pages, 0U);
  EXPECT_EQ(m.core.stats().system_pages, 16U);
  m.fault(at, Access::read, 1);
  m.settle();
  EXPECT_EQ(m.woken(1), Status{});
}

TEST_F(Stored, bytes_that_cannot_be_read_back_fail_the_wave_and_are_tried_again) {
  store_it();
  m.fault(at, Access::read, 1);
  ASSERT_TRUE(m.reply_to(Verb::move_buffer, 1, Code::io_error));
  EXPECT_EQ(m.asked(Verb::release_buffer, 1)->place, Place::system) << "the stored bytes stay";
  m.settle();
  EXPECT_EQ(m.woken(1), Status(Code::io_error));
  EXPECT_EQ(m.where(1), Where::store);
  EXPECT_EQ(m.core.stats().system_pages, 0U);
  EXPECT_EQ(m.core.stats().stored_pages, 16U);
  m.fault(at, Access::read, 2);
  m.settle();
  EXPECT_EQ(m.woken(2), Status{});
}

TEST_F(Stored, a_job_that_lists_bytes_which_cannot_be_read_back_fails) {
  store_it();
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {reads(1)})).ok());
  ASSERT_TRUE(m.reply_to(Verb::move_buffer, 1, Code::io_error));
  m.settle();
  EXPECT_EQ(m.replied(1), Status(Code::io_error));
  EXPECT_FALSE(m.visible(1));
}

TEST_F(Stored, a_stored_buffer_that_nobody_holds_leaves_the_store) {
  store_it();
  ASSERT_TRUE(m.close(1).ok());
  ASSERT_NE(m.asked(Verb::release_buffer, 1), nullptr);
  EXPECT_EQ(m.asked(Verb::release_buffer, 1)->place, Place::store);
  m.settle();
  EXPECT_FALSE(m.core.buffer_info(1).known);
  EXPECT_EQ(m.core.stats().stored_pages, 0U);
}

TEST_F(Stored, closing_while_it_moves_ends_well) {
  m.pressure(16);
  ASSERT_TRUE(m.close(1).ok());
  m.settle();
  EXPECT_FALSE(m.core.buffer_info(1).known);
  EXPECT_EQ(m.core.stats().stored_pages, 0U);
  EXPECT_EQ(m.core.stats().system_pages, 0U);
  EXPECT_TRUE(m.core.quiescent());
}

TEST_F(Stored, pressure_passes_a_busy_buffer_and_takes_it_when_it_is_idle) {
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {writes(1)})).ok());
  ASSERT_TRUE(m.runs(1));
  EXPECT_TRUE(m.core.buffer_info(1).busy);
  m.pressure(16);
  EXPECT_EQ(m.asked(Verb::revoke_buffer, 1), nullptr);
  ASSERT_TRUE(m.finish(1));
  EXPECT_FALSE(m.core.buffer_info(1).busy);
  store_it();
}

TEST_F(Stored, memory_for_others_waits_for_the_fence_of_a_busy_buffer) {
  ASSERT_TRUE(m.create(2, budget - 16).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {writes(1), writes(2)})).ok());
  ASSERT_TRUE(m.runs(1));
  EXPECT_EQ(m.core.stats().system_pages, budget);
  ASSERT_TRUE(m.create(3, 8).ok());
  ASSERT_TRUE(m.map(3, at + 100).ok());
  m.fault(at + 100, Access::write, 7);
  EXPECT_EQ(m.open_count(Verb::revoke_buffer) + m.open_count(Verb::move_buffer), 0U);
  EXPECT_EQ(m.core.stats().fence_waits_in_reclaim, 1U);
  EXPECT_EQ(m.wakes(7), 0U);
  ASSERT_TRUE(m.finish(1));
  m.settle();
  EXPECT_EQ(m.woken(7), Status{});
  EXPECT_EQ(m.core.stats().over_budget_pages, 0U);
  EXPECT_LE(m.core.stats().system_peak_pages, budget);
}

TEST_F(Stored, a_job_waits_for_memory_that_others_must_leave_and_is_not_visible_meanwhile) {
  ASSERT_TRUE(m.create(2, budget).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {writes(2)})).ok());
  EXPECT_FALSE(m.visible(1));
  ASSERT_TRUE(m.reply_to(Verb::revoke_buffer, 1));
  ASSERT_TRUE(m.reply_to(Verb::move_buffer, 1));
  EXPECT_FALSE(m.visible(1));
  ASSERT_TRUE(m.reply_to(Verb::release_buffer, 1));
  EXPECT_TRUE(m.runs(1));
}

TEST(BuffersWithoutStore, a_job_that_can_never_have_its_memory_is_refused) {
  Config config = buffer_config(budget, 0);
  config.granularity_pages = 16;
  BufferMachine m(config);
  EXPECT_EQ(m.create(1, budget + 1).code, Code::bad_range);
  ASSERT_TRUE(m.create(1, 40).ok());
  ASSERT_TRUE(m.create(2, 40).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {writes(1)})).ok());
  m.settle();
  ASSERT_TRUE(m.submit(with_buffers(copy_job(2), {writes(2)})).ok());
  m.settle();
  m.tick_at(m.now + 1);
  m.settle();
  EXPECT_EQ(m.replied(2), Status(Code::no_memory));
  EXPECT_EQ(m.where(2), Where::nowhere);
  EXPECT_EQ(m.core.stats().system_pages, 40U);
  ASSERT_TRUE(m.close(1).ok());
  m.settle();
  ASSERT_TRUE(m.submit(with_buffers(copy_job(3), {writes(2)})).ok());
  EXPECT_TRUE(m.runs(3));
}

TEST(PlantedBufferBugs, evict_busy_buffer_takes_memory_from_a_running_job) {
  Config config = buffer_config(budget, room);
  config.bug = PlantedBug::evict_busy_buffer;
  BufferMachine m(config);
  ASSERT_TRUE(m.create(1, 16).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {writes(1)})).ok());
  ASSERT_TRUE(m.runs(1));
  m.core.pressure(++m.now, 16);
  m.take();
  EXPECT_NE(m.asked(Verb::move_buffer, 1), nullptr);
  EXPECT_DEATH(m.core.verify(), "busy");
}

// --- policy pinned ---------------------------------------------------------------------------------------------------

TEST(Pinned, buffers_get_half_of_the_budget_and_never_move) {
  Config config = buffer_config(budget, room);
  config.models[1].policy = Policy::pinned;
  BufferMachine m(config);
  ASSERT_TRUE(m.create(1, budget / 2, 0).ok());
  EXPECT_EQ(m.create(2, 1).code, Code::no_memory);
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {writes(1)})).ok());
  EXPECT_EQ(m.where(1), Where::system) << "where every device can use it for ever";
  m.settle();
  m.pressure(budget);
  EXPECT_TRUE(m.open.empty());
  ASSERT_TRUE(m.close(1).ok());
  m.settle();
  EXPECT_TRUE(m.create(2, 1).ok());
}

// --- compute without retry faults ------------------------------------------------------------------------------------

TEST(BuffersWithoutRetry, compute_has_them_mapped_before_it_runs_and_stops_before_they_are_taken) {
  Config config = buffer_config(budget, room);
  config.granularity_pages = 16;
  config.models[0].cu_count = 1;
  config.models[0].retry_faults = false;
  BufferMachine m(config);
  ASSERT_TRUE(m.create(1, 16).ok());
  ASSERT_TRUE(m.map(1, at).ok());
  m.demand(1);
  EXPECT_EQ(m.units(), 0U);
  for (unsigned i = 0; m.asked(Verb::map_buffer, 1) == nullptr; ++i) {
    ASSERT_LT(i, 10U);
    m.tick_at(m.now + ms);
  }
  EXPECT_EQ(m.units(), 0U) << "asked for is not made";
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1));
  m.tick_at(m.now + 2 * ms);
  EXPECT_EQ(m.units(), 1U);
  m.fault(at, Access::write, 7);
  EXPECT_EQ(m.woken(7), Status(Code::kernel_fault)) << "such hardware cannot try again";
  m.tick_at(m.now + 2 * ms);
  m.pressure(16);
  EXPECT_EQ(m.asked(Verb::revoke_buffer, 1), nullptr) << "waves may still use it";
  for (unsigned i = 0; m.asked_back() == 0; ++i) {
    ASSERT_LT(i, 10U);
    m.tick_at(m.now + ms);
  }
  ASSERT_TRUE(m.leave());
  ASSERT_NE(m.asked(Verb::revoke_buffer, 1), nullptr);
  m.settle();
  EXPECT_EQ(m.where(1), Where::store);
  for (unsigned i = 0; m.units() == 0; ++i) {
    ASSERT_LT(i, 1000U);
    m.tick_at(m.now + ms);
    m.settle();
  }
  EXPECT_EQ(m.where(1), Where::system) << "brought back, and mapped, before it runs on";
}

// --- jobs ------------------------------------------------------------------------------------------------------------

TEST(BufferJobs, graphics_finds_its_buffers_mapped_before_its_fence_is_visible) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, 8, 0).ok());
  ASSERT_TRUE(m.map(1, at).ok());
  ASSERT_TRUE(m.map(1, at + 50).ok());
  ASSERT_TRUE(m.submit(with_buffers(graphics_job(1), {writes(1)})).ok());
  EXPECT_FALSE(m.visible(1));
  EXPECT_EQ(m.open_count(Verb::map_buffer), 2U);
  EXPECT_EQ(m.asked(Verb::map_buffer, 1)->device, 0);
  EXPECT_EQ(m.asked(Verb::map_buffer, 1)->place, Place::vram);
  EXPECT_EQ(m.asked(Verb::map_buffer, 1)->to_device, 0);
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1));
  EXPECT_FALSE(m.visible(1));
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1));
  EXPECT_TRUE(m.runs(1));
  ASSERT_TRUE(m.submit(with_buffers(graphics_job(2), {reads(1)})).ok());
  EXPECT_TRUE(m.visible(2)) << "mapped already";
}

TEST(BufferJobs, a_map_that_fails_refuses_the_job) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.map(1, at).ok());
  ASSERT_TRUE(m.submit(with_buffers(graphics_job(1), {writes(1)})).ok());
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1, Code::no_mappings));
  EXPECT_EQ(m.replied(1), Status(Code::no_mappings));
  m.settle();
  ASSERT_TRUE(m.submit(with_buffers(graphics_job(2), {writes(1)})).ok());
  m.settle();
  EXPECT_TRUE(m.signalled(2)->ok());
}

TEST(BufferJobs, a_lost_process_refuses_the_job_and_a_new_one_is_asked_again) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.map(1, at).ok());
  ASSERT_TRUE(m.submit(with_buffers(graphics_job(1), {writes(1)})).ok());
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1, Code::device_lost));
  EXPECT_EQ(m.replied(1), Status(Code::device_lost));
  m.core.device_gone(++m.now, 1, 0);
  m.core.device_attach(1, 0);
  ASSERT_TRUE(m.submit(with_buffers(graphics_job(2), {writes(1)})).ok());
  EXPECT_EQ(m.open_count(Verb::map_buffer), 1U);
  m.settle();
  EXPECT_EQ(m.signalled(2), Status{});
}

TEST(BufferJobs, a_process_that_goes_while_its_job_gathers_leaves_the_job_to_fail_when_it_runs) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.map(1, at).ok());
  ASSERT_TRUE(m.submit(with_buffers(graphics_job(1), {writes(1)})).ok());
  m.core.device_gone(++m.now, 1, 0);
  m.take();
  m.core.verify();
  EXPECT_TRUE(m.runs(1));
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1, Code::device_lost));
  ASSERT_TRUE(m.finish(1, Code::device_lost));
  EXPECT_EQ(m.signalled(1), Status(Code::device_lost));
  EXPECT_TRUE(m.core.quiescent());
}

TEST(BufferJobs, writers_come_after_all_and_readers_after_writers) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {reads(1)})).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(2), {reads(1)})).ok());
  EXPECT_TRUE(m.runs(1));
  EXPECT_TRUE(m.runs(2)) << "readers go together";
  ASSERT_TRUE(m.submit(with_buffers(copy_job(3), {writes(1)})).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(4), {reads(1)})).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(5), {writes(1)})).ok());
  ASSERT_TRUE(m.finish(1));
  EXPECT_FALSE(m.runs(3));
  ASSERT_TRUE(m.finish(2));
  EXPECT_TRUE(m.runs(3));
  EXPECT_FALSE(m.runs(4));
  ASSERT_TRUE(m.finish(3));
  EXPECT_TRUE(m.runs(4));
  EXPECT_FALSE(m.runs(5));
  ASSERT_TRUE(m.finish(4));
  EXPECT_TRUE(m.runs(5));
  EXPECT_TRUE(m.core.buffer_info(1).busy);
  ASSERT_TRUE(m.finish(5));
  EXPECT_FALSE(m.core.buffer_info(1).busy);
}

TEST(BufferJobs, without_implicit_sync_nothing_is_ordered_and_memory_management_still_knows) {
  BufferMachine m(buffer_config());
  BufferSpec spec;
  spec.count_pages = 8;
  spec.implicit_sync = false;
  ASSERT_TRUE(m.core.buffer_create(++m.now, 1, 1, spec).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {writes(1)})).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(2), {writes(1)})).ok());
  EXPECT_TRUE(m.runs(1));
  EXPECT_TRUE(m.runs(2));
  ASSERT_TRUE(m.finish(2));
  EXPECT_TRUE(m.core.buffer_info(1).busy) << "the first still uses it";
  ASSERT_TRUE(m.finish(1));
  EXPECT_FALSE(m.core.buffer_info(1).busy);
}

TEST(PlantedBufferBugs, skip_shared_fence_lets_a_writer_pass_its_readers) {
  Config config = buffer_config();
  config.bug = PlantedBug::skip_shared_fence;
  BufferMachine m(config);
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {reads(1)})).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(2), {writes(1)})).ok());
  EXPECT_TRUE(m.runs(1));
  EXPECT_TRUE(m.runs(2));
}

TEST(BufferJobs, buffers_of_two_clients_are_ordered_too) {
  BufferMachine m(buffer_config());
  m.open_client(2, 2);
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.open_buffer(1, 2).ok());
  ASSERT_TRUE(m.submit(with_buffers(copy_job(1), {writes(1)}), 1).ok());
  ASSERT_TRUE(m.submit(on_device(with_buffers(copy_job(2), {writes(1)}), 1), 2).ok());
  EXPECT_FALSE(m.runs(2));
  ASSERT_TRUE(m.finish(1, Code::timed_out));
  EXPECT_TRUE(m.runs(2)) << "another's failure is not this one's";
}

// --- the dead --------------------------------------------------------------------------------------------------------

TEST(BufferDeaths, a_buffer_outlives_its_maker_with_those_who_opened_it) {
  BufferMachine m(buffer_config());
  m.open_client(2, 2);
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.open_buffer(1, 2).ok());
  ASSERT_TRUE(m.map(1, at, 1).ok());
  ASSERT_TRUE(m.map(1, at, 2).ok());
  m.cpu(at, Access::write, 1);
  m.cpu(at, Access::write, 2);
  m.settle();
  m.kill(1, 2, 900);
  m.settle();
  EXPECT_TRUE(m.replied(900).has_value());
  EXPECT_EQ(m.core.buffer_info(1).holders, 1U);
  m.fault(at, Access::write, 5, 0, 2);
  m.settle();
  EXPECT_EQ(m.woken(5), Status{});
  ASSERT_TRUE(m.close(1, 2).ok());
  m.settle();
  EXPECT_FALSE(m.core.buffer_info(1).known);
}

TEST(BufferDeaths, a_client_is_not_done_before_its_device_processes_and_its_answers_are) {
  BufferMachine m(buffer_config());
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.map(1, at).ok());
  m.fault(at, Access::write, 5, 1);
  m.core.client_gone(++m.now, 1, Cookie{900});
  m.take();
  m.core.verify();
  ASSERT_TRUE(m.reply_to(Verb::map_buffer, 1));
  EXPECT_FALSE(m.replied(900).has_value());
  m.core.device_gone(++m.now, 1, 0);
  m.core.device_gone(++m.now, 1, 1);
  m.settle();
  EXPECT_TRUE(m.replied(900).has_value());
  EXPECT_EQ(m.wakes(5), 0U);
  EXPECT_FALSE(m.core.buffer_info(1).known);
  EXPECT_TRUE(m.core.quiescent());
}

TEST(BufferDeaths, the_dead_in_the_middle_of_a_move) {
  Config config = buffer_config(budget, room);
  BufferMachine m(config);
  m.open_client(2, 2);
  ASSERT_TRUE(m.create(1, 16).ok());
  ASSERT_TRUE(m.open_buffer(1, 2).ok());
  ASSERT_TRUE(m.map(1, at, 1).ok());
  ASSERT_TRUE(m.map(1, at, 2).ok());
  m.cpu(at, Access::write, 1);
  m.fault(at, Access::write, 5, 0, 1);
  m.cpu(at, Access::write, 2);
  m.settle();
  m.pressure(16);
  EXPECT_EQ(m.open_count(Verb::revoke_buffer), 3U);
  m.kill(1, 2, 900);
  EXPECT_EQ(m.asked(Verb::move_buffer, 1), nullptr);
  m.cpu(at, Access::write, 2);
  m.settle();
  EXPECT_TRUE(m.replied(900).has_value());
  EXPECT_EQ(m.where(1), Where::system) << "it left, and came back for client 2";
  EXPECT_EQ(m.cpu_wakes(at, 2), 2U);
}

TEST(BufferDeaths, jobs_of_the_dead_that_gather_memory_let_go) {
  BufferMachine m(buffer_config());
  m.open_client(2, 2);
  ASSERT_TRUE(m.create(1, 8).ok());
  ASSERT_TRUE(m.open_buffer(1, 2).ok());
  ASSERT_TRUE(m.map(1, at, 2).ok());
  ASSERT_TRUE(m.submit(with_buffers(graphics_job(1), {writes(1)}), 2).ok());
  EXPECT_FALSE(m.visible(1));
  ASSERT_TRUE(m.submit(with_buffers(copy_job(2), {writes(1)}), 1).ok());
  EXPECT_FALSE(m.visible(2)) << "one job at a time gathers";
  m.core.client_gone(++m.now, 2, Cookie{900});
  m.take();
  m.core.verify();
  EXPECT_TRUE(m.runs(2));
  m.core.device_gone(++m.now, 2, 0);
  m.core.device_gone(++m.now, 2, 1);
  m.settle();
  EXPECT_TRUE(m.replied(900).has_value());
}

}  // namespace
}  // namespace ferry::core::test
