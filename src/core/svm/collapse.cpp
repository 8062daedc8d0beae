// One copy of many: before somebody writes a page, before it goes elsewhere, and when copies are no longer wanted. Each
// operation that knows nothing of copies first ends those of its pages; then the page is as any other.
#include "core/impl.h"

namespace ferry::core {
/// | goal                                   | copies of its pages                             |
/// |----------------------------------------|-------------------------------------------------|
/// | duplicate, drop_copy                   | are what it is about                            |
/// | probe, take, protect, freeze, store    | stay: it takes mappings, or system memory alone |
/// | system, for room (evict)               | stay: only the home leaves                      |
/// | peer, to read                          | stay: the device reads the home                 |
/// | all others                             | go first                                        |
bool Core::Impl::must_unite(const Op& op) const {
  if (op.block->copies == nullptr || op.united) {
    return false;
  }
  switch (op.goal) {
    case Goal::duplicate:
    case Goal::drop_copy:
    case Goal::probe:
    case Goal::take:
    case Goal::protect:
    case Goal::freeze:
    case Goal::store: return false;
    case Goal::system:
      if (op.cause == Cause::evict) {
        return false;
      }
      break;
    case Goal::peer:
      if (op.access == Access::read) {
        return false;
      }
      break;
    case Goal::vram:
      if (copy_slot(*op.block, op.granule, op.device) != none_index) {
        return true;  // it becomes the home, or goes: a device has one memory for a granule
      }
      break;
    case Goal::in_place:
    case Goal::discard:
    case Goal::zero:
    case Goal::forget:
    case Goal::move_out:
    case Goal::move_in:
    case Goal::unite: break;
  }
  return shared(*op.block).intersects(op.pages);
}

/// Nobody reads the copies any more, and nobody reads system memory where VRAM is to be written.
void Core::Impl::take_copies(Op& op) {
  Block& block = *op.block;
  Copies& copies = *block.copies;
  if (op.goal == Goal::vram && can_swap_home(block, op.granule, op.device)) {
    swap_home(block, op.granule, op.device);
  }
  const bool vram_stays = op.goal == Goal::vram || op.goal == Goal::peer || op.goal == Goal::unite;
  bool kept = !planted(PlantedBug::keep_copy);
  if (op.goal == Goal::drop_copy) {
    const DeviceView& view = block.devices[op.reclaim_device];
    revoke_device(op, op.reclaim_device, op.pages & ~(view.in_place | view.peer));
    return;
  }
  for (DeviceId d = 0; d < devices.size(); ++d) {
    const DeviceView& view = block.devices[d];
    PageMask going = op.pages & copies.current[d];
    if (op.goal == Goal::vram && d == op.device) {
      going = copies.current[d] & granule_mask(op.granule);
    }
    going.remove(view.in_place | view.peer);
    if (!kept && going.any()) {
      kept = true;
      mark_revoked(block, d, going);
      continue;
    }
    if (vram_stays) {
      going |= op.pages & view.in_place & block.vram_current;
    }
    revoke_device(op, d, going);
  }
  if (vram_stays) {
    for_spans(op, op.pages & block.cpu_mapped & block.vram_current,
              [&](PageSpan span) { ask(Verb::revoke_cpu, op, span); });
  }
}

void Core::Impl::drop_copies(Op& op) {
  Block& block = *op.block;
  Copies& copies = *block.copies;
  const PageMask mask = granule_mask(op.granule);
  const PageMask before = copied(block) & op.pages;
  if (op.goal == Goal::drop_copy && planted(PlantedBug::write_back_copy)) {
    tell_moved(op, Place::system);
    count(*block.client, [](Stats& s) { ++s.migrations_to_system; });
    for_spans(op, op.pages & copies.current[op.reclaim_device], [&](PageSpan span) {
      Action& action = ask(Verb::copy, op, span);
      action.device = op.reclaim_device;
      action.place = Place::vram;
      action.vram_first = op.vram_first + static_cast<VramPage>((span.first & (block_pages - 1)) -
                                                                op.granule * config.granularity_pages);
    });
  }
  for (DeviceId d = 0; d < devices.size(); ++d) {
    if (op.goal == Goal::drop_copy && d != op.reclaim_device) {
      continue;
    }
    copies.current[d].remove(op.goal == Goal::vram && d == op.device ? mask : op.pages);
    if (copy_slot(block, op.granule, d) != none_index && !copies.current[d].intersects(mask)) {
      release_copy(block, op.granule, d);
    }
  }
  op.united = true;
  const std::uint64_t pages = before.count();
  if (pages != 0 && op.goal != Goal::drop_copy) {
    count(*block.client, [pages](Stats& s) { s.pages_collapsed += pages; });
    tell(EventKind::collapse, *block.client, op.device, granule_span(block, op.granule), op.cause, op.access);
  }
}

void Core::Impl::release_copy(Block& block, std::uint32_t granule, DeviceId device) {
  const SlotIndex slot = copy_slot(block, granule, device);
  const VramPage first = devices[device].slots[slot].first;
  forget_slot(device, slot);
  return_vram(*block.client, device, first);
}

bool Core::Impl::is_copy(DeviceId device, const Slot& slot) const {
  if (slot.block->copies == nullptr) {
    return false;
  }
  const SlotIndex index = copy_slot(*slot.block, slot.granule, device);
  return index != none_index && &devices[device].slots[index] == &slot;
}

// --- another home ----------------------------------------------------------------------------------------------------

/// The device's copy can be the granule's home, and the home a copy, as it is or not at all: all that only the home has is
/// in the copy too, and nothing leads to the home that says so.
bool Core::Impl::can_swap_home(const Block& block, std::uint32_t granule, DeviceId device) const {
  if (device >= devices.size() || copy_slot(block, granule, device) == none_index) {
    return false;
  }
  const PageMask mask = granule_mask(granule);
  const PageMask in_vram = block.vram_current & mask;
  PageMask alone = in_vram;
  alone.remove(block.system_current | block.stored);
  if (!block.copies->current[device].contains(alone) || pinned(block, in_vram).any()) {
    return false;
  }
  for (const DeviceView& view : block.devices) {
    if (view.peer.intersects(mask)) {
      return false;
    }
  }
  return true;
}

/// REQUIRES: can_swap_home().
void Core::Impl::swap_home(Block& block, std::uint32_t granule, DeviceId device) {
  Copies& copies = *block.copies;
  Granule& state = block.granules[granule];
  const PageMask mask = granule_mask(granule);
  const PageMask in_vram = block.vram_current & mask;
  const SlotIndex old = state.slot;
  const DeviceId owner = state.owner;
  SlotIndex& slot = copies.slots[granule * devices.size() + device];
  state.slot = slot;
  state.owner = device;
  slot = none_index;
  --devices[device].copy_slots;
  block.vram_current.remove(mask);
  block.vram_current |= copies.current[device] & mask;
  copies.current[device].remove(mask);
  if (old != none_index) {
    copies.slots[granule * devices.size() + owner] = old;
    copies.current[owner] |= in_vram;
    ++devices[owner].copy_slots;
  }
  let_cpu(block);
}

// --- room ------------------------------------------------------------------------------------------------------------

/// What the granule has on the device is a copy, or was made one, as another device has all that only the home had: so
/// that it leaves for nothing.
bool Core::Impl::becomes_copy(Block& block, std::uint32_t granule, DeviceId device) {
  if (copy_slot(block, granule, device) != none_index) {
    return true;
  }
  for (DeviceId d = 0; d < devices.size(); ++d) {
    if (can_swap_home(block, granule, d)) {
      swap_home(block, granule, d);
      return true;
    }
  }
  return false;
}

void Core::Impl::start_drop_copy(DeviceId device, SlotIndex index, bool counts) {
  Device& dev = devices[device];
  const Slot& slot = dev.slots[index];
  Client& client = *slot.client;
  Block& block = *slot.block;
  const PageMask pages = block.copies->current[device] & granule_mask(slot.granule);
  const std::uint64_t dropped = pages.count();
  ++dev.evictions;
  count(client, [dropped](Stats& s) {
    ++s.evictions;
    s.evicted_pages += dropped;
    s.pages_dropped_clean += dropped;
  });
  tell(EventKind::evict, client, device, granule_span(block, slot.granule), Cause::evict);
  tell(EventKind::drop_clean, client, device, granule_span(block, slot.granule), Cause::evict);
  const VramPage first = slot.first;
  Op& op = start_op(block, slot.granule, Goal::drop_copy, Cause::evict, no_device, Access::read);
  op.pages = pages;
  op.vram_first = first;
  op.reclaim = counts;
  op.reclaim_device = device;
  if (counts) {
    ++dev.reclaims;
  }
  run_op(op.self);
}

/// The operation on the granule has ended; copies of it that lie in chunks which are being emptied go.
void Core::Impl::evict_draining_copies(Block& block, std::uint32_t granule) {
  for (DeviceId d = 0; block.copies != nullptr && d < devices.size(); ++d) {
    const SlotIndex slot = copy_slot(block, granule, d);
    if (slot == none_index) {
      continue;
    }
    devices[d].line_stands = false;
    if (block.granules[granule].op == none_index &&
        block.client->devices[d].chunks[devices[d].slots[slot].first / block_pages].draining) {
      start_evict(d, slot, false);
    }
  }
}

void Core::Impl::drop_copies_if_none(Block& block) {
  const Copies& copies = *block.copies;
  if (copies.cpu_read_only.any() || (copies.cpu_reads & block.cpu_waiting).any() || shared(block).any()) {
    return;
  }
  for (const SlotIndex slot : copies.slots) {
    if (slot != none_index) {
      return;
    }
  }
  for (const Granule& granule : block.granules) {
    if (granule.op != none_index) {
      return;
    }
  }
  block.copies.reset();
}

// --- the flag is taken back ------------------------------------------------------------------------------------------

/// Ends the copies of pages of the request's span that are not to have any. True: there are none.
bool Core::Impl::unite_span(std::uint32_t index) {
  SvmRequest& request = svm_requests[index];
  Client& client = *request.client;
  constexpr unsigned tries_most = 8;
  if (request.tries >= tries_most) {
    return true;
  }
  ++request.tries;
  request.remaining = 1;
  for_blocks(client, request.span, [&](Block& block) {
    if (block.copies == nullptr) {
      return;
    }
    ++block.holds;
    const Page first = first_page_of(block.index);
    const Page from = std::max(first, request.span.first);
    const Page to = std::min(first + block_pages, request.span.end());
    const auto span = PageMask::range(static_cast<unsigned>(from - first), static_cast<unsigned>(to - from));
    for (std::uint32_t g = 0; block.copies != nullptr && g < block.granules.size(); ++g) {
      PageMask pages = shared(block) & granule_mask(g) & span & block.allocated;
      pages.remove(block.freeing | read_mostly(block, g, no_device));
      if (pages.none()) {
        continue;
      }
      ++svm_requests[index].remaining;
      if (block.granules[g].op != none_index) {
        ops[block.granules[g].op].svm.push_back(index);
        continue;
      }
      Op& op = start_op(block, g, Goal::unite, Cause::prefetch, no_device, Access::read);
      op.pages = pages;
      op.svm.push_back(index);
      run_op(op.self);
    }
    --block.holds;
    drop_block_if_empty(client, block);
  });
  if (svm_requests[index].remaining != 1) {
    svm_told(index);
    return false;
  }
  svm_requests[index].remaining = 0;
  return true;
}

// --- I-65, I-66 ----------------------------------------------------------------------------------------------------

void Core::Impl::verify_copies(const Block& block) const {
  PageMask writable;
  for (const DeviceView& view : block.devices) {
    writable |= view.writable;
    FERRY_CHECK(!(view.in_place & view.writable).intersects(block.vram_current));  // I-65
  }
  if (block.copies == nullptr) {
    return;
  }
  const Copies& copies = *block.copies;
  const PageMask many = copied(block);
  FERRY_CHECK(block.cpu_mapped.contains(copies.cpu_read_only));
  FERRY_CHECK(!writable.intersects(many));                                                 // I-65
  FERRY_CHECK(copies.cpu_read_only.contains(block.cpu_mapped & many));                     // I-65
  FERRY_CHECK(block.allocated.contains(many));                                             // I-66
  FERRY_CHECK((block.system_current | block.vram_current | block.stored).contains(many));  // I-66
  FERRY_CHECK(pinned(block, many).none());                                                 // I-60
  for (std::uint32_t g = 0; g < block.granules.size(); ++g) {
    for (DeviceId d = 0; d < devices.size(); ++d) {
      const SlotIndex index = copies.slots[g * devices.size() + d];
      if (index == none_index) {
        FERRY_CHECK(!copies.current[d].intersects(granule_mask(g)));  // I-66
        continue;
      }
      const Slot& slot = devices[d].slots[index];
      FERRY_CHECK(slot.block == &block && slot.granule == g && slot.client == block.client);
      FERRY_CHECK(block.granules[g].owner != d);  // I-66
      FERRY_CHECK(block.granules[g].op != none_index || copies.current[d].intersects(granule_mask(g)));
    }
  }
}

}  // namespace ferry::core
