// One application and its device processes as the manager holds them: connections, descriptors, shared control files,
// mappings of its memory files. Plain state; what is done with it is in requests.cpp, lifecycle.cpp and executor/.
// Main thread only. Everything that a peer can write lies in the mapped control files and nowhere else.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <deque>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/types.h"
#include "core/core.h"
#include "linux/event.h"
#include "linux/fd.h"
#include "linux/memory_file.h"
#include "linux/process.h"
#include "linux/userfaultfd.h"
#include "manager/block_table.h"
#include "manager/client_work.h"
#include "manager/file_spans.h"
#include "manager/fork.h"
#include "manager/span_set.h"
#include "wire/control.h"
#include "wire/ring.h"

namespace ferry::manager {

/// A wave that faulted and was not yet resumed.
struct WaveSlot {
  bool parked = false;
  std::uint32_t serial = 0;      ///< of the fault; part of its token
  std::uint64_t generation = 0;  ///< the device's, echoed
  std::uint64_t address = 0;
  std::uint8_t unit = wire::no_unit;  ///< that it holds, for all the device says
  std::uint64_t file_epoch = 0;       ///< of the file span that it was last let go on for
};

/// The device's thread of that number, and its waves. Which of the machine's compute units it runs on changes.
struct ComputeUnit {
  wire::ManagerPort port;
  bool posted = false;  ///< to be woken at the end of this turn
  std::array<WaveSlot, wire::max_waves_per_cu> slots;
};

struct Agent {
  wire::ManagerPort port;
  bool posted = false;
  std::uint32_t unanswered = 0;
  std::uint32_t open = 0;             ///< index + 1 of a command made in this turn that may still grow
  std::deque<std::uint32_t> backlog;  ///< commands that wait for room in the ring
};

enum class DeviceState : std::uint8_t {
  absent,    ///< no process; its control files are fresh
  starting,  ///< its socket is here, its hello is not
  attached,
  ending,  ///< was killed or closed its socket; counts until the process is gone
  lost,    ///< gone; a next process needs fresh control files
};

struct DevicePeer {
  DeviceState state = DeviceState::absent;
  std::uint64_t attach_request = 0;
  linux::Fd socket;
  linux::Process process;
  linux::Userfaultfd userfault;
  linux::Fd vram_file;
  linux::Mapping vram;
  linux::Fd control_file;
  linux::Mapping control_map;
  linux::Fd queue_file;
  Agent agent;
  std::vector<ComputeUnit> cus;
  std::vector<std::uint8_t> chunk_ready;  ///< 1: has memory, huge if it can be had
  std::uint32_t garbage = 0;              ///< records that no honest device sends
  std::uint64_t pieces = 0;               ///< sum over its blocks
  std::uint64_t dma_pages = 0;            ///< likewise: system pages that are open to it
  std::uint64_t file_pages = 0;           ///< of the application's files, that are open to it: sum over its file spans
  std::uint16_t peer_files = 0;           ///< bit d: it was sent the VRAM of device d
  std::uint16_t peer_files_taken = 0;     ///< bit d: its agent has mapped something of that: its compute units may, too
  std::vector<std::uint64_t> buffer_files;  ///< by buffer number: the buffer whose file it was sent, 0: none; or empty
  std::uint64_t lent_units = 0;             ///< compute units that its compute may hold: granted, and not yet left
  unsigned demand = 0;                      ///< compute units that it wants, as the core was told

  [[nodiscard]] wire::DeviceControl* control() const {
    return reinterpret_cast<wire::DeviceControl*>(control_map.data());
  }
};

/// A wave that touched memory which is not managed, or not known to its device, yet.
struct HeldWave {
  DeviceId device = no_device;
  std::uint16_t cu = 0;
  std::uint16_t slot = 0;
  std::uint32_t serial = 0;
  std::uint64_t address = 0;
  std::uint8_t access = wire::fault_read;
  std::uint64_t change = 0;  ///< number of the application's last unmap, as the device knew it

  [[nodiscard]] Access wants() const { return access == wire::fault_write ? Access::write : Access::read; }
};

struct Client {
  ClientId id = 0;
  std::uint64_t serial = 0;  ///< of the connection, for epoll
  linux::Fd socket;
  linux::Process process;
  uid_t uid = 0;
  bool greeted = false;    ///< hello was answered: the core knows it
  bool closing = false;    ///< nothing is asked of the application any more
  bool told_core = false;  ///< client_gone was called
  bool starved = false;    ///< a thread of it was refused memory: said once
  bool awake = false;      ///< its peers are polled; else they ring the bell
  std::uint64_t last_event_ns = 0;
  std::uint32_t garbage = 0;
  std::uint32_t expected = 0;  ///< commands that its peers have not answered
  std::string program;

  std::uint64_t window_base = 0;
  std::uint64_t window_bytes = 0;
  linux::Userfaultfd userfault;
  linux::Bell kick;
  linux::Fd system_file;
  linux::Fd control_file;
  linux::Mapping control_map;
  Agent agent;
  std::vector<DevicePeer> devices;
  std::map<Page, std::uint64_t> spans;  ///< allocated: first page, pages
  SpanSet own_protections;              ///< of those, what the application has protected itself (mprotect)
  BlockTable blocks;
  std::uint64_t refused_pages = 0;  ///< BlockState::refused, in sum
  std::uint32_t letting = 0;        ///< commands that take poison out of its page table, not answered
  struct HeldAnswer {
    std::uint64_t request = 0;
    Status status;
  };
  std::vector<HeldAnswer> held_answers;  ///< until `letting` is 0: who is told that pages may be touched may touch them
  std::uint64_t armed_blocks = 0;        ///< blocks with armed pages, and buffers: 0 spares polling the userfaultfd
  linux::Userfaultfd outside_userfault;  ///< of memory outside the window, from when some is adopted
  struct Told {
    bool unmapped = false;  ///< else a fault
    Access access = Access::read;
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
  };
  std::vector<Told> told;                   ///< read out of turn from outside_userfault
  std::vector<core::Action> deferred_maps;  ///< map_device that waits for DeviceBlock::admitting
  std::vector<HeldWave> held;
  unsigned stale_answers = 0;    ///< since anything was adopted, that a page is managed which is not
  std::uint64_t asking = 0;      ///< address that the application was asked to adopt; 0: none
  bool asking_to_write = false;  ///< of that question
  SpanSet unmapped;              ///< adopted, and unmapped by the application: the core has not let go of it yet
  SpanSet kept;                  ///< likewise, and freed, but pinned: nobody waits for the unpin
  struct Beginning {
    std::uint64_t request = 0;
    PageSpan pages;
    bool adopts = false;  ///< adopt_begin: the pages are to be adopted; cleared: only to be out of reach
  };
  FileSpans files;                    ///< of the application, that devices have mapped
  std::vector<Beginning> file_drops;  ///< file_drop that waits for devices
  std::vector<Beginning> beginning;   ///< adopt_begin that waits for `unmapped`
  struct Releasing : PageSpan {
    bool placed_system = false;  ///< what it was, for the case that the application cannot take it
  };
  std::map<Page, Releasing> releasing;  ///< by first page: not managed any more, and not yet taken from the system file
  std::vector<linux::Mapping> mirrors;  ///< the system file, mapped a segment at a time
  ClientWork work;
  std::unique_ptr<ForkGate> gate;  ///< while it forks
  unsigned forks = 0;              ///< children that may still need pages of it

  [[nodiscard]] wire::AppControl* control() const { return reinterpret_cast<wire::AppControl*>(control_map.data()); }
  [[nodiscard]] Window window() const { return {window_base, window_bytes}; }
  /// Requests of it that wait.
  [[nodiscard]] std::size_t unanswered() const {
    return work.asked + work.late + beginning.size() + file_drops.size() + held_answers.size();
  }
  [[nodiscard]] Page page_end() const { return window().page_end(); }
  /// Memory that the application had before and gave to be managed: it lies outside the window.
  [[nodiscard]] bool is_adopted(Page page) const { return page >= window().pages(); }
  /// The userfaultfd of the page.
  [[nodiscard]] const linux::Userfaultfd& fault_of(Page page) const {
    return is_adopted(page) ? outside_userfault : userfault;
  }
  [[nodiscard]] bool contains(PageSpan span) const { return window().numbers(span.first, span.count_pages); }
  [[nodiscard]] std::uint64_t address_of(Page page) const { return window().address_of_page(page); }

  /// At most 16 GiB: few enough mappings for a window of 16 TiB and what lies scattered outside of it, small enough for
  /// many clients in 128 TiB of address space. No more than the window: one that was made small has a limit to fit in.
  [[nodiscard]] std::uint64_t segment_bytes() const {
    constexpr std::uint64_t least = std::uint64_t{1} << 30;
    constexpr std::uint64_t most = std::uint64_t{16} << 30;
    return std::clamp(std::bit_floor(window_bytes), least, most);
  }
  /// The manager's own view of a system page, or null if it cannot be mapped. Good for the rest of its block.
  [[nodiscard]] std::byte* mirror(Page page) {
    const std::uint64_t offset = page * page_bytes;
    linux::Mapping& segment = mirrors[offset / segment_bytes()];
    if (!segment) {
      const std::uint64_t start = offset / segment_bytes() * segment_bytes();
      auto mapped =
          linux::Mapping::map(system_file.get(), start, std::min(segment_bytes(), page_end() * page_bytes - start));
      if (!mapped) return nullptr;
      segment = std::move(mapped).value();
    }
    return segment.data() + offset % segment_bytes();
  }

  /// Its peers need not ring: they are polled from now on, for a while.
  void wake(std::uint64_t now_ns) {
    last_event_ns = now_ns;
    if (awake) return;
    awake = true;
    if (control_map) wire::end_manager_sleep(control()->head);
    for (DevicePeer& peer : devices) {
      if (peer.control_map) wire::end_manager_sleep(peer.control()->head);
    }
  }

  BlockState& block(BlockIndex index) {
    bool is_new = false;
    BlockState& b = blocks.make(index, is_new);
    if (is_new) {
      b.managed = allocated_in(index);
      own_protections.for_each_in({first_page_of(index), block_pages},
                                  [&](PageSpan s) { b.own_protection |= BlockTable::mask_in(index, s) & b.managed; });
    }
    return b;
  }
  DeviceBlock& device_block(BlockState& b, DeviceId device) const {
    if (b.devices.empty()) b.devices.resize(devices.size());
    return b.devices[device];
  }
  [[nodiscard]] bool is_allocated(Page page) const {
    auto it = spans.upper_bound(page);
    if (it == spans.begin()) return false;
    --it;
    return page - it->first < it->second;
  }
  [[nodiscard]] bool is_allocated(PageSpan span) const {
    Page page = span.first;
    for (auto it = spans.upper_bound(page); page < span.end(); ++it) {
      const bool begun = it != spans.begin() && page - std::prev(it)->first < std::prev(it)->second;
      if (!begun) return false;
      page = std::prev(it)->first + std::prev(it)->second;
      if (it == spans.end()) return page >= span.end();
    }
    return true;
  }
  /// Calls fn(span) for what is being taken back and overlaps, whole.
  template <typename Fn>
  void for_each_releasing(PageSpan span, Fn&& fn) const {
    auto it = releasing.upper_bound(span.first);
    if (it != releasing.begin()) --it;
    for (; it != releasing.end() && it->first < span.end(); ++it) {
      if (it->second.overlaps(span)) fn(static_cast<PageSpan>(it->second));
    }
  }
  [[nodiscard]] bool is_releasing(PageSpan span) const {
    // They were allocated each as they are, so none overlaps another.
    const auto it = releasing.lower_bound(span.end());
    return it != releasing.begin() && std::prev(it)->second.overlaps(span);
  }
  [[nodiscard]] PageMask allocated_in(BlockIndex index) const {
    PageMask mask;
    const Page first = first_page_of(index);
    auto it = spans.upper_bound(first);
    if (it != spans.begin()) --it;
    for (; it != spans.end() && it->first < first + block_pages; ++it) {
      mask |= BlockTable::mask_in(index, {it->first, it->second});
    }
    return mask;
  }
};

}  // namespace ferry::manager
