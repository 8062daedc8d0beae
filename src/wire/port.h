// A port: two single-producer single-consumer rings in memory shared by the manager and one thread of a peer (a compute
// unit, or the agent thread of an application or device). "up" runs from the peer to the manager, "down" back.
//
// Trust: the peer may write anything into the whole port at any time. The manager therefore keeps its own private
// copies of up_head and down_tail, bounds what it reads, and copies a record out before it looks at it.
// The peer trusts the manager.
//
// Sleeping: whoever waits sets its sleeping flag, issues a seq_cst fence, looks at the ring once more, then sleeps
// (peer: futex on down_tail; manager: epoll on an eventfd). Whoever posts stores the tail (release), issues a seq_cst
// fence, and wakes the other side if its flag is set. Flag set: the owner sleeps or is about to and needs a wake.
// Flag cleared: the owner polls; no system call is spent on it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/types.h"

namespace ferry::wire {

/// What a peer tells the manager.
enum class UpKind : std::uint32_t {
  fault = 1,         ///< device port: a wave faulted and parked
  done = 2,          ///< any port: the command (or resume with map) of `action` ended with `error`
  kernel_begin = 3,  ///< device port, for the trace: a kernel's first wave started on the device
  kernel_end = 4,    ///< device port, for the trace: a kernel completed (value = error code, 0 if well)
  units_left = 5,    ///< device ports: the device has left the compute units in `value`, as it was asked to
  demand = 6,        ///< device port: look at UnitControl::demand
  job_done = 7,      ///< device ports: the graphics job in slot `slot` has ended; its JobSlot::result says how
};

struct UpRecord {
  std::uint32_t kind;
  std::uint16_t slot;        ///< fault: wave slot of this compute unit
  std::uint8_t access;       ///< fault: fault_* numbers
  std::uint8_t unit;         ///< fault: the compute unit that the wave holds; no_unit: none
  std::uint64_t address;     ///< fault: the byte address touched
  std::uint64_t generation;  ///< fault: of the slot's occupant; comes back in the resume
  std::uint64_t action;      ///< done: ActionId of the command
  std::int32_t error;        ///< done: errno, 0 if well
  std::uint32_t queue;       ///< kernel_*: queue number
  std::uint64_t
      value;  ///< done of map_file: bytes; kernel_begin: waves of the grid; kernel_end: Code; fault: DeviceControl::changes
  std::uint64_t launch;   ///< kernel_*: launch number on its queue
  std::uint64_t time_ns;  ///< CLOCK_MONOTONIC at posting
};
static_assert(sizeof(UpRecord) == 64);

/// UpRecord::access.
inline constexpr std::uint8_t fault_read = 0;
inline constexpr std::uint8_t fault_write = 1;
inline constexpr std::uint8_t fault_exec = 2;  ///< a kernel called what lies there

inline constexpr std::uint8_t no_unit = 0xff;

/// What the manager tells a peer.
enum class DownKind : std::uint32_t {
  resume = 1,      ///< compute unit: the wave in `slot` retries its access (status 0) or fails with `status`
  resume_map = 2,  ///< compute unit: the wave in `slot` first maps the extent, posts done{action, errno}, then retries;
                   ///< if the mapping fails it parks again: the manager answers with a resume later
  map = 3,         ///< device agent: map the extent, post done
  revoke = 4,      ///< device agent: nothing of the extent may be reachable when done is posted; later touches fault
  zap = 5,         ///< any agent: drop the extent's page-table entries (MADV_DONTNEED), then post done. On a device it
                   ///< takes back what UFFDIO_CONTINUE gave: the area stays armed
  map_home = 6,    ///< application agent: map the extent whole from the system file (drops its registration), post done
  quit = 7,        ///< device agent: end the process at once
  rearm = 8,       ///< device agent: map the extent from the system file and register it with the device's userfaultfd
                   ///< (so that single pages of it can be given by UFFDIO_CONTINUE), then post done
  map_buffer = 9,  ///< application agent: map the extent from `file` (drops its registration), post done
  forget_buffer = 10,  ///< device agent: the file of buffer number `buffer` will not be named again; post done
  grant_units = 11,    ///< device agent: compute may use the compute units in `units` too, post done
  take_units = 12,     ///< device agent: compute has to leave those in `units`, post done at once; units_left follow
  run_job = 13,        ///< device agent: run the graphics job in JobSlot `slot` on `units`, post done at once; job_done
                       ///< follows
  admit =
      15,  ///< device agent: as rearm, for an extent outside the window, where the device may have memory of its own:
           ///< then EEXIST, and nothing has changed
  map_file =
      16,  ///< device agent: map what it can of the extent from the file that the application sent, then post done
           ///< with what it mapped: [address, address + value)
  cancel_job = 14,  ///< device agent: the job in JobSlot `slot`, if it runs still, is to end soon, post done at once
};

/// Which file an extent is mapped from.
enum class File : std::uint8_t {
  system = 0,
  vram = 1,
  buffer = 2,  ///< the file of buffer number `buffer`; a device is sent it over its socket before the command
  peer = 3,  ///< VRAM of device number `buffer`, which is linked; sent likewise, and named by compute units only after
             ///< the agent has mapped something of it
};

/// Bits of DownRecord::rights.
inline constexpr std::uint8_t map_write = 1;  ///< cleared: a write faults
inline constexpr std::uint8_t map_exec = 2;   ///< cleared: a call into the extent faults

struct DownRecord {
  std::uint32_t kind;
  std::uint16_t slot;     ///< resume*: wave slot
  std::uint8_t file;      ///< map, resume_map, map_buffer: File
  std::uint8_t rights;    ///< map, resume_map: map_* bits; reading is always allowed
  std::uint64_t address;  ///< start of the extent, page aligned
  std::uint64_t length_bytes;
  std::uint64_t file_offset;  ///< map, resume_map, map_home, map_buffer
  std::uint64_t action;       ///< ActionId to report; 0: report nothing
  std::uint64_t generation;   ///< resume*: must equal the slot's, else the record is dropped
  std::uint32_t status;       ///< resume: Code, 0 retry
  std::uint32_t buffer;       ///< File::buffer, forget_buffer: number of the buffer in this application; File::peer: of
                              ///< the device; resume: wire::Refusal; map_file: ServedFile::serial
  std::uint64_t units;        ///< grant_units, take_units, run_job: bit u: compute unit u; map_file: an address of the
                              ///< extent that is to be mapped in any case
};
static_assert(sizeof(DownRecord) == 64);
static_assert(std::is_trivially_copyable_v<UpRecord> && std::is_trivially_copyable_v<DownRecord>);

/// Entries of each ring. A compute unit has at most max_waves_per_cu waves, each with at most one fault and one done
/// outstanding, so the up ring cannot fill; agents are never sent more than ring_entries - 1 commands unanswered.
inline constexpr std::uint32_t ring_entries = 256;
inline constexpr unsigned max_waves_per_cu = 64;
static_assert(max_waves_per_cu * 3 <= ring_entries);

struct Port {
  alignas(64) std::atomic<std::uint32_t> up_tail;    ///< written by the peer
  std::atomic<std::uint32_t> peer_sleeping;          ///< written by the peer: 1 while it sleeps on down_tail
  alignas(64) std::atomic<std::uint32_t> up_head;    ///< written by the manager
  alignas(64) std::atomic<std::uint32_t> down_tail;  ///< written by the manager; the peer's futex word
  alignas(64) std::atomic<std::uint32_t> down_head;  ///< written by the peer
  alignas(64) UpRecord up[ring_entries];
  DownRecord down[ring_entries];
};
static_assert(sizeof(Port) == 256 + 2 * 64 * ring_entries);
static_assert(offsetof(Port, up) == 256);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free && std::atomic<std::uint64_t>::is_always_lock_free);

}  // namespace ferry::wire
