// The CPU side: taking pages from the application's threads and giving them back, by its userfaultfd and its agent.
#include <cinttypes>

#include "manager/executor/executor.h"
#include "manager/limits.h"
#include "manager/log.h"

namespace ferry::manager {
namespace {

constexpr unsigned steer_modes = linux::track_missing | linux::track_minor;
/// The kernel says "again" while the process changes its mappings; it ends soon.
constexpr unsigned retries_max = 100;
/// Few enough pages to look for holes on the main thread; a copy thread does it for more.
constexpr std::uint64_t looked_at_here_max = 16;
/// Given with a page that the core has mapped anyway.
constexpr unsigned pages_around = 16;
/// 256 MiB, far more than is adopted at a time. Looking for what is left of a span costs up to two calls for each page.
constexpr std::uint64_t searched_pages_max = std::uint64_t{1} << 16;

/// Those of the pages that were refused, and are no longer.
PageMask let_refused(Client& client, BlockState& block, const PageMask& pages) {
  const PageMask refused = block.refused & pages;
  client.refused_pages -= refused.count();
  block.refused.remove(refused);
  return refused;
}

}  // namespace

// --- registration ----------------------------------------------------------------------------------------------------

/// From now on faults on the block's managed pages come here. What is mapped stays mapped.
void Executor::arm(Client& client, BlockIndex index, BlockState& block) {
  PageMask missing = block.managed;
  missing.remove(block.armed);
  if (missing.none()) return;
  const bool was = block.armed.any();
  bool room = true;
  missing.for_each_run(
      [&](unsigned first, unsigned count) { room = room && arm_run(client, index, block, first, count); });
  if (!was && block.armed.any()) ++client.armed_blocks;
  if (!room) arm_allocations(client, index);
}

/// False: registering would cut a mapping in pieces, and the process may have no more of them.
bool Executor::arm_run(Client& client, BlockIndex index, BlockState& block, unsigned first, unsigned count) {
  const std::uint64_t address = client.address_of(first_page_of(index) + first);
  const linux::Fault fault =
      client.fault_of(first_page_of(index)).register_span(address, count * page_bytes, steer_modes);
  if (fault == linux::Fault::ok) {
    block.armed.set_range(first, count);
    return true;
  }
  if (fault == linux::Fault::no_memory) return false;
  // Part of it has just been freed: the application unmaps before it says so. Nothing is reachable there.
  if (count == 1 || fault == linux::Fault::process_gone) return true;
  const unsigned half = count / 2;
  return arm_run(client, index, block, first, half) && arm_run(client, index, block, first + half, count - half);
}

/// At the limit of mappings: whole allocations are registered, which cuts nothing. Their other blocks pay with a fault
/// for each page that is touched for the first time.
void Executor::arm_allocations(Client& client, BlockIndex index) {
  const PageSpan block_span{first_page_of(index), block_pages};
  auto it = client.spans.upper_bound(block_span.first);
  if (it != client.spans.begin()) --it;
  for (; it != client.spans.end() && it->first < block_span.end(); ++it) {
    const PageSpan span{it->first, it->second};
    if (!span.overlaps(block_span)) continue;
    const linux::Fault fault =
        client.fault_of(span.first)
            .register_span(client.address_of(span.first), span.count_pages * page_bytes, steer_modes);
    if (fault != linux::Fault::ok) {
      // Part of the allocation has just been unmapped, which is not told yet, or is one mapping with its neighbours.
      if (fault != linux::Fault::process_gone && !arm_mappings(client, index)) {
        household_.drop_client(
            client, "it has no mappings left (vm.max_map_count), and what its memory lies in cannot be seen");
      }
      return;
    }
    note_armed(client, span);
  }
}

/// The mappings themselves, whole, whatever they hold: that cuts nothing. What cannot be registered is no memory of the
/// system file: nothing of the client's is reachable there. False: they cannot be seen, or the kernel has no memory at all.
bool Executor::arm_mappings(Client& client, BlockIndex index) {
  const Page first = first_page_of(index);
  const auto mappings = client.process.mappings(client.address_of(first), client.address_of(first) + block_bytes);
  if (!mappings) return false;
  for (const linux::Process::MappedSpan& m : mappings.value()) {
    const linux::Fault fault = client.fault_of(first).register_span(m.begin, m.end - m.begin, steer_modes);
    if (fault == linux::Fault::no_memory) return false;
    if (fault != linux::Fault::ok) continue;
    const Page begin = client.window().page_of_address(m.begin);
    const PageSpan mapped{begin, (m.end - m.begin) / page_bytes};
    auto it = client.spans.upper_bound(mapped.first);
    if (it != client.spans.begin()) --it;
    for (; it != client.spans.end() && it->first < mapped.end(); ++it) {
      const Page from = std::max(it->first, mapped.first);
      const Page end = std::min(it->first + it->second, mapped.end());
      if (from < end) note_armed(client, {from, end - from});
    }
  }
  return true;
}

void Executor::note_armed(Client& client, PageSpan pages) {
  for (BlockIndex b = block_of(pages.first); b <= block_of(pages.end() - 1); ++b) {
    BlockState& state = client.block(b);
    if (state.armed.none()) ++client.armed_blocks;
    state.armed |= BlockTable::mask_in(b, pages);
  }
}

/// A budget counts what is given, so everything has to be given: the span is armed before its first touch, in one call,
/// which cuts no mapping.
void Executor::steer(Client& client, PageSpan pages) {
  const linux::Fault fault =
      client.fault_of(pages.first)
          .register_span(client.address_of(pages.first), pages.count_pages * page_bytes, steer_modes);
  for (BlockIndex index = block_of(pages.first); index <= block_of(pages.end() - 1); ++index) {
    BlockState& b = client.block(index);
    const PageMask mask = BlockTable::mask_in(index, pages);
    b.revoked |= mask;
    if (fault != linux::Fault::ok) {
      // Where so much of what was just mapped is gone again nobody is owed a look at each page of it.
      if (fault == linux::Fault::no_memory || pages.count_pages <= searched_pages_max) arm(client, index, b);
      continue;
    }
    if (b.armed.none()) ++client.armed_blocks;
    b.armed |= mask;
  }
}

/// The pages are the kernel's again: touches are served natively, whoever waits retries.
void Executor::disarm(Client& client, BlockIndex index, BlockState& block, const PageMask& pages) {
  const PageMask gone = block.armed & pages;
  if (gone.none()) return;
  gone.for_each_run([&](unsigned first, unsigned count) {
    const std::uint64_t address = client.address_of(first_page_of(index) + first);
    client.fault_of(first_page_of(index)).unregister_span(address, count * page_bytes);
    client.fault_of(first_page_of(index)).wake(address, count * page_bytes);
  });
  block.armed.remove(gone);
  forget_guard(block, gone);
  if (block.armed.none()) --client.armed_blocks;
}

// --- verbs -----------------------------------------------------------------------------------------------------------

void Executor::revoke_cpu(Client& client, const core::Action& action) {
  if (client.closing) {
    done(action.id, Code::client_gone);
    return;
  }
  const BlockIndex index = block_of(action.pages.first);
  BlockState& b = client.block(index);
  const PageMask mask = BlockTable::mask_in(index, action.pages);
  arm(client, index, b);
  b.revoked |= mask;
  if (b.guard != nullptr) b.guard->read_only.remove(mask);
  if (action.pages.count_pages == block_pages && b.steered < 0xffff) ++b.steered;

  if (!b.backed.intersects(mask)) {
    const std::byte* const mirror =
        action.pages.count_pages <= looked_at_here_max ? client.mirror(action.pages.first) : nullptr;
    const std::uint64_t from = action.pages.first * page_bytes;
    const std::uint64_t end = action.pages.end() * page_bytes;
    if (mirror != nullptr && linux::all_resident(mirror, action.pages.count_pages * page_bytes)) {
      b.backed |= mask;  // so that the copy need not ask again
    } else if (linux::next_data(client.system_file.get(), from, end) == end) {
      // A page that the file does not have is in no page table, and being watched, it cannot get there unnoticed.
      done(action.id, {});
      return;
    }
  }
  if (grow_open(client, no_device, CommandKind::zap_cpu, action)) return;
  leave_open(client, no_device, make_command(client, no_device, CommandKind::zap_cpu, action.pages, action.id));
}

void Executor::map_cpu(Client& client, const core::Action& action) {
  if (client.forks != 0) [[unlikely]] {
    if (gate_holds(client, action)) return;
    if (action.prot == Prot::read_write) give_children_before(client, action);
  }
  if (client.closing) {
    done(action.id, Code::client_gone);
    return;
  }
  const BlockIndex index = block_of(action.pages.first);
  BlockState& b = client.block(index);
  if (let_refused(client, b, BlockTable::mask_in(index, action.pages)).any()) {
    // Poison stays in a page table until it is zapped; what is dropped with it comes back when it is touched.
    if (const Status given =
            action.prot == Prot::read ? give_cpu_reading(client, action.pages) : give_cpu(client, action.pages);
        !given.ok()) {
      done(action.id, given);
      return;
    }
    close_open(client, no_device);
    send(make_command(client, no_device, CommandKind::zap_cpu, action.pages, action.id));
    return;
  }
  if (action.prot == Prot::read) {
    done(action.id, give_cpu_reading(client, action.pages));
    return;
  }
  // One entry instead of 512, and the block is the kernel's again. Where the folio is small, 512 entries made from here
  // cost less than the way through the agent.
  // Not outside the window: what the application's mapping is like there (protection, advice) would be lost.
  if (action.pages.count_pages == block_pages && b.huge && !client.is_adopted(action.pages.first) &&
      b.managed == PageMask::all() && b.own_protection.none()) {
    const std::uint32_t command = make_command(client, no_device, CommandKind::map_home, action.pages, action.id);
    commands_.at(command).record.file_offset = action.pages.first * page_bytes;
    close_open(client, no_device);
    send(command);
    return;
  }
  done(action.id, give_cpu(client, action.pages));
}

Status Executor::give_cpu(Client& client, PageSpan pages) {
  const BlockIndex index = block_of(pages.first);
  BlockState& b = client.block(index);
  const PageMask mask = BlockTable::mask_in(index, pages);
  Status status;
  PageMask absent = b.armed & mask;
  if (b.guard != nullptr) {
    absent.remove(b.guard->read_only & b.guard->guarded);
    allow_cpu_writes(client, index, b, mask);
  }
  absent.for_each_run([&](unsigned first, unsigned count) {
    const Status s =
        give_span(client.fault_of(first_page_of(index)), client, {first_page_of(index) + first, count}, true);
    if (!s.ok()) status = s;
  });
  if (status.ok()) b.revoked.remove(mask);
  return status;
}

/// Maps pages of the system file in the process behind `userfault`, filling holes first. Pages that cannot be mapped
/// because nothing is registered there (any more) are passed over: their touches do not come here.
/// ERRORS: client_gone (that process has ended), no_memory.
Status Executor::give_span(const linux::Userfaultfd& userfault, Client& client, PageSpan pages, bool wake,
                           linux::MapRights rights) {
  Page at = pages.first;
  const Page end = pages.end();
  std::uint64_t length = end - at;  // halved where a mapping ends in between
  unsigned retries = 0;
  while (at < end) {
    if (length > end - at) length = end - at;
    const std::uint64_t address = client.address_of(at);
    std::uint64_t done_bytes = 0;
    const linux::Fault fault = userfault.map_present(address, length * page_bytes, wake, done_bytes, rights);
    at += done_bytes / page_bytes;
    switch (fault) {
      case linux::Fault::ok:
        length = end - at;
        retries = 0;
        break;
      case linux::Fault::exists:
        if (wake) userfault.wake(client.address_of(at), page_bytes);
        ++at;
        length = end - at;
        break;
      case linux::Fault::hole: {
        if (++retries > retries_max) return Code::no_memory;
        const Status filled = fill(client, {at, end - at});
        if (!filled.ok()) return filled;
        break;
      }
      case linux::Fault::again:
        if (++retries <= retries_max) {
          if (&userfault == &client.outside_userfault) read_outside(client);
          break;
        }
        if (!wake) return Code::no_memory;
        // The thread that changes the mappings has to run before it is over, and nobody waits for that here: whoever
        // needs the pages touches them again.
        userfault.wake(client.address_of(at), (end - at) * page_bytes);
        return {};
      case linux::Fault::process_gone: return Code::client_gone;
      case linux::Fault::no_memory: return Code::no_memory;
      case linux::Fault::range_gone:
      case linux::Fault::other:
        if (length > 1) {
          length = (length + 1) / 2;
          break;
        }
        if (wake) userfault.wake(client.address_of(at), page_bytes);
        ++at;
        length = end - at;
        break;
    }
  }
  return {};
}

/// Whoever touches the pages gets SIGBUS, and never sees anything else there.
/// | status                | why                                                                   | until       |
/// |-----------------------|-----------------------------------------------------------------------|-------------|
/// | not_permitted, in_use | VRAM holds them, and what was said, or a pin, keeps them there        | let_cpu()   |
/// | another               | what they hold cannot be had                                          | they are freed |
void Executor::lose_cpu(Client& client, PageSpan pages, Status status) {
  const std::uint64_t address = client.address_of(pages.first);
  const bool refused = status.code == Code::not_permitted || status.code == Code::in_use;
  if (!refused)
    log("%" PRIu64 " pages of pid %d at %#" PRIx64
        " cannot be read back from the store (%s): touching them raises SIGBUS",
        pages.count_pages, client.process.pid(), address, to_string(status.code));
  bool told_before = true;
  for (BlockIndex index = block_of(pages.first); index <= block_of(pages.end() - 1); ++index) {
    // A mark of protection in the page table would be in poison's way.
    if (BlockState* b = client.blocks.find(index)) {
      allow_cpu_writes(client, index, *b, BlockTable::mask_in(index, pages));
      if (refused) {
        const PageMask mask = BlockTable::mask_in(index, pages);
        const std::uint64_t fresh = (mask & ~b->refused).count();
        told_before = told_before && fresh == 0;
        client.refused_pages += fresh;
        b->refused |= mask;
      }
    }
  }
  if (refused && !told_before && !linux::can_poison()) {
    // All that is left is to end the program, and the message may be one that was answered already: who does wait comes
    // again.
    client.fault_of(pages.first).wake(address, pages.count_pages * page_bytes);
    return;
  }
  const auto poison = [&](std::uint64_t at, std::uint64_t bytes) {
    const linux::Fault done = client.fault_of(pages.first).poison(at, bytes);
    // It may wait to be heard first.
    if (done != linux::Fault::again || !client.outside_userfault) return done;
    read_outside(client);
    return client.fault_of(pages.first).poison(at, bytes);
  };
  linux::Fault fault = poison(address, pages.count_pages * page_bytes);
  if (fault == linux::Fault::exists) {
    // Nothing but poison can be mapped there: some were lost before, and asked for again.
    for (std::uint64_t i = 0; i < pages.count_pages; ++i) {
      fault = poison(address + i * page_bytes, page_bytes);
      if (fault != linux::Fault::ok && fault != linux::Fault::exists) break;
    }
    if (fault == linux::Fault::exists) fault = linux::Fault::ok;
  }
  if (fault == linux::Fault::ok || fault == linux::Fault::process_gone) return;
  if (fault == linux::Fault::again) {
    // A thread that changes the mappings has to run before it is over: who touches the pages comes again.
    client.fault_of(pages.first).wake(address, pages.count_pages * page_bytes);
    return;
  }
  household_.drop_client(
      client, refused ? "it touches what is kept in VRAM, and this kernel has no other way to tell its threads"
                      : "pages of it are lost, and this kernel has no other way to tell its threads");
}

/// Nothing keeps the pages from CPU threads any more: poison is taken out of the page table, and who touches them faults.
void Executor::let_cpu(Client& client, PageSpan pages) {
  std::vector<PageSpan> runs;  // sending may end the client
  client.blocks.for_each(pages, [&](BlockIndex index, BlockState& b) {
    let_refused(client, b, BlockTable::mask_in(index, pages)).for_each_run([&](unsigned first, unsigned count) {
      runs.push_back({first_page_of(index) + first, count});
    });
  });
  for (const PageSpan& run : runs) {
    if (client.closing) return;
    ++client.letting;
    close_open(client, no_device);
    send(make_command(client, no_device, CommandKind::zap_refused, run, 0));
  }
}

/// Gives system pages memory, zeros where there was none.
Status Executor::fill(Client& client, PageSpan pages) {
  std::byte* mirror = client.mirror(pages.first);
  if (mirror == nullptr) return Code::no_memory;
  const Status s = linux::populate(mirror, pages.count_pages * page_bytes);
  if (s.ok()) client.block(block_of(pages.first)).backed |= BlockTable::mask_in(block_of(pages.first), pages);
  return s;
}

// --- faults ----------------------------------------------------------------------------------------------------------

void Executor::on_cpu_fault(Client& client, std::uint64_t address, Access access, std::uint32_t thread) {
  const Page page = client.window().page_of_address(address);
  if (client.gate != nullptr && !client.gate->at_once) [[unlikely]] {
    if (thread != client.gate->thread) {
      if (client.gate->touches.size() >= gate_touches_max) {
        household_.drop_client(client, "more of its threads wait for a fork than there can be");
        return;
      }
      client.gate->touches.push_back({address, access});
      return;
    }
    client.gate->own_page = page;
  }
  if (page >= client.page_end()) {
    // Registered by the application itself: its own affair, but nobody else will serve it.
    ++client.garbage;
    client.userfault.unregister_span(address & ~(page_bytes - 1), page_bytes);
    client.userfault.wake(address & ~(page_bytes - 1), page_bytes);
    return;
  }
  if (!client.work.places.empty()) {
    Page first = 0;
    if (BufferPlace* place = client.work.place_of(page, first)) {
      on_buffer_touch(client, page, first, *place, access);
      return;
    }
  }
  const BlockIndex index = block_of(page);
  const auto bit = static_cast<unsigned>(page & (block_pages - 1));
  BlockState& b = client.block(index);
  if (!b.managed.test(bit)) {
    // Freed under the thread's feet. It retries, and meets what the application has put there.
    if (client.is_adopted(page)) {
      // Not unregistered from here: the application may be about to take it back, and watch it with a descriptor of its
      // own, which any other may undo.
      client.outside_userfault.wake(address & ~(page_bytes - 1), page_bytes);
      return;
    }
    if (!b.armed.test(bit)) {
      b.armed.set(bit);
      if (b.armed == PageMask::range(bit, 1)) ++client.armed_blocks;
    }
    disarm(client, index, b, PageMask::range(bit, 1));
    return;
  }
  if (b.revoked.test(bit)) {
    core_.cpu_fault(now_ns_, client.id, page, access);
    return;
  }
  if (b.guard != nullptr && b.guard->read_only.test(bit) && (access == Access::write || !b.guard->guarded.test(bit))) {
    core_.cpu_fault(now_ns_, client.id, page, Access::write);
    return;
  }
  give_around(client, b, page);
}

/// The core has the page mapped, but there is no entry: never touched before, reclaimed, or lost with its neighbour's
/// part of a huge one. Given with what lies around it, so that a scan does not come here for each page.
void Executor::give_around(Client& client, BlockState& b, Page page) {
  const auto bit = static_cast<unsigned>(page & (block_pages - 1));
  PageMask givable = b.armed & b.managed;
  givable.remove(b.revoked);
  linux::MapRights rights = linux::MapRights::read_write;
  if (b.guard != nullptr) {
    if (b.guard->read_only.test(bit)) {
      rights = linux::MapRights::read;
      givable &= b.guard->read_only & b.guard->guarded;
    } else {
      givable.remove(b.guard->read_only);
    }
  }
  const unsigned first = bit / pages_around * pages_around;
  const unsigned last = first + pages_around;
  unsigned from = bit;
  while (from > first && givable.test(from - 1)) --from;
  unsigned to = bit + 1;
  while (to < last && givable.test(to)) ++to;
  if (client.forks != 0) [[unlikely]] {
    const Page block_first = first_page_of(block_of(page));
    if (client.gate != nullptr) {  // the forking thread's alone: the less is given now, the more is as at the fork
      from = bit;
      to = bit + 1;
    }
    give_children(client, {block_first + from, to - from});
  }
  // What is not armed raises none, unless the registration was dropped and made anew while the agent's answer was on its
  // way. Given too, or its thread would come back for ever.
  // Holes are filled only where they were touched.
  std::uint64_t done_bytes = 0;
  const linux::Userfaultfd& userfault = client.fault_of(page);
  const linux::Fault mapped = userfault.map_present(client.address_of(page), page_bytes, true, done_bytes, rights);
  if (mapped == linux::Fault::exists && rights == linux::MapRights::read_write && b.guard != nullptr &&
      b.guard->guarded.test(bit)) {
    // An entry whose right to be written could not be given when the core gave it: mappings were changing. If they still
    // are, the thread comes here again.
    userfault.allow_writes(client.address_of(page), page_bytes);
  }
  if (mapped == linux::Fault::ok) {
    if (to > bit + 1) {
      userfault.map_present(client.address_of(page + 1), (to - bit - 1) * page_bytes, true, done_bytes, rights);
    }
    if (from < bit) {
      userfault.map_present(client.address_of(page - (bit - from)), (bit - from) * page_bytes, true, done_bytes,
                            rights);
    }
    return;
  }
  const Status given = give_span(userfault, client, {page, 1}, true, rights);
  if (!given.ok() && given.code != Code::client_gone) {
    if (!client.starved) log("no memory for a page of pid %d: its thread tries again", client.process.pid());
    client.starved = true;
    // Its message was read and comes once: only a thread that touches the page anew is heard of again.
    client.fault_of(page).wake(client.address_of(page), page_bytes);
  }
}

}  // namespace ferry::manager
