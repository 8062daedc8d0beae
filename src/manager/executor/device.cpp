// The device side: extents, pages given in place, taking both back, and waves that wait.
#include "manager/executor/executor.h"

namespace ferry::manager {
namespace {

// A token names a wave's fault: the serial tells it from earlier ones of the slot.
core::FaultToken make_token(unsigned cu, unsigned slot, std::uint32_t serial) {
  return {(std::uint64_t{serial} << 32) | (std::uint64_t{cu} << 16) | slot};
}

std::uint16_t clamp_pieces(unsigned pieces) {
  return static_cast<std::uint16_t>(pieces < block_pages + 1 ? pieces : block_pages + 1);
}

}  // namespace

// --- waves -----------------------------------------------------------------------------------------------------------

void Executor::on_wave_fault(Client& client, DeviceId device, unsigned cu, const wire::UpRecord& record) {
  if (client.gate != nullptr) [[unlikely]] {
    // No more than there can be: what a device posts again and again is looked at when the gate is open.
    if (client.gate->waves.size() < client.devices.size() * wire::max_cus * wire::max_waves_per_cu) {
      client.gate->waves.push_back({device, cu, record});
    } else {
      ++client.devices[device].garbage;
    }
    return;
  }
  DevicePeer& peer = client.devices[device];
  if (record.slot >= config_.machine.waves_per_cu || peer.cus[cu].slots[record.slot].parked) {
    ++peer.garbage;
    return;
  }
  WaveSlot& slot = peer.cus[cu].slots[record.slot];
  slot.parked = true;
  slot.generation = record.generation;
  slot.address = record.address;
  slot.unit = record.unit;
  ++slot.serial;
  HeldWave wave;
  wave.device = device;
  wave.cu = static_cast<std::uint16_t>(cu);
  wave.slot = record.slot;
  wave.serial = slot.serial;
  wave.address = record.address;
  wave.access = record.access;
  wave.change = record.value;
  if (!client.window().contains(record.address)) {
    if (client.window().page_of_address(record.address) >= client.page_end()) {
      resume_slot(client, device, cu, record.slot, Code::not_allocated);
      return;
    }
    if (hold_outside(client, wave)) return;
  }
  wave_to_core(client, wave);
}

/// The page is managed, as far as anybody knows, and the device can be given it.
void Executor::wave_to_core(Client& client, const HeldWave& wave) {
  const DeviceId device = wave.device;
  DevicePeer& peer = client.devices[device];
  const WaveSlot& slot = peer.cus[wave.cu].slots[wave.slot];
  const Page page = client.window().page_of_address(wave.address);
  const auto bit = static_cast<unsigned>(page & (block_pages - 1));
  if (wave.access == wire::fault_exec && !may_call(client, device, page)) {
    resume_slot(client, device, wave.cu, wave.slot, Code::kernel_fault);
    return;
  }
  if (BlockState* b = client.blocks.find(block_of(page)); b != nullptr && !b->devices.empty()) {
    if (b->devices[device].given.test(bit)) {
      // The core has it mapped: the entry has just been made for another wave, or the kernel has taken it away since.
      const Status given = give_span(peer.userfault, client, {page, 1}, false);
      if (given.ok()) {
        resume_slot(client, device, wave.cu, wave.slot, {});
        return;
      }
    }
  }
  core_.device_fault(
      now_ns_, client.id, device, page, wave.wants(), make_token(wave.cu, wave.slot, wave.serial),
      slot.unit < peer.cus.size() && (peer.lent_units >> slot.unit & 1) != 0 ? slot.unit : core::AllocContext::no_cu,
      wave.change);
}

/// A kernel called what lies on the page. False: it may not, or has it mapped already, without that right: the core would
/// let it retry for ever.
bool Executor::may_call(Client& client, DeviceId device, Page page) const {
  if ((core_.attributes(client.id, page).flags & core::svm_gpu_exec) == 0) return false;
  const core::Residency where = core_.query(client.id, page);
  if (where.moving || (where.device_mapped >> device & 1) == 0) return true;
  const BlockState* b = client.blocks.find(block_of(page));
  return b != nullptr && !b->devices.empty() &&
         b->devices[device].exec.test(static_cast<unsigned>(page & (block_pages - 1)));
}

// --- IOMMU -----------------------------------------------------------------------------------------------------------

/// Before the device can reach the system pages.
void Executor::open_dma(DevicePeer& peer, DeviceBlock& block, const PageMask& pages) {
  PageMask opened = pages;
  opened.remove(block.dma);
  block.dma |= pages;
  peer.dma_pages += opened.count();
}

/// The device reaches them no more.
void Executor::close_dma(DevicePeer& peer, DeviceBlock& block, const PageMask& pages) {
  const std::uint64_t closed = (block.dma & pages).count();
  FERRY_CHECK(peer.dma_pages >= closed);
  peer.dma_pages -= closed;
  block.dma.remove(pages);
}

/// Every system page that the device may reach is one that the core has mapped for it. Before the core hears that the
/// device has ended: asks it for one page of each run.
void Executor::check_dma(Client& client, DeviceId device) const {
  client.blocks.for_each([&](BlockIndex index, const BlockState& b) {
    if (b.devices.empty()) return;
    b.devices[device].dma.for_each_run([&](unsigned first, unsigned) {
      const core::Residency page = core_.query(client.id, first_page_of(index) + first);
      FERRY_CHECK(page.moving || !page.allocated || (page.device_mapped >> device & 1) != 0);
    });
  });
}

WaveSlot* Executor::slot_of(DevicePeer& peer, core::FaultToken token, unsigned& cu, unsigned& slot) {
  cu = static_cast<unsigned>(token.value >> 16) & 0xffff;
  slot = static_cast<unsigned>(token.value) & 0xffff;
  if (cu >= peer.cus.size() || slot >= wire::max_waves_per_cu) return nullptr;
  WaveSlot& s = peer.cus[cu].slots[slot];
  return s.parked && s.serial == static_cast<std::uint32_t>(token.value >> 32) ? &s : nullptr;
}

void Executor::resume(Client& client, DeviceId device, core::FaultToken token, Status status) {
  unsigned cu = 0;
  unsigned slot = 0;
  const WaveSlot* wave = slot_of(client.devices[device], token, cu, slot);
  if (wave == nullptr) return;  // its device has ended since
  if (status.code == Code::not_allocated && !client.window().contains(wave->address)) {
    // Given back to the application while the wave waited: it may have it again.
    HeldWave again;
    again.device = device;
    again.cu = static_cast<std::uint16_t>(cu);
    again.slot = static_cast<std::uint16_t>(slot);
    again.serial = wave->serial;
    again.address = wave->address;
    if (hold_outside(client, again)) return;
  }
  resume_slot(client, device, cu, slot, status);
}

void Executor::resume_slot(Client& client, DeviceId device, unsigned cu, unsigned slot, Status status,
                           wire::Refusal refusal) {
  DevicePeer& peer = client.devices[device];
  if (peer.state != DeviceState::attached) return;
  ComputeUnit& unit = peer.cus[cu];
  wire::DownRecord r{};
  r.kind = static_cast<std::uint32_t>(wire::DownKind::resume);
  r.slot = static_cast<std::uint16_t>(slot);
  r.generation = unit.slots[slot].generation;
  r.address = unit.slots[slot].address;
  r.status = static_cast<std::uint32_t>(status.code);
  r.buffer = static_cast<std::uint32_t>(refusal);
  unit.slots[slot].parked = false;
  if (!unit.port.post(r)) {
    household_.drop_device(client, device, "the ring of a compute unit is broken");
    return;
  }
  if (!unit.posted) {
    unit.posted = true;
    posted_.push_back({&client, device, cu});
  }
}

// --- mapping ---------------------------------------------------------------------------------------------------------

void Executor::map_device(Client& client, const core::Action& action) {
  DevicePeer& peer = client.devices[action.device];
  if (peer.state != DeviceState::attached) {
    done(action.id, Code::device_lost);
    return;
  }
  if (client.forks != 0) [[unlikely]] {
    if (gate_holds(client, action)) return;
    if (action.prot == Prot::read_write) give_children_before(client, action);
  }
  BlockState& b = client.block(block_of(action.pages.first));
  if (client.is_adopted(action.pages.first) && map_outside(client, action)) return;
  // What may be written and not called is given page by page; all else needs an extent with the rights that it has.
  if (action.place == core::Place::system && action.pages.count_pages < block_pages &&
      action.prot == Prot::read_write && !action.exec) {
    map_in_place(client, b, action);
    return;
  }
  DeviceBlock& d = client.device_block(b, action.device);
  const bool whole = action.pages.count_pages == block_pages;
  if (!whole && peer.pieces >= pieces_max_) {
    done(action.id, Code::no_mappings);
    return;
  }
  const PageMask mask = BlockTable::mask_in(block_of(action.pages.first), action.pages);
  d.replaced |= mask;
  d.given.remove(mask);
  d.exec.remove(mask);
  if (action.exec) d.exec |= mask;
  if (action.place == core::Place::system) {
    open_dma(peer, d, mask);
  } else {
    close_dma(peer, d, mask);
  }
  const std::uint16_t pieces = whole ? std::uint16_t{1} : clamp_pieces(d.pieces + 2U);
  peer.pieces += pieces;
  peer.pieces -= d.pieces;
  d.pieces = pieces;
  send_extent(client, peer, action);
}

/// What is mapped, and with which rights. `owner`: whose VRAM it is, if not the device's own.
wire::DownRecord Executor::extent_record(const core::Action& action, DeviceId& owner) {
  wire::DownRecord r{};
  const bool vram = action.place == core::Place::vram;
  owner = vram && action.owner != action.device ? action.owner : no_device;
  r.file = static_cast<std::uint8_t>(!vram                ? wire::File::system
                                     : owner == no_device ? wire::File::vram
                                                          : wire::File::peer);
  r.buffer = owner == no_device ? 0 : owner;
  r.rights = static_cast<std::uint8_t>((action.prot == Prot::read_write ? wire::map_write : 0) |
                                       (action.exec ? wire::map_exec : 0));
  r.file_offset = (vram ? std::uint64_t{action.vram_first} : action.pages.first) * page_bytes;
  return r;
}

/// Has the extent mapped by the wave that waits for it, else by the device's agent.
void Executor::send_extent(Client& client, DevicePeer& peer, const core::Action& action) {
  DeviceId owner = no_device;
  const wire::DownRecord r = extent_record(action, owner);

  unsigned cu = 0;
  unsigned slot = 0;
  // The first of a linked device's VRAM goes through the agent, which takes the file.
  const bool has_file = owner == no_device || (peer.peer_files_taken >> owner & 1) != 0;
  WaveSlot* wave = action.has_token && has_file ? slot_of(peer, action.token, cu, slot) : nullptr;
  if (wave == nullptr) {
    const std::uint32_t index = make_command(client, action.device, CommandKind::map_extent, action.pages, action.id);
    Command& c = commands_.at(index);
    c.record = r;
    c.owner = owner;
    c.has_token = action.has_token;
    c.token = action.token;
    send(index);
    return;
  }
  const std::uint32_t index = make_command(client, action.device, CommandKind::resume_map, action.pages, action.id);
  Command& c = commands_.at(index);
  c.cu = static_cast<std::uint16_t>(cu);
  c.slot = static_cast<std::uint16_t>(slot);
  c.record = r;
  c.record.kind = static_cast<std::uint32_t>(wire::DownKind::resume_map);
  c.record.slot = c.slot;
  c.record.generation = wave->generation;
  c.record.address = client.address_of(action.pages.first);
  c.record.length_bytes = action.pages.count_pages * page_bytes;
  c.record.action = commands_.wire_id(index);
  ComputeUnit& unit = peer.cus[cu];
  if (!unit.port.post(c.record)) {
    household_.drop_device(client, action.device, "the ring of a compute unit is broken");
    return;
  }
  c.sent = true;
  if (!unit.posted) {
    unit.posted = true;
    posted_.push_back({&client, action.device, cu});
  }
}

void Executor::map_in_place(Client& client, BlockState& b, const core::Action& action) {
  const BlockIndex index = block_of(action.pages.first);
  const PageMask mask = BlockTable::mask_in(index, action.pages);
  DeviceBlock& d = client.device_block(b, action.device);
  if (!d.replaced.intersects(mask)) {
    give_device(client, action.device, action.pages, action.id, action.has_token, action.token);
    return;
  }
  // Left over from a revocation that could not arm again: at the limit of mappings, or an extent that was never revoked.
  const std::uint32_t command = make_command(client, action.device, CommandKind::rearm, action.pages, action.id);
  Command& c = commands_.at(command);
  c.wanted = action.pages;
  c.has_token = action.has_token;
  c.token = action.token;
  send(command);
}

/// Maps armed pages in place and resumes the wave.
void Executor::give_device(Client& client, DeviceId device, PageSpan pages, core::ActionId action, bool has_token,
                           core::FaultToken token) {
  DevicePeer& peer = client.devices[device];
  BlockState& b = client.block(block_of(pages.first));
  const PageMask mask = BlockTable::mask_in(block_of(pages.first), pages);
  DeviceBlock& d = client.device_block(b, device);
  open_dma(peer, d, mask);
  d.exec.remove(mask);
  const Status given = give_span(peer.userfault, client, pages, false);
  if (!given.ok()) {
    done(action, given.code == Code::client_gone ? Status(Code::device_lost) : given);
    return;
  }
  d.given |= mask;
  done(action, {});
  if (has_token) resume(client, device, token, {});
}

// --- revoking --------------------------------------------------------------------------------------------------------

void Executor::revoke_device(Client& client, const core::Action& action) {
  DevicePeer& peer = client.devices[action.device];
  // A device that is ending may still run: answered when its process has gone.
  const BlockIndex index = block_of(action.pages.first);
  BlockState& b = client.block(index);
  DeviceBlock& d = client.device_block(b, action.device);
  const PageMask mask = BlockTable::mask_in(index, action.pages);
  if (peer.state != DeviceState::attached && peer.state != DeviceState::ending) {
    done(action.id, Code::device_lost);
    return;
  }
  // What was given in armed pages is zapped; extents are mapped over by the armed window. Either way the pages end as
  // they were at the start, merged with their neighbours, and can be given one by one.
  // But while a CPU thread sleeps for a page of an extent, that it is out of reach is enough: arming it costs two more
  // system calls, and is left to the next mapping in place. Not where pieces run short: only an armed block has none.
  const bool hurry = action.cause == core::Cause::cpu_fault && action.pages.count_pages < block_pages &&
                     peer.pieces < pieces_max_ / 2 && !client.is_adopted(action.pages.first);
  const CommandKind kind = !d.replaced.intersects(mask) ? CommandKind::zap_device
                           : hurry                      ? CommandKind::drop_device
                                                        : CommandKind::revoke_device;
  d.given.remove(mask);
  if (peer.state == DeviceState::ending) {
    make_command(client, action.device, kind, action.pages, action.id);
    return;
  }
  if (client.is_adopted(action.pages.first)) {
    revoke_runs(client, action.device, kind, action);
    return;
  }
  if (grow_open(client, action.device, kind, action)) return;
  leave_open(client, action.device, make_command(client, action.device, kind, action.pages, action.id));
}

}  // namespace ferry::manager
