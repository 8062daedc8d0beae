// Faults come in and join, or start, the operation of their granule; when it ends, each waiter is looked at again.
// A fault is never served around an operation: one operation a granule is what orders everything.
#include "core/impl.h"

namespace ferry::core {

void Core::Impl::wake(Client& client, const Waiter& waiter, Status status) {
  Action& action = emit(Verb::wake_wave, client);
  action.device = waiter.device;
  action.token = waiter.token;
  action.has_token = true;
  action.pages = {waiter.page, 1};
  action.status = status;
  work.fault_ends(client.id, waiter.device, waiter.token.value);
  tell(EventKind::device_fault_end, client, waiter.device, {waiter.page, 1}, Cause::device_fault, waiter.access,
       Place::system, status.code);
  if (!status.ok()) {
    count(client, [](Stats& s) { ++s.faults_failed; });
    tell(EventKind::fault_failed, client, waiter.device, {waiter.page, 1}, Cause::device_fault, waiter.access);
  }
}

void Core::Impl::device_fault(ClientId id, DeviceId device, Page page, Access access, FaultToken token, unsigned cu,
                              std::uint64_t seen) {
  Client* client = find_client(id);
  if (client == nullptr || client->dying || !client->devices[device].attached) {
    return;
  }
  const Waiter waiter{token, page, device, access, cu, seen};
  count(*client, [](Stats& s) { ++s.device_faults; });
  tell(EventKind::device_fault, *client, device, {page, 1}, Cause::device_fault, access);
  work.fault_begins(id, device, cu, token.value);
  if (seen < client->changes && unmapped_since(*client, page, seen) && !planted(PlantedBug::serve_old_fault)) {
    wake(*client, waiter, {});
    return;
  }
  Block* block = find_block(*client, block_of(page));
  if (block == nullptr) {
    if (!all_allocated(*client, {page, 1})) {
      not_allocated(*client, waiter);
      return;
    }
    block = &make_block(*client, block_of(page));
  }
  const auto bit = static_cast<unsigned>(page & (block_pages - 1));
  if (!block->allocated.test(bit) || block->freeing.test(bit)) {
    not_allocated(*client, waiter);
    return;
  }
  if (!block->plain) {
    if (const Status status = may_touch(*block, page, device, access); !status.ok()) {
      wake(*client, waiter, status);
      return;
    }
  }
  if (const Work::Stray stray = work.stray_fault(id, device); stray != Work::Stray::none) {
    wake(*client, waiter, stray == Work::Stray::again ? Status() : Status(Code::kernel_fault));
    return;
  }
  if (is_protected(*block, bit, access)) {
    wake(*client, waiter, Code::kernel_fault);
    return;
  }
  const std::uint32_t granule = granule_of(page);
  const Granule& state = block->granules[granule];
  if (state.op != none_index) {
    Op& op = ops[state.op];
    op.waiters.push_back(waiter);
    if (op.node != graph::no_node || op.memory != 0) {
      memory_waiter_joined(op, &waiter);
    }
    // An operation that has not mapped yet serves the stronger wish too; a later one is looked at when it ends.
    if (access == Access::write && op.device == device && op.pages.test(bit)) {
      op.access = Access::write;
    }
    count(*client, [](Stats& s) { ++s.device_faults_merged; });
    tell(EventKind::device_fault_merged, *client, device, {page, 1}, Cause::device_fault, access);
    return;
  }
  const DeviceView& view = block->devices[device];
  if (view.mapped.test(bit) && (access == Access::read || view.writable.test(bit))) {
    // Served between the touch and now.
    count(*client, [](Stats& s) { ++s.device_faults_merged; });
    wake(*client, waiter, {});
    return;
  }
  serve_device_waiter(*block, waiter);
  speculate(*block, granule, device, access);
}

/// No allocation has the page. A mapped buffer may.
void Core::Impl::not_allocated(Client& client, const Waiter& waiter) {
  if (work.is_buffer_page(client.id, waiter.page)) {
    if (const Work::Stray stray = work.stray_fault(client.id, waiter.device); stray != Work::Stray::none) {
      wake(client, waiter, stray == Work::Stray::again ? Status() : Status(Code::kernel_fault));
      return;
    }
    work.device_fault(client.id, waiter.device, waiter.page, waiter.access, waiter.token, waiter.cu);
  } else {
    wake(client, waiter, Code::not_allocated);
  }
}

void Core::Impl::serve_device_waiter(Block& block, const Waiter& waiter) {
  if (block.extras != nullptr && serve_pinned(block, waiter)) {
    return;
  }
  if (!block.plain) {
    serve_by_attributes(block, waiter);
    return;
  }
  const std::uint32_t granule = granule_of(waiter.page);
  Granule& state = block.granules[granule];
  Goal goal = Goal::vram;
  Cause cause = Cause::device_fault;
  if (block.placed_system.intersects(granule_mask(granule)) || devices[waiter.device].chunk_total == 0 ||
      work.userptr_in_use(block.client->id, granule_span(block, granule))) {
    goal = Goal::in_place;
  } else if (is_contended(state) || ((state.last_move_cause == Cause::cpu_fault ||
                                      (state.slot != none_index && state.owner != waiter.device)) &&
                                     note_flip(block, state))) {
    goal = Goal::in_place;
    cause = Cause::contention;
  }
  PageMask part;
  if (goal == Goal::vram && leave_in_place(*block.client, state, waiter.page, waiter.device, part)) {
    goal = Goal::in_place;
  }
  Op& op = start_op(block, granule, goal, cause, waiter.device, waiter.access);
  if (part.any()) {
    op.pages &= part;
  }
  op.waiters.push_back(waiter);
  run_op(op.self);
}

void Core::Impl::cpu_fault(ClientId id, Page page, Access access) {
  Client* client = find_client(id);
  if (client == nullptr || client->dying) {
    return;
  }
  count(*client, [](Stats& s) { ++s.cpu_faults; });
  tell(EventKind::cpu_fault, *client, no_device, {page, 1}, Cause::cpu_fault, access);
  Block* block = find_block(*client, block_of(page));
  if (block == nullptr && all_allocated(*client, {page, 1})) {
    block = &make_block(*client, block_of(page));
  }
  const auto bit = static_cast<unsigned>(page & (block_pages - 1));
  if (block == nullptr || !block->allocated.test(bit) || block->freeing.test(bit)) {
    if (work.is_buffer_page(id, page)) {
      work.cpu_fault(id, page, access);
      return;
    }
    // Freed under the thread's feet: it tries again and meets what the application put there.
    emit(Verb::wake_cpu, *client).pages = {page, 1};
    return;
  }
  const std::uint32_t granule = granule_of(page);
  if (!block->plain || block->copies != nullptr) {
    note_cpu_access(*block, bit, access);
  }
  if (block->granules[granule].op != none_index) {
    block->cpu_waiting.set(bit);
    if (Op& op = ops[block->granules[granule].op]; op.memory != 0) {
      memory_waiter_joined(op, nullptr);
    }
    count(*client, [](Stats& s) { ++s.cpu_faults_merged; });
    tell(EventKind::cpu_fault_merged, *client, no_device, {page, 1}, Cause::cpu_fault, access);
    return;
  }
  block->cpu_waiting.set(bit);
  serve_cpu(*block, granule);
}

void Core::Impl::serve_cpu(Block& block, std::uint32_t granule) {
  Granule& state = block.granules[granule];
  if (block.extras != nullptr) {
    fail_cpu_at_pins(block, granule);
    if (!block.cpu_waiting.intersects(granule_mask(granule))) {
      return;
    }
  }
  PageMask pages = granule_mask(granule);
  if (!block.plain && (pages = route_cpu(block, granule)).none()) {
    return;
  }
  if (block.copies != nullptr && serve_cpu_reader(block, granule, pages)) {
    return;
  }
  if (block.vram_current.intersects(granule_mask(granule)) && state.last_move_cause != Cause::cpu_fault) {
    note_flip(block, state);
  }
  const bool turn = !block.plain && takes_turn(block, granule, pages);
  Op& op = start_op(block, granule, Goal::system, Cause::cpu_fault, no_device, Access::write);
  op.pages &= pages;
  if (!turn || !wait_for_turn(op)) {
    run_op(op.self);
  }
}

/// Looks at everyone who waited for the operation that has just ended on the granule. REQUIRES: it has none now.
void Core::Impl::after_op(Block& block, std::uint32_t granule, std::vector<Waiter>& waiters) {
  Client& client = *block.client;
  ++block.holds;
  const bool drop_last = planted(PlantedBug::drop_wake) && waiters.size() > 1;
  for (std::size_t i = 0; i < waiters.size(); ++i) {
    const Waiter& waiter = waiters[i];
    const auto bit = static_cast<unsigned>(waiter.page & (block_pages - 1));
    if (!client.devices[waiter.device].attached || (drop_last && i + 1 == waiters.size())) {
      continue;
    }
    if (!block.allocated.test(bit) || block.freeing.test(bit)) {
      const bool old = unmapped_since(client, waiter.page, waiter.seen) && !planted(PlantedBug::serve_old_fault);
      wake(client, waiter, old ? Status() : Status(Code::not_allocated));
      continue;
    }
    if (is_protected(block, bit, waiter.access)) {
      wake(client, waiter, Code::kernel_fault);
      continue;
    }
    if (!block.plain) {
      if (const Status status = may_touch(block, waiter.page, waiter.device, waiter.access); !status.ok()) {
        wake(client, waiter, status);
        continue;
      }
    }
    if (block.granules[granule].op != none_index) {
      Op& op = ops[block.granules[granule].op];
      op.waiters.push_back(waiter);
      if (op.node != graph::no_node || op.memory != 0) {
        memory_waiter_joined(op, &waiter);
      }
      if (waiter.access == Access::write && op.device == waiter.device && op.pages.test(bit)) {
        op.access = Access::write;
      }
      continue;
    }
    const DeviceView& view = block.devices[waiter.device];
    if (view.mapped.test(bit) && (waiter.access == Access::read || view.writable.test(bit))) {
      wake(client, waiter, {});
      continue;
    }
    serve_device_waiter(block, waiter);
  }
  if (block.granules[granule].op == none_index && block.cpu_waiting.intersects(granule_mask(granule))) {
    serve_cpu(block, granule);
  }
  --block.holds;
}

}  // namespace ferry::core
