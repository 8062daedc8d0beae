// System memory under a budget, as operations see it: charged before the first action, loaded before use, stored and
// dropped when the shrinker asks. Without a budget nothing here runs.
#include "core/impl.h"

namespace ferry::core {
// --- charging --------------------------------------------------------------------------------------------------------

/// All pages of the operation end up in system memory. Cleared: only those without a newer or equal copy elsewhere.
bool Core::Impl::wants_system(const Op& op) const {
  if (op.goal != Goal::system) {
    return true;
  }
  return op.cause == Cause::cpu_fault || op.cause == Cause::prefetch || op.block->cpu_waiting.intersects(op.pages);
}

PageMask Core::Impl::memory_needed(const Op& op) const {
  const Block& block = *op.block;
  const Granule& state = granule_state(op);
  PageMask need;
  switch (op.goal) {
    case Goal::duplicate:
      need = op.pages;
      if (op.device != no_device && !op.at_home) {
        need.remove(has_here(block, op.granule, op.device));
        if (linked(state.owner, op.device)) {
          need.remove(block.vram_current);
        }
      }
      break;
    case Goal::drop_copy:
    case Goal::unite:
    case Goal::discard:
    case Goal::zero:
    case Goal::protect:
    case Goal::store:
    case Goal::freeze:
    case Goal::take:
    case Goal::forget:
    case Goal::peer:
    case Goal::move_out:
    case Goal::move_in:
    case Goal::probe: return need;
    case Goal::vram:
      if (!block.client->devices[op.device].attached) {
        return need;
      }
      // The source of each copy up has memory, if only for a moment: reading zeros gives them some.
      need = op.pages;
      if (state.slot != none_index && (state.owner == op.device || moves_directly(op))) {
        need.remove(block.vram_current);
      }
      break;
    case Goal::in_place: need = op.pages; break;
    case Goal::system:
      need = op.pages;
      if (!wants_system(op)) {
        need &= block.vram_current;
        need.remove(block.system_current | block.stored);
        if (op.cause == Cause::evict) {
          need.remove(discarded(block));
        }
      }
      break;
  }
  need.remove(block.held);
  return need;
}

AllocContext Core::Impl::memory_context(const Op& op) const {
  AllocContext context;
  context.client = op.block->client->id;
  if (!op.waiters.empty()) {
    context.what = AllocContext::For::fault;
    context.device = op.waiters.front().device;
    context.cu = op.waiters.front().cu;
  } else if (op.block->cpu_waiting.intersects(op.pages)) {
    context.what = AllocContext::For::fault;
  } else if (op.cause == Cause::evict) {
    // On behalf of a fault that waits for VRAM.
    context.what = AllocContext::For::fault;
    context.device = op.reclaim_device;
  }
  return context;
}

/// False: the operation waits in line, or has ended.
bool Core::Impl::acquire_memory(Op& op) {
  op.need = memory_needed(op);
  if (op.need.none()) {
    return true;
  }
  const std::uint64_t pages = op.need.count();
  if (op.cause == Cause::speculation && op.waiters.empty()) {
    if (!reclaim.try_take(pages)) {
      end_op(op.self);
      return false;
    }
    charge(op);
    return true;
  }
  ++memory_line_ops;
  const bool taken = reclaim.take(pages, memory_context(op), {MemoryWaiter::Who::op, op.self, op.serial}, op.memory);
  if (!taken && op.memory != 0) {
    pump_all();  // what it has left on its way here may serve others; may run the operation on
    return false;
  }
  --memory_line_ops;
  hide_waits(op);
  if (!taken) {
    give_up(op);
    return false;
  }
  charge(op);
  return true;
}

void Core::Impl::op_memory_granted(OpIndex index, std::uint64_t serial, Status status) {
  Op& op = ops[index];
  FERRY_CHECK(op.in_use && op.stage == Stage::wait_memory);
  FERRY_CHECK_EQ(op.serial, serial);
  op.memory = 0;
  --memory_line_ops;
  hide_waits(op);
  if (!status.ok()) {
    give_up(op);
    return;
  }
  charge(op);
  route(op);
  run_op(index);
}

/// The operation was refused memory and ends. If a mapping of it failed before, the device reaches nothing of it now.
void Core::Impl::give_up(Op& op) {
  op.stage = Stage::finished;
  if (op.redirected && op.device != no_device) {
    revoke_device(op, op.device, op.pages);
  }
  if (op.outstanding == 0) {
    end_op(op.self);
  }
}

/// A fault joined an operation that waits. `waiter` null: a CPU thread's.
void Core::Impl::memory_waiter_joined(Op& op, const Waiter* waiter) {
  if (waiter != nullptr) {
    show_fault(op, *waiter);
  }
  if (op.memory != 0) {
    reclaim.joined(op.memory, memory_context(op));
  }
}

void Core::Impl::charge(Op& op) {
  Client& client = *op.block->client;
  Granule& state = granule_state(op);
  op.block->held |= op.need;
  client.charged_pages += op.need.count();
  client.stats.system_pages = client.charged_pages;
  client.stats.system_peak_pages = std::max(client.stats.system_peak_pages, client.charged_pages);
  op.need = {};
  if (state.lru == 0) {
    state.lru = reclaim.insert_granule(*op.block, op.granule);
  } else {
    reclaim.touch(state.lru);
  }
}

void Core::Impl::uncharge(Client& client, std::uint64_t pages) {
  FERRY_CHECK_GE(client.charged_pages, pages);
  client.charged_pages -= pages;
  client.stats.system_pages = client.charged_pages;
  reclaim.give(pages);
}

void Core::Impl::drop_lru_if_empty(Block& block, std::uint32_t granule) {
  Granule& state = block.granules[granule];
  if (state.lru != 0 && !block.held.intersects(granule_mask(granule))) {
    reclaim.remove(state.lru);
    state.lru = 0;
  }
}

/// Freed pages: their memory is given back when the machine has taken it, with the answer to the free.
void Core::Impl::return_memory(Op& op) {
  Block& block = *op.block;
  Client& client = *block.client;
  PageMask left = block.held & op.pages;
  block.held.remove(op.pages);
  drop_lru_if_empty(block, op.granule);
  if (planted(PlantedBug::leak_system_charge)) {
    return;
  }
  const Page first = first_page_of(block.index);
  for (const std::uint32_t request : op.frees) {
    const PageSpan span = frees[request].span;
    if (span.first >= first + block_pages || span.end() <= first) {
      continue;
    }
    const Page from = std::max(span.first, first);
    const Page to = std::min(span.end(), first + block_pages);
    const auto mask = PageMask::range(static_cast<unsigned>(from - first), static_cast<unsigned>(to - from)) & left;
    frees[request].charged_pages += mask.count();
    left.remove(mask);
  }
  if (left.any()) {
    uncharge(client, left.count());
  }
}

/// The client has ended: nothing of it can be a victim any more. What it is charged is given back when it is forgotten.
void Core::Impl::forget_client_memory(Client& client) {
  for (const auto& block : client.blocks) {
    if (block == nullptr) {
      continue;
    }
    const std::uint64_t forgotten = block->stored.count();
    count(client, [forgotten](Stats& s) { s.stored_pages -= forgotten; });
    block->stored = {};
    for (Granule& granule : block->granules) {
      reclaim.remove(granule.lru);
      granule.lru = 0;
    }
  }
}

/// Its operations that wait for memory have nothing under way: they end here.
void Core::Impl::withdraw_memory(Client& client) {
  const ClientId id = client.id;
  for (OpIndex index = 0; index < ops.size(); ++index) {
    Op& op = ops[index];
    if (op.in_use && op.memory != 0 && op.block->client->id == id) {
      const std::uint64_t request = op.memory;
      op.memory = 0;
      --memory_line_ops;
      hide_waits(op);
      reclaim.withdraw(request);
      end_op(index);
    }
  }
}

/// Under a budget, when an operation ends.
void Core::Impl::memory_op_ends(Op& op) {
  if (op.goal == Goal::store) {
    reclaim.store_ends(op.write_pages, op.leave_pages);
    op.write_pages = op.leave_pages = 0;
    // What could not leave is not the first to be tried again.
    reclaim.touch(granule_state(op).lru);
  } else if (op.goal != Goal::probe && op.goal != Goal::take && op.goal != Goal::freeze && op.cause != Cause::evict) {
    reclaim.touch(granule_state(op).lru);
  }
}

// --- back from the store ---------------------------------------------------------------------------------------------

/// Asks for those of the pages that only the store has. False: there are none. REQUIRES: they are charged.
bool Core::Impl::load(Op& op, const PageMask& pages) {
  Block& block = *op.block;
  PageMask missing = pages & block.stored;
  missing.remove(block.system_current);
  if (missing.none()) {
    return false;
  }
  FERRY_CHECK(block.held.contains(missing));
  if (!op.moved || op.moved_to != Place::system) {
    tell_moved(op, Place::system);
    count(*block.client, [](Stats& s) { ++s.migrations_to_system; });
  }
  for_spans(op, missing, [&](PageSpan span) { ask(Verb::load, op, span); });
  return true;
}

/// Loads failed. They are tried again a few times; then whoever waits for such a page is told, the operation goes on
/// without it, and it stays in the store. False: no page is left.
bool Core::Impl::load_failed(Op& op) {
  const PageMask failed = op.load_failed;
  op.load_failed = {};
  if (++op.copy_failures <= config.copy_retries) {
    return true;
  }
  op.copy_failures = 0;
  Block& block = *op.block;
  Client& client = *block.client;
  op.pages.remove(failed);
  std::erase_if(op.waiters, [&](const Waiter& waiter) {
    if (!failed.test(static_cast<unsigned>(waiter.page & (block_pages - 1)))) {
      return false;
    }
    if (client.devices[waiter.device].attached) {
      wake(client, waiter, Code::io_error);
    }
    return true;
  });
  for_spans(op, failed & block.cpu_waiting, [&](PageSpan span) {
    Action& action = emit(Verb::wake_cpu, client);
    action.pages = span;
    action.status = Code::io_error;
  });
  block.cpu_waiting.remove(failed);
  return op.pages.any();
}

/// The pages may be written from now on, or are freed: what the store has of them is worth nothing.
void Core::Impl::forget_stored(Op& op, const PageMask& pages) {
  Block& block = *op.block;
  const PageMask stale = block.stored & pages;
  const bool goes =
      op.goal == Goal::discard || op.goal == Goal::zero || op.goal == Goal::move_out || op.goal == Goal::move_in;
  if (stale.none() || (planted(PlantedBug::stale_store) && !goes)) {
    return;
  }
  block.stored.remove(stale);
  if (goes) {
    block.system_current |= stale;  // as zeros, from when they can be touched again
  }
  const std::uint64_t forgotten = stale.count();
  count(*block.client, [forgotten](Stats& s) { s.stored_pages -= forgotten; });
  for_spans(op, stale, [&](PageSpan span) { ask(Verb::discard_store, op, span); });
}

// --- out of system memory --------------------------------------------------------------------------------------------

Core::Impl::StoreStart Core::Impl::start_store(Block& block, std::uint32_t granule) {
  Client& client = *block.client;
  if (block.granules[granule].op != none_index || client.dying ||
      work.userptr_in_use(client.id, granule_span(block, granule))) {
    return StoreStart::busy;
  }
  PageMask leave = block.allocated & block.held & granule_mask(granule);
  leave.remove(block.freeing);
  leave.remove(pinned(block, leave));
  PageMask write = leave & block.system_current;
  write.remove(block.stored | block.vram_current);
  write.remove(discarded(block));
  if (write.any() && !reclaim.store_takes(write.count())) {
    leave.remove(write);
    write = {};
  }
  if (leave.none()) {
    return StoreStart::nothing;
  }
  Op& op = start_op(block, granule, Goal::store, Cause::pressure, no_device, Access::read);
  op.pages = leave;
  op.write_pages = write.count();
  op.leave_pages = leave.count();
  reclaim.store_begins(op.write_pages, op.leave_pages);
  run_op(op.self);
  return StoreStart::started;
}

/// Nobody may write what is stored, and nobody may reach what is dropped.
void Core::Impl::revoke_for_store(Op& op) {
  Block& block = *op.block;
  for_spans(op, op.pages & block.cpu_mapped, [&](PageSpan span) { ask(Verb::revoke_cpu, op, span); });
  for (DeviceId d = 0; d < devices.size(); ++d) {
    revoke_device(op, d, op.pages & block.devices[d].in_place);
  }
}

void Core::Impl::store(Op& op) {
  Block& block = *op.block;
  if (op.write_pages == 0) {
    return;
  }
  PageMask write = op.pages & block.system_current;
  write.remove(block.stored | block.vram_current);
  write.remove(discarded(block));
  tell_moved(op, Place::store);
  for_spans(op, write, [&](PageSpan span) { ask(Verb::store, op, span); });
  if (planted(PlantedBug::drop_before_stored)) {
    block.stored |= write;
    drop_system(op);
    block.stored.remove(write);
  }
}

void Core::Impl::stored(Op& op, const PageMask& pages, Status status) {
  Block& block = *op.block;
  reclaim.store_answered(status);
  if (!status.ok()) {
    count(*block.client, [](Stats& s) { ++s.store_errors; });
    if (!planted(PlantedBug::ignore_store_error)) {
      return;  // they stay where they are
    }
  }
  block.stored |= pages;
  const std::uint64_t moved = pages.count();
  count(*block.client, [moved](Stats& s) {
    s.pages_to_store += moved;
    s.stored_pages += moved;
  });
}

/// Gives back the memory of pages that have another copy as new.
void Core::Impl::drop_system(Op& op) {
  Block& block = *op.block;
  PageMask only_here = block.system_current;
  only_here.remove(block.stored | block.vram_current);
  const PageMask zeros = only_here & discarded(block);  // without memory, which counts as never written
  only_here.remove(zeros);
  PageMask drop = op.pages & block.held;
  drop.remove(only_here);
  if (drop.none()) {
    return;
  }
  block.system_current.remove(drop & ~zeros);
  for_spans(op, drop, [&](PageSpan span) { ask(Verb::discard_system, op, span); });
}

void Core::Impl::dropped(Op& op, const PageMask& pages) {
  Block& block = *op.block;
  if (op.goal != Goal::store) {
    // Discarded: as zeros. Under a page that has come for another address system memory has nothing.
    block.system_current |= op.goal == Goal::move_in ? pages & ~block.vram_current : pages;
    const std::uint64_t had = (block.held & pages).count();
    block.held.remove(pages);
    drop_lru_if_empty(block, op.granule);
    if (had != 0) {
      uncharge(*block.client, had);
    }
    return;
  }
  const std::uint64_t given = pages.count();
  block.held.remove(pages);
  drop_lru_if_empty(block, op.granule);
  const std::uint64_t expected = std::min(given, op.leave_pages);
  op.leave_pages -= expected;
  reclaim.store_ends(0, expected);
  uncharge(*block.client, given);
}

// --- when nothing can be reclaimed -----------------------------------------------------------------------------------

/// Operations that wait for VRAM are charged already: the first that is found goes on in place. False: there is none.
bool Core::Impl::serve_slot_line_in_place() {
  for (Device& device : devices) {
    if (!device.waiting.empty()) {
      const OpIndex front = device.waiting.front();
      device.waiting.erase(device.waiting.begin());
      redirect(ops[front], Goal::in_place);
      hide_waits(ops[front]);
      run_op(front);
      return true;
    }
  }
  return false;
}

/// An eviction that waits for memory although nobody waits for its VRAM any more.
bool Core::Impl::needless_eviction(OpIndex index) const {
  const Op& op = ops[index];
  return op.goal == Goal::system && op.cause == Cause::evict && op.reclaim &&
         devices[op.reclaim_device].waiting.empty() && op.waiters.empty() &&
         !op.block->cpu_waiting.intersects(op.pages);
}

}  // namespace ferry::core
