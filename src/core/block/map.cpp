// What an operation does to mappings and copies, stage by stage. Bits in `mapped` are set when the mapping is asked for
// and cleared when its revocation is answered: they say "may be reachable", so an error can only make them too careful.
#include "core/impl.h"

namespace ferry::core {
void Core::Impl::mark_revoked(Block& block, DeviceId device, const PageMask& pages) {
  DeviceView& view = block.devices[device];
  if (view.in_place.intersects(pages)) {
    const std::uint64_t closed = (view.in_place & pages).count();
    count(*block.client, [closed](Stats& s) { s.dma_unmapped_pages += closed; });
    view.in_place.remove(pages);
  }
  view.mapped.remove(pages);
  view.writable.remove(pages);
  view.peer.remove(pages);
}

void Core::Impl::revoke_device(Op& op, DeviceId device, const PageMask& pages) {
  for_spans(op, pages & op.block->devices[device].mapped, [&](PageSpan span) {
    tell(EventKind::unmap_device, *op.block->client, device, span, op.cause);
    Action& action = ask(Verb::revoke_device, op, span);
    action.device = device;
    pendings[static_cast<std::uint32_t>((action.id & 0xffff'ffff) - 1)].device = device;
    if (!retry_faults(*op.block->client, device) || always_mapped(*op.block, span, device)) {
      work.hold_revocation(op.block->client->id, device);
    }
  });
}

/// Before pages go up: the CPU and every in-place mapping must let go of those that will be copied.
void Core::Impl::revoke_for_vram(Op& op) {
  Block& block = *op.block;
  PageMask going = op.pages;
  going.remove(block.vram_current);
  if (going.none()) {
    return;
  }
  if (planted(PlantedBug::skip_cpu_revoke)) {
    block.cpu_mapped.remove(going);
  } else {
    for_spans(op, going & block.cpu_mapped, [&](PageSpan span) { ask(Verb::revoke_cpu, op, span); });
  }
  for (DeviceId d = 0; d < devices.size(); ++d) {
    revoke_device(op, d, going & block.devices[d].in_place);
  }
}

/// Before pages go home: the owner must let go of its VRAM.
void Core::Impl::revoke_vram(Op& op) {
  Block& block = *op.block;
  const Granule& state = granule_state(op);
  if (state.slot == none_index) {
    return;
  }
  PageMask reachable = op.pages & block.vram_current;
  const bool skip = (op.cause == Cause::evict && planted(PlantedBug::skip_device_revoke)) ||
                    (op.cause == Cause::cpu_fault && planted(PlantedBug::map_both_writable));
  if (skip) {
    mark_revoked(block, state.owner, reachable);
    return;
  }
  revoke_device(op, state.owner, reachable);
  if (!config.hives.empty() && op.goal != Goal::probe) {
    revoke_peers(op, reachable);
  }
  if (op.cause == Cause::evict && planted(PlantedBug::free_before_revoke)) {
    release_slot(block, op.granule);
  }
}

void Core::Impl::revoke_everything(Op& op) {
  for (DeviceId d = 0; d < devices.size(); ++d) {
    revoke_device(op, d, op.pages);
  }
}

void Core::Impl::copy_home(Op& op, const PageMask& pages) {
  Block& block = *op.block;
  const Granule& state = granule_state(op);
  PageMask dirty = pages & block.vram_current;
  dirty.remove(block.system_current);
  // What the store has too needs no copy, unless it is wanted here; whoever came to want it since the operation was
  // charged is looked at when it ends.
  dirty.remove(wants_system(op) ? block.stored & ~block.held : block.stored);
  if (op.cause == Cause::evict && block.extras != nullptr) {
    drop_discarded(op, dirty);
  }
  if (dirty.none()) {
    return;
  }
  const bool drops_last = op.cause == Cause::evict && block.copies != nullptr && planted(PlantedBug::drop_last_copy);
  if (drops_last || (op.cause == Cause::cpu_fault && planted(PlantedBug::stale_map))) {
    block.system_current |= dirty;
    return;
  }
  if (!op.moved || op.moved_to != Place::system) {
    tell_moved(op, Place::system);
    count(*block.client, [](Stats& s) { ++s.migrations_to_system; });
  }
  const DeviceId owner = state.slot == none_index ? op.reclaim_device : state.owner;
  const unsigned granule_first = op.granule * config.granularity_pages;
  VramPage from = op.vram_first;
  if (state.slot != none_index) {
    from = devices[owner].slots[state.slot].first;
  }
  if (planted(PlantedBug::wrong_vram_page) && from % block_pages != 0) {
    from -= config.granularity_pages;
  }
  for_spans(op, dirty, [&](PageSpan span) {
    Action& action = ask(Verb::copy, op, span);
    action.device = owner;
    action.place = Place::vram;
    action.vram_first = from + static_cast<VramPage>((span.first & (block_pages - 1)) - granule_first);
  });
  if (op.cause == Cause::evict && planted(PlantedBug::free_before_copy) && state.slot != none_index) {
    release_slot(block, op.granule);
  }
}

/// Discarded pages leave VRAM without a copy: system memory of theirs is given up instead, and reads as zeros.
void Core::Impl::drop_discarded(Op& op, PageMask& dirty) {
  Block& block = *op.block;
  const PageMask dropped_pages = dirty & discarded(block);
  dirty.remove(dropped_pages);
  for_spans(op, dropped_pages, [&](PageSpan span) { ask(Verb::discard_system, op, span); });
  const std::uint64_t count_dropped = dropped_pages.count();
  count(*block.client, [count_dropped](Stats& s) { s.discarded_pages += count_dropped; });
}

void Core::Impl::copy_up(Op& op) {
  Block& block = *op.block;
  Granule& state = granule_state(op);
  PageMask going = op.pages;
  going.remove(block.vram_current);
  if (planted(PlantedBug::discard_shows_others)) {
    const PageMask lost = going & discarded(block);
    block.vram_current |= lost;
    going.remove(lost);
  }
  if (going.none()) {
    return;
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
  const VramPage to = devices[op.device].slots[state.slot].first;
  for_spans(op, going, [&](PageSpan span) {
    Action& action = ask(Verb::copy, op, span);
    action.place = Place::system;
    action.vram_first = to + static_cast<VramPage>((span.first & (block_pages - 1)) - granule_first);
  });
}

void Core::Impl::map_vram(Op& op) {
  Block& block = *op.block;
  Client& client = *block.client;
  Granule& state = granule_state(op);
  const DeviceId owner = state.owner;
  const bool peer = op.goal == Goal::peer;
  if (!peer) {
    state.last_move_cause = op.cause;
    state.last_move_ns = now_ns;
    state.op_failed = false;
  }
  devices[owner].victims.reference(state.slot, devices[owner].evictions);
  if (!client.devices[op.device].attached) {
    return;
  }
  if (state.sample && !peer) {
    if (op.cause == Cause::speculation && op.waiters.empty()) {
      return;
    }
    state.sample = false;
    client.devices[op.device].gate.hit();
  }
  written(block, op.pages & block.vram_current);
  DeviceView& view = block.devices[op.device];
  const unsigned granule_first = op.granule * config.granularity_pages;
  const VramPage first = devices[owner].slots[state.slot].first;
  // A write that joined a reader's mapping over the link ends the copies first, after this operation.
  const bool write =
      op.access == Access::write && !(peer && block.copies != nullptr && shared(block).intersects(op.pages));
  const auto map = [&](const Rights& rights) {
    if (rights.pages.none()) {
      return;
    }
    if (rights.writable && !planted(PlantedBug::lose_dirty)) {
      block.system_current.remove(rights.pages);  // from the moment that a write can happen, VRAM is the newest
      forget_stored(op, rights.pages);
    }
    view.mapped |= rights.pages;
    // Read in place until now: the new entry takes the old one's place.
    if (const std::uint64_t closed = (view.in_place & rights.pages).count(); closed != 0) {
      count(client, [closed](Stats& s) { s.dma_unmapped_pages += closed; });
      view.in_place.remove(rights.pages);
    }
    if (peer) {
      view.peer |= rights.pages;
    }
    if (rights.writable) {
      view.writable |= rights.pages;
    } else {
      view.writable.remove(rights.pages);
    }
    for_spans(op, rights.pages, [&](PageSpan span) {
      Action& action = ask(Verb::map_device, op, span);
      action.place = Place::vram;
      action.owner = peer ? owner : no_device;
      action.prot = rights.writable || planted(PlantedBug::write_map_on_read) ? Prot::read_write : Prot::read;
      action.exec = rights.exec;
      action.vram_first = first + static_cast<VramPage>((span.first & (block_pages - 1)) - granule_first);
      give_token(op, action);
    });
  };
  const PageMask there = op.pages & block.vram_current;
  if (block.plain && block.protection == nullptr) {
    map({.pages = there, .writable = write});  // as rights_of() would say
  } else {
    for (const Rights& rights : rights_of(block, op.granule, op.device, there, write)) {
      map(rights);
    }
  }
}

void Core::Impl::map_in_place(Op& op) {
  Block& block = *op.block;
  Client& client = *block.client;
  if (!client.devices[op.device].attached) {
    return;
  }
  PageMask pages = op.pages & block.system_current;
  pages.remove(block.vram_current);
  const RightsList list = rights_of(block, op.granule, op.device, pages, true);
  if (!block.plain || block.protection != nullptr) {
    pages = list[0].pages | list[1].pages | list[2].pages | list[3].pages;
  }
  written(block, pages);
  forget_stored(op, pages);
  DeviceView& view = block.devices[op.device];
  PageMask opened = pages;
  opened.remove(view.in_place);
  const std::uint64_t count_opened = opened.count();
  count(client, [count_opened](Stats& s) {
    s.dma_mapped_pages += count_opened;
    ++s.in_place_maps;
  });
  view.mapped |= pages;
  view.in_place |= pages;
  tell(EventKind::map_in_place, client, op.device, granule_span(block, op.granule), op.cause, op.access);
  for (const Rights& rights : list) {
    if (rights.writable) {
      view.writable |= rights.pages;
    } else {
      view.writable.remove(rights.pages);
    }
    for_spans(op, rights.pages, [&](PageSpan span) {
      Action& action = ask(Verb::map_device, op, span);
      action.place = Place::system;
      action.prot = rights.writable ? Prot::read_write : Prot::read;
      action.exec = rights.exec;
      give_token(op, action);
    });
  }
}

/// Lets the first wave that waits for a page of the action do the mapping on its own way back.
void Core::Impl::give_token(const Op& op, Action& action) {
  for (const Waiter& waiter : op.waiters) {
    if (waiter.device == op.device && action.pages.contains(waiter.page) &&
        (waiter.access == Access::read || action.prot == Prot::read_write)) {
      action.token = waiter.token;
      action.has_token = true;
      Pending& pending = pendings[static_cast<std::uint32_t>((action.id & 0xffff'ffff) - 1)];
      pending.token = waiter.token;
      pending.has_token = true;
      return;
    }
  }
}

void Core::Impl::map_cpu(Op& op) {
  Block& block = *op.block;
  PageMask pages = op.pages & block.system_current;
  pages.remove(block.vram_current);
  if (reclaim.counts()) {
    pages &= block.held;  // who waits for another page is looked at when the operation ends
  }
  if (block.copies != nullptr) {
    pages.remove(copied(block));  // an eviction of the home: likewise
    block.copies->cpu_read_only.remove(pages);
  }
  const bool wanted = block.cpu_waiting.intersects(pages) || op.cause == Cause::prefetch;
  if (!wanted) {
    return;
  }
  if (op.cause == Cause::prefetch && block.cpu_mapped.contains(pages) && !block.cpu_waiting.intersects(pages)) {
    return;
  }
  written(block, pages);
  forget_stored(op, pages);
  const PageMask waiting = block.cpu_waiting & pages;
  block.cpu_mapped |= pages;
  block.cpu_waiting.remove(pages);
  for_spans(op, pages, [&](PageSpan span) {
    const Action& action = ask(Verb::map_cpu, op, span);
    pendings[static_cast<std::uint32_t>((action.id & 0xffff'ffff) - 1)].wakes_cpu = waiting.intersects(PageMask::range(
        static_cast<unsigned>(span.first & (block_pages - 1)), static_cast<unsigned>(span.count_pages)));
  });
}

void Core::Impl::drop_vram(Op& op) {
  Block& block = *op.block;
  Granule& state = granule_state(op);
  const PageMask leaving = op.pages & block.vram_current;
  if (leaving.any()) {
    FERRY_CHECK((block.system_current | block.stored).contains(leaving));
    if (!op.moved) {
      const std::uint64_t dropped = leaving.count();
      count(*block.client, [dropped](Stats& s) { s.pages_dropped_clean += dropped; });
      tell(EventKind::drop_clean, *block.client, state.owner, granule_span(block, op.granule), op.cause);
    }
    state.last_move_cause = op.cause;
    state.last_move_ns = now_ns;
  }
  block.vram_current.remove(leaving);
  let_cpu(block);
  if (state.slot != none_index && !block.vram_current.intersects(granule_mask(op.granule))) {
    release_slot(block, op.granule);
  }
}

/// The operation got VRAM and brought nothing into it: its loads failed. Nobody would look for the slot there, where a
/// chunk that is to be emptied waits for it.
void Core::Impl::drop_empty_slot(const Op& op) {
  const Granule& state = granule_state(op);
  if (state.slot != none_index && !op.block->client->dying &&
      !op.block->vram_current.intersects(granule_mask(op.granule)) && !planted(PlantedBug::keep_empty_slot)) {
    release_slot(*op.block, op.granule);
  }
}

void Core::Impl::discard(Op& op) {
  Block& block = *op.block;
  Granule& state = granule_state(op);
  block.allocated.remove(op.pages);
  block.freeing.remove(op.pages);
  block.placed_system.remove(op.pages);
  block.vram_current.remove(op.pages);
  let_cpu(block);
  block.system_current |= op.pages;
  written(block, op.pages);
  if (block.copies != nullptr) {
    block.copies->cpu_read_only.remove(op.pages);
  }
  if (reclaim.counts()) {
    block.cpu_mapped.remove(op.pages);  // what is allocated here next is steered from the beginning
    return_memory(op);
  } else {
    block.cpu_mapped |= op.pages;
  }
  if (block.cpu_waiting.intersects(op.pages)) {
    for_spans(op, block.cpu_waiting & op.pages,
              [&](PageSpan span) { emit(Verb::wake_cpu, *block.client).pages = span; });
    block.cpu_waiting.remove(op.pages);
  }
  if (state.slot != none_index && !block.vram_current.intersects(granule_mask(op.granule))) {
    release_slot(block, op.granule);
  }
  if (!block.allocated.intersects(granule_mask(op.granule))) {
    const OpIndex self = state.op;
    state = {};
    state.op = self;
  }
  for (const std::uint32_t request : op.frees) {
    free_granule_done(request);
  }
  op.frees.clear();
}

}  // namespace ferry::core
