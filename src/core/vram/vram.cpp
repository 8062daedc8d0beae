// VRAM: a budget of 2 MiB chunks for each device, each chunk owned by one client at a time and cut into granule slots.
// Who needs a slot waits in line; room is made by evicting granules, or, for another client, by emptying whole chunks
// and giving their memory back (so that no client ever sees another's bytes).
// An operation holds no slot while it waits for one, and every operation that holds one ends: so the line moves (I-06).
// How soon it ends is up to the processes that it asks; who waits for room of others does not wait for them for ever.
#include "core/impl.h"

namespace ferry::core {

bool Core::Impl::has_free_slot(const Client& client, DeviceId device) const {
  return !client.devices[device].free_slots.empty() || devices[device].chunk_owned < devices[device].chunk_total;
}

bool Core::Impl::take_slot(Client& client, DeviceId device, VramPage& first) {
  ClientDevice& own = client.devices[device];
  Device& dev = devices[device];
  if (own.free_slots.empty()) {
    const std::uint64_t budget = dev.chunk_total + (planted(PlantedBug::over_budget) ? 1 : 0);
    if (dev.chunk_owned >= budget) {
      return false;
    }
    std::uint32_t index = 0;
    while (index < own.chunks.size() && own.chunks[index].owned) {
      ++index;
    }
    if (index == own.chunks.size()) {
      own.chunks.emplace_back();
      own.slot_at.resize(own.chunks.size() * slots_per_chunk(), none_index);
    }
    own.chunks[index] = {};
    own.chunks[index].owned = true;
    ++dev.chunk_owned;
    ++own.idle_chunks;
    for (std::uint32_t slot = slots_per_chunk(); slot-- > 0;) {
      own.free_slots.push_back(index * block_pages + slot * config.granularity_pages);
    }
    account(device, client);
  }
  first = own.free_slots.back();
  own.free_slots.pop_back();
  Chunk& chunk = own.chunks[first / block_pages];
  if (chunk.used++ == 0) {
    --own.idle_chunks;
  }
  return true;
}

void Core::Impl::count_vram(DeviceId device) {
  stats.vram_peak_pages = std::max(stats.vram_peak_pages, devices[device].chunk_owned * block_pages);
  stats.vram_pages = 0;
  for (const auto& d : devices) {
    stats.vram_pages += d.chunk_owned * block_pages;
  }
}

void Core::Impl::account(DeviceId device, const Client& client) {
  count_vram(device);
  const std::uint64_t pages = devices[device].chunk_owned * block_pages;
  tell(EventKind::vram_level, client, device, {0, pages}, Cause::none);
}

bool Core::Impl::acquire_slot(Op& op) {
  Device& dev = devices[op.device];
  VramPage first = 0;
  if (dev.waiting.empty() && take_slot(*op.block->client, op.device, first)) {
    assign_slot(op, first);
    return true;
  }
  if (op.cause == Cause::speculation) {
    end_op(op.self);
    return false;
  }
  if (dev.waiting.empty()) {
    dev.line_moved_ns = now_ns;
  }
  dev.waiting.push_back(op.self);
  if (memory_line_ops != 0) {
    show_slot_line(op.device);
  }
  pump_all();      // may run the operation on, even to its end: the caller must not touch it again
  reclaim.pump();  // who waits for memory may have waited for this one to end
  return false;
}

SlotIndex Core::Impl::insert_slot(Op& op, VramPage first, std::uint64_t distance) {
  Device& dev = devices[op.device];
  dev.line_moved_ns = now_ns;
  dev.line_stands = false;
  SlotIndex index = 0;
  if (dev.slot_holes.empty()) {
    index = static_cast<SlotIndex>(dev.slots.size());
    dev.slots.emplace_back();
  } else {
    index = dev.slot_holes.back();
    dev.slot_holes.pop_back();
  }
  dev.slots[index] = {op.block->client, op.block, op.granule, first, dev.evictions};
  dev.victims.insert(index, dev.evictions, distance);
  dev.throttle.note(distance);
  dev.used_pages += config.granularity_pages;
  op.block->client->devices[op.device].slot_at[first / config.granularity_pages] = index;
  return index;
}

void Core::Impl::assign_slot(Op& op, VramPage first) {
  const SlotIndex index = insert_slot(op, first, note_refault(op));
  Granule& state = granule_state(op);
  if (state.slot != none_index) {
    op.slot_to = index;
    return;
  }
  state.slot = index;
  state.owner = op.device;
}

/// Forgets a slot without giving its place to anyone.
void Core::Impl::forget_slot(DeviceId device, SlotIndex index) {
  Device& dev = devices[device];
  Slot& slot = dev.slots[index];
  Granule& state = slot.block->granules[slot.granule];
  if (state.sample) {
    state.sample = false;
    slot.client->devices[device].gate.waste();
  }
  if (state.slot == index && state.owner == device) {
    state.slot = none_index;
    state.owner = no_device;
  } else if (is_copy(device, slot)) {
    slot.block->copies->slots[slot.granule * devices.size() + device] = none_index;
    --dev.copy_slots;
  }
  slot.client->devices[device].slot_at[slot.first / config.granularity_pages] = none_index;
  dev.victims.remove(index);
  dev.used_pages -= config.granularity_pages;
  slot = {};
  dev.slot_holes.push_back(index);
}

void Core::Impl::release_slot(Block& block, std::uint32_t granule) {
  Granule& state = block.granules[granule];
  const DeviceId device = state.owner;
  const VramPage first = devices[device].slots[state.slot].first;
  if (state.op != none_index) {
    ops[state.op].vram_first = first;
    ops[state.op].reclaim_device = device;
  }
  forget_slot(device, state.slot);
  return_vram(*block.client, device, first);
}

void Core::Impl::return_vram(Client& client, DeviceId device, VramPage first) {
  ClientDevice& own = client.devices[device];
  const std::uint32_t index = first / block_pages;
  Chunk& chunk = own.chunks[index];
  FERRY_CHECK(chunk.owned && chunk.used > 0);
  --chunk.used;
  devices[device].line_stands = false;
  if (chunk.draining) {
    if (chunk.used == 0) {
      start_release(device, client, index);
    }
    return;
  }
  own.free_slots.push_back(first);
  if (chunk.used == 0) {
    ++own.idle_chunks;
  }
}

/// For a buffer, which waits for no VRAM: what is free, at once, or nothing. Chunks that clients own and do not use go
/// back, for the next one who asks.
bool Core::Impl::take_buffer_chunks(DeviceId device, std::uint64_t chunks) {
  Device& dev = devices[device];
  if (!dev.waiting.empty() || chunks > dev.chunk_total) {
    return false;
  }
  const std::uint64_t free = dev.chunk_total - std::min(dev.chunk_owned, dev.chunk_total);
  if (chunks <= free) {
    dev.chunk_owned += chunks;
    dev.buffer_chunks += chunks;
    count_vram(device);
    return true;
  }
  for (std::uint64_t missing = chunks - free - std::min<std::uint64_t>(chunks - free, dev.reclaims); missing > 0;
       --missing) {
    if (!drain_idle_chunk(device, nullptr)) {
      break;
    }
  }
  return false;
}

void Core::Impl::give_buffer_chunks(DeviceId device, std::uint64_t chunks) {
  Device& dev = devices[device];
  FERRY_CHECK(dev.buffer_chunks >= chunks && dev.chunk_owned >= chunks);
  dev.buffer_chunks -= chunks;
  dev.chunk_owned -= chunks;
  count_vram(device);
  pump_all();
}

// --- making room -----------------------------------------------------------------------------------------------------

void Core::Impl::pump_all() {
  for (DeviceId d = 0; d < devices.size(); ++d) {
    if (!devices[d].waiting.empty() && !devices[d].pumping) {
      pump(d);
    }
  }
}

/// Serves the line, and starts as much reclaim as it needs.
void Core::Impl::pump(DeviceId device) {
  Device& dev = devices[device];
  dev.pumping = true;
  while (!dev.waiting.empty()) {
    const OpIndex front = dev.waiting.front();
    VramPage first = 0;
    if (take_slot(*ops[front].block->client, device, first)) {
      dev.waiting.erase(dev.waiting.begin());
      hide_waits(ops[front]);
      assign_slot(ops[front], first);
      ops[front].stage = Stage::revoke_source;
      run_op(front);
      continue;
    }
    if (dev.reclaims < dev.waiting.size() && reclaim_one(device, *ops[dev.waiting[dev.reclaims]].block->client)) {
      continue;
    }
    if (!dev.line_stands && room_is_coming(device)) {
      break;
    }
    // Nothing can be evicted and nothing is about to end, or whoever has to end it does not answer: the first in line is
    // served in place, so that the line moves whatever the size of VRAM and whatever another client does.
    dev.waiting.erase(dev.waiting.begin());
    hide_waits(ops[front]);
    redirect(ops[front], Goal::in_place);
    run_op(front);
  }
  dev.pumping = false;
}

void Core::Impl::tick() {
  for (auto& dev : devices) {
    if (!dev.waiting.empty() && now_ns - dev.line_moved_ns > config.line_patience_ns) {
      dev.line_stands = true;
    }
  }
  pump_all();
}

/// Some operation holds a slot of the device and will end.
bool Core::Impl::slot_in_motion(DeviceId device) const {
  return devices[device].victims.any([&](SlotIndex index) {
    const Slot& slot = devices[device].slots[index];
    return slot.block->granules[slot.granule].op != none_index;
  });
}

/// Something is under way that ends and lets the line on. A chunk that is being emptied is no such thing by itself: what
/// it waits for has to be under way.
bool Core::Impl::room_is_coming(DeviceId device) const {
  if (slot_in_motion(device)) {
    return true;
  }
  // One that has given its slot back looks at the line when it ends. If it waits itself, that may be for this very line.
  const bool left = std::any_of(ops.begin(), ops.end(), [device](const Op& op) {
    return op.in_use && op.reclaim_device == device && op.outstanding != 0;
  });
  return left || std::any_of(clients.begin(), clients.end(), [device](const auto& client) {
           const std::vector<Chunk>& chunks = client.second->devices[device].chunks;
           return std::any_of(chunks.begin(), chunks.end(), [](const Chunk& chunk) { return chunk.releasing; });
         });
}

/// A chunk that its owner, not `requester`, does not use goes back. False: there is none.
bool Core::Impl::drain_idle_chunk(DeviceId device, const Client* requester) {
  for (auto& [id, other] : clients) {
    if (other.get() == requester || other->dying || other->devices[device].idle_chunks == 0) {
      continue;
    }
    ClientDevice& own = other->devices[device];
    for (std::uint32_t c = 0; c < own.chunks.size(); ++c) {
      if (own.chunks[c].owned && own.chunks[c].used == 0 && !own.chunks[c].draining) {
        start_drain(device, *other, c);
        return true;
      }
    }
  }
  return false;
}

/// Starts something that will free a slot for `requester`. False: nothing can be.
bool Core::Impl::reclaim_one(DeviceId device, Client& requester) {
  Device& dev = devices[device];
  if (drain_idle_chunk(device, &requester)) {
    return true;
  }
  const auto may_go = [&](SlotIndex index) {
    const Slot& slot = dev.slots[index];
    return slot.block->granules[slot.granule].op == none_index && !slot.client->dying &&
           !slot.client->devices[device].chunks[slot.first / block_pages].draining &&
           !being_freed(*slot.block, slot.granule) && may_evict(device, slot, requester);
  };
  SlotIndex victim = VictimPolicy::none;
  if (dev.copy_slots != 0) {
    // They leave for nothing: another memory has the same bytes.
    victim = dev.victims.pick(dev.evictions,
                              [&](SlotIndex index) { return is_copy(device, dev.slots[index]) && may_go(index); });
  }
  if (victim == VictimPolicy::none) {
    victim = dev.victims.pick(dev.evictions, may_go);
  }
  if (victim == VictimPolicy::none) {
    return false;
  }
  Client& owner = *dev.slots[victim].client;
  if (&owner == &requester) {
    start_evict(device, victim, true);
  } else {
    start_drain(device, owner, dev.slots[victim].first / block_pages);
  }
  start_probe(device);
  return true;
}

void Core::Impl::start_drain(DeviceId device, Client& owner, std::uint32_t index) {
  ClientDevice& own = owner.devices[device];
  Chunk& chunk = own.chunks[index];
  chunk.draining = true;
  chunk.counted = true;
  ++devices[device].reclaims;
  std::erase_if(own.free_slots, [index](VramPage first) { return first / block_pages == index; });
  if (chunk.used == 0) {
    --own.idle_chunks;
    start_release(device, owner, index);
    return;
  }
  for (std::uint32_t i = 0; i < slots_per_chunk(); ++i) {
    const SlotIndex slot = own.slot_at[index * slots_per_chunk() + i];
    if (slot != none_index) {
      const Slot& in_use = devices[device].slots[slot];
      if (in_use.block->granules[in_use.granule].op == none_index && !being_freed(*in_use.block, in_use.granule)) {
        start_evict(device, slot, false);
      }
    }
  }
}

/// An operation on a granule of a chunk that is being emptied has ended: now the granule can go.
void Core::Impl::evict_if_draining(Block& block, std::uint32_t granule) {
  const Granule& state = block.granules[granule];
  const Slot& slot = devices[state.owner].slots[state.slot];
  // What is kept here (by a pin, or by a free that waits for one) goes when that ends: an eviction would do nothing, and
  // begin anew at its end.
  PageMask leaving = granule_mask(granule) & block.vram_current;
  leaving.remove(block.freeing | pinned(block, leaving));
  if (leaving.any() && block.client->devices[state.owner].chunks[slot.first / block_pages].draining) {
    start_evict(state.owner, state.slot, false);
  }
}

void Core::Impl::start_evict(DeviceId device, SlotIndex index, bool counts) {
  Device& dev = devices[device];
  Slot& slot = dev.slots[index];
  Client& client = *slot.client;
  Block& block = *slot.block;
  const std::uint32_t granule = slot.granule;
  if (block.copies != nullptr && becomes_copy(block, granule, device)) {
    start_drop_copy(device, index, counts);
    return;
  }
  note_stay(block.granules[granule], dev.evictions - slot.arrived, dev);
  ++dev.evictions;
  block.granules[granule].evict_mark = dev.evictions;
  const std::uint64_t pages = (block.vram_current & granule_mask(granule)).count();
  count(client, [pages](Stats& s) {
    ++s.evictions;
    s.evicted_pages += pages;
  });
  tell(EventKind::evict, client, device, granule_span(block, granule), Cause::evict);
  Op& op = start_op(block, granule, Goal::system, Cause::evict, no_device, Access::read);
  op.vram_first = slot.first;
  op.reclaim = counts;
  op.reclaim_device = device;
  if (counts) {
    ++dev.reclaims;
  }
  run_op(op.self);
}

/// Asks about the use of one hot granule, beside an eviction: the machine batches both revocations.
void Core::Impl::start_probe(DeviceId device) {
  if (!work.model(device).retry_faults) {
    return;  // whoever is asked for a page that it uses would have to stop
  }
  Device& dev = devices[device];
  const SlotIndex index = dev.victims.probe_candidate(dev.evictions, [&](SlotIndex i) {
    const Slot& slot = dev.slots[i];
    return slot.block->granules[slot.granule].op == none_index && !slot.client->dying && !is_copy(device, slot) &&
           !maps_ahead(*slot.client, device);
  });
  if (index == VictimPolicy::none) {
    return;
  }
  dev.victims.set_probed(index, dev.evictions);
  const Slot& slot = dev.slots[index];
  Op& op = start_op(*slot.block, slot.granule, Goal::probe, Cause::evict, no_device, Access::read);
  run_op(op.self);
}

void Core::Impl::start_release(DeviceId device, Client& owner, std::uint32_t index) {
  Chunk& chunk = owner.devices[device].chunks[index];
  FERRY_CHECK(chunk.owned && chunk.used == 0 && !chunk.releasing);
  chunk.releasing = true;
  Pending done;
  done.client = &owner;
  done.device = device;
  done.vram_first = index * block_pages;
  if (planted(PlantedBug::keep_chunk_contents) && !owner.dying) {
    release_done(done);
    return;
  }
  std::uint32_t pending = 0;
  Action& action = ask_client(Verb::release_chunk, owner, pending);
  action.device = device;
  action.vram_first = done.vram_first;
  pendings[pending].device = device;
  pendings[pending].vram_first = done.vram_first;
}

void Core::Impl::release_done(const Pending& pending) {
  Client& owner = *pending.client;
  Device& dev = devices[pending.device];
  Chunk& chunk = owner.devices[pending.device].chunks[pending.vram_first / block_pages];
  if (chunk.counted) {
    --dev.reclaims;
  }
  chunk = {};
  --dev.chunk_owned;
  account(pending.device, owner);
  finish_client_if_idle(owner);
  pump_all();
}

}  // namespace ferry::core
