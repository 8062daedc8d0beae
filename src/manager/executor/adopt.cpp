// Device faults outside the window. Such memory is the application's until the application has made it managed, and a
// device may have memory of its own at the same address: both are asked before the core hears of the fault. A wave that
// waits for either is held here. Neither answer ever waits for a device, a fence or memory of the core, so these waits are
// no part of the wait graph.
#include <linux/userfaultfd.h>

#include <algorithm>
#include <array>

#include "linux/socket.h"
#include "manager/executor/executor.h"

namespace ferry::manager {
namespace {
constexpr int no_wait = 0;
}  // namespace

/// True: the wave is held, or was refused. False: the core can have it.
bool Executor::hold_outside(Client& client, const HeldWave& wave) {
  const Page page = client.window().page_of_address(wave.address);
  if (client.closing) return true;
  if (!client.files.empty() && hold_for_file(client, wave)) return true;
  if (!client.is_allocated(page) || client.is_releasing({page, 1})) {
    hold(client, wave);
    ask_next(client);
    return true;
  }
  DeviceBlock& d = client.device_block(client.block(block_of(page)), wave.device);
  const auto bit = static_cast<unsigned>(page & (block_pages - 1));
  if (d.admitted.test(bit)) return false;
  if (d.denied.test(bit)) {
    refuse_wave(client, wave, wire::Refusal::device_memory);
    return true;
  }
  hold(client, wave);
  admit(client, wave.device, page, nullptr);
  return true;
}

void Executor::hold(Client& client, const HeldWave& wave) {
  // A slot holds one wave: what is held for an earlier one has been answered by its device's end.
  std::erase_if(client.held,
                [&](const HeldWave& h) { return h.device == wave.device && h.cu == wave.cu && h.slot == wave.slot; });
  client.held.push_back(wave);
}

/// One question at a time: the application answers them one by one in any case.
void Executor::ask_next(Client& client) {
  if (client.asking != 0 || client.closing) return;
  for (const HeldWave& wave : client.held) {
    const Page page = client.window().page_of_address(wave.address);
    if (client.is_allocated(page) || client.is_releasing({page, 1}) || file_serves(client, wave)) continue;
    client.asking = wave.address;
    client.asking_to_write = wave.wants() == Access::write;
    wire::AdoptAsk ask{wave.address, wave.wants() == Access::write ? 1U : 0U, 0};
    for (const HeldWave& other : client.held) {
      if (client.window().page_of_address(other.address) == page) ask.devices |= 1U << other.device;
    }
    const Status sent = linux::send_message(client.socket.get(), wire::MessageType::adopt_ask, 0, ask, {}, no_wait);
    if (!sent.ok()) household_.drop_client(client, "it does not take questions");
    return;
  }
}

void Executor::on_adopt_answer(Client& client, const wire::AdoptAnswer& body) {
  if (client.asking == 0 || body.address != client.asking) {
    ++client.garbage;
    return;
  }
  client.asking = 0;
  const Page page = client.window().page_of_address(body.address);
  auto why = body.refusal < wire::refusal_count ? static_cast<wire::Refusal>(body.refusal) : wire::Refusal::kernel;
  if (why == wire::Refusal::none && !client.is_allocated(page) && !client.files.overlaps({page, 1})) {
    // Managed, used, and unmapped again before the answer came. Who waits for the page now waits for what is there since.
    if (++client.stale_answers < stale_answers_max) {
      ask_next(client);
      return;
    }
    why = wire::Refusal::kernel;
  }
  client.stale_answers = 0;
  if (why != wire::Refusal::none) {
    std::vector<HeldWave> refused;
    std::erase_if(client.held, [&](const HeldWave& h) {
      // Waves that only want to read are asked about apart from those that want to write.
      const bool same = client.window().page_of_address(h.address) == page &&
                        (why != wire::Refusal::read_only || h.wants() == Access::write || !client.asking_to_write);
      if (same) refused.push_back(h);
      return same;
    });
    for (const HeldWave& wave : refused) refuse_wave(client, wave, why);
  } else {
    look_at_held(client, {page, 1});
  }
  ask_next(client);
}

void Executor::look_at_held(Client& client, PageSpan span) {
  std::vector<HeldWave> again;
  std::erase_if(client.held, [&](const HeldWave& h) {
    const bool inside = span.contains(client.window().page_of_address(h.address));
    if (inside) again.push_back(h);
    return inside;
  });
  for (const HeldWave& wave : again) {
    if (!hold_outside(client, wave)) wave_to_core(client, wave);
  }
}

void Executor::refuse_wave(Client& client, const HeldWave& wave, wire::Refusal why) {
  DevicePeer& peer = client.devices[wave.device];
  if (peer.state != DeviceState::attached) return;
  const WaveSlot& slot = peer.cus[wave.cu].slots[wave.slot];
  if (!slot.parked || slot.serial != wave.serial) return;
  resume_slot(client, wave.device, wave.cu, wave.slot, Code::not_allocated, why);
}

bool Executor::read_outside(Client& client) {
  std::array<uffd_msg, 32> messages;
  // Before: once they are read the kernel does not say any more that something is unmapped.
  client.control()->unmapping.store(1, std::memory_order_seq_cst);
  const int count = client.outside_userfault.read(messages);
  for (int i = 0; i < count; ++i) {
    const uffd_msg& m = messages[static_cast<std::size_t>(i)];
    if (m.event == UFFD_EVENT_PAGEFAULT) {
      const bool write = (m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0;
      client.told.push_back({false, write ? Access::write : Access::read, m.arg.pagefault.address, 0});
    } else if (m.event == UFFD_EVENT_UNMAP) {
      client.told.push_back({true, Access::read, m.arg.remove.start, m.arg.remove.end});
    }
  }
  return count >= 0;
}

/// Asks the device for as much around the page as is managed, and less where it has something of its own.
void Executor::admit(Client& client, DeviceId device, Page page, const core::Action* action) {
  const BlockIndex index = block_of(page);
  BlockState& b = client.block(index);
  DeviceBlock& d = client.device_block(b, device);
  if (d.admitting) return;
  const auto bit = static_cast<unsigned>(page & (block_pages - 1));
  const unsigned low = bit / d.admit_pages * d.admit_pages;
  const unsigned high = std::min(low + d.admit_pages, block_pages);
  const auto wanted = [&](unsigned at) { return b.managed.test(at) && !d.admitted.test(at) && !d.denied.test(at); };
  unsigned from = bit;
  unsigned to = bit + 1;
  while (from > low && wanted(from - 1)) --from;
  while (to < high && wanted(to)) ++to;
  const std::uint32_t command = make_command(
      client, device, CommandKind::admit, {first_page_of(index) + from, to - from}, action != nullptr ? action->id : 0);
  if (action != nullptr) commands_.at(command).deferred = *action;
  d.admitting = true;
  send(command);
}

void Executor::admit_done(Client& client, std::uint32_t index, Status status) {
  const Command& c = commands_.at(index);
  const DeviceId device = c.device;
  const PageSpan pages = c.pages;
  const bool for_action = !c.actions.empty();
  const core::Action action = c.deferred;
  commands_.release(index);
  const bool gone = status.code == Code::client_gone || status.code == Code::device_lost;
  DeviceBlock& d = client.device_block(client.block(block_of(pages.first)), device);
  const PageMask mask = BlockTable::mask_in(block_of(pages.first), pages);
  if (status.ok()) {
    d.admitted |= mask;
    d.replaced.remove(mask);
  } else if (!gone && pages.count_pages == 1) {
    d.denied |= mask;
  } else if (!gone) {
    while (d.admit_pages >= pages.count_pages) d.admit_pages /= 2;
  }
  d.admitting = false;
  std::vector<core::Action> waiting;
  if (for_action) waiting.push_back(action);
  std::erase_if(client.deferred_maps, [&](const core::Action& a) {
    const bool same = a.device == device && block_of(a.pages.first) == block_of(pages.first);
    if (same) waiting.push_back(a);
    return same;
  });
  for (const core::Action& a : waiting) {
    if (gone) {
      done(a.id, status);
    } else {
      map_device(client, a);
    }
  }
  if (!gone) look_at_held(client, {first_page_of(block_of(pages.first)), block_pages});
}

/// True: the action is dealt with, here or later. False: all of it is admitted, so it is as any other.
bool Executor::map_outside(Client& client, const core::Action& action) {
  const BlockIndex index = block_of(action.pages.first);
  BlockState& b = client.block(index);
  DeviceBlock& d = client.device_block(b, action.device);
  const PageMask mask = BlockTable::mask_in(index, action.pages);
  if (d.admitted.contains(mask)) return false;
  PageMask unknown = mask;
  unknown.remove(d.admitted);
  unknown.remove(d.denied);
  if (unknown.any() && d.admitting) {
    // One question a block at a time: an answer says that the pages are empty, which must not come after a mapping.
    client.deferred_maps.push_back(action);
    return true;
  }
  if (unknown.any()) {
    bool asked = false;
    unknown.for_each_run([&](unsigned first, unsigned) {
      if (!asked) admit(client, action.device, first_page_of(index) + first, &action);
      asked = true;
    });
    return true;
  }
  // What the device has for itself it never faults on: said to be mapped, and left as it is.
  PageMask rest = mask & d.admitted;
  unsigned cu = 0;
  unsigned slot = 0;
  WaveSlot* wave = action.has_token ? slot_of(client.devices[action.device], action.token, cu, slot) : nullptr;
  if (wave != nullptr &&
      !d.admitted.test(static_cast<unsigned>(client.window().page_of_address(wave->address) & (block_pages - 1)))) {
    resume_slot(client, action.device, cu, slot, Code::not_allocated, wire::Refusal::device_memory);
  }
  if (rest.none()) {
    done(action.id, {});
    return true;
  }
  DevicePeer& peer = client.devices[action.device];
  d.exec.remove(rest);
  if (action.place == core::Place::system) {
    open_dma(peer, d, rest);
  } else {
    close_dma(peer, d, rest);
  }
  if (action.place == core::Place::system && action.prot == Prot::read_write && !action.exec &&
      !d.replaced.intersects(rest)) {
    Status given;
    rest.for_each_run([&](unsigned first, unsigned count) {
      const Status s = give_span(peer.userfault, client, {first_page_of(index) + first, count}, false);
      if (!s.ok()) given = s;
    });
    if (given.ok()) d.given |= rest;
    done(action.id, given.code == Code::client_gone ? Status(Code::device_lost) : given);
    if (given.ok() && action.has_token) resume(client, action.device, action.token, {});
    return true;
  }
  // One mapping a run; the wave is woken after the last.
  d.replaced |= rest;
  d.given.remove(rest);
  if (action.exec) d.exec |= rest;
  const std::uint32_t command = make_command(client, action.device, CommandKind::map_extent, action.pages, action.id);
  Command& c = commands_.at(command);
  c.record = extent_record(action, c.owner);
  c.has_token = action.has_token;
  c.token = action.token;
  c.file_first = c.record.file_offset / page_bytes - (action.pages.first & (block_pages - 1));
  c.rest = rest;
  --client.expected;  // next_run counts it
  next_run(client, command);
  return true;
}

/// Takes the next run of the command's rest, and sends it.
void Executor::next_run(Client& client, std::uint32_t index) {
  Command& c = commands_.at(index);
  const Page block = first_page_of(block_of(c.pages.first));
  unsigned first = block_pages;
  unsigned count = 0;
  c.rest.for_each_run([&](unsigned at, unsigned pages) {
    if (count == 0) {
      first = at;
      count = pages;
    }
  });
  c.rest.remove(PageMask::range(first, count));
  c.pages = {block + first, count};
  if (c.kind == CommandKind::map_extent) c.record.file_offset = (c.file_first + first) * page_bytes;
  c.sent = false;
  ++client.expected;
  send(index);
}

/// Takes back what the device was given of the pages, run by run, and nothing of its own between them.
void Executor::revoke_runs(Client& client, DeviceId device, CommandKind kind, const core::Action& action) {
  const BlockIndex index = block_of(action.pages.first);
  const DeviceBlock& d = client.device_block(client.block(index), device);
  const PageMask mask = BlockTable::mask_in(index, action.pages) & d.admitted;
  if (mask.none()) {
    done(action.id, {});
    return;
  }
  const std::uint32_t command = make_command(client, device, kind, action.pages, action.id);
  --client.expected;  // next_run counts it
  commands_.at(command).rest = mask;
  next_run(client, command);
}

}  // namespace ferry::manager
