// What the core asks of the machine. src/linux performs actions with system calls, src/sim performs them in virtual
// time from a seed; the core cannot tell which. Actions with an id are answered by Core::action_done exactly once, in
// any order; actions without (id 0) are never answered and cannot fail.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "base/types.h"
#include "core/work/types.h"

namespace ferry::core {

using ActionId = std::uint64_t;

/// Names a parked wave to the executor; opaque to the core.
struct FaultToken {
  std::uint64_t value = 0;
  friend constexpr bool operator==(const FaultToken&, const FaultToken&) = default;
};

/// Names a request to the executor; opaque to the core.
struct Cookie {
  std::uint64_t value = 0;
};

/// Why pages move or change hands. Told in the trace, in `ferry explain`, and counted in Stats.
enum class Cause : std::uint8_t {
  none,
  device_fault,
  cpu_fault,
  prefetch,     ///< asked for by the application
  speculation,  ///< asked for by the prefetch policy
  evict,        ///< room for other pages was needed
  contention,   ///< device and CPU keep taking the page from each other: it stays in system memory, mapped by both
  freed,
  client_gone,
  device_gone,
  pressure,     ///< the shrinker needed system memory for others
  preempted,    ///< others needed the compute units
  invalidated,  ///< memory of a device without retry faults was taken
  change,       ///< the application changed its address space
};
inline constexpr unsigned cause_count = 14;
[[nodiscard]] const char* to_string(Cause cause);

/// Where a copy of a page lies.
enum class Place : std::uint8_t {
  system,
  vram,
  store,  ///< beneath system memory: compressed, or on disk
};

/// | verb           | means                                                            | may fail with                    |
/// |----------------|------------------------------------------------------------------|----------------------------------|
/// | revoke_cpu     | no CPU thread can reach `pages` any more; a later touch faults   | client_gone                      |
/// | map_cpu        | CPU threads reach system pages with `prot`; wakes their CPU faults (of reads only, where prot is read) | client_gone, no_memory |
/// | wake_cpu       | CPU faults on `pages` retry, or (status not ok) end in SIGBUS: their contents cannot be had (io_error) or stay where they are (not_permitted, in_use), until wake_cpu or map_cpu says otherwise (id 0) | - |
/// | revoke_device  | the device cannot reach `pages` any more; a later touch faults   | device_lost                      |
/// | map_device     | the device reaches `pages` in `place` (vram: of `owner`, a linked device, or its own) with `prot`, `exec` | device_lost, no_mappings, no_memory |
/// | copy           | bytes from `place` to the other place, or (to == vram, place == vram) from `device` at vram_first to `to_device` at vram_to, which may be the same; source stays as it was | io_error, no_memory |
/// | protect_cpu    | CPU threads can read `pages` and write them no more; a write faults (Access::write)    | client_gone     |
/// | copy_client    | system pages of `from_client` to those of `client` with the same numbers (fork)        | io_error, no_memory |
/// | copy_system    | system pages from `from_page` on into `pages`, which may be of another block; the source stays | io_error, no_memory |
/// | wake_wave      | the wave behind `token` retries (status ok) or fails (id 0)      | -                                |
/// | release_chunk  | the VRAM chunk's memory goes back to the machine                 | -  (must succeed)                |
/// | discard_system | system pages may lose their contents and memory                  | -  (must succeed)                |
/// | reply          | the request behind `cookie` ended with `status` (id 0)           | -                                |
/// | store          | system pages' bytes into the store; system memory stays as it was| io_error, no_space               |
/// | load           | stored bytes back into system memory; the store keeps them       | io_error, no_memory              |
/// | discard_store  | stored pages may be forgotten                                    | -  (must succeed)                |
/// | move_buffer    | a buffer's bytes from `place` (with `device`) to `to` (`to_device`); source stays | io_error, no_memory, no_space |
/// | map_buffer     | client's CPU (device == no_device) or device reaches `buffer` at `pages`, in `place` | device_lost, client_gone, no_mappings, no_memory |
/// | revoke_buffer  | client's CPU or device cannot reach `buffer` at `pages` any more; a later touch faults | device_lost, client_gone |
/// | release_buffer | a buffer's memory in `place` is given back; place == store: the stored bytes           | -  (must succeed) |
/// | run_job        | `job` runs on its engine to its end; answered with how it ended, cancelled or not      | any             |
/// | cancel_job     | `job` should end at once; run_job is answered all the same (id 0)                      | -               |
/// | grant_cus      | the client's compute may use the units in `cu_mask` too (id 0)                         | -               |
/// | revoke_cus     | it has left the units in `cu_mask` (DeviceModel says when it can)                      | device_lost     |
/// | signal_fence   | `fence` has signalled with `status`: tell whoever waits outside (id 0)                 | -               |
/// | reset_device   | the client's device process does not do what it was asked: end it; device_gone follows (id 0) | -        |
///
/// A buffer of BufferSpec::userptr is mapped by map_buffer from the client's pages of that moment; it is never moved.
///
/// After a failed map, pages may be mapped as before, as asked, or not at all, each for itself; after a failed copy the
/// target's contents are anything; after a failed store the store has none of the pages, after a failed load all of them.
///
/// On client_gone / device_lost the executor promises that the process has ended (or is certain to run no further
/// instruction on managed memory), so the core may treat the pages as revoked.
enum class Verb : std::uint8_t {
  revoke_cpu,
  map_cpu,
  wake_cpu,
  revoke_device,
  map_device,
  copy,
  wake_wave,
  release_chunk,
  discard_system,
  reply,
  store,
  load,
  discard_store,
  move_buffer,
  map_buffer,
  revoke_buffer,
  release_buffer,
  run_job,
  cancel_job,
  grant_cus,
  revoke_cus,
  signal_fence,
  reset_device,
  protect_cpu,
  copy_client,
  copy_system,
};
inline constexpr unsigned verb_count = 26;
[[nodiscard]] const char* to_string(Verb verb);

struct Action {
  ActionId id = 0;
  Verb verb = Verb::reply;
  Place place = Place::system;  ///< map_device: where the pages lie; copy: the source
  Prot prot = Prot::read_write;
  Cause cause = Cause::none;
  DeviceId device = no_device;  ///< *_device, copy, release_chunk, wake_wave
  ClientId client = 0;
  PageSpan pages;  ///< never crosses a block's end, except for discard_system, wake_cpu
  VramPage vram_first =
      0;  ///< map_device(vram), copy: the VRAM page of pages.first, the rest follow; release_chunk: first page
  /// wake_wave: whom. map_device: if has_token, a wave that waits for just this mapping and may perform it itself on
  /// its way back (the executor reports done when it has; the wave then needs no wake_wave of its own).
  FaultToken token;
  bool has_token = false;
  Cookie cookie;                    ///< reply
  Status status;                    ///< wake_wave, wake_cpu, reply, signal_fence
  Place to = Place::system;         ///< move_buffer: where the bytes go; copy: vram only from device to device
  DeviceId to_device = no_device;   ///< move_buffer and copy with to == vram
  VramPage vram_to = 0;             ///< copy from device to device: page of to_device's file
  DeviceId owner = no_device;       ///< map_device in VRAM: whose; no_device: the device's own
  bool exec = false;                ///< map_device: kernels may call what lies there
  ClientId from_client = 0;         ///< copy_client
  Page from_page = 0;               ///< copy_system
  Engine engine = Engine::compute;  ///< run_job, cancel_job
  Access access = Access::read;     ///< map_buffer: what the mapping must allow
  BufferId buffer = 0;              ///< *_buffer
  FenceId fence = 0;                ///< run_job, cancel_job (the job's), signal_fence
  std::uint64_t cu_mask = 0;        ///< grant_cus, revoke_cus; run_job on graphics: the units it runs on
};

}  // namespace ferry::core
