// Who serves a touch, by what was said about the page: docs/design/0017-svm.md has the table. Only blocks that are not
// plain come here.
#include <algorithm>

#include "core/impl.h"

namespace ferry::core {
namespace {

unsigned bit_of(Page page) { return static_cast<unsigned>(page & (block_pages - 1)); }

PageMask mask_of(PageSpan span) { return PageMask::range(bit_of(span.first), static_cast<unsigned>(span.count_pages)); }

/// What the application forbade, whatever attributes say.
void protect(const Block& block, RightsList& list) {
  if (block.protection == nullptr) {
    return;
  }
  for (unsigned i = 0; i < list.size(); i += 2) {
    const PageMask held_back = list[i + 1].pages & block.protection->no_write;
    list[i].pages |= held_back;
    list[i + 1].pages.remove(held_back);
    list[i].pages.remove(block.protection->no_read);
  }
}

/// A fault serves both alike.
bool alike(const Attributes& a, const Attributes& b) {
  return a.preferred == b.preferred && a.granularity == b.granularity && a.flags == b.flags && a.access == b.access;
}

/// Contention for such pages is not ended by having them in place: one side has them at a time.
bool takes_turns(const Attributes& a, DeviceId device) {
  return a.preferred == device || (a.flags & svm_coherent) == 0;
}

/// To bring the granule to the device takes it from the CPU, or from another device, that wanted it last.
bool takes_away(const Granule& state, DeviceId device) {
  return state.last_move_cause == Cause::cpu_fault || (state.slot != none_index && state.owner != device);
}

}  // namespace

/// Calls fn(mask, attributes) for each run of attributes in the granule.
template <typename Fn>
void Core::Impl::for_attributes(const Block& block, std::uint32_t granule, Fn&& fn) const {
  block.client->svm.map.for_runs(granule_span(block, granule),
                                 [&](PageSpan span, const Attributes& a) { fn(mask_of(span), a); });
}

// --- what is allowed -------------------------------------------------------------------------------------------------

Status Core::Impl::may_touch(const Block& block, Page page, DeviceId device, Access access) const {
  const Attributes a = block.client->svm.map.at(page);
  if (a.access_of(device) == DeviceAccess::none) {
    return Code::kernel_fault;
  }
  if (access == Access::write && (a.flags & svm_gpu_ro) != 0) {
    return Code::kernel_fault;
  }
  return {};
}

/// Pages of the granule that the device maps, or maps writable, and may not.
PageMask Core::Impl::forbidden(const Block& block, std::uint32_t granule, DeviceId device) const {
  PageMask out;
  if (block.plain) {
    return out;
  }
  const DeviceView& view = block.devices[device];
  for_attributes(block, granule, [&](const PageMask& mask, const Attributes& a) {
    if (a.access_of(device) == DeviceAccess::none) {
      out |= mask & view.mapped;
    } else if ((a.flags & svm_gpu_ro) != 0) {
      out |= mask & view.writable;
    }
  });
  return out;
}

/// Pages by what a mapping on the device may allow: `write` where that is wanted and permitted. Pages that it may not
/// reach are in none.
RightsList Core::Impl::rights_of(const Block& block, std::uint32_t granule, DeviceId device, const PageMask& pages,
                                 bool write) const {
  RightsList list;
  for (unsigned i = 0; i < list.size(); ++i) {
    list[i].writable = (i & 1U) != 0;
    list[i].exec = (i & 2U) != 0;
  }
  if (block.plain) {
    list[write ? 1 : 0].pages = pages;
    protect(block, list);
    return list;
  }
  for_attributes(block, granule, [&](const PageMask& mask, const Attributes& a) {
    if (a.access_of(device) != DeviceAccess::none) {
      const bool read_only = (a.flags & svm_gpu_ro) != 0 && !planted(PlantedBug::write_map_read_only);
      list[(write && !read_only ? 1U : 0U) | ((a.flags & svm_gpu_exec) != 0 ? 2U : 0U)].pages |= mask & pages;
    }
  });
  protect(block, list);
  return list;
}

// --- where pages may go ----------------------------------------------------------------------------------------------

bool Core::Impl::is_fixed(const Client& client, Page page) const {
  return !client.svm.fixed.empty() && client.svm.fixed.contains(client.svm.groups.at(page));
}

PageMask Core::Impl::fixed_pages(const Block& block, std::uint32_t granule) const {
  PageMask out;
  const Svm& svm = block.client->svm;
  if (!block.plain && !svm.fixed.empty()) {
    svm.groups.for_runs(granule_span(block, granule), [&](PageSpan span, std::uint32_t group) {
      if (svm.fixed.contains(group)) {
        out |= mask_of(span);
      }
    });
  }
  return out;
}

/// Those of the pages that a request (`asked`), or speculation, may bring to the device's VRAM.
PageMask Core::Impl::may_go_to(const Block& block, std::uint32_t granule, DeviceId device, const PageMask& pages,
                               bool asked) const {
  if (block.plain) {
    return pages;
  }
  PageMask out;
  for_attributes(block, granule, [&](const PageMask& mask, const Attributes& a) {
    const bool wanted =
        asked ? a.access_of(device) != DeviceAccess::none
              : a.access_of(device) == DeviceAccess::migrate && (a.preferred == loc_undefined || a.preferred == device);
    if (wanted && (a.flags & svm_ext_coherent) == 0) {
      out |= mask & pages;
    }
  });
  out.remove(fixed_pages(block, granule));
  const Granule& state = block.granules[granule];
  if (state.slot != none_index && state.owner != device) {
    PageMask others = block.vram_current & granule_mask(granule);
    others.remove(out);
    if (others.any()) {
      return {};  // the slot stays for those
    }
  }
  return out;
}

/// The page, and those of its granule that a fault serves together with it.
PageMask Core::Impl::served_with(const Block& block, Page page) const {
  const Svm& svm = block.client->svm;
  const Attributes a = svm.map.at(page);
  const unsigned window = 1U << std::min<unsigned>(a.granularity, block_shift);
  PageSpan span = granule_span(block, granule_of(page));
  if (window < span.count_pages) {
    span = {page & ~Page{window - 1}, window};
  }
  PageMask out;
  svm.map.for_runs(span, [&](PageSpan run, const Attributes& other) {
    if (alike(a, other)) {
      out |= mask_of(run);
    }
  });
  if (!svm.groups.empty()) {
    const bool fixed = is_fixed(*block.client, page);
    const PageMask others = fixed_pages(block, granule_of(page));
    out = fixed ? out & others : out & ~others;
  }
  return out;
}

// --- touches ---------------------------------------------------------------------------------------------------------

void Core::Impl::serve_by_attributes(Block& block, const Waiter& waiter) {
  const Client& client = *block.client;
  const std::uint32_t granule = granule_of(waiter.page);
  const PageMask mask = granule_mask(granule);
  Granule& state = block.granules[granule];
  const Attributes a = client.svm.map.at(waiter.page);
  const DeviceId f = waiter.device;
  const bool in_vram = block.vram_current.test(bit_of(waiter.page));
  const bool at_home = (a.flags & svm_ext_coherent) != 0 || a.preferred == loc_system ||
                       block.placed_system.intersects(mask) || devices[f].chunk_total == 0 ||
                       work.userptr_in_use(client.id, granule_span(block, granule));
  if (serve_reader(block, waiter, a, at_home) || (!at_home && serve_linked(block, waiter, a))) {
    return;
  }
  PageMask pages = served_with(block, waiter.page);
  if (block.copies != nullptr) {
    pages = written_with(block, waiter, pages);
  }
  Goal goal = Goal::vram;
  Cause cause = Cause::device_fault;
  bool turn = false;
  if (at_home) {
    goal = Goal::in_place;
  } else if (a.access_of(f) == DeviceAccess::in_place || is_fixed(client, waiter.page)) {
    if (in_vram && state.owner == f) {
      pages &= block.vram_current;
    } else {
      goal = Goal::in_place;
      pages = in_vram ? pages : pages & ~block.vram_current;
    }
  } else if (is_contended(state) || (takes_away(state, f) && note_flip(block, state))) {
    if (!takes_turns(a, f)) {
      goal = Goal::in_place;
      cause = Cause::contention;
    }
    turn = goal == Goal::vram ? takes_away(state, f) || state.last_move_cause == Cause::contention
                              : in_vram && takes_turns(a, state.owner);
  }
  if (goal == Goal::vram && state.slot != none_index && state.owner != f && !can_swap_home(block, granule, f)) {
    PageMask others = block.vram_current & mask;
    others.remove(pages);
    if (others.any()) {
      goal = Goal::in_place;  // a granule has memory on one device, and that stays for pages that are not served alike
    }
  }
  Op& op = start_op(block, granule, goal, cause, f, waiter.access);
  op.pages &= pages;
  op.waiters.push_back(waiter);
  const OpIndex self = op.self;
  if (turn && wait_for_turn(op)) {
    return;
  }
  if (goal == Goal::vram) {
    bring_window(block, waiter, a);
  }
  run_op(self);
}

/// A window wider than a granule: the others in it come along while there is room, as speculation does.
void Core::Impl::bring_window(Block& block, const Waiter& waiter, const Attributes& a) {
  const std::uint64_t window = std::uint64_t{1} << std::min<unsigned>(a.granularity, block_shift);
  if (window <= config.granularity_pages || a.granularity == Attributes{}.granularity) {
    return;
  }
  const std::uint32_t first = granule_of(waiter.page & ~Page{window - 1});
  for (std::uint32_t g = first; g < first + window / config.granularity_pages; ++g) {
    const Granule& state = block.granules[g];
    if (state.op != none_index || state.slot != none_index || is_contended(state) || holds_copies(block, g) ||
        !has_free_slot(*block.client, waiter.device)) {
      continue;
    }
    PageMask pages;
    for_attributes(block, g, [&](const PageMask& mask, const Attributes& other) {
      if (alike(a, other)) {
        pages |= mask & block.allocated;
      }
    });
    pages.remove(block.freeing);
    pages = may_go_to(block, g, waiter.device, pages, false);
    if (pages.none() || block.placed_system.intersects(pages) ||
        work.userptr_in_use(block.client->id, granule_span(block, g))) {
      continue;
    }
    const bool copies = waiter.access == Access::read && reads_own_copy(*block.client, a, waiter.device);
    Op& op =
        start_op(block, g, copies ? Goal::duplicate : Goal::vram, Cause::speculation, waiter.device, waiter.access);
    op.pages &= pages;
    run_op(op.self);
  }
}

/// Pages of the granule that VRAM holds and attributes or a group keep there, whatever the CPU touches.
PageMask Core::Impl::kept_from_cpu(const Block& block, std::uint32_t granule) const {
  if (block.plain) {
    return {};
  }
  PageMask kept = fixed_pages(block, granule);
  for_attributes(block, granule, [&](const PageMask& run, const Attributes& a) {
    if ((a.flags & svm_host_access) == 0) {
      kept |= run;
    }
  });
  return kept & block.vram_current;
}

/// Threads that wait for the pages are told, and so is whoever touches them until let_cpu().
void Core::Impl::refuse_cpu(Block& block, const PageMask& pages, Code why) {
  if (pages.none()) {
    return;
  }
  pages.for_each_run([&](unsigned first, unsigned count) {
    Action& action = emit(Verb::wake_cpu, *block.client);
    action.pages = {first_page_of(block.index) + first, count};
    action.status = why;
  });
  block.cpu_waiting.remove(pages);
  Extras& extras = extras_of(block);
  block.client->refused_blocks += extras.refused.none() ? 1 : 0;
  extras.refused |= pages;
}

/// What keeps CPU threads from pages of the block may have ended: attributes, groups or pins changed, or they left VRAM.
/// May drop the block's extras.
void Core::Impl::let_cpu(Block& block) {
  if (block.extras == nullptr || block.extras->refused.none()) {
    return;
  }
  PageMask let = block.extras->refused;
  let.remove(block.extras->pinned & block.vram_current);
  for (std::uint32_t g = 0; g < block.granules.size(); ++g) {
    if (let.intersects(granule_mask(g))) {
      let.remove(kept_from_cpu(block, g));
    }
  }
  let.for_each_run([&](unsigned first, unsigned count) {
    if (!planted(PlantedBug::keep_refusal)) {
      emit(Verb::wake_cpu, *block.client).pages = {first_page_of(block.index) + first, count};
    }
  });
  block.extras->refused.remove(let);
  block.client->refused_blocks -= block.extras->refused.none() ? 1 : 0;
  drop_extras_if_empty(block);
}

/// CPU threads wait in the granule. Those that may not have their page are told; the pages that are to come home for
/// the others: some that are served alike, first come first served. None: nobody is left who waits.
PageMask Core::Impl::route_cpu(Block& block, std::uint32_t granule) {
  const PageMask mask = granule_mask(granule);
  const PageMask refused = kept_from_cpu(block, granule);
  refuse_cpu(block, refused & block.cpu_waiting, Code::not_permitted);
  unsigned first_waiting = block_pages;
  (block.cpu_waiting & mask).for_each_run([&](unsigned first, unsigned) {
    first_waiting = std::min(first_waiting, first);
  });
  if (first_waiting == block_pages) {
    return {};
  }
  PageMask pages = served_with(block, first_page_of(block.index) + first_waiting);
  pages.remove(refused);
  return pages;
}

/// The pages are to come home for the CPU from a device that has them for a slice, where they are contended.
bool Core::Impl::takes_turn(const Block& block, std::uint32_t granule, const PageMask& pages) const {
  const Granule& state = block.granules[granule];
  bool turns = false;
  for_attributes(block, granule, [&](const PageMask& mask, const Attributes& a) {
    turns = turns || (takes_turns(a, state.owner) && (mask & pages).intersects(block.vram_current));
  });
  return turns;
}

}  // namespace ferry::core
