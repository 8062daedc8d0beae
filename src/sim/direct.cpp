// Copies between devices, on the simulated machine.
#include "sim/memory.h"
#include "sim/violation.h"

namespace ferry::sim {

void Memory::copy_direct(unsigned slot, Page page, DeviceId from, VramPage from_vram, DeviceId to, VramPage to_vram,
                         bool torn) {
  check_target(slot, to, page, core::Place::vram, to_vram);
  if (from == to && vram_at(slot, from, from_vram).mapped_by != nobody) {
    violate(Invariant::quiet_source,
            "VRAM page %u of device %u is copied for page %llu of client %u while it is mapped", from_vram,
            unsigned{from}, static_cast<unsigned long long>(page), clients_[slot].id);
  }
  const auto& p = at(slot, page);
  if (p.alloc == AllocState::allocated) {
    check_pin(slot, page, from, from_vram, "copied to another device");
    for (DeviceId d = 0; d < devices_; ++d) {
      const DeviceEntry e = device_entry(slot, d, page);
      if (e.kind == DeviceKind::vram && e.owner == from && e.writable) {
        violate(Invariant::quiet_source,
                "page %llu of client %u is copied from device %u to %u while device %u writes it",
                static_cast<unsigned long long>(page), clients_[slot].id, unsigned{from}, unsigned{to}, unsigned{d});
      }
    }
  }
  hold(slot, to, page, to_vram, torn ? torn_word : vram_at(slot, from, from_vram).word);
  check_current(slot, page, "a copy from device to device");
}

}  // namespace ferry::sim
