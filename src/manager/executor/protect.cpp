// Pages that CPU threads may read and not write: by write-protection through the application's userfaultfd, from here,
// without its agent. A span that nobody steered is registered for it first. Where that cannot be done (a kernel before
// 6.4, a process at its limit of mappings), the pages are taken from the CPU whole, and a read asks the core for more
// than it needs: the right to write, which the core can always give.
#include "manager/executor/executor.h"

namespace ferry::manager {
namespace {

constexpr unsigned guard_modes = linux::track_missing | linux::track_minor | linux::track_writes;
/// The kernel says "again" while the process changes its mappings; it ends soon.
constexpr unsigned retries_max = 1000;

template <typename Call>
linux::Fault while_again(Client& client, Call&& call) {
  linux::Fault fault = linux::Fault::again;
  for (unsigned tries = 0; fault == linux::Fault::again && tries < retries_max; ++tries) {
    fault = call();
    // It may wait to be heard first.
    if (fault == linux::Fault::again && client.outside_userfault) Executor::read_outside(client);
  }
  return fault;
}

}  // namespace

/// Registers the block's pages for writes too, as far as that can be done. What is mapped stays mapped.
void Executor::guard(Client& client, BlockIndex index, BlockState& block, const PageMask& pages) {
  if (block.guard == nullptr) block.guard = std::make_unique<CpuGuard>();
  if (!config_.protect_pages || !linux::can_map_for_reading()) return;
  PageMask missing = pages & block.managed;
  missing.remove(block.guard->guarded);
  if (missing.none()) return;
  const bool was = block.armed.any();
  missing.for_each_run([&](unsigned first, unsigned count) { guard_run(client, index, block, first, count); });
  if (!was && block.armed.any()) ++client.armed_blocks;
}

void Executor::guard_run(Client& client, BlockIndex index, BlockState& block, unsigned first, unsigned count) {
  const std::uint64_t address = client.address_of(first_page_of(index) + first);
  const linux::Fault fault =
      client.fault_of(first_page_of(index)).register_span(address, count * page_bytes, guard_modes);
  if (fault == linux::Fault::ok) {
    block.armed.set_range(first, count);
    block.guard->guarded.set_range(first, count);
    return;
  }
  // Part of it has just been freed: the application unmaps before it says so.
  if (fault == linux::Fault::no_memory || fault == linux::Fault::process_gone || count == 1) return;
  const unsigned half = count / 2;
  guard_run(client, index, block, first, half);
  guard_run(client, index, block, first + half, count - half);
}

/// False: some page of it may still be written.
bool Executor::protect_run(Client& client, BlockIndex index, unsigned first, unsigned count) {
  const std::uint64_t address = client.address_of(first_page_of(index) + first);
  const linux::Fault fault =
      while_again(client, [&] { return client.fault_of(first_page_of(index)).protect(address, count * page_bytes); });
  if (fault == linux::Fault::ok || fault == linux::Fault::process_gone) return true;
  if (fault != linux::Fault::range_gone) return false;
  // Nothing is mapped there any more, or not all of it.
  if (count == 1) return true;
  const unsigned half = count / 2;
  const bool low = protect_run(client, index, first, half);
  return protect_run(client, index, first + half, count - half) && low;
}

void Executor::protect_cpu(Client& client, const core::Action& action) {
  if (client.closing) {
    done(action.id, Code::client_gone);
    return;
  }
  const BlockIndex index = block_of(action.pages.first);
  BlockState& b = client.block(index);
  PageMask mapped = BlockTable::mask_in(index, action.pages) & b.managed;
  mapped.remove(b.revoked);
  guard(client, index, b, mapped);
  CpuGuard& g = *b.guard;
  (mapped & g.guarded).for_each_run([&](unsigned first, unsigned count) {
    if (!protect_run(client, index, first, count)) g.guarded.remove(PageMask::range(first, count));
  });
  g.read_only |= mapped;
  if (g.guarded.contains(mapped)) {
    // A huge entry goes when it is protected. Its pages are about to be read: entries made at once cost a third of what
    // the faults of the readers would. Where that fails, those come.
    if (b.huge && mapped == PageMask::all()) {
      [[maybe_unused]] const Status given =
          give_span(client.fault_of(action.pages.first), client, action.pages, true, linux::MapRights::read);
    }
    done(action.id, {});
    return;
  }
  PageMask unarmed = mapped;
  unarmed.remove(b.armed);
  if (unarmed.any()) arm(client, index, b);
  leave_open(client, no_device, make_command(client, no_device, CommandKind::zap_cpu, action.pages, action.id));
}

/// map_cpu with Prot::read.
Status Executor::give_cpu_reading(Client& client, PageSpan pages) {
  const BlockIndex index = block_of(pages.first);
  BlockState& b = client.block(index);
  const PageMask mask = BlockTable::mask_in(index, pages) & b.managed;
  guard(client, index, b, mask);
  CpuGuard& g = *b.guard;
  // What the core takes for revoked has no entries; anything else may be writable.
  PageMask mapped = mask & g.guarded;
  mapped.remove(b.revoked);
  mapped.remove(g.read_only);
  mapped.for_each_run([&](unsigned first, unsigned count) {
    if (!protect_run(client, index, first, count)) g.guarded.remove(PageMask::range(first, count));
  });
  Status status;
  (mask & g.guarded).for_each_run([&](unsigned first, unsigned count) {
    const Status s = give_span(client.fault_of(first_page_of(index)), client, {first_page_of(index) + first, count},
                               true, linux::MapRights::read);
    if (!s.ok()) status = s;
  });
  if (!status.ok()) return status;
  PageMask writable = mask;
  writable.remove(g.guarded);
  writable.remove(b.revoked);
  writable.remove(g.read_only);
  // Mapped for writing, and nothing that can be done about it from here but by the agent.
  if (writable.any()) return Code::no_memory;
  b.revoked.remove(mask);
  g.read_only |= mask;
  // Whoever waits for one that could not be given comes again, and then asks for more.
  client.fault_of(pages.first).wake(client.address_of(pages.first), pages.count_pages * page_bytes);
  return {};
}

/// The core gives the pages back for writing. Those that have entries get the right; the others raise a fault, and are
/// mapped then.
void Executor::allow_cpu_writes(Client& client, BlockIndex index, BlockState& block, const PageMask& pages) {
  if (block.guard == nullptr) return;
  CpuGuard& g = *block.guard;
  (g.read_only & g.guarded & pages).for_each_run([&](unsigned first, unsigned count) {
    const std::uint64_t address = client.address_of(first_page_of(index) + first);
    const auto allow = [&](std::uint64_t at, std::uint64_t bytes) {
      return while_again(client, [&] { return client.fault_of(first_page_of(index)).allow_writes(at, bytes); });
    };
    linux::Fault fault = allow(address, count * page_bytes);
    for (unsigned i = 0; i < count && count > 1 && fault != linux::Fault::ok && fault != linux::Fault::again; ++i) {
      if (allow(address + i * page_bytes, page_bytes) == linux::Fault::again) fault = linux::Fault::again;
    }
    // A thread that changes the mappings has to run before it is over, and nobody waits for that here: whoever waits to
    // write comes again, and gets the right then (give_around).
    if (fault == linux::Fault::again) client.fault_of(first_page_of(index)).wake(address, count * page_bytes);
  });
  g.read_only.remove(pages);
}

/// The pages are registered no more, or not the application's.
void Executor::forget_guard(BlockState& block, const PageMask& pages) {
  if (block.guard == nullptr) return;
  block.guard->guarded.remove(pages);
  block.guard->read_only.remove(pages);
}

}  // namespace ferry::manager
