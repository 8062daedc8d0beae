// Speculation: what the prefetchers of a device name is brought along with a fault, as far as VRAM is free: when it is
// full this stops by itself, since what it would push out may be wanted sooner.
#include "core/impl.h"

namespace ferry::core {

void Core::Impl::speculate(Block& block, std::uint32_t granule, DeviceId device, Access access) {
  if (config.speculation_granules == 0) {
    return;
  }
  Client& client = *block.client;
  ClientDevice& own = client.devices[device];
  // In full VRAM a fault pays nothing for what cannot come anyway.
  if (own.prefetchers[0] == nullptr || !has_free_slot(client, device)) {
    return;
  }
  const unsigned most = own.gate.allow(config.speculation_granules);
  const bool by_density = config.prefetch == PrefetchKind::density || config.prefetch == PrefetchKind::both;
  PageMask in_vram;
  if (by_density) {
    in_vram = block.devices[device].mapped;
    in_vram.remove(block.devices[device].in_place);
  }
  // Faults are seen while nothing may be brought too, so that a walk is known when it may again.
  const PrefetchView view{block.index * slots_per_chunk() + granule, config.granularity_pages, std::max(most, 1U),
                          by_density ? &in_vram : nullptr};
  for (const auto& prefetcher : own.prefetchers) {
    if (prefetcher == nullptr) {
      break;
    }
    std::vector<std::uint64_t>& wanted = scratch_granules;
    wanted.clear();
    prefetcher->fault(view, wanted);
    std::size_t brought = 0;
    while (brought < wanted.size() && most != 0 && speculate_granule(client, wanted[brought], device, access)) {
      ++brought;
    }
    prefetcher->brought(brought);
  }
}

/// False: no room, and none for what comes after it. What cannot be brought for other reasons is passed over.
bool Core::Impl::speculate_granule(Client& client, std::uint64_t number, DeviceId device, Access access) {
  if (!has_free_slot(client, device)) {
    return false;
  }
  const Page first = number * config.granularity_pages;
  Block* target = find_block(client, block_of(first));
  if (target == nullptr) {
    if (!all_allocated(client, {first, 1})) {
      return true;
    }
    target = &make_block(client, block_of(first));
  }
  const std::uint32_t granule = granule_of(first);
  Granule& state = target->granules[granule];
  PageMask pages = target->allocated & granule_mask(granule);
  pages.remove(target->freeing);
  if (pages.none() || state.op != none_index || state.slot != none_index || is_contended(state) ||
      target->placed_system.intersects(pages) || work.userptr_in_use(client.id, granule_span(*target, granule))) {
    return true;
  }
  pages = may_go_to(*target, granule, device, pages, false);
  const PageMask readers = access == Access::read ? read_mostly(*target, granule, device) & pages : PageMask();
  pages.remove(readers);
  if (pages.none() && readers.none()) {
    return true;
  }
  if (pages.none() && !holds_copies(*target, granule)) {
    Op& op = start_op(*target, granule, Goal::duplicate, Cause::speculation, device, access);
    op.pages &= readers;
    run_op(op.self);
    return true;
  }
  if (pages.none() || holds_copies(*target, granule)) {
    return true;
  }
  state.sample = client.devices[device].gate.sample();
  Op& op = start_op(*target, granule, Goal::vram, Cause::speculation, device, access);
  op.pages &= pages;
  run_op(op.self);
  return true;
}

}  // namespace ferry::core
