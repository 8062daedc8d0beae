// Longer than 600 lines because every check of contents and page tables reads the same private state.
#include "sim/memory.h"

#include <cstdio>

#include "sim/violation.h"

namespace ferry::sim {
namespace {
// A written word: bits 56-63 the client's slot + 1, bits 16-55 the number of the write, bits 0-15 additions since.
constexpr unsigned slot_shift = 56;
constexpr unsigned stamp_shift = 16;
// More than any budget that a run is given: a larger number is not one that the core can have meant.
constexpr std::size_t max_chunks = 4096;

long long rel(Page page) { return static_cast<long long>(page); }
}  // namespace

Memory::Memory(unsigned clients, unsigned devices, Page window_first, std::uint32_t window_pages,
               std::uint64_t budget_chunks)
    : first_(window_first),
      pages_(window_pages),
      devices_(static_cast<DeviceId>(devices)),
      budget_chunks_(budget_chunks),
      used_chunks_(devices, 0) {
  clients_.resize(clients);
  for (auto& c : clients_) {
    c.pages.resize(window_pages);
    c.devices.resize(devices);
    for (auto& d : c.devices) {
      d.table.resize(window_pages);
      d.vram_of.resize(window_pages);
    }
  }
}

void Memory::count_system(std::uint64_t store_pages) {
  counted_ = true;
  store_capacity_ = store_pages;
}

bool Memory::inside(PageSpan span) const {
  return span.first >= first_ && span.first - first_ <= pages_ && span.count_pages <= pages_ - (span.first - first_);
}

bool Memory::has_in_place(unsigned slot, PageSpan span) const {
  for (Page page = span.first; page < span.end(); ++page) {
    if (inside({page, 1}) && at(slot, page).alloc == AllocState::allocated && at(slot, page).in_place) return true;
  }
  return false;
}

void Memory::client_open(unsigned slot, ClientId id) { clients_[slot].id = id; }

void Memory::client_close(unsigned slot) {
  auto& c = clients_[slot];
  for (DeviceId d = 0; d < devices_; ++d) {
    if (chunks_of(slot, d) != 0) {
      violate(Invariant::all_given_back,
              "client %u is gone, but %llu of its VRAM chunks on device %u were not released", c.id,
              static_cast<unsigned long long>(chunks_of(slot, d)), unsigned{d});
    }
    for (std::uint32_t i = 0; i < pages_; ++i) {
      if (c.devices[d].table[i].kind != DeviceKind::absent) {
        violate(Invariant::all_given_back, "client %u is gone, but device %u still maps its page %lld", c.id,
                unsigned{d}, rel(first_ + i));
      }
      c.devices[d].vram_of[i] = 0;
    }
    c.devices[d].chunks.clear();
  }
  c.resident = 0;
  c.children.clear();
  for (auto& p : c.pages) {
    forget_stored(p);
    p.resident = false;
    p.system = p.shadow = 0;
    p.pins = p.discarding = 0;
    p.discarded = false;
    p.alloc = AllocState::none;
    p.cpu = CpuEntry::none;
    p.zeroing = p.moving = false;
    p.prot = p.enforced = 7;
    ++p.generation;
  }
}

void Memory::alloc(unsigned slot, PageSpan span, bool in_place) {
  for (Page page = span.first; page < span.end(); ++page) {
    auto& p = at(slot, page);
    if (p.system != 0) {
      violate(Invariant::free_is_final,
              "client %u allocates page %lld anew and would read %s, left there by its last use", clients_[slot].id,
              rel(page), describe(p.system).c_str());
    }
    if (p.in_store) {
      violate(Invariant::free_is_final, "client %u allocates page %lld anew, and the store still has its last contents",
              clients_[slot].id, rel(page));
    }
    p.alloc = AllocState::allocated;
    p.allocated_at = alloc_moment_ + 1;
    p.discarding = 0;
    p.discarded = false;
    p.in_place = in_place;
    p.prot = p.enforced = 7;
    p.was_protected = false;
    p.cpu = counted_ ? CpuEntry::revoked : CpuEntry::mapped;
    p.shadow = 0;
    ++p.generation;
    for (auto& d : clients_[slot].devices) d.vram_of[page - first_] = 0;
  }
  ++alloc_moment_;
}

void Memory::begin_free(unsigned slot, PageSpan span) {
  for (Page page = span.first; page < span.end(); ++page) {
    auto& p = at(slot, page);
    p.alloc = AllocState::freeing;
    p.zeroing = p.moving = false;
    p.cpu = CpuEntry::none;
  }
}

void Memory::end_free(unsigned slot, PageSpan span) {
  for (Page page = span.first; page < span.end(); ++page) {
    auto& p = at(slot, page);
    for (DeviceId d = 0; d < devices_; ++d) {
      if (device_entry(slot, d, page).kind != DeviceKind::absent) {
        violate(Invariant::free_is_final, "the free of page %lld of client %u was answered while device %u maps it",
                rel(page), clients_[slot].id, unsigned{d});
      }
    }
    p.alloc = AllocState::none;
    p.cpu = CpuEntry::none;
  }
}

void Memory::begin_zero(unsigned slot, PageSpan span) {
  for (Page page = span.first; page < span.end(); ++page) {
    at(slot, page).alloc = AllocState::freeing;
    at(slot, page).zeroing = true;
  }
}

void Memory::cancel_zero(unsigned slot, PageSpan span) {
  for (Page page = span.first; page < span.end(); ++page) {
    at(slot, page).alloc = AllocState::allocated;
    at(slot, page).zeroing = false;
  }
}

void Memory::end_zero(unsigned slot, PageSpan span) {
  for (Page page = span.first; page < span.end(); ++page) {
    auto& p = at(slot, page);
    p.alloc = AllocState::allocated;
    p.zeroing = false;
    p.shadow = 0;
    const auto holds_rest = [&](Word word) { return word != 0; };
    if (reaches(p.cpu) && holds_rest(p.system)) {
      violate(Invariant::discarded_pages, "the discard of page %lld of client %u is answered, and the CPU reads %s",
              rel(page), clients_[slot].id, describe(p.system).c_str());
    }
    for (DeviceId d = 0; d < devices_; ++d) {
      const DeviceEntry e = device_entry(slot, d, page);
      if (e.kind == DeviceKind::absent) continue;
      const Word word = e.kind == DeviceKind::system ? p.system : vram_at(slot, e.owner, e.vram).word;
      if (holds_rest(word)) {
        violate(Invariant::discarded_pages, "the discard of page %lld of client %u is answered, and device %u reads %s",
                rel(page), clients_[slot].id, unsigned{d}, describe(word).c_str());
      }
    }
    check_current(slot, page, "it was discarded");
  }
}

void Memory::begin_protect(unsigned slot, PageSpan span, std::uint8_t prot) {
  for (Page page = span.first; page < span.end(); ++page) {
    auto& p = at(slot, page);
    if (p.alloc != AllocState::allocated) continue;
    p.prot = prot;
    p.enforced = static_cast<std::uint8_t>(p.enforced | prot);
    p.was_protected |= prot != 7;
  }
}

void Memory::end_protect(unsigned slot, PageSpan span) {
  for (Page page = span.first; page < span.end(); ++page) at(slot, page).enforced = at(slot, page).prot;
}

void Memory::cpu_died(unsigned slot) {
  for (auto& p : clients_[slot].pages) p.cpu = CpuEntry::none;
}

void Memory::device_died(unsigned slot, DeviceId device) {
  for (std::uint32_t i = 0; i < pages_; ++i) set_entry(slot, device, first_ + i, {});
}

Touch Memory::cpu_access(unsigned slot, Page page, Op op) {
  auto& p = at(slot, page);
  if (p.cpu == CpuEntry::none || p.cpu == CpuEntry::refused) return Touch::segv;
  if ((p.prot & (op == Op::read ? core::span_read : core::span_write)) == 0) return Touch::segv;
  if (p.cpu == CpuEntry::revoked || (p.cpu == CpuEntry::readable && op != Op::read)) return Touch::fault;
  apply(slot, page, p.system, op, "a CPU thread", 0);
  return Touch::done;
}

Touch Memory::device_access(unsigned slot, DeviceId device, Page page, Op op) {
  const DeviceEntry e = device_entry(slot, device, page);
  if (e.kind == DeviceKind::absent || (op != Op::read && !e.writable)) return Touch::fault;
  const auto& p = at(slot, page);
  if (p.alloc == AllocState::allocated && (p.enforced & (op == Op::read ? core::span_read : core::span_write)) == 0) {
    violate(Invariant::protected_pages, "device %u %s page %lld of client %u, which is protected from that",
            unsigned{device}, op == Op::read ? "reads" : "writes", rel(page), clients_[slot].id);
  }
  Word& word = e.kind == DeviceKind::system ? at(slot, page).system : vram_at(slot, e.owner, e.vram).word;
  apply(slot, page, word, op, e.kind == DeviceKind::system ? "device (in place)" : "device (VRAM)", device);
  return Touch::done;
}

void Memory::apply(unsigned slot, Page page, Word& word, Op op, const char* who, unsigned device) {
  auto& p = at(slot, page);
  const Word fresh = (Word{slot + 1} << slot_shift) | (++stamp_ << stamp_shift);
  if (p.alloc != AllocState::allocated) {
    // The program races with its own free: whatever it reads or writes there means nothing.
    if (op != Op::read) word = fresh;
    return;
  }
  if (op != Op::write && !reads_right(p, word)) {
    violate(Invariant::reads_last_write, "page %lld of client %u: %s %u reads %s, but the last write was %s; %s",
            rel(page), clients_[slot].id, who, device, describe(word).c_str(), describe(p.shadow).c_str(),
            copies_of(slot, page).c_str());
  }
  if (op != Op::write) settle(p, word);
  if (op == Op::write) p.shadow = word = fresh;
  if (op == Op::add) p.shadow = ++word;
  p.discarded = false;
}

void Memory::revoke_cpu(unsigned slot, Page page) {
  auto& p = at(slot, page);
  if (p.cpu != CpuEntry::none) p.cpu = CpuEntry::revoked;
}

void Memory::refuse_cpu(unsigned slot, Page page) {
  auto& p = at(slot, page);
  if (p.cpu == CpuEntry::revoked) p.cpu = CpuEntry::refused;
}

void Memory::let_cpu(unsigned slot, Page page) {
  auto& p = at(slot, page);
  if (p.cpu == CpuEntry::refused) p.cpu = CpuEntry::revoked;
}

void Memory::protect_cpu(unsigned slot, Page page) {
  auto& p = at(slot, page);
  if (p.cpu == CpuEntry::mapped) p.cpu = CpuEntry::readable;
}

void Memory::map_cpu(unsigned slot, Page page, Prot prot) {
  auto& p = at(slot, page);
  if (p.cpu == CpuEntry::none) return;
  if (!reads_right(p, p.system) && !p.zeroing) {
    violate(Invariant::maps_current, "page %lld of client %u is mapped for the CPU, but its system copy is stale: %s",
            rel(page), clients_[slot].id, copies_of(slot, page).c_str());
  }
  for (DeviceId d = 0; d < devices_; ++d) {
    const DeviceEntry e = device_entry(slot, d, page);
    if (e.kind == DeviceKind::vram && (prot == Prot::read_write || e.writable)) {
      violate(Invariant::exclusive_writer,
              "page %lld of client %u becomes %s for the CPU in system memory while device %u maps VRAM page %u%s",
              rel(page), clients_[slot].id, prot == Prot::read ? "readable" : "writable", unsigned{d}, e.vram,
              e.writable ? " for writing" : "");
    }
  }
  settle(p, p.system);
  if (p.cpu == CpuEntry::mapped && prot == Prot::read) return;  // it may write already, and has it alone
  p.cpu = prot == Prot::read ? CpuEntry::readable : CpuEntry::mapped;
  occupy(slot, p);
}

void Memory::revoke_device(unsigned slot, DeviceId device, Page page) { set_entry(slot, device, page, {}); }

void Memory::map_device(unsigned slot, DeviceId device, Page page, DeviceEntry entry) {
  auto& p = at(slot, page);
  const ClientId id = clients_[slot].id;
  if (p.alloc == AllocState::none) {
    violate(Invariant::free_is_final, "page %lld of client %u is mapped on device %u, but it is not allocated",
            rel(page), id, unsigned{device});
  }
  if (entry.kind == DeviceKind::vram) {
    const std::uint32_t other = vram_at(slot, entry.owner, entry.vram).mapped_by;
    if (other != nobody && other != page - first_) {
      violate(Invariant::slot_single_use, "VRAM page %u of device %u is mapped for pages %lld and %lld of client %u",
              entry.vram, unsigned{device}, rel(first_ + other), rel(page), id);
    }
  }
  if (p.alloc == AllocState::allocated) {
    const Word word = entry.kind == DeviceKind::system ? p.system : vram_at(slot, entry.owner, entry.vram).word;
    if (!reads_right(p, word)) {
      violate(Invariant::maps_current,
              "page %lld of client %u is mapped on device %u to %s page %u, which reads %s: %s", rel(page), id,
              unsigned{device}, entry.kind == DeviceKind::system ? "its system" : "VRAM", entry.vram,
              describe(word).c_str(), copies_of(slot, page).c_str());
    }
    settle(p, word);
    if (entry.kind == DeviceKind::vram && (p.cpu == CpuEntry::mapped || (reaches(p.cpu) && entry.writable))) {
      violate(Invariant::exclusive_writer,
              "page %lld of client %u is mapped on device %u in VRAM%s while CPU threads can %s its system copy",
              rel(page), id, unsigned{device}, entry.writable ? " for writing" : "",
              p.cpu == CpuEntry::mapped ? "write" : "read");
    }
    for (DeviceId d = 0; d < devices_; ++d) {
      const DeviceEntry e = device_entry(slot, d, page);
      const bool same_copy =
          e.kind == entry.kind && (e.kind == DeviceKind::system || (e.owner == entry.owner && e.vram == entry.vram));
      if (d != device && e.kind != DeviceKind::absent && !same_copy && (e.writable || entry.writable)) {
        violate(Invariant::exclusive_writer,
                "page %lld of client %u: devices %u and %u map two copies of it, one of them writable", rel(page), id,
                unsigned{d}, unsigned{device});
      }
    }
  }
  if (entry.kind == DeviceKind::system) occupy(slot, p);
  set_entry(slot, device, page, entry);
}

void Memory::set_entry(unsigned slot, DeviceId device, Page page, DeviceEntry entry) {
  DeviceEntry& e = clients_[slot].devices[device].table[page - first_];
  if (e.kind == DeviceKind::vram) {
    VramState& v = vram_at(slot, e.owner, e.vram);
    if (--v.entries == 0) v.mapped_by = nobody;
  }
  e = entry;
  if (e.kind == DeviceKind::vram) {
    VramState& v = vram_at(slot, e.owner, e.vram);
    v.mapped_by = static_cast<std::uint32_t>(page - first_);
    ++v.entries;
  }
}

void Memory::check_target(unsigned slot, DeviceId device, Page page, core::Place to, VramPage vram) {
  const auto& p = at(slot, page);
  const ClientId id = clients_[slot].id;
  if (to == core::Place::vram) {
    const std::uint32_t other = vram_at(slot, device, vram).mapped_by;
    if (other != nobody) {
      violate(other == page - first_ ? Invariant::quiet_source : Invariant::slot_single_use,
              "page %lld of client %u is copied over VRAM page %u, which device %u maps for page %lld", rel(page), id,
              vram, unsigned{device}, rel(first_ + other));
    }
    return;
  }
  if (reaches(p.cpu)) {
    violate(Invariant::quiet_source, "the system copy of page %lld of client %u is overwritten while the CPU maps it",
            rel(page), id);
  }
  for (DeviceId d = 0; d < devices_; ++d) {
    if (device_entry(slot, d, page).kind == DeviceKind::system) {
      violate(Invariant::quiet_source,
              "the system copy of page %lld of client %u is overwritten while device %u maps it", rel(page), id,
              unsigned{d});
    }
  }
}

void Memory::copy(unsigned slot, DeviceId device, Page page, core::Place to, VramPage vram) {
  auto& p = at(slot, page);
  const ClientId id = clients_[slot].id;
  check_target(slot, device, page, to, vram);
  if (p.alloc == AllocState::allocated) {
    if (to == core::Place::vram && p.in_place) {
      violate(Invariant::answers_right,
              "page %lld of client %u was allocated to stay in system memory and is copied to VRAM", rel(page), id);
    }
    if (to == core::Place::vram && p.cpu == CpuEntry::mapped) {
      violate(Invariant::quiet_source, "page %lld of client %u is copied to device %u while CPU threads can write it",
              rel(page), id, unsigned{device});
    }
    for (DeviceId d = 0; d < devices_; ++d) {
      const DeviceEntry e = device_entry(slot, d, page);
      const bool is_source =
          to == core::Place::vram ? e.kind == DeviceKind::system : e.kind == DeviceKind::vram && e.owner == device;
      if (is_source && e.writable) {
        violate(Invariant::quiet_source, "page %lld of client %u is copied %s device %u while device %u can write it",
                rel(page), id, to == core::Place::vram ? "to" : "home from", unsigned{device}, unsigned{d});
      }
    }
  }
  occupy(slot, p);  // reading zeros gives them memory too
  if (to == core::Place::vram) {
    check_pin(slot, page, no_device, 0, "copied to VRAM");
  } else {
    check_pin(slot, page, device, vram, "copied home");
  }
  if (to == core::Place::vram) {
    hold(slot, device, page, vram, p.system);
  } else {
    p.system = vram_at(slot, device, vram).word;
  }
  check_current(slot, page, to == core::Place::vram ? "a copy to VRAM" : "a copy home");
}

void Memory::tear(unsigned slot, DeviceId device, Page page, core::Place to, VramPage vram) {
  check_target(slot, device, page, to, vram);
  if (to == core::Place::vram) {
    hold(slot, device, page, vram, torn_word);
  } else {
    occupy(slot, at(slot, page));
    at(slot, page).system = torn_word;
  }
  check_current(slot, page, "a copy that failed");
}

void Memory::hold(unsigned slot, DeviceId device, Page page, VramPage vram, Word word) {
  auto& d = clients_[slot].devices[device];
  VramState& v = vram_at(slot, device, vram);
  const std::uint32_t before = v.holds;
  const auto index = static_cast<std::uint32_t>(page - first_);
  v.word = word;
  v.holds = index;
  if (before != nobody && before != index) check_pin(slot, first_ + before, device, vram, "overwritten");
  if (before != nobody && before != index && d.vram_of[before] == vram + 1) {
    d.vram_of[before] = 0;
    check_current(slot, first_ + before, "its VRAM page was used for another page");
  }
  d.vram_of[index] = vram + 1;
}

void Memory::discard_system(unsigned slot, Page page) {
  auto& p = at(slot, page);
  for (DeviceId d = 0; d < devices_; ++d) {
    if (device_entry(slot, d, page).kind == DeviceKind::system) {
      violate(Invariant::free_is_final, "system page %lld of client %u is discarded while device %u maps it", rel(page),
              clients_[slot].id, unsigned{d});
    }
  }
  check_pin(slot, page, no_device, 0, "discarded");
  p.system = 0;
  if (p.resident) {
    p.resident = false;
    --clients_[slot].resident;
  }
  if (p.alloc == AllocState::allocated) {
    if (reaches(p.cpu) && (p.shadow != 0 || counted_)) {
      violate(Invariant::free_is_final, "system page %lld of client %u is discarded while the CPU maps it", rel(page),
              clients_[slot].id);
    }
    check_current(slot, page, "its system page was discarded");
  }
}

/// I-11, for what moves between system memory and the store.
void Memory::check_quiet(unsigned slot, Page page, const char* what) const {
  const auto& p = at(slot, page);
  if (reaches(p.cpu)) {
    violate(Invariant::quiet_source, "page %lld of client %u is %s while CPU threads can %s it", rel(page),
            clients_[slot].id, what, p.cpu == CpuEntry::mapped ? "write" : "read");
  }
  for (DeviceId d = 0; d < devices_; ++d) {
    if (device_entry(slot, d, page).kind == DeviceKind::system) {
      violate(Invariant::quiet_source, "page %lld of client %u is %s while device %u maps it", rel(page),
              clients_[slot].id, what, unsigned{d});
    }
  }
}

void Memory::forget_stored(PageState& p) {
  if (p.in_store) --stored_pages_;
  p.in_store = false;
  p.stored = 0;
}

bool Memory::store(unsigned slot, Page page) {
  auto& p = at(slot, page);
  check_quiet(slot, page, "stored");
  if (!p.in_store && stored_pages_ >= store_capacity_) return false;
  if (!p.in_store) ++stored_pages_;
  p.in_store = true;
  p.stored = p.system;
  return true;
}

void Memory::tear_store(unsigned slot, Page page) {
  forget_stored(at(slot, page));
  check_current(slot, page, "a store that failed");
}

void Memory::load(unsigned slot, Page page) {
  auto& p = at(slot, page);
  check_quiet(slot, page, "loaded");
  if (!p.in_store) {
    violate(Invariant::answers_right, "page %lld of client %u is loaded, but the store does not have it", rel(page),
            clients_[slot].id);
  }
  occupy(slot, p);
  p.system = p.stored;
  check_current(slot, page, "a load");
}

void Memory::tear_system(unsigned slot, Page page) {
  auto& p = at(slot, page);
  check_quiet(slot, page, "loaded");
  occupy(slot, p);
  p.system = torn_word;
  check_current(slot, page, "a load that failed");
}

void Memory::discard_store(unsigned slot, Page page) {
  forget_stored(at(slot, page));
  check_current(slot, page, "the store forgot it");
}

Memory::Chunk& Memory::chunk(unsigned slot, DeviceId device, VramPage vram) {
  auto& chunks = clients_[slot].devices[device].chunks;
  const std::size_t index = vram / block_pages;
  if (index >= max_chunks) {
    violate(Invariant::budget, "VRAM page %u of client %u on device %u is beyond any budget", vram, clients_[slot].id,
            unsigned{device});
  }
  if (index >= chunks.size()) chunks.resize(index + 1);
  if (!chunks[index]) chunks[index] = std::make_unique<Chunk>();
  return *chunks[index];
}

void Memory::use_vram(unsigned slot, DeviceId device, VramPage first, std::uint64_t count) {
  for (std::uint64_t v = first; v < first + count; v = (v / block_pages + 1) * block_pages) {
    Chunk& c = chunk(slot, device, static_cast<VramPage>(v));
    if (c.charged) continue;
    c.charged = true;
    if (++used_chunks_[device] > budget_chunks_) {
      violate(Invariant::budget,
              "device %u has a budget of %llu chunks; client %u starts to use one more (VRAM page %llu) before any of "
              "the others was released",
              unsigned{device}, static_cast<unsigned long long>(budget_chunks_), clients_[slot].id,
              static_cast<unsigned long long>(v));
    }
  }
}

void Memory::wipe_chunk(unsigned slot, DeviceId device, VramPage first) {
  auto& d = clients_[slot].devices[device];
  Chunk& c = chunk(slot, device, first);
  for (unsigned i = 0; i < block_pages; ++i) {
    VramState& v = c.pages[i];
    if (v.mapped_by != nobody) {
      violate(Invariant::slot_single_use,
              "VRAM chunk %u of client %u is released while device %u maps it for page %lld", first / block_pages,
              clients_[slot].id, unsigned{device}, rel(first_ + v.mapped_by));
    }
    const std::uint32_t before = v.holds;
    if (before != nobody) check_pin(slot, first_ + before, device, first + i, "released");
    v = VramState{};
    if (before != nobody && d.vram_of[before] == first + i + 1) {
      d.vram_of[before] = 0;
      check_current(slot, first_ + before, "its VRAM chunk was released");
    }
  }
}

void Memory::uncharge_chunk(unsigned slot, DeviceId device, VramPage first) {
  Chunk& c = chunk(slot, device, first);
  if (!c.charged) return;
  c.charged = false;
  --used_chunks_[device];
}

std::uint64_t Memory::chunks_of(unsigned slot, DeviceId device) const {
  std::uint64_t n = 0;
  for (const auto& c : clients_[slot].devices[device].chunks) n += c && c->charged ? 1 : 0;
  return n;
}

bool Memory::vram_is_current(unsigned slot, DeviceId device, Page page) const {
  const auto& d = clients_[slot].devices[device];
  const std::uint32_t where = d.vram_of[page - first_];
  if (where == 0) return false;
  return reads_right(at(slot, page), d.chunks[(where - 1) / block_pages]->pages[(where - 1) % block_pages].word);
}

void Memory::check_current(unsigned slot, Page page, const char* after) const {
  const auto& p = at(slot, page);
  if (p.alloc != AllocState::allocated || loose(p) || p.system == p.shadow || (p.in_store && p.stored == p.shadow))
    return;
  for (DeviceId d = 0; d < devices_; ++d) {
    if (vram_is_current(slot, d, page)) return;
  }
  suspect_ = {clients_[slot].id, page, true};
  violate(Invariant::current_copy, "page %lld of client %u has no current copy left after %s: %s", rel(page),
          clients_[slot].id, after, copies_of(slot, page).c_str());
}

void Memory::pin(unsigned slot, Page page, DeviceId device) {
  auto& p = at(slot, page);
  if (p.alloc != AllocState::allocated) return;  // freed while it was pinned
  const std::uint32_t where = device == no_device ? 0 : clients_[slot].devices[device].vram_of[page - first_];
  if (device == no_device ? !reads_right(p, p.system) : where == 0 || !vram_is_current(slot, device, page)) {
    violate(Invariant::pinned_stays, "page %lld of client %u is pinned in %s, but is not there: %s", rel(page),
            clients_[slot].id, device == no_device ? "system memory" : "VRAM", copies_of(slot, page).c_str());
  }
  if (p.pins++ == 0) {
    p.pin_device = device;
    p.pin_vram = where == 0 ? 0 : where - 1;
  } else if (p.pin_device != device || (device != no_device && p.pin_vram + 1 != where)) {
    violate(Invariant::pinned_stays, "page %lld of client %u is pinned in two places", rel(page), clients_[slot].id);
  }
}

void Memory::unpin(unsigned slot, Page page) {
  auto& p = at(slot, page);
  if (p.pins != 0) --p.pins;
}

void Memory::forget_pins(unsigned slot) {
  for (auto& p : clients_[slot].pages) p.pins = 0;
}

void Memory::dma(unsigned slot, Page page, Op op) {
  auto& p = at(slot, page);
  if (p.pins == 0) return;
  Word& word = p.pin_device == no_device ? p.system : vram_at(slot, p.pin_device, p.pin_vram).word;
  apply(slot, page, word, op, "DMA to", p.pin_device);
}

void Memory::check_pin(unsigned slot, Page page, DeviceId leaves, VramPage vram, const char* what) const {
  const auto& p = at(slot, page);
  if (p.pins == 0 || p.pin_device != leaves || (leaves != no_device && p.pin_vram != vram)) return;
  violate(Invariant::pinned_stays, "page %lld of client %u is pinned there, and is %s", rel(page), clients_[slot].id,
          what);
}

std::uint64_t Memory::begin_discard(unsigned slot, PageSpan span) {
  for (Page page = span.first; page < span.end(); ++page) {
    if (inside({page, 1}) && exists(slot, page)) ++at(slot, page).discarding;
  }
  return alloc_moment_;
}

void Memory::end_discard(unsigned slot, PageSpan span, std::uint64_t begun) {
  for (Page page = span.first; page < span.end(); ++page) {
    if (!inside({page, 1})) continue;
    auto& p = at(slot, page);
    if (p.discarding == 0 || p.allocated_at > begun || !exists(slot, page)) continue;
    --p.discarding;
    p.discarded = p.discarded || p.alloc == AllocState::allocated;
  }
}

void Memory::check_all() const {
  for (unsigned slot = 0; slot < clients_.size(); ++slot) {
    for (std::uint32_t i = 0; i < pages_; ++i)
      check_current(slot, first_ + i, "some event (found by the periodic check)");
  }
}

std::string Memory::describe(Word word) const {
  char text[96];
  const auto owner = static_cast<unsigned>(word >> slot_shift);
  if (word == 0) return "zero (never written)";
  if (word == fresh_vram_word) return "fresh VRAM (never filled)";
  if (word == torn_word) return "the target of a failed copy";
  if (owner == 0 || owner > clients_.size()) {
    std::snprintf(text, sizeof text, "0x%016llx", static_cast<unsigned long long>(word));
    return text;
  }
  std::snprintf(text, sizeof text, "write %llu of client %u plus %u",
                static_cast<unsigned long long>((word >> stamp_shift) & 0xff'ffff'ffff), clients_[owner - 1].id,
                static_cast<unsigned>(word & 0xffff));
  return text;
}

std::string Memory::copies_of(unsigned slot, Page page) const {
  const auto& p = at(slot, page);
  std::string text = "must be " + describe(p.shadow) + ", system has " + describe(p.system);
  if (p.in_store) text += ", the store has " + describe(p.stored);
  for (DeviceId d = 0; d < devices_; ++d) {
    const auto& m = clients_[slot].devices[d];
    const std::uint32_t where = m.vram_of[page - first_];
    if (where == 0) continue;
    text += ", VRAM of device " + std::to_string(unsigned{d}) + " (page " + std::to_string(where - 1) + ") has " +
            describe(m.chunks[(where - 1) / block_pages]->pages[(where - 1) % block_pages].word);
  }
  return text;
}

}  // namespace ferry::sim
