// Devices of one hive: granules that go from one's VRAM to another's without system memory between, and mappings of one
// device that lead to another's VRAM.
#include "core/impl.h"

namespace ferry::core {

/// The operation takes the granule straight from its owner's VRAM to another of the hive. Until it has arrived the
/// operation holds two slots: the granule's own, and the one that it is copied to.
bool Core::Impl::moves_directly(const Op& op) const {
  const Granule& state = granule_state(op);
  return op.goal == Goal::vram && !op.by_home && state.slot != none_index && linked(state.owner, op.device) &&
         !slot_stays(op);
}

/// It holds one slot, so it must not wait for another: two that did would wait for each other. Where none is free the
/// touch is served over the link; what nobody touched, or is not in VRAM as a whole, goes by way of home.
void Core::Impl::take_target(Op& op) {
  Device& dev = devices[op.device];
  VramPage first = 0;
  if (dev.waiting.empty() && take_slot(*op.block->client, op.device, first)) {
    assign_slot(op, first);
    op.stage = Stage::revoke_source;
    return;
  }
  bool touched = false;
  bool there = true;
  for (const Waiter& waiter : op.waiters) {
    touched = touched || waiter.device == op.device;
    there = there && (waiter.device != op.device ||
                      op.block->vram_current.test(static_cast<unsigned>(waiter.page & (block_pages - 1))));
  }
  if (touched && there) {
    op.goal = Goal::peer;
    op.stage = Stage::map_vram;
  } else {
    op.by_home = true;
    op.stage = Stage::begin;
  }
}

void Core::Impl::copy_direct(Op& op) {
  Block& block = *op.block;
  const Granule& state = granule_state(op);
  PageMask going = op.pages & block.vram_current;
  going.remove(op.arrived);
  if (going.none()) {
    return;
  }
  if (!op.moved || op.moved_to != Place::vram) {
    tell_moved(op, Place::vram);
    count(*block.client, [](Stats& s) { ++s.migrations_to_vram; });
  }
  const unsigned granule_first = op.granule * config.granularity_pages;
  const VramPage from = devices[state.owner].slots[state.slot].first;
  const VramPage to = devices[op.device].slots[op.slot_to].first;
  going.for_each_run([&](unsigned first, unsigned pages) {
    Action& action = ask(Verb::copy, op, {first_page_of(block.index) + first, pages});
    action.device = state.owner;
    action.place = Place::vram;
    action.vram_first = from + (first - granule_first);
    action.to = Place::vram;
    action.to_device = op.device;
    action.vram_to = to + (first - granule_first);
  });
}

/// All has arrived: the new slot is the granule's, the old one is given back.
void Core::Impl::switch_home(Op& op) {
  Block& block = *op.block;
  Granule& state = granule_state(op);
  FERRY_CHECK(op.arrived.contains(op.pages & block.vram_current));
  release_slot(block, op.granule);
  state.slot = op.slot_to;
  state.owner = op.device;
  op.slot_to = none_index;
  op.arrived = {};
}

/// The granule stays where it is: what was taken for it is given back.
void Core::Impl::drop_target(Op& op) {
  if (op.slot_to == none_index) {
    return;
  }
  const VramPage first = devices[op.device].slots[op.slot_to].first;
  forget_slot(op.device, op.slot_to);
  return_vram(*op.block->client, op.device, first);
  op.slot_to = none_index;
  op.arrived = {};
}

/// Others of the hive must let go of the owner's VRAM too.
void Core::Impl::revoke_peers(Op& op, const PageMask& pages) {
  for (DeviceId d = 0; d < devices.size(); ++d) {
    const PageMask reached = pages & op.block->devices[d].peer;
    if (planted(PlantedBug::keep_peer_mapping)) {
      mark_revoked(*op.block, d, reached);
    } else {
      revoke_device(op, d, reached);
    }
  }
}

/// A touch that is served over the link, where attributes say so. False: it is not.
bool Core::Impl::serve_linked(Block& block, const Waiter& waiter, const Attributes& a) {
  if (config.hives.empty()) {
    return false;
  }
  const DeviceId f = waiter.device;
  const std::uint32_t granule = granule_of(waiter.page);
  const Granule& state = block.granules[granule];
  const auto bit = static_cast<unsigned>(waiter.page & (block_pages - 1));
  const bool over_link = block.vram_current.test(bit) && linked(state.owner, f);
  const bool prefers_other = a.preferred != f && a.preferred < devices.size() && linked(a.preferred, f);
  if (over_link && (state.owner == a.preferred || a.access_of(f) == DeviceAccess::in_place ||
                    is_fixed(*block.client, waiter.page) || ((a.flags & svm_hive_local) != 0 && a.preferred != f))) {
    Op& op = start_op(block, granule, Goal::peer, Cause::device_fault, f, waiter.access);
    op.pages &= served_with(block, waiter.page) & block.vram_current;
    if (block.copies != nullptr && waiter.access == Access::write) {
      op.pages = written_with(block, waiter, op.pages);
    }
    op.waiters.push_back(waiter);
    run_op(op.self);
    return true;
  }
  if (!prefers_other || a.access_of(f) == DeviceAccess::none || is_fixed(*block.client, waiter.page) ||
      block.vram_current.intersects(granule_mask(granule)) || is_contended(state) ||
      !block.client->devices[a.preferred].attached || !devices[a.preferred].waiting.empty() ||
      !has_free_slot(*block.client, a.preferred) || state.op_failed) {
    return false;
  }
  // To where it is preferred; the touch is looked at again when that has ended.
  Op& op = start_op(block, granule, Goal::vram, Cause::speculation, a.preferred, Access::read);
  op.pages &= served_with(block, waiter.page);
  op.waiters.push_back(waiter);
  run_op(op.self);
  return true;
}

}  // namespace ferry::core
