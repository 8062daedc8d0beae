// Pages that are read much and written seldom (svm_read_mostly): whoever reads one gets a copy of its own beside the
// others', and takes nothing from them. What makes one copy of many again is in collapse.cpp.
//
// | a touch of a page that       | nobody has a copy of            | has copies                                          |
// |------------------------------|---------------------------------|-----------------------------------------------------|
// | reads, by device d           | d's VRAM becomes its home, the CPU keeps reading | d gets one too; without room it reads system memory |
// | reads, by the CPU            | copied home, d keeps reading    | the same                                            |
// | writes, by device d          | as without the flag             | the page alone: the others' go, d's stays           |
// | writes, by the CPU           | as without the flag             | the page alone: all go, system memory stays         |
#include "core/impl.h"

namespace ferry::core {
namespace {

unsigned bit_of(Page page) { return static_cast<unsigned>(page & (block_pages - 1)); }

}  // namespace

Copies& Core::Impl::copies_of(Block& block) {
  if (block.copies == nullptr) {
    block.copies = std::make_unique<Copies>();
    block.copies->current.resize(devices.size());
    block.copies->slots.assign(block.granules.size() * devices.size(), none_index);
  }
  return *block.copies;
}

/// Pages that some device has a copy of, beside their home.
PageMask Core::Impl::copied(const Block& block) {
  PageMask out;
  if (block.copies != nullptr) {
    for (const PageMask& current : block.copies->current) {
      out |= current;
    }
  }
  return out;
}

/// Pages that are read from more than one memory: nobody may write them.
PageMask Core::Impl::shared(const Block& block) {
  if (block.copies == nullptr) {
    return {};
  }
  PageMask read_at_home = block.cpu_mapped;
  for (const DeviceView& view : block.devices) {
    read_at_home |= view.in_place;
  }
  return copied(block) | (read_at_home & block.vram_current);
}

/// Pages of the granule that the device's own VRAM has.
PageMask Core::Impl::has_here(const Block& block, std::uint32_t granule, DeviceId device) const {
  const Granule& state = block.granules[granule];
  if (state.slot != none_index && state.owner == device) {
    return block.vram_current & granule_mask(granule);
  }
  return block.copies == nullptr ? PageMask() : block.copies->current[device] & granule_mask(granule);
}

bool Core::Impl::holds_copies(const Block& block, std::uint32_t granule) const {
  for (DeviceId d = 0; block.copies != nullptr && d < devices.size(); ++d) {
    if (copy_slot(block, granule, d) != none_index) {
      return true;
    }
  }
  return false;
}

/// Where mappings are made ahead of a touch they allow writing, and a copy that may be written is none.
bool Core::Impl::reads_own_copy(const Client& client, const Attributes& a, DeviceId device) const {
  return (a.flags & svm_read_mostly) != 0 && (a.flags & (svm_ext_coherent | svm_always_mapped)) == 0 &&
         (device == no_device ? client.svm.retry_faults : retry_faults(client, device));
}

PageMask Core::Impl::read_mostly(const Block& block, std::uint32_t granule, DeviceId device) const {
  PageMask out;
  if (!block.plain) {
    block.client->svm.map.for_runs(granule_span(block, granule), [&](PageSpan span, const Attributes& a) {
      if (reads_own_copy(*block.client, a, device)) {
        out |= PageMask::range(bit_of(span.first), static_cast<unsigned>(span.count_pages));
      }
    });
  }
  return out;
}

// --- touches ---------------------------------------------------------------------------------------------------------

void Core::Impl::note_cpu_access(Block& block, unsigned bit, Access access) {
  const bool waits = block.cpu_waiting.test(bit);
  if (access == Access::read && !waits &&
      reads_own_copy(*block.client, block.client->svm.map.at(first_page_of(block.index) + bit), no_device)) {
    copies_of(block).cpu_reads.set(bit);
  } else if (access == Access::write && block.copies != nullptr) {
    block.copies->cpu_reads.reset(bit);
  }
}

/// A device reads a page. True: it gets it beside others. `at_home`: it may have no copy of its own.
bool Core::Impl::serve_reader(Block& block, const Waiter& waiter, const Attributes& a, bool at_home) {
  const Client& client = *block.client;
  const DeviceId f = waiter.device;
  const std::uint32_t granule = granule_of(waiter.page);
  const Granule& state = block.granules[granule];
  const unsigned bit = bit_of(waiter.page);
  if (waiter.access != Access::read || !reads_own_copy(client, a, f)) {
    return false;
  }
  if ((a.flags & svm_hive_local) != 0 && block.vram_current.test(bit) && linked(state.owner, f) && a.preferred != f) {
    return false;  // one copy a hive
  }
  PageMask pages = served_with(block, waiter.page);
  const PageMask in_vram = block.vram_current | copied(block);
  const bool here = has_here(block, granule, f).test(bit);
  if (here) {
    pages &= has_here(block, granule, f);  // what is around it may have to stay elsewhere
  }
  at_home = !here && (at_home || a.access_of(f) == DeviceAccess::in_place || is_fixed(client, waiter.page) ||
                      is_contended(state));
  if (at_home) {
    if (!in_vram.test(bit)) {
      return false;
    }
    pages &= in_vram;
    pages.remove(block.devices[f].mapped);
  }
  copies_of(block);
  Op& op = start_op(block, granule, Goal::duplicate, Cause::device_fault, f, Access::read);
  op.pages &= pages;
  op.at_home = at_home;
  op.waiters.push_back(waiter);
  const OpIndex self = op.self;
  if (!at_home) {
    bring_window(block, waiter, a);
  }
  run_op(self);
  return true;
}

/// Of the pages that are served together with a touch: one that ends copies ends those of its page alone, and others end
/// none.
PageMask Core::Impl::written_with(const Block& block, const Waiter& waiter, const PageMask& pages) const {
  const PageMask many = shared(block);
  const unsigned bit = bit_of(waiter.page);
  return many.test(bit) ? PageMask::range(bit, 1) : pages & ~many;
}

/// CPU threads wait in the granule; `pages` are those that the first of them is served with. True: it reads, and gets the
/// page beside others. False: it is served by moving `pages`, of which those are left that may.
bool Core::Impl::serve_cpu_reader(Block& block, std::uint32_t granule, PageMask& pages) {
  unsigned bit = block_pages;
  (block.cpu_waiting & pages).for_each_run([&](unsigned first, unsigned) { bit = std::min(bit, first); });
  const Page page = first_page_of(block.index) + bit;
  if (bit == block_pages || !reads_own_copy(*block.client, block.client->svm.map.at(page), no_device)) {
    return false;
  }
  const PageMask in_vram = block.vram_current | copied(block);
  if (block.copies->cpu_reads.test(bit) && in_vram.test(bit) && !pinned(block, PageMask::range(bit, 1)).any()) {
    Op& op = start_op(block, granule, Goal::duplicate, Cause::cpu_fault, no_device, Access::read);
    op.pages &= pages & in_vram;
    run_op(op.self);
    return true;
  }
  pages = written_with(block, {{}, page, no_device, Access::write}, pages);
  return false;
}

/// A request for the granule, of which `pages` are wanted on its device: those that are read mostly are copied there, and
/// taken out of `pages`. True: an operation was begun.
bool Core::Impl::prefetch_copy(std::uint32_t index, Block& block, std::uint32_t granule, PageMask& pages) {
  PrefetchRequest& request = prefetches[index];
  const DeviceId device = request.device;
  PageMask readers = read_mostly(block, granule, device) & pages;
  if (device == no_device) {
    readers &= block.vram_current | copied(block);
  }
  if (readers.none() ||
      (device != no_device && (block.placed_system.intersects(pages) || is_contended(block.granules[granule]) ||
                               !block.client->devices[device].attached ||
                               work.userptr_in_use(block.client->id, granule_span(block, granule))))) {
    return false;
  }
  pages.remove(readers);
  readers.remove(device == no_device ? block.cpu_mapped : has_here(block, granule, device));
  if (pages.any() || readers.none()) {
    return false;  // a request begins one operation a granule: what has to move goes first
  }
  copies_of(block);
  ++request.started_granules;
  ++request.in_flight;
  Op& op = start_op(block, granule, Goal::duplicate, Cause::prefetch, device, Access::read);
  op.pages &= readers;
  op.prefetches.push_back(index);
  run_op(op.self);
  return true;
}

// --- stages ----------------------------------------------------------------------------------------------------------

void Core::Impl::route_duplicate(Op& op) {
  const DeviceId f = op.device;
  if (f != no_device && !op.block->client->devices[f].attached) {
    op.stage = Stage::finished;
    return;
  }
  const Granule& state = granule_state(op);
  const bool has_slot = f == no_device || op.at_home || (state.slot != none_index && state.owner == f) ||
                        copy_slot(*op.block, op.granule, f) != none_index;
  op.stage = has_slot ? Stage::revoke_source : Stage::wait_slot;
}

/// Whoever holds a slot must not wait for another (block/direct.cpp): without room the device reads system memory, and
/// something leaves for who comes next. False: the operation waits, as one that holds none, or has ended.
bool Core::Impl::take_copy_slot(Op& op) {
  Block& block = *op.block;
  const Granule& state = granule_state(op);
  if (state.slot == none_index && !holds_copies(block, op.granule)) {
    if (!acquire_slot(op)) {
      return false;
    }
    op.stage = Stage::revoke_source;
    return true;
  }
  const DeviceId f = op.device;
  Client& client = *block.client;
  Device& dev = devices[f];
  VramPage first = 0;
  if (dev.waiting.empty() && take_slot(client, f, first)) {
    copies_of(block).slots[op.granule * devices.size() + f] = insert_slot(op, first, VictimPolicy::none_distance);
    ++dev.copy_slots;
    op.stage = Stage::revoke_source;
    return true;
  }
  if (op.waiters.empty()) {
    op.stage = Stage::finished;
    return true;
  }
  op.at_home = true;
  op.stage = Stage::begin;
  if (dev.waiting.empty() && dev.reclaims == 0) {
    reclaim_one(f, client);
  }
  return true;
}

/// Nobody may write what is about to be read from several memories. Readers go on reading.
void Core::Impl::protect_source(Op& op) {
  Block& block = *op.block;
  const bool to_vram = op.device != no_device && !op.at_home;
  PageMask going = op.pages;
  written(block, going);
  if (to_vram) {
    going.remove(has_here(block, op.granule, op.device));
    PageMask may_write = going & block.cpu_mapped;
    may_write.remove(copies_of(block).cpu_read_only);
    for_spans(op, may_write, [&](PageSpan span) { ask(Verb::protect_cpu, op, span); });
  }
  for (DeviceId d = 0; d < devices.size(); ++d) {
    const DeviceView& view = block.devices[d];
    revoke_device(op, d, going & (to_vram && d == op.device ? view.writable | view.in_place : view.writable));
  }
}

/// What is not in system memory yet comes there, but for what goes from device to device.
void Core::Impl::gather(Op& op) {
  const Block& block = *op.block;
  PageMask wanted = op.pages;
  if (op.device != no_device && !op.at_home) {
    wanted.remove(has_here(block, op.granule, op.device));
    if (linked(granule_state(op).owner, op.device)) {
      wanted.remove(block.vram_current);
    }
  }
  copy_home(op, wanted);
}

/// False: stored pages are on their way; once more when they are there.
bool Core::Impl::fill(Op& op) {
  Block& block = *op.block;
  const Granule& state = granule_state(op);
  const DeviceId f = op.device;
  const bool to_vram = f != no_device && !op.at_home;
  PageMask going = op.pages;
  PageMask direct;
  if (to_vram) {
    going.remove(has_here(block, op.granule, f));
    if (state.slot != none_index && linked(state.owner, f)) {
      direct = going & block.vram_current;
    }
  }
  if (reclaim.counts() && load(op, going & ~direct & block.held)) {
    return false;
  }
  op.stage = Stage::map_copy;
  going &= block.system_current | direct;
  if (!to_vram || going.none()) {
    return true;
  }
  if (!op.moved || op.moved_to != Place::vram) {
    tell_moved(op, Place::vram);
    count(*block.client, [](Stats& s) { ++s.migrations_to_vram; });
    if (op.cause == Cause::speculation) {
      const std::uint64_t pages = going.count();
      count(*block.client, [pages](Stats& s) { s.speculated_pages += pages; });
    }
  }
  const unsigned granule_first = op.granule * config.granularity_pages;
  const bool home = state.slot != none_index && state.owner == f;
  const VramPage to = devices[f].slots[home ? state.slot : copy_slot(block, op.granule, f)].first;
  const auto at = [&](PageSpan span) { return static_cast<VramPage>(bit_of(span.first) - granule_first); };
  for_spans(op, going & ~direct, [&](PageSpan span) {
    Action& action = ask(Verb::copy, op, span);
    action.place = Place::system;
    action.vram_first = to + at(span);
  });
  for_spans(op, direct, [&](PageSpan span) {
    Action& action = ask(Verb::copy, op, span);
    pendings[static_cast<std::uint32_t>((action.id & 0xffff'ffff) - 1)].device = state.owner;
    action.device = state.owner;
    action.place = Place::vram;
    action.vram_first = devices[state.owner].slots[state.slot].first + at(span);
    action.to = Place::vram;
    action.to_device = f;
    action.vram_to = to + at(span);
  });
  return true;
}

/// A copy of goal duplicate ended well.
void Core::Impl::copy_arrived(Op& op, const Pending& pending, const PageMask& pages) {
  Block& block = *op.block;
  const Granule& state = granule_state(op);
  const std::uint64_t moved = pages.count();
  count(*block.client, [moved](Stats& s) { s.pages_duplicated += moved; });
  if (op.stage != Stage::map_copy) {
    block.system_current |= pages;
    count(*block.client, [moved](Stats& s) { s.pages_to_system += moved; });
    return;
  }
  if (state.slot != none_index && state.owner == op.device) {
    block.vram_current |= pages;
  } else {
    copies_of(block).current[op.device] |= pages;
  }
  const bool direct = pending.device != op.device;
  count(*block.client, [moved, direct](Stats& s) { (direct ? s.pages_direct : s.pages_to_vram) += moved; });
}

void Core::Impl::map_copy(Op& op) {
  Block& block = *op.block;
  Client& client = *block.client;
  Granule& state = granule_state(op);
  const DeviceId f = op.device;
  tell(EventKind::duplicate, client, f, granule_span(block, op.granule), op.cause);
  if (f == no_device) {
    map_cpu_reading(op);
    return;
  }
  if (!client.devices[f].attached) {
    return;
  }
  DeviceView& view = block.devices[f];
  if (op.at_home) {
    PageMask pages = op.pages & block.system_current;
    if (reclaim.counts()) {
      pages &= block.held;
    }
    pages.remove(view.mapped);
    forget_stored(op, pages);
    map_reading(op, pages, Place::system, no_device, 0);
    return;
  }
  const bool home = state.slot != none_index && state.owner == f;
  const SlotIndex slot = home ? state.slot : copy_slot(block, op.granule, f);
  if (home) {
    state.last_move_cause = op.cause;
    state.last_move_ns = now_ns;
    state.op_failed = false;
  }
  devices[f].victims.reference(slot, devices[f].evictions);
  PageMask pages = op.pages & has_here(block, op.granule, f);
  pages.remove(view.mapped);
  map_reading(op, pages, Place::vram, f, devices[f].slots[slot].first);
}

/// Maps the pages on the operation's device, read-only. `first`: in VRAM, the granule's.
void Core::Impl::map_reading(Op& op, const PageMask& pages, Place place, DeviceId device, VramPage first) {
  Block& block = *op.block;
  DeviceView& view = block.devices[op.device];
  const unsigned granule_first = op.granule * config.granularity_pages;
  PageMask mapped;
  for (const Rights& rights : rights_of(block, op.granule, op.device, pages, false)) {
    mapped |= rights.pages;
    for_spans(op, rights.pages, [&](PageSpan span) {
      Action& action = ask(Verb::map_device, op, span);
      action.place = place;
      action.prot = Prot::read;
      action.exec = rights.exec;
      if (device != no_device) {
        action.vram_first = first + static_cast<VramPage>(bit_of(span.first) - granule_first);
      }
      give_token(op, action);
    });
  }
  view.mapped |= mapped;
  view.writable.remove(mapped);
  if (place == Place::system && mapped.any()) {
    const std::uint64_t opened = (mapped & ~view.in_place).count();
    view.in_place |= mapped;
    count(*block.client, [opened](Stats& s) {
      s.dma_mapped_pages += opened;
      ++s.in_place_maps;
    });
    tell(EventKind::map_in_place, *block.client, op.device, granule_span(block, op.granule), op.cause, op.access);
  }
}

/// Threads that want to write wait on: their pages are looked at when the operation has ended.
void Core::Impl::map_cpu_reading(Op& op) {
  Block& block = *op.block;
  Copies& copies = copies_of(block);
  PageMask pages = op.pages & block.system_current;
  if (reclaim.counts()) {
    pages &= block.held;
  }
  pages.remove(block.cpu_waiting & ~copies.cpu_reads);
  const PageMask waiting = block.cpu_waiting & pages;
  pages.remove(block.cpu_mapped & ~waiting);
  if (waiting.none() && op.cause != Cause::prefetch) {
    return;
  }
  forget_stored(op, pages);
  const bool writable = planted(PlantedBug::map_copied_writable);
  PageMask read_only = pages;
  // What the CPU may write already it has alone.
  read_only.remove(block.cpu_mapped & ~copies.cpu_read_only);
  copies.cpu_read_only |= read_only;
  block.cpu_mapped |= pages;
  block.cpu_waiting.remove(pages);
  for_spans(op, pages, [&](PageSpan span) {
    Action& action = ask(Verb::map_cpu, op, span);
    action.prot = writable ? Prot::read_write : Prot::read;
    pendings[static_cast<std::uint32_t>((action.id & 0xffff'ffff) - 1)].wakes_cpu =
        waiting.intersects(PageMask::range(bit_of(span.first), static_cast<unsigned>(span.count_pages)));
  });
}

/// Something of the last stage of goal duplicate failed. As stage_failed().
bool Core::Impl::duplicate_failed(Op& op, Status failure) {
  if (op.retry.any()) {
    op.retry = {};
    op.move_status = Code::io_error;
    if (++op.copy_failures <= config.copy_retries) {
      op.stage = Stage::revoke_source;  // what arrived is marked current and is not copied again
      return true;
    }
    if (op.stage != Stage::map_copy) {
      fail_waiters(op, Code::io_error);  // as where copies home fail: CPU threads wait on
      return false;
    }
    release_unused(op);
    if (op.waiters.empty()) {
      return false;
    }
    op.at_home = true;
    op.copy_failures = 0;
    op.stage = Stage::begin;
    return true;
  }
  if (op.device == no_device) {
    if (op.block->copies != nullptr) {
      op.block->copies->cpu_reads.remove(op.pages);  // next time they ask for what can always be given
    }
    return false;
  }
  if (failure.code == Code::device_lost) {
    return false;
  }
  // What the device reaches of them is unknown.
  revoke_device(op, op.device, op.pages);
  release_unused(op);
  redirect(op, Goal::in_place);
  return true;
}

/// VRAM that was taken and holds nothing.
void Core::Impl::release_unused(Op& op) {
  Block& block = *op.block;
  const DeviceId f = op.device;
  if (f == no_device) {
    return;
  }
  const Granule& state = granule_state(op);
  if (state.slot != none_index && state.owner == f && has_here(block, op.granule, f).none()) {
    release_slot(block, op.granule);
  } else if (copy_slot(block, op.granule, f) != none_index &&
             !block.copies->current[f].intersects(granule_mask(op.granule))) {
    release_copy(block, op.granule, f);
  }
}

}  // namespace ferry::core
