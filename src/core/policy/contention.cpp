// Contention: a granule that both sides keep taking from each other stays in system memory for a while, mapped by both.
// The shape (a count of changes inside a window, then a pin for a time) follows nvidia-uvm's thrash detection. Where a
// granule may not be had in place (svm_coherent cleared), or is preferred on a device, sides take turns instead.
#include <algorithm>

#include "core/impl.h"

namespace ferry::core {
namespace {
/// Slices are doubled from turn to turn up to this.
constexpr std::uint64_t slice_most_ns = 32'000'000;
}  // namespace

std::uint64_t Core::Impl::slice_of(const Granule& granule) const {
  return config.contention_slice_ns << granule.longer;
}

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
  granule.longer = 0;
  granule.pinned_until_ns = now_ns + config.contention_hold_ns;
  count(*block.client, [](Stats& s) { ++s.contention_pins; });
  const auto index = static_cast<std::uint32_t>(&granule - block.granules.data());
  tell(EventKind::contention_pin, *block.client, no_device, granule_span(block, index), Cause::contention);
  return true;
}

/// The operation, which is about to run, takes a contended granule away from whom it came to less than a slice ago.
/// True: it waits until that is over, and is not to be run. Everybody who touches the granule meanwhile waits with it.
bool Core::Impl::wait_for_turn(Op& op) {
  Granule& state = granule_state(op);
  const std::uint64_t end_ns = state.last_move_ns + slice_of(state);
  if (!is_contended(state) || now_ns >= end_ns) {
    return false;
  }
  op.stage = Stage::wait_turn;
  op.turn_ns = end_ns;
  turns.push_back(op.self);
  // Whoever it came to may not have run yet: on a busy machine threads wait for a processor for longer than the first slices.
  if (2 * slice_of(state) <= slice_most_ns) {
    ++state.longer;
  }
  count(*op.block->client, [](Stats& s) { ++s.contention_waits; });
  return true;
}

void Core::Impl::end_turns() {
  std::vector<OpIndex> due;
  std::erase_if(turns, [&](OpIndex index) {
    const bool ends = ops[index].turn_ns <= now_ns;
    if (ends) {
      ops[index].stage = Stage::begin;
      due.push_back(index);
    }
    return ends;
  });
  for (const OpIndex index : due) {
    if (planted(PlantedBug::forget_turn)) {
      continue;
    }
    run_op(index);
  }
}

/// Operations that wait for a slice have nothing under way: those of a client that dies end here.
void Core::Impl::forget_turns(const Client& client) {
  std::vector<OpIndex> own;
  std::erase_if(turns, [&](OpIndex index) {
    const bool ends = ops[index].block->client == &client;
    if (ends) own.push_back(index);
    return ends;
  });
  for (const OpIndex index : own) {
    end_op(index);
  }
}

std::uint64_t Core::Impl::next_turn_ns() const {
  std::uint64_t next = ~std::uint64_t{0};
  for (const OpIndex index : turns) next = std::min(next, ops[index].turn_ns);
  return next;
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
