// Attributes: what is set, what is read back, what is refused, and what each of them does to touches and mappings. No
// test here passes if its attribute is only stored.
#include "svm_machine.h"

namespace ferry::core::test {
namespace {

// --- set and get -----------------------------------------------------------------------------------------------------

TEST(SvmAttribute, a_new_allocation_has_default_attributes) {
  Asked m;
  EXPECT_EQ(m.get(all, Type::preferred_loc), loc_undefined);
  EXPECT_EQ(m.get(all, Type::prefetch_loc), loc_undefined);
  EXPECT_EQ(m.get(all, Type::access, 1), static_cast<std::uint32_t>(DeviceAccess::migrate));
  EXPECT_EQ(m.get(all, Type::set_flags), svm_host_access | svm_coherent);
  EXPECT_EQ(m.get(all, Type::clr_flags), 0xffU & ~(svm_host_access | svm_coherent));
  EXPECT_EQ(m.get(all, Type::granularity), 9U);
}

TEST(SvmAttribute, what_is_read_back_is_the_intersection_of_the_pages) {
  Asked m;
  m.set({0, 10}, {preferred(1), flags(svm_gpu_ro | svm_gpu_exec), window(4), access_of(0, DeviceAccess::in_place)});
  m.set({10, 10}, {preferred(1), flags(svm_gpu_ro), window(2), access_of(0, DeviceAccess::none)});
  EXPECT_EQ(m.get({0, 20}, Type::preferred_loc), 1U);
  EXPECT_EQ(m.get({0, 21}, Type::preferred_loc), loc_undefined) << "one page differs";
  EXPECT_EQ(m.get({0, 20}, Type::set_flags), svm_host_access | svm_coherent | svm_gpu_ro);
  EXPECT_EQ(m.get({0, 20}, Type::clr_flags), 0xffU & ~(svm_host_access | svm_coherent | svm_gpu_ro | svm_gpu_exec))
      << "gpu_exec is set on some: neither set nor cleared on all";
  EXPECT_EQ(m.get({0, 20}, Type::granularity), 2U);
  EXPECT_EQ(m.get({0, 10}, Type::access, 0), static_cast<std::uint32_t>(DeviceAccess::in_place));
  EXPECT_EQ(m.get({0, 20}, Type::access, 0), static_cast<std::uint32_t>(DeviceAccess::none));
  EXPECT_EQ(m.get({0, 20}, Type::access, 1), static_cast<std::uint32_t>(DeviceAccess::migrate));
}

TEST(SvmAttribute, lines_act_in_order_and_a_reset_takes_all_back) {
  Asked m;
  m.set({0, 10}, {flags(svm_gpu_ro), no_flags(svm_gpu_ro | svm_coherent), preferred(0), preferred(loc_system)});
  EXPECT_EQ(m.get({0, 10}, Type::set_flags), svm_host_access);
  EXPECT_EQ(m.get({0, 10}, Type::preferred_loc), loc_system);
  ASSERT_TRUE(m.core.svm_reset(++m.now, 1, {0, 5}, Cookie{3}).ok());
  m.settle();
  EXPECT_EQ(m.replied(3), Status());
  EXPECT_EQ(m.core.attributes(1, 4), Attributes{});
  EXPECT_EQ(m.core.attributes(1, 5).preferred, loc_system);
  m.set({5, 5}, {preferred(loc_undefined), flags(svm_coherent)});
  EXPECT_EQ(m.core.attributes(1, 5), Attributes{}) << "what was said was taken back";
}

TEST(SvmAttribute, the_first_wrong_line_is_named_and_nothing_has_changed) {
  Asked m;
  const std::vector<std::pair<Attribute, const char*>> bad{
      {preferred(2), "no such device"},         {prefetched(loc_undefined), "a prefetch goes somewhere"},
      {prefetched(77), "no such device"},       {access_of(2, DeviceAccess::none), "no such device"},
      {{Type::access, 0, 3}, "no such access"}, {{Type::access, no_device, 1}, "no device"},
      {flags(0x100), "no such flag"},           {no_flags(0xffff'ffff), "no such flag"},
      {window(64), "more than an address has"}, {{static_cast<Type>(6), no_device, 0}, "no such attribute"},
  };
  for (const auto& [line, why] : bad) {
    EXPECT_EQ(m.ask({0, 10}, {flags(svm_gpu_ro), preferred(0), line, window(99)}), Code::bad_range) << why;
    EXPECT_EQ(m.wrong, 2U) << why;
  }
  EXPECT_EQ(m.ask({0, 0}, {preferred(0)}), Code::bad_range);
  EXPECT_EQ(m.ask({~Page{0}, 2}, {preferred(0)}), Code::bad_range);
  EXPECT_EQ(m.ask({0, Page{1} << 53}, {preferred(0)}), Code::bad_range);
  EXPECT_EQ(m.wrong, 1U) << "no line is wrong";
  EXPECT_EQ(m.ask({9 * block_pages, 10}, {preferred(0)}), Code::not_allocated);
  EXPECT_EQ(m.ask({0, 1}, std::vector<Attribute>(attributes_max + 1, preferred(0))), Code::bad_range);
  std::vector<Attribute> queries{{Type::preferred_loc, no_device, 0}, {Type::access, 5, 0}};
  EXPECT_EQ(m.core.svm_get(1, {0, 1}, queries, m.wrong), Code::bad_range);
  EXPECT_EQ(m.wrong, 1U);
  EXPECT_EQ(m.core.svm_get(1, {9 * block_pages, 1}, queries, m.wrong), Code::bad_range);
  queries.pop_back();
  EXPECT_EQ(m.core.svm_get(1, {9 * block_pages, 1}, queries, m.wrong), Code::not_allocated);
  EXPECT_EQ(m.core.svm_reset(1, 1, {9 * block_pages, 1}, Cookie{9}), Code::not_allocated);
  for (Page page = 0; page < 10; ++page) {
    EXPECT_EQ(m.core.attributes(1, page), Attributes{});
  }
  EXPECT_TRUE(m.said.empty()) << "who is refused gets no reply";
}

TEST(SvmAttribute, a_prefetch_to_a_device_without_access_is_refused_as_a_whole) {
  Asked m;
  m.set({10, 1}, {access_of(1, DeviceAccess::none)});
  EXPECT_EQ(m.ask({0, 20}, {flags(svm_gpu_ro), prefetched(1)}), Code::not_permitted);
  EXPECT_EQ(m.wrong, 1U);
  EXPECT_EQ(m.core.attributes(1, 0), Attributes{});
  EXPECT_EQ(m.at(0).vram_device, no_device);
  m.set({0, 20}, {access_of(1, DeviceAccess::migrate), prefetched(1)});
  EXPECT_EQ(m.at(10).vram_device, 1);
  EXPECT_EQ(m.ask({0, 20}, {prefetched(1), access_of(1, DeviceAccess::none)}), Status())
      << "it has access when it is asked, and none afterwards";
  m.settle();
}

TEST(SvmAttribute, freed_pages_leave_nothing_to_what_comes_next) {
  Asked m;
  m.set({0, 2 * block_pages}, {preferred(loc_system), flags(svm_gpu_ro)});
  (void)m.touch(0);
  ASSERT_TRUE(m.core.free(++m.now, 1, {10, block_pages}, Cookie{5}).ok());
  m.settle();
  ASSERT_EQ(m.replied(5), Status());
  ASSERT_TRUE(m.core.alloc(++m.now, 1, {10, block_pages}, Placement::automatic).ok());
  EXPECT_EQ(m.core.attributes(1, 9).preferred, loc_system);
  EXPECT_EQ(m.core.attributes(1, 10), Attributes{});
  EXPECT_EQ(m.core.attributes(1, 10 + block_pages).preferred, loc_system);
  EXPECT_EQ(m.touch(block_pages, Access::write), Status());
}

TEST(SvmAttribute, pages_without_allocation_keep_nothing) {
  Asked m;
  m.set({3 * block_pages, 3 * block_pages}, {preferred(loc_system)});
  ASSERT_TRUE(m.core.alloc(++m.now, 1, {4 * block_pages, block_pages}, Placement::automatic).ok());
  EXPECT_EQ(m.core.attributes(1, 4 * block_pages), Attributes{});
  EXPECT_EQ(m.core.attributes(1, 4 * block_pages - 1).preferred, loc_system);
}

// --- access ----------------------------------------------------------------------------------------------------------

TEST(SvmAttribute, taking_access_away_takes_mappings_away_at_once) {
  Asked m;
  ASSERT_EQ(m.touch(3, Access::write, 0), Status());
  ASSERT_EQ(m.at(3).device_mapped, 1U);
  ASSERT_TRUE(m.ask({0, 8}, {access_of(0, DeviceAccess::none)}).ok());
  ASSERT_EQ(m.open_count(Verb::revoke_device), 1U);
  EXPECT_EQ(m.open[0].pages, (PageSpan{0, 8})) << "only what was asked for";
  EXPECT_EQ(m.replied(7), std::nullopt) << "it is still mapped";
  ASSERT_TRUE(m.answer(Verb::revoke_device));
  EXPECT_EQ(m.replied(7), Status());
  EXPECT_EQ(m.at(3).device_mapped, 0U);
  EXPECT_EQ(m.at(8).device_mapped, 1U);
  EXPECT_EQ(m.at(3).vram_device, 0) << "its place is not changed";
  EXPECT_EQ(m.touch(3, Access::read, 0), Code::kernel_fault);
  EXPECT_EQ(m.touch(3, Access::read, 1), Status());
  EXPECT_EQ(m.cpu_touch(3), Status());
  m.set({0, 8}, {access_of(0, DeviceAccess::migrate)});
  EXPECT_EQ(m.touch(3, Access::read, 0), Status());
}

TEST(SvmAttribute, access_taken_away_while_a_fault_is_served_is_gone_before_the_answer) {
  Asked m;
  m.fault(3, Access::write, 55);
  ASSERT_TRUE(m.answer(Verb::revoke_cpu));
  m.fault(4, Access::write, 56);
  ASSERT_TRUE(m.ask({0, 8}, {access_of(0, DeviceAccess::none)}).ok());
  m.fault(3, Access::read, 57);
  EXPECT_EQ(m.woken(57), Status(Code::kernel_fault)) << "a new touch need not wait";
  EXPECT_EQ(m.replied(7), std::nullopt);
  m.settle();
  EXPECT_EQ(m.replied(7), Status());
  EXPECT_EQ(m.at(3).device_mapped, 0U);
  EXPECT_EQ(m.woken(55), Status(Code::kernel_fault));
  EXPECT_EQ(m.woken(56), Status(Code::kernel_fault));
}

TEST(SvmAttribute, a_page_without_access_does_not_come_along_with_its_neighbour) {
  Asked m;
  m.set({4, 4}, {access_of(0, DeviceAccess::none)});
  EXPECT_EQ(m.touch(3, Access::write, 0), Status());
  EXPECT_EQ(m.at(4).device_mapped, 0U);
  EXPECT_EQ(m.at(9).device_mapped, 1U);
  EXPECT_EQ(m.at(4).vram_device, no_device);
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, all, 0, Cookie{3}).ok());
  m.settle();
  EXPECT_EQ(m.at(4).vram_device, no_device);
}

TEST(SvmAttribute, access_in_place_never_makes_pages_migrate) {
  Asked m;
  m.set(all, {access_of(0, DeviceAccess::in_place)});
  EXPECT_EQ(m.touch(3, Access::write, 0), Status());
  EXPECT_EQ(m.at(3).vram_device, no_device);
  EXPECT_EQ(m.at(3).device_writable, 1U);
  EXPECT_TRUE(m.at(3).cpu_may_map);
  EXPECT_EQ(m.touch(3, Access::write, 1), Status()) << "the other has access and migrates";
  EXPECT_EQ(m.at(3).vram_device, 1);
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, {0, 1}, 0, Cookie{3}).ok());
  m.settle();
  EXPECT_EQ(m.at(0).vram_device, 0) << "asked for by name";
  EXPECT_EQ(m.touch(0, Access::write, 0), Status());
  EXPECT_EQ(m.at(0).vram_device, 0) << "where it lies";
}

// --- locations -------------------------------------------------------------------------------------------------------

TEST(SvmAttribute, pages_that_prefer_system_memory_stay_there) {
  Asked m;
  m.set({0, 8}, {preferred(loc_system)});
  EXPECT_EQ(m.touch(3, Access::write), Status());
  EXPECT_EQ(m.at(3).vram_device, no_device);
  EXPECT_EQ(m.touch(8, Access::write), Status());
  EXPECT_EQ(m.at(8).vram_device, 0) << "its neighbours do not care";
  EXPECT_EQ(m.at(3).vram_device, no_device);
}

TEST(SvmAttribute, a_preferred_device_keeps_its_pages_in_contention) {
  Config config = Asked::config(2, block_pages);
  config.contention_threshold = 2;
  config.contention_slice_ns = 0;
  Machine m(config);
  ASSERT_TRUE(m.core.alloc(1, 1, all, Placement::automatic).ok());
  unsigned wrong = 0;
  ASSERT_TRUE(m.core.svm_set(2, 1, {0, block_pages}, {preferred(0)}, Cookie{1}, wrong).ok());
  for (int i = 0; i < 8; ++i) {
    for (const Page page : {Page{3}, Page{block_pages + 3}}) {
      m.fault(page, Access::write);
      m.settle();
    }
    if (i < 7) {
      m.cpu(3);
      m.cpu(block_pages + 3);
      m.settle();
    }
  }
  EXPECT_EQ(m.at(3).vram_device, 0);
  EXPECT_EQ(m.at(block_pages + 3).vram_device, no_device) << "without a preference it stays where both reach it";
}

TEST(SvmAttribute, a_prefetch_is_done_when_it_is_answered) {
  Asked m;
  ASSERT_TRUE(m.ask({0, 2 * block_pages}, {prefetched(1)}).ok());
  EXPECT_EQ(m.replied(7), std::nullopt);
  EXPECT_GT(m.open.size(), 0U);
  m.settle();
  EXPECT_EQ(m.replied(7), Status());
  EXPECT_EQ(m.at(0).vram_device, 1);
  EXPECT_EQ(m.at(2 * block_pages - 1).vram_device, 1);
  EXPECT_EQ(m.get({0, block_pages}, Type::prefetch_loc), 1U);
  m.set({0, block_pages}, {prefetched(loc_system)});
  EXPECT_EQ(m.at(0).vram_device, no_device);
  EXPECT_EQ(m.at(block_pages).vram_device, 1);
}

TEST(SvmAttribute, the_window_that_a_fault_brings_is_what_was_asked_for) {
  Asked m;
  m.set({0, block_pages}, {window(4)});
  EXPECT_EQ(m.touch(37, Access::write), Status());
  for (Page page = 0; page < block_pages; ++page) {
    EXPECT_EQ(m.at(page).vram_device, page / 16 == 37 / 16 ? 0 : no_device) << page;
  }
  EXPECT_EQ(m.touch(1, Access::read), Status());
  EXPECT_EQ(m.cpu_touch(37), Status());
  EXPECT_EQ(m.at(36).vram_device, no_device);
  EXPECT_EQ(m.at(1).vram_device, 0) << "the CPU takes its window, no more";
  EXPECT_EQ(m.touch(block_pages + 37), Status());
  EXPECT_EQ(m.at(block_pages).vram_device, 0) << "elsewhere whole blocks move";
}

TEST(SvmAttribute, a_window_wider_than_a_granule_brings_neighbours) {
  Asked m(1, 16);
  m.set({0, block_pages}, {window(6)});
  EXPECT_EQ(m.touch(70, Access::write), Status());
  for (Page page = 0; page < block_pages; ++page) {
    EXPECT_EQ(m.at(page).vram_device, page / 64 == 1 ? 0 : no_device) << page;
  }
}

// --- flags -----------------------------------------------------------------------------------------------------------

TEST(SvmAttribute, what_devices_may_only_read_they_cannot_write) {
  Asked m;
  ASSERT_EQ(m.touch(3, Access::write), Status());
  ASSERT_EQ(m.touch(block_pages), Status());
  m.set({0, 8}, {flags(svm_gpu_ro)});
  EXPECT_EQ(m.at(3).device_mapped, 0U) << "a writable mapping may not stay";
  EXPECT_EQ(m.at(8).device_writable, 1U);
  EXPECT_EQ(m.touch(3, Access::write), Code::kernel_fault);
  EXPECT_EQ(m.touch(3, Access::read), Status());
  EXPECT_EQ(m.at(3).device_mapped, 1U);
  EXPECT_EQ(m.at(3).device_writable, 0U);
  EXPECT_EQ(m.cpu_touch(3), Status());
  m.set({0, 8}, {preferred(loc_system)});
  EXPECT_EQ(m.touch(3, Access::read), Status());
  EXPECT_EQ(m.at(3).device_mapped, 1U) << "in place";
  EXPECT_EQ(m.at(3).device_writable, 0U);
  EXPECT_EQ(m.touch(3, Access::write), Code::kernel_fault);
  m.set({0, 8}, {no_flags(svm_gpu_ro)});
  EXPECT_EQ(m.touch(3, Access::write), Status());
  EXPECT_EQ(m.at(3).device_writable, 1U);
}

TEST(SvmAttribute, only_what_is_said_to_hold_code_is_mapped_for_execution) {
  Asked m;
  m.set({8, 8}, {flags(svm_gpu_exec)});
  m.fault(9);
  while (m.mapping(9) == nullptr) {
    ASSERT_FALSE(m.open.empty());
    m.answer(m.open.front().verb);
  }
  EXPECT_TRUE(m.mapping(9)->exec);
  EXPECT_EQ(m.mapping(9)->pages, (PageSpan{8, 8}));
  m.settle();
  m.fault(3);
  while (m.mapping(3) == nullptr) {
    ASSERT_FALSE(m.open.empty());
    m.answer(m.open.front().verb);
  }
  EXPECT_FALSE(m.mapping(3)->exec);
  m.settle();
  ASSERT_TRUE(m.ask({0, 8}, {flags(svm_gpu_exec)}).ok());
  ASSERT_EQ(m.open_count(Verb::revoke_device), 1U) << "the mapping that exists does not allow it";
  m.settle();
  EXPECT_EQ(m.at(3).device_mapped, 0U);
  EXPECT_EQ(m.at(9).device_mapped, 1U);
}

TEST(SvmAttribute, without_host_access_a_cpu_touch_of_vram_fails_and_moves_nothing) {
  Asked m;
  m.set({0, 8}, {no_flags(svm_host_access)});
  EXPECT_EQ(m.cpu_touch(3), Status()) << "in system memory it is reached";
  ASSERT_EQ(m.touch(3, Access::write), Status());
  ASSERT_EQ(m.touch(9, Access::write), Status());
  EXPECT_EQ(m.cpu_touch(3), Code::not_permitted);
  EXPECT_EQ(m.at(3).vram_device, 0);
  EXPECT_EQ(m.cpu_touch(9), Status());
  EXPECT_EQ(m.at(9).vram_device, no_device);
  EXPECT_EQ(m.at(3).vram_device, 0) << "nor does it come along with a neighbour";
  m.set({0, 8}, {flags(svm_host_access)});
  EXPECT_EQ(m.cpu_touch(3), Status());
}

TEST(SvmAttribute, without_coherence_contention_takes_turns) {
  Config config = Asked::config(1, block_pages);
  config.contention_threshold = 2;
  config.contention_slice_ns = 0;
  Machine m(config);
  ASSERT_TRUE(m.core.alloc(1, 1, all, Placement::automatic).ok());
  unsigned wrong = 0;
  ASSERT_TRUE(m.core.svm_set(2, 1, {0, block_pages}, {no_flags(svm_coherent)}, Cookie{1}, wrong).ok());
  for (int i = 0; i < 8; ++i) {
    m.cpu(3);
    m.cpu(block_pages + 3);
    m.settle();
    m.fault(3, Access::write);
    m.fault(block_pages + 3, Access::write);
    m.settle();
  }
  EXPECT_EQ(m.at(3).vram_device, 0);
  EXPECT_FALSE(m.at(3).cpu_may_map) << "one has it at a time";
  EXPECT_TRUE(m.at(block_pages + 3).cpu_may_map) << "both at once";
  EXPECT_EQ(m.at(block_pages + 3).device_writable, 1U);
}

TEST(SvmAttribute, what_is_coherent_with_everything_comes_home_and_stays) {
  Asked m;
  ASSERT_EQ(m.touch(3, Access::write), Status());
  ASSERT_TRUE(m.ask({0, block_pages}, {flags(svm_ext_coherent)}).ok());
  EXPECT_EQ(m.replied(7), std::nullopt);
  m.settle();
  EXPECT_EQ(m.replied(7), Status());
  EXPECT_EQ(m.at(3).vram_device, no_device);
  EXPECT_EQ(m.touch(3, Access::write, 0), Status());
  EXPECT_EQ(m.touch(3, Access::write, 1), Status());
  EXPECT_EQ(m.at(3).device_writable, 3U) << "both, and the CPU, in one memory";
  EXPECT_TRUE(m.at(3).cpu_may_map);
  m.set({0, block_pages}, {preferred(0), prefetched(0)});
  EXPECT_EQ(m.at(3).vram_device, no_device) << "whatever else is asked";
  EXPECT_EQ(m.touch(4, Access::write, 0), Status());
  EXPECT_EQ(m.at(4).vram_device, no_device);
}

TEST(SvmAttribute, what_is_always_mapped_needs_no_touch) {
  Asked m;
  ASSERT_EQ(m.touch(block_pages, Access::write, 1), Status());
  m.set({0, 2 * block_pages}, {access_of(1, DeviceAccess::in_place), flags(svm_always_mapped)});
  for (const Page page : {Page{0}, Page{block_pages}, Page{2 * block_pages - 1}}) {
    EXPECT_EQ(m.at(page).device_writable, 3U) << page;
  }
  EXPECT_EQ(m.at(2 * block_pages).device_mapped, 0U);
  m.set({0, block_pages}, {access_of(1, DeviceAccess::none)});
  EXPECT_EQ(m.at(0).device_writable, 1U);
}

// --- groups ----------------------------------------------------------------------------------------------------------

TEST(SvmAttribute, a_group_that_may_not_migrate_stays_where_it_is) {
  Asked m;
  ASSERT_EQ(m.touch(block_pages, Access::write, 0), Status());
  ASSERT_TRUE(m.core.group_assign(++m.now, 1, {0, 2 * block_pages}, 5).ok());
  ASSERT_TRUE(m.core.group_migration(++m.now, 1, 5, false).ok());
  EXPECT_EQ(m.touch(3, Access::write, 0), Status());
  EXPECT_EQ(m.at(3).vram_device, no_device);
  EXPECT_EQ(m.at(3).device_writable, 1U) << "in place";
  EXPECT_EQ(m.cpu_touch(block_pages), Code::not_permitted);
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, {0, 2 * block_pages}, 1, Cookie{4}).ok());
  m.settle();
  ASSERT_TRUE(m.core.prefetch(++m.now, 1, {0, 2 * block_pages}, no_device, Cookie{5}).ok());
  m.settle();
  EXPECT_EQ(m.at(3).vram_device, no_device);
  EXPECT_EQ(m.at(block_pages).vram_device, 0);
  ASSERT_TRUE(m.core.group_migration(++m.now, 1, 5, true).ok());
  EXPECT_EQ(m.cpu_touch(block_pages), Status());
  EXPECT_EQ(m.touch(3, Access::write, 1), Status());
  EXPECT_EQ(m.at(3).vram_device, 1);
  EXPECT_EQ(m.core.group_assign(1, 1, {9 * block_pages, 1}, 5), Code::not_allocated);
  EXPECT_EQ(m.core.group_assign(1, 1, {0, 0}, 5), Code::bad_range);
  EXPECT_EQ(m.core.group_migration(1, 1, 0, false), Code::bad_range);
}

TEST(SvmAttribute, a_group_that_may_not_migrate_is_no_victim) {
  const auto place_after_pressure = [](bool allowed) {
    Asked m(1);
    EXPECT_TRUE(m.core.alloc(++m.now, 1, {8 * block_pages, 8 * block_pages}, Placement::automatic).ok());
    for (Page b = 0; b < 4; ++b) {
      EXPECT_EQ(m.touch(b * block_pages, Access::write), Status());
    }
    EXPECT_TRUE(m.core.group_assign(++m.now, 1, {0, 2 * block_pages}, 5).ok());
    EXPECT_TRUE(m.core.group_migration(++m.now, 1, 5, allowed).ok());
    for (Page b = 8; b < 16; ++b) {
      EXPECT_EQ(m.touch(b * block_pages, Access::write), Status());
    }
    EXPECT_GT(m.core.stats().evictions, 0U);
    return m.at(0).vram_device == 0 && m.at(block_pages).vram_device == 0;
  };
  EXPECT_TRUE(place_after_pressure(false));
  EXPECT_FALSE(place_after_pressure(true));
}

TEST(SvmAttribute, what_was_on_its_way_up_when_it_became_coherent_comes_home_too) {
  Asked m;
  m.fault(3, Access::write, 55);
  ASSERT_TRUE(m.answer(Verb::revoke_cpu));
  ASSERT_EQ(m.open_count(Verb::copy), 1U);
  ASSERT_TRUE(m.ask({0, block_pages}, {flags(svm_ext_coherent)}).ok());
  m.settle();
  EXPECT_EQ(m.replied(7), Status());
  EXPECT_TRUE(m.went_on(55));
  EXPECT_EQ(m.at(3).vram_device, no_device);
}

}  // namespace
}  // namespace ferry::core::test
