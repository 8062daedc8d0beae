// Contention: a granule that both sides keep taking from each other stays in system memory for a while, mapped by both.
// The shape (a count of changes inside a window, then a pin for a time) follows nvidia-uvm's thrash detection.
#include "core/impl.h"

namespace ferry::core {

/// A fault is about to take the granule to the other side. True: it has changed sides too often and is pinned now.
bool Core::Impl::note_flip(Block& block, Granule& granule) {
  if (config.contention_threshold == 0) {
    return false;
  }
  if (granule.flips == 0 || now_ns - granule.flip_window_ns > config.contention_window_ns) {
    granule.flips = 0;
    granule.flip_window_ns = now_ns;
  }
  if (++granule.flips < config.contention_threshold) {
    return false;
  }
  granule.flips = 0;
  granule.pinned_until_ns = now_ns + config.contention_hold_ns;
  count(*block.client, [](Stats& s) { ++s.contention_pins; });
  const auto index = static_cast<std::uint32_t>(&granule - block.granules.data());
  tell(EventKind::contention_pin, *block.client, no_device, granule_span(block, index), Cause::contention);
  return true;
}

/// A granule gets VRAM again: how many evictions after it was evicted? Within one turnover of VRAM it is a refault.
std::uint64_t Core::Impl::note_refault(const Op& op) {
  Granule& state = granule_state(op);
  if (state.evict_mark == 0) {
    return VictimPolicy::none_distance;
  }
  const Device& device = devices[op.device];
  const std::uint64_t distance = device.evictions - state.evict_mark;
  state.evict_mark = 0;
  note_return(state, distance, device);
  if (distance <= device.chunk_total * slots_per_chunk()) {
    count(*op.block->client, [](Stats& s) { ++s.refaults; });
    tell(EventKind::refault, *op.block->client, op.device, granule_span(*op.block, op.granule), op.cause);
  }
  return distance;
}

}  // namespace ferry::core
