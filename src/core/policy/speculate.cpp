// Speculation: faults of a device that walk through memory granule by granule bring the next granules along. It uses
// only room that is free: when VRAM is full it stops by itself, since what it would push out may be wanted sooner.
#include "core/impl.h"

namespace ferry::core {

void Core::Impl::speculate(Block& block, std::uint32_t granule, DeviceId device, Access access) {
  if (config.speculation_granules == 0) {
    return;
  }
  Client& client = *block.client;
  ClientDevice& own = client.devices[device];
  const std::uint64_t number = block.index * slots_per_chunk() + granule;
  ++own.stream_clock;
  Stream* stream = nullptr;
  Stream* oldest = &own.streams[0];
  for (Stream& s : own.streams) {
    if (s.next_granule == number) {
      stream = &s;
      break;
    }
    if (s.last_use < oldest->last_use) {
      oldest = &s;
    }
  }
  if (stream == nullptr) {
    *oldest = {number + 1, 1, own.stream_clock};
    return;
  }
  ++stream->length;
  stream->last_use = own.stream_clock;
  stream->next_granule = number + 1;
  std::uint32_t depth = stream->length < 8 ? (1U << (stream->length - 1)) / 2 : config.speculation_granules;
  depth = std::min(depth, config.speculation_granules);
  for (std::uint32_t i = 0; i < depth && has_free_slot(client, device); ++i) {
    const std::uint64_t next = stream->next_granule;
    const Page first = next * config.granularity_pages;
    Block* target = find_block(client, block_of(first));
    if (target == nullptr) {
      if (!all_allocated(client, {first, 1})) {
        return;
      }
      target = &make_block(client, block_of(first));
    }
    const std::uint32_t g = granule_of(first);
    Granule& state = target->granules[g];
    PageMask pages = target->allocated & granule_mask(g);
    pages.remove(target->freeing);
    if (pages.none() || state.op != none_index || state.slot != none_index || is_contended(state) ||
        target->placed_system.intersects(pages) || work.userptr_in_use(client.id, granule_span(*target, g))) {
      return;
    }
    pages = may_go_to(*target, g, device, pages, false);
    if (pages.none()) {
      return;
    }
    stream->next_granule = next + 1;
    Op& op = start_op(*target, g, Goal::vram, Cause::speculation, device, access);
    op.pages &= pages;
    run_op(op.self);
  }
}

}  // namespace ferry::core
