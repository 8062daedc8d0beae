// Pins: pages that long-term DMA uses keep their place and memory until they are unpinned as often. What an operation
// is about never includes a page that it would take away from where it is pinned (keep_pinned).
//
// | a touch of a page | pinned in system memory | pinned in the VRAM of device o                                |
// |-------------------|-------------------------|---------------------------------------------------------------|
// | by a CPU thread   | as ever                 | fails (in_use): no CPU reaches VRAM, and the wait has no bound |
// | by device o       | in place                | its VRAM                                                      |
// | by another        | in place                | over the link; fails (in_use) where there is none             |
#include "core/impl.h"

namespace ferry::core {
namespace {
/// 64 GiB. Each granule of a pin is looked at.
constexpr std::uint64_t pin_limit_unbudgeted = std::uint64_t{1} << 24;
}  // namespace

std::uint64_t Core::Impl::pin_limit() const {
  if (config.pin_pages != 0) {
    return config.pin_pages;
  }
  return reclaim.counts() ? reclaim.budget_pages() / 4 : pin_limit_unbudgeted;
}

bool Core::Impl::pinned(const Client& client, PageSpan span) const {
  if (pinned_blocks == 0 || client.pinned_pages == 0 || span.count_pages == 0) {
    return false;
  }
  for (const auto& block : client.blocks) {
    if (block == nullptr || block->extras == nullptr) {
      continue;
    }
    const Page first = first_page_of(block->index);
    if (!span.overlaps({first, block_pages})) {
      continue;
    }
    const Page from = std::max(span.first, first);
    const Page to = std::min(span.end(), first + block_pages);
    if (block->extras->pinned.intersects(
            PageMask::range(static_cast<unsigned>(from - first), static_cast<unsigned>(to - from)))) {
      return true;
    }
  }
  return false;
}

Status Core::Impl::pin(ClientId id, PageSpan span, DeviceId device, Cookie cookie) {
  Client* client = find_client(id);
  if (client == nullptr || client->dying) {
    return Code::client_gone;
  }
  if (span.count_pages == 0 || span.end() < span.first || (device != no_device && device >= devices.size())) {
    return Code::bad_range;
  }
  if (!all_allocated(*client, span)) {
    return Code::not_allocated;
  }
  if (device != no_device && !client->devices[device].attached) {
    return Code::device_lost;
  }
  if (is_moved(*client, span)) {
    return Code::in_use;
  }
  if (span.count_pages > pin_limit() - std::min(client->pinned_pages, pin_limit()) ||
      (device != no_device && span.count_pages > devices[device].chunk_total * block_pages)) {
    return Code::no_memory;
  }
  std::uint32_t index = 0;
  const Status status = request_moves(id, span, device, PrefetchRequest::Kind::pin, index);
  if (status.ok()) {
    client->pinned_pages += span.count_pages;
    prefetches[index].cookie = cookie;
    advance_prefetch(index);
  }
  return status;
}

/// Pins what the request has of the granule if that is where it is to be. REQUIRES: no operation is under way there.
Core::Impl::PinStep Core::Impl::pin_step(std::uint32_t index, Block& block, std::uint32_t granule) {
  PrefetchRequest& request = prefetches[index];
  const Granule& g = block.granules[granule];
  const PageSpan whole = granule_span(block, granule);
  const Page from = std::max(whole.first, request.span.first);
  const Page to = std::min(whole.end(), request.span.end());
  const auto pages = PageMask::range(static_cast<unsigned>(from & (block_pages - 1)), static_cast<unsigned>(to - from));
  if (!request.status.ok()) {
    return PinStep::failed;
  }
  if (!block.allocated.contains(pages) || block.freeing.intersects(pages)) {
    request.status = Code::not_allocated;
    return PinStep::failed;
  }
  const DeviceId device = request.device;
  const PageMask held_here = pinned(block, granule_mask(granule));
  const PageMask in_vram = held_here & block.vram_current;
  bool here = false;
  bool refused = false;
  if (device == no_device) {
    refused = in_vram.intersects(pages);
    here = block.system_current.contains(pages) && !block.vram_current.intersects(pages) &&
           !block.stored.intersects(pages) && (!reclaim.counts() || block.held.contains(pages)) &&
           !copied(block).intersects(pages);
  } else {
    // The device may write what is pinned for it, so no other copy may count as equal.
    PageMask elsewhere = held_here & pages;
    elsewhere.remove(in_vram);
    refused = elsewhere.any() || (in_vram.any() && g.owner != device) ||
              block.placed_system.intersects(granule_mask(granule)) || work.userptr_in_use(block.client->id, whole);
    here = g.owner == device && block.vram_current.contains(pages) && !block.system_current.intersects(pages) &&
           !block.stored.intersects(pages) && !shared(block).intersects(pages) && !is_draining(block, granule);
  }
  if (refused) {
    request.status = Code::in_use;
    return PinStep::failed;
  }
  if (!here) {
    if (device != no_device && !block.client->devices[device].attached) {
      request.status = Code::device_lost;
      return PinStep::failed;
    }
    return PinStep::bring;
  }
  const bool first = block.extras == nullptr || block.extras->pinned.none();
  Extras& extras = extras_of(block);
  for (Page page = from; page < to; ++page) {
    if (extras.pin_count[page & (block_pages - 1)] == 0xffff) {
      drop_extras_if_empty(block);
      request.status = Code::no_memory;
      return PinStep::failed;
    }
  }
  pinned_blocks += first ? 1 : 0;
  extras.pinned |= pages;
  extras.discarded.remove(pages);
  for (Page page = from; page < to; ++page) {
    ++extras.pin_count[page & (block_pages - 1)];
  }
  request.pinned.push_back({from, to - from});
  return PinStep::pinned;
}

bool Core::Impl::is_draining(const Block& block, std::uint32_t granule) const {
  const Granule& g = block.granules[granule];
  return g.slot != none_index &&
         block.client->devices[g.owner].chunks[devices[g.owner].slots[g.slot].first / block_pages].draining;
}

/// Brings the granule to where the request wants it.
Op& Core::Impl::start_pin_op(std::uint32_t index, Block& block, std::uint32_t granule) {
  const DeviceId device = prefetches[index].device;
  // A chunk that is being emptied has to be left first, even where it is the right device's.
  const bool up = device != no_device && !is_draining(block, granule);
  if (up) {
    block.granules[granule].pinned_until_ns = 0;  // what was said about contention is overruled
  }
  Op& op =
      start_op(block, granule, up ? Goal::vram : Goal::system, Cause::prefetch, up ? device : no_device, Access::write);
  return op;
}

bool Core::Impl::pin_granule(std::uint32_t index, Block& block, std::uint32_t granule) {
  PrefetchRequest& request = prefetches[index];
  const Granule& g = block.granules[granule];
  if (g.op != none_index) {
    ++request.in_flight;
    ops[g.op].prefetches.push_back(index);
    return true;
  }
  switch (pin_step(index, block, granule)) {
    case PinStep::pinned: return true;
    case PinStep::failed: return false;
    case PinStep::bring: break;
  }
  ++request.in_flight;
  Op& op = start_pin_op(index, block, granule);
  op.prefetches.push_back(index);
  run_op(op.self);
  return true;
}

/// All or nothing: what was pinned for the request is unpinned.
void Core::Impl::pin_failed(PrefetchRequest& request) {
  Client& client = *request.client;
  std::uint64_t done = 0;
  for (const PageSpan& span : request.pinned) {
    done += span.count_pages;
  }
  client.pinned_pages -= request.span.count_pages - done;
  const std::vector<PageSpan> spans = std::move(request.pinned);
  request.pinned.clear();
  for (const PageSpan& span : spans) {
    unpin_pages(client, span);
  }
}

Status Core::Impl::unpin(ClientId id, PageSpan span) {
  Client* client = find_client(id);
  if (client == nullptr || client->dying) {
    return Code::client_gone;
  }
  if (span.count_pages == 0 || span.end() < span.first) {
    return Code::bad_range;
  }
  if (span.count_pages > client->pinned_pages) {
    return Code::not_held;
  }
  // A pin that is not answered yet is not the caller's to undo.
  std::vector<PageSpan> unanswered;
  for (const PrefetchRequest& request : prefetches) {
    if (request.in_use && request.kind == PrefetchRequest::Kind::pin && request.client == client) {
      unanswered.insert(unanswered.end(), request.pinned.begin(), request.pinned.end());
    }
  }
  for (Page page = span.first; page < span.end(); ++page) {
    const Block* block = find_block(*client, block_of(page));
    const auto bit = static_cast<unsigned>(page & (block_pages - 1));
    std::uint32_t count = block == nullptr || block->extras == nullptr ? 0 : block->extras->pin_count[bit];
    for (const PageSpan& done : unanswered) {
      count -= done.contains(page) ? 1 : 0;
    }
    if (count == 0) {
      return Code::not_held;
    }
  }
  unpin_pages(*client, span);
  resume_frees();
  pump_all();
  reclaim.pump();
  return {};
}

void Core::Impl::unpin_pages(Client& client, PageSpan span) {
  client.pinned_pages -= span.count_pages;
  for (Page page = span.first; page < span.end();) {
    Block& block = *find_block(client, block_of(page));
    const Page end = std::min(span.end(), first_page_of(block.index) + block_pages);
    for (; page < end; ++page) {
      const auto bit = static_cast<unsigned>(page & (block_pages - 1));
      if (--block.extras->pin_count[bit] == 0) {
        block.extras->pinned.reset(bit);
      }
    }
    if (block.extras->pinned.none()) {
      --pinned_blocks;
    }
    let_cpu(block);
    drop_extras_if_empty(block);
    for (Granule& granule : block.granules) {
      reclaim.touch(granule.lru);  // it may have been passed over as one that cannot leave
    }
  }
}

void Core::Impl::forget_pins(Client& client) {
  for (const auto& block : client.blocks) {
    if (block != nullptr && block->extras != nullptr && block->extras->pinned.any()) {
      --pinned_blocks;
    }
  }
  client.pinned_pages = 0;
}

// --- what pins mean to others ----------------------------------------------------------------------------------------

/// The granule's VRAM holds pages that the operation does not move: the slot stays where it is.
bool Core::Impl::slot_stays(const Op& op) const {
  const PageMask in_vram = op.block->vram_current & granule_mask(op.granule);
  return !op.pages.contains(in_vram) || (!planted(PlantedBug::move_pinned) && pinned(*op.block, in_vram).any());
}

/// Takes out of a new operation what it would move although it is pinned.
void Core::Impl::keep_pinned(Op& op) const {
  const PageMask pins = pinned(*op.block, op.pages);
  if (pins.none() || planted(PlantedBug::move_pinned)) {
    return;
  }
  switch (op.goal) {
    case Goal::duplicate: op.pages.remove(pins); return;
    case Goal::vram: op.pages.remove(pins & ~op.block->vram_current); return;
    case Goal::system:
    case Goal::in_place: op.pages.remove(pins & op.block->vram_current); return;
    case Goal::store:
    case Goal::zero:
    case Goal::move_out:
    case Goal::move_in:
    case Goal::forget: op.pages.remove(pins); return;
    case Goal::drop_copy:
    case Goal::unite:
    case Goal::probe:
    case Goal::freeze:
    case Goal::peer:
    case Goal::take:
    case Goal::protect:
    case Goal::discard: return;
  }
}

/// The operation goes on without what is pinned in VRAM. Waves that wanted that of their own VRAM are told: something
/// failed that would fail again.
void Core::Impl::redirect_around_pins(Op& op) {
  const PageMask stay = pinned(*op.block, op.pages) & op.block->vram_current;
  if (stay.none() || planted(PlantedBug::move_pinned)) {
    return;
  }
  if (granule_state(op).owner == op.device || linked(granule_state(op).owner, op.device)) {
    std::erase_if(op.waiters, [&](const Waiter& waiter) {
      if (waiter.device != op.device || !stay.test(static_cast<unsigned>(waiter.page & (block_pages - 1)))) {
        return false;
      }
      if (op.block->client->devices[waiter.device].attached) {
        wake(*op.block->client, waiter, Code::no_mappings);
      }
      return true;
    });
    // What the device reaches of them is unknown after a mapping that failed.
    revoke_device(op, op.device, stay);
  }
  keep_pinned(op);
}

/// The touch of a device at a granule with pins, where that makes a difference. False: it makes none.
bool Core::Impl::serve_pinned(Block& block, const Waiter& waiter) {
  const std::uint32_t granule = granule_of(waiter.page);
  const auto bit = static_cast<unsigned>(waiter.page & (block_pages - 1));
  const PageMask pins = pinned(block, granule_mask(granule));
  if (pins.none() || planted(PlantedBug::move_pinned)) {
    return false;
  }
  const DeviceId owner = block.granules[granule].owner;
  const bool slot_stays = (pins & block.vram_current).any();
  Goal goal = Goal::in_place;
  if (pins.test(bit) && block.vram_current.test(bit)) {
    if (linked(owner, waiter.device)) {
      goal = Goal::peer;
    } else if (owner != waiter.device) {
      wake(*block.client, waiter, Code::in_use);
      return true;
    } else {
      goal = Goal::vram;
    }
  } else if (!pins.test(bit) && (!slot_stays || owner == waiter.device)) {
    return false;
  }
  Op& op = start_op(block, granule, goal, Cause::device_fault, waiter.device, waiter.access);
  if (!block.plain) {
    op.pages &= served_with(block, waiter.page);
  }
  if (goal == Goal::in_place && pins.test(bit)) {
    op.pages &= pins;
  } else if (goal != Goal::in_place) {
    op.pages &= block.vram_current;  // what is around it goes where it would have gone without the pin
  }
  op.waiters.push_back(waiter);
  run_op(op.self);
  return true;
}

/// CPU threads that wait for pages which are pinned in VRAM are told so.
void Core::Impl::fail_cpu_at_pins(Block& block, std::uint32_t granule) {
  if (planted(PlantedBug::move_pinned)) {
    return;
  }
  const PageMask out_of_reach = pinned(block, block.cpu_waiting & granule_mask(granule)) & block.vram_current;
  refuse_cpu(block, out_of_reach, Code::in_use);
}

/// Whether room can be made there for `requester`: of another's memory, whole chunks only.
bool Core::Impl::may_evict(DeviceId device, const Slot& slot, const Client& requester) const {
  const bool pins = pinned_blocks != 0 && slot.client->pinned_pages != 0 && !planted(PlantedBug::move_pinned);
  if (!pins && slot.client->svm.fixed.empty()) {
    return true;
  }
  // Pages whose free is kept by a pin of others of them stay too, and those of groups that may not migrate.
  const auto stays = [&](const Slot& s) {
    if (is_copy(device, s)) {
      return false;
    }
    const PageMask in_vram = granule_mask(s.granule) & s.block->vram_current;
    return (pins && (in_vram.intersects(s.block->freeing) || pinned(*s.block, in_vram).any())) ||
           fixed_pages(*s.block, s.granule).intersects(in_vram);
  };
  if (slot.client == &requester) {
    return !stays(slot);
  }
  const ClientDevice& own = slot.client->devices[device];
  const std::uint32_t first = slot.first / block_pages * slots_per_chunk();
  for (std::uint32_t i = first; i < first + slots_per_chunk(); ++i) {
    if (own.slot_at[i] != none_index && stays(devices[device].slots[own.slot_at[i]])) {
      return false;
    }
  }
  return true;
}

// --- I-60 ------------------------------------------------------------------------------------------------------------

void Core::Impl::verify_refused(const Block& block) const {
  PageMask refused = block.extras->refused;
  refused.remove(block.extras->pinned & block.vram_current);
  for (std::uint32_t g = 0; g < block.granules.size() && refused.any(); ++g) {
    refused.remove(kept_from_cpu(block, g));
  }
  FERRY_CHECK(block.client->dying || refused.none());  // I-75
}

void Core::Impl::verify_pins(const Client& client) const {
  std::uint64_t counted = 0;
  for (const auto& block : client.blocks) {
    if (block == nullptr || block->extras == nullptr) {
      continue;
    }
    const Extras& extras = *block->extras;
    FERRY_CHECK(!extras.empty());
    FERRY_CHECK(block->allocated.contains(extras.pinned));
    FERRY_CHECK(!extras.discarded.intersects(extras.pinned));
    FERRY_CHECK(block->allocated.contains(extras.discarded));
    FERRY_CHECK(!extras.discarded.intersects(block->cpu_mapped));
    verify_refused(*block);
    for (const DeviceView& view : block->devices) {
      FERRY_CHECK(!extras.discarded.intersects(view.mapped));
    }
    for (unsigned bit = 0; bit < block_pages; ++bit) {
      FERRY_CHECK_EQ(extras.pin_count[bit] != 0, extras.pinned.test(bit));
      counted += extras.pin_count[bit];
    }
    PageMask in_system = extras.pinned;
    in_system.remove(block->vram_current);
    FERRY_CHECK(block->system_current.contains(in_system));
    FERRY_CHECK(!reclaim.counts() || block->held.contains(in_system));
    FERRY_CHECK(!block->stored.intersects(extras.pinned));
    FERRY_CHECK(!block->system_current.intersects(extras.pinned & block->vram_current));
  }
  for (const PrefetchRequest& request : prefetches) {
    if (request.in_use && request.kind == PrefetchRequest::Kind::pin && request.client == &client) {
      counted += request.span.count_pages;
      for (const PageSpan& done : request.pinned) {
        counted -= done.count_pages;
      }
    }
  }
  FERRY_CHECK(client.dying || counted == client.pinned_pages);
}

}  // namespace ferry::core
