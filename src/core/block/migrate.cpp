// An operation moves one granule to where it is wanted and maps it there, in the order that loses nothing: room, revoke,
// copy, switch the newest copy, map, wake. Each stage asks the machine for actions and goes on when all are answered.
#include "core/impl.h"

namespace ferry::core {
Op& Core::Impl::start_op(Block& block, std::uint32_t granule, Goal goal, Cause cause, DeviceId device, Access access) {
  OpIndex index = 0;
  if (op_holes.empty()) {
    index = static_cast<OpIndex>(ops.size());
    ops.emplace_back();
  } else {
    index = op_holes.back();
    op_holes.pop_back();
  }
  FERRY_CHECK_EQ(block.granules[granule].op, none_index);
  Op& op = ops[index];
  op.self = index;
  op.block = &block;
  op.granule = granule;
  op.goal = goal;
  op.stage = Stage::begin;
  op.cause = cause;
  op.device = device;
  op.access = access;
  op.in_use = true;
  op.reclaim = false;
  op.reclaim_device = no_device;
  op.redirected = false;
  op.moved = false;
  op.move_status = Code::ok;
  op.failure = {};
  op.trouble = false;
  op.outstanding = 0;
  op.copy_failures = 0;
  op.tries = 0;
  op.serial = ++op_serial;
  op.pages = block.allocated & granule_mask(granule);
  op.pages.remove(block.freeing);
  op.by_home = false;
  op.at_home = false;
  op.united = false;
  op.slot_to = none_index;
  op.partner = none_index;
  op.fills = false;
  op.arrived = {};
  op.retry = {};
  op.load_failed = {};
  op.need = {};
  op.vram_first = 0;
  op.discard_next = {};
  op.remap = {};
  op.remap_next = {};
  if (block.extras != nullptr) {
    keep_pinned(op);
  }
  op.changes.clear();
  op.next_changes.clear();
  block.granules[granule].op = index;
  ++block.client->ops;
  ++ops_in_use;
  return op;
}

void Core::Impl::run_op(OpIndex index) {
  // One that ends may begin the next on its granule at once, but each of them asks the machine for something or leaves
  // nobody who waits. Where that fails, they would go round for ever.
  FERRY_CHECK_LT(++op_depth, op_depth_most);
  Op& op = ops[index];
  while (op.in_use && op.outstanding == 0 && step(op)) {}
  --op_depth;
}

/// One stage. False: the operation ended or waits for room.
bool Core::Impl::step(Op& op) {
  if (op.block->client->dying) {
    part_ways(op);
    return false;
  }
  if (op.trouble) {
    if (op.load_failed.any()) {
      if (!load_failed(op)) {
        end_op(op.self);
        return false;
      }
      return true;
    }
    if (op.retry.any() || !op.failure.ok()) {
      if (!stage_failed(op)) {
        end_op(op.self);
        return false;
      }
      return true;
    }
    op.trouble = false;
  }
  switch (op.stage) {
    case Stage::begin: begin(op); return true;
    case Stage::wait_turn: return false;
    case Stage::wait_memory:
      if (!acquire_memory(op)) {
        return false;
      }
      route(op);
      return true;
    case Stage::wait_slot:
      if (op.goal == Goal::duplicate) {
        return take_copy_slot(op);
      }
      if (op.block->copies != nullptr && holds_copies(*op.block, op.granule) && granule_state(op).slot == none_index &&
          (!devices[op.device].waiting.empty() || !has_free_slot(*op.block->client, op.device))) {
        redirect(op, Goal::in_place);  // whoever holds a slot must not wait for another
        return true;
      }
      if (granule_state(op).slot != none_index) {
        take_target(op);
        return true;
      }
      if (!acquire_slot(op)) {
        return false;
      }
      op.stage = Stage::revoke_source;
      return true;
    case Stage::revoke_source:
      if (op.goal == Goal::discard || op.goal == Goal::freeze) {
        if (op.goal == Goal::discard && planted(PlantedBug::keep_freed_mapping)) {
          for (DeviceId d = 0; d < devices.size(); ++d) {
            mark_revoked(*op.block, d, op.pages);
          }
        }
        revoke_everything(op);
        op.stage = op.goal == Goal::discard ? Stage::discard : Stage::finished;
      } else if (op.goal == Goal::take) {
        take_mappings(op);
        op.stage = Stage::finished;
      } else if (op.goal == Goal::forget) {
        for_spans(op, op.pages & op.block->cpu_mapped, [&](PageSpan span) { ask(Verb::revoke_cpu, op, span); });
        revoke_everything(op);
        op.stage = Stage::forget;
      } else if (op.goal == Goal::zero || op.goal == Goal::protect) {
        revoke_for_change(op);
        op.stage = op.goal == Goal::zero ? Stage::zero : Stage::finished;
      } else if (op.goal == Goal::move_out || op.goal == Goal::move_in) {
        revoke_for_move(op);
        op.stage = Stage::meet;
      } else if (op.goal == Goal::probe) {
        revoke_vram(op);
        op.stage = Stage::finished;
      } else if (op.goal == Goal::duplicate) {
        protect_source(op);
        op.stage = Stage::gather;
      } else if (op.goal == Goal::drop_copy || op.goal == Goal::unite) {
        take_copies(op);
        op.stage = Stage::drop_copies;
      } else if (op.goal == Goal::store) {
        revoke_for_store(op);
        op.stage = Stage::store;
      } else if (op.goal == Goal::vram && granule_state(op).owner == op.device) {
        revoke_for_vram(op);
        op.stage = Stage::copy_up;
      } else {
        revoke_vram(op);
        op.stage = op.slot_to != none_index ? Stage::copy_direct : Stage::copy_home;
      }
      return true;
    case Stage::take_copies:
      op.stage = Stage::drop_copies;
      take_copies(op);
      return true;
    case Stage::drop_copies:
      drop_copies(op);
      if (op.goal == Goal::drop_copy || op.goal == Goal::unite) {
        op.stage = Stage::finished;
      } else {
        begin(op);  // another memory may be the home now: what it lacks was not charged
      }
      return true;
    case Stage::meet: return meet(op);
    case Stage::carried: finish_move(op); return false;
    case Stage::gather:
      op.stage = Stage::fill;
      gather(op);
      return true;
    case Stage::fill: fill(op); return true;
    case Stage::map_copy:
      op.stage = Stage::finished;
      map_copy(op);
      return true;
    case Stage::copy_direct:
      op.stage = Stage::switch_home;
      copy_direct(op);
      return true;
    case Stage::switch_home:
      switch_home(op);
      op.stage = Stage::revoke_source;  // the rest of the pages come up as ever
      return true;
    case Stage::copy_up:
      if (reclaim.counts()) {
        PageMask going = op.pages;
        going.remove(op.block->vram_current);
        if (load(op, going)) {
          return true;
        }
      }
      op.stage = Stage::map_vram;
      copy_up(op);
      return true;
    case Stage::map_vram:
      op.stage = Stage::finished;
      map_vram(op);
      return true;
    case Stage::copy_home:
      op.stage = Stage::drop_vram;
      copy_home(op, op.pages);
      return true;
    case Stage::drop_vram:
      drop_vram(op);
      op.stage = op.goal == Goal::vram       ? Stage::begin
                 : op.goal == Goal::in_place ? Stage::map_in_place
                                             : Stage::map_cpu;
      return true;
    case Stage::map_in_place:
      if (reclaim.counts() && load(op, op.pages)) {
        return true;
      }
      op.stage = Stage::finished;
      map_in_place(op);
      return true;
    case Stage::map_cpu:
      if (reclaim.counts() && load(op, op.pages & op.block->held)) {
        return true;
      }
      op.stage = Stage::finished;
      map_cpu(op);
      return true;
    case Stage::discard:
      if (op.block->stored.intersects(op.pages)) {
        forget_stored(op, op.pages);  // this stage again when they are forgotten
        return true;
      }
      discard(op);
      op.stage = Stage::finished;
      return true;
    case Stage::forget:
      forgotten(op);
      op.stage = Stage::finished;
      return true;
    case Stage::zero:
      if (op.block->stored.intersects(op.pages)) {
        forget_stored(op, op.pages);
        return true;
      }
      op.stage = Stage::finished;
      zero(op);
      return true;
    case Stage::store:
      op.stage = Stage::drop_system;
      store(op);
      return true;
    case Stage::drop_system:
      op.stage = Stage::finished;
      drop_system(op);
      return true;
    case Stage::finished: end_op(op.self); return false;
  }
  return false;
}

void Core::Impl::begin(Op& op) {
  if (reclaim.counts()) {
    op.stage = Stage::wait_memory;
  } else {
    route(op);
  }
}

/// Which stage comes first. REQUIRES: what the operation needs of system memory is charged.
void Core::Impl::route(Op& op) {
  if (op.block->copies != nullptr && must_unite(op)) {
    op.stage = Stage::take_copies;
    return;
  }
  const Granule& state = granule_state(op);
  switch (op.goal) {
    case Goal::duplicate: route_duplicate(op); return;
    case Goal::drop_copy:
    case Goal::unite:
    case Goal::discard:
    case Goal::zero:
    case Goal::protect:
    case Goal::store:
    case Goal::freeze:
    case Goal::take:
    case Goal::forget:
    case Goal::move_out:
    case Goal::move_in:
    case Goal::probe: op.stage = Stage::revoke_source; return;
    case Goal::peer:
      if (state.slot == none_index || !linked(state.owner, op.device)) {
        redirect(op, Goal::in_place);
      } else {
        op.stage = Stage::map_vram;
      }
      return;
    case Goal::vram:
      if (!op.block->client->devices[op.device].attached) {
        op.stage = Stage::finished;
      } else if (state.slot != none_index && state.owner != op.device && slot_stays(op)) {
        redirect(op, Goal::in_place);
      } else if (state.slot == none_index || moves_directly(op)) {
        op.stage = Stage::wait_slot;
      } else {
        op.stage = Stage::revoke_source;  // here already: the rest moves up; elsewhere: home first, by way of copy_home
      }
      return;
    case Goal::system:
    case Goal::in_place:
      op.stage = state.slot != none_index    ? Stage::revoke_source
                 : op.goal == Goal::in_place ? Stage::map_in_place
                                             : Stage::map_cpu;
      return;
  }
}

void Core::Impl::op_action_done(const Pending& pending, Status status) {
  Op& op = ops[pending.op];
  FERRY_CHECK(op.in_use);
  FERRY_CHECK_EQ(op.serial, pending.op_serial);
  FERRY_CHECK_GE(op.outstanding, 1U);
  --op.outstanding;
  op.trouble = op.trouble || !status.ok();
  Block& block = *op.block;
  const auto mask = PageMask::range(static_cast<unsigned>(pending.pages.first & (block_pages - 1)),
                                    static_cast<unsigned>(pending.pages.count_pages));
  switch (pending.verb) {
    case Verb::revoke_cpu:
      block.cpu_mapped.remove(mask);
      if (block.copies != nullptr) {
        block.copies->cpu_read_only.remove(mask);
      }
      break;
    case Verb::protect_cpu: copies_of(block).cpu_read_only |= mask & block.cpu_mapped; break;
    case Verb::revoke_device: mark_revoked(block, pending.device, mask); break;
    case Verb::copy_system: move_copied(op, pending, mask, status); break;
    case Verb::copy:
      if (op.goal == Goal::move_in) {
        move_copied(op, pending, mask, status);
        break;
      }
      if (!status.ok()) {
        count(*block.client, [](Stats& s) { ++s.copy_errors; });
        if (!planted(PlantedBug::ignore_copy_error)) {
          op.retry |= mask;
          break;
        }
      }
      if (op.goal == Goal::duplicate) {
        copy_arrived(op, pending, mask);
      } else if (op.stage == Stage::switch_home) {
        op.arrived |= mask;
        count(*block.client, [&](Stats& s) { s.pages_direct += pending.pages.count_pages; });
      } else if (op.stage == Stage::map_vram) {
        block.vram_current |= mask;
        count(*block.client, [&](Stats& s) { s.pages_to_vram += pending.pages.count_pages; });
      } else {
        block.system_current |= mask;
        count(*block.client, [&](Stats& s) { s.pages_to_system += pending.pages.count_pages; });
      }
      break;
    case Verb::load:
      if (status.ok()) {
        block.system_current |= mask;
        count(*block.client, [&](Stats& s) { s.pages_from_store += pending.pages.count_pages; });
      } else {
        count(*block.client, [](Stats& s) { ++s.store_errors; });
        op.load_failed |= mask;
      }
      break;
    case Verb::store: stored(op, mask, status); break;
    case Verb::discard_store: reclaim.store_has_room(); break;
    case Verb::discard_system: dropped(op, mask); break;
    case Verb::map_device:
      if (status.code == Code::device_lost) {
        // Waves of the process that was lost wait no more. Those of a new one in its place do.
        if (pending.process == block.client->devices[pending.device].process) {
          std::erase_if(op.waiters, [&](const Waiter& w) { return w.device == pending.device; });
        }
        op.failure = status;
      } else if (!status.ok()) {
        op.failure = status;
      } else if (pending.has_token) {
        // The wave that mapped goes on by itself.
        std::erase_if(op.waiters, [&](const Waiter& w) {
          if (w.token != pending.token || w.device != pending.device) {
            return false;
          }
          tell(EventKind::device_fault_end, *block.client, w.device, {w.page, 1}, Cause::device_fault, w.access);
          return true;
        });
        work.fault_ends(block.client->id, pending.device, pending.token.value);
      }
      break;
    case Verb::map_cpu:
      if (status.code == Code::client_gone) {
        break;
      }
      if (!status.ok()) {
        op.failure = status;
        // Whoever waits for what was freed meanwhile meets what the application put there: a free may be kept for long.
        PageMask waiting = mask;
        for_spans(op, mask & block.freeing, [&](PageSpan span) { emit(Verb::wake_cpu, *block.client).pages = span; });
        waiting.remove(block.freeing);
        block.cpu_waiting |= waiting;
        if (block.copies != nullptr) {
          block.copies->cpu_reads.remove(waiting);  // who joined meanwhile may only read, and these may want to write
        }
      } else if (pending.wakes_cpu) {
        tell(EventKind::cpu_fault_end, *block.client, no_device, pending.pages, Cause::cpu_fault);
      }
      break;
    default: FERRY_CHECK(false && "a verb that no operation asks for");
  }
  if (op.outstanding == 0) {
    run_op(op.self);
  }
}

void Core::Impl::tell_moved(Op& op, Place to) {
  if (op.moved) {
    // From one device to another by way of home: each leg has its own end.
    tell_move_ended(op);
  }
  op.moved = true;
  op.moved_to = to;
  op.moved_device = to == Place::vram ? op.device : granule_state(op).owner;
  op.moved_from = to == Place::vram ? no_device : granule_state(op).owner;
  tell(EventKind::migrate_begin, *op.block->client, op.moved_device, granule_span(*op.block, op.granule), op.cause,
       op.access, to, Code::ok, op.moved_from);
}

void Core::Impl::tell_move_ended(Op& op) {
  tell(EventKind::migrate_end, *op.block->client, op.moved_device, granule_span(*op.block, op.granule), op.cause,
       op.access, op.moved_to, op.move_status, op.moved_from);
  op.move_status = Code::ok;
}

void Core::Impl::end_op(OpIndex index) {
  Op& op = ops[index];
  Block& block = *op.block;
  Client& client = *block.client;
  const std::uint32_t granule = op.granule;
  const PageMask discard_pages = op.discard_next;
  if (block.granules[granule].slot != none_index) {
    devices[block.granules[granule].owner].line_stands = false;  // it can be evicted from now on
  }
  if (op.moved) {
    tell_move_ended(op);
  }
  drop_empty_slot(op);
  const bool draining_check = block.granules[granule].slot != none_index;
  if (reclaim.counts()) {
    memory_op_ends(op);
  }
  drop_target(op);
  if (op.goal == Goal::duplicate) {
    release_unused(op);
  }
  std::vector<Waiter> waiters = take_spare();
  waiters.swap(op.waiters);
  std::vector<std::uint32_t> prefetches_told;
  prefetches_told.swap(op.prefetches);
  std::vector<std::uint32_t> next_frees;
  next_frees.swap(op.next_frees);
  std::vector<std::uint32_t> told;
  told.swap(op.svm);
  const PageMask remap = op.remap_next;
  std::vector<std::uint32_t> changes_told;
  changes_told.swap(op.changes);
  std::vector<std::uint32_t> next_changes;
  next_changes.swap(op.next_changes);
  op.frees.clear();
  if (op.reclaim) {
    --devices[op.reclaim_device].reclaims;
  }
  op.in_use = false;
  block.granules[granule].op = none_index;
  op_holes.push_back(index);
  --ops_in_use;
  --client.ops;
  if (client.dying) {
    waiters.clear();
    spare_waiters.push_back(std::move(waiters));
    finish_client_if_idle(client);
    show_slot_lines();
    pump_all();
    reclaim.pump();
    return;
  }
  ++block.holds;
  if (discard_pages.any()) {
    // Frees that came meanwhile go first: whoever waited for freed pages is then told so.
    Op& next = start_op(block, granule, Goal::discard, Cause::freed, no_device, Access::read);
    next.pages = discard_pages;
    next.frees.swap(next_frees);
    next.waiters.swap(waiters);
    next.svm.swap(told);
    next.remap_next = remap;
    std::erase_if(prefetches_told, [&](std::uint32_t request) {
      const bool again = prefetches[request].in_use && prefetches[request].revisits();
      if (again) {
        next.prefetches.push_back(request);
      }
      return again;
    });
    next.next_changes.swap(next_changes);
    run_op(next.self);
  } else {
    if (!prefetches_told.empty()) {
      revisit(block, granule, op, prefetches_told, waiters);
    }
    if (const OpIndex begun = block.granules[granule].op; begun != none_index) {
      ops[begun].remap_next |= remap;
      ops[begun].svm.insert(ops[begun].svm.end(), told.begin(), told.end());
      told.clear();
    } else if (!block.plain && take_next(block, granule, remap, told, waiters, next_changes)) {
      // Whoever waits joins it below.
    }
    for (const std::uint32_t request : next_changes) {
      change_granule(request, block, granule);
    }
    after_op(block, granule, waiters);
  }
  waiters.clear();
  spare_waiters.push_back(std::move(waiters));
  if (draining_check && block.granules[granule].slot != none_index && block.granules[granule].op == none_index) {
    evict_if_draining(block, granule);
  }
  if (block.copies != nullptr) {
    evict_draining_copies(block, granule);
    if (block.copies != nullptr) {
      drop_copies_if_none(block);
    }
  }
  for (const std::uint32_t request : changes_told) {
    change_op_done(request, block, granule);
  }
  for (const std::uint32_t request : prefetches_told) {
    prefetch_op_done(request);
  }
  for (const std::uint32_t request : told) {
    if (!planted(PlantedBug::forget_set_waiter)) {
      svm_told(request);
    }
  }
  --block.holds;
  drop_block_if_empty(client, block);
  show_slot_lines();
  pump_all();
  reclaim.pump();
}

std::vector<Waiter> Core::Impl::take_spare() {
  if (spare_waiters.empty()) {
    return {};
  }
  std::vector<Waiter> spare = std::move(spare_waiters.back());
  spare_waiters.pop_back();
  return spare;
}

}  // namespace ferry::core
