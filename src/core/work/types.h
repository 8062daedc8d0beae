// What clients ask of the side of the core that deals in fences: buffers, fences, timelines, jobs, compute demand.
// All ids are chosen by the executor, machine-wide, never 0 and never used twice.
//
// Two kinds of work, and one rule between them (docs/design/0010-fences.md):
//   jobs           run on the graphics, copy and video engines, list their buffers, signal a fence that memory management
//                  may wait for. From the moment that fence is visible nothing on its way to the signal may wait for
//                  memory that reclaim must find, for a page fault, or for a user.
//   compute waves  run on user-mode queues with retry faults and never signal such a fence; user fences only, which are
//                  words in memory that the core does not know of.
// They share compute units, system memory and VRAM: that is where the deadlock of DESIGN section 5 comes from.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "base/types.h"

namespace ferry::core {

using BufferId = std::uint64_t;
using FenceId = std::uint64_t;
using TimelineId = std::uint64_t;

enum class Engine : std::uint8_t {
  compute,   ///< user-mode queues; takes no jobs
  graphics,  ///< shares the device's compute units with compute
  copy,      ///< moves bytes between buffers; independent of the compute units
  video,     ///< fixed function; independent of the compute units
};
inline constexpr unsigned engine_count = 4;
[[nodiscard]] const char* to_string(Engine engine);

/// How a device makes sure that a page fault, memory and a fence never wait for each other in a circle.
/// docs/PROGRESS.md has what each costs and where it is sound; docs/design/0010-fences.md has the exact rules.
enum class Policy : std::uint8_t {
  none,               ///< unsafe, for comparison
  preempt,            ///< compute waves leave their compute unit even with a fault pending
  reserve,            ///< some compute units never run compute
  reserve_in_flight,  ///< ... only from before a graphics fence is visible until it has signalled
  exclusive,          ///< compute and graphics never together: one drains before the other is let in
  query,              ///< the shrinker asks each fence whether waiting may deadlock, and tries other memory if so
  track,              ///< a wait that would close a circle is refused; a small reserve of memory repairs the fault
  pinned,             ///< memory of buffers never moves and is limited to half of the budget; nobody waits for fences
};
inline constexpr unsigned policy_count = 8;
[[nodiscard]] const char* to_string(Policy policy);

/// What one device is, and how it is run.
struct DeviceModel {
  unsigned cu_count = 4;  ///< 1 to 64
  /// Set: a compute unit can be taken from waves whose faults are pending (GFXv9). Cleared: it is left only when every
  /// wave on it that faulted has been repaired (GFXv10).
  bool preempts_while_faulting = true;
  /// Set: faults are repaired and retried (XNACK on). Cleared: what a client's compute may touch is mapped before it
  /// runs, and it is stopped before that is taken away (XNACK off).
  bool retry_faults = true;
  unsigned copy_slots = 2;   ///< jobs of the copy engine at a time
  unsigned video_slots = 1;  ///< jobs of the video engine at a time
  Policy policy = Policy::preempt;
  unsigned reserved_cus = 1;  ///< of policies reserve, reserve_in_flight
  /// Memory that only track's repairs use, in granules; 0: one for each compute unit.
  std::uint64_t repair_reserve_granules = 0;
  std::uint64_t slice_ns = 5'000'000;    ///< compute units change clients so often while several want them
  std::uint64_t min_run_ns = 1'000'000;  ///< compute keeps its units at least so long after it got them
};

struct BufferSpec {
  std::uint64_t count_pages = 0;
  DeviceId home = no_device;  ///< VRAM of this device while there is room; no_device: system memory
  /// Set: jobs wait for the buffer's earlier users without being told. Cleared: only explicit fences order them.
  bool implicit_sync = true;
  /// Set: the buffer is `user_pages` of the client's own memory. A change of them on the CPU side marks the buffer and
  /// returns at once; the next job that lists it uses the pages of then.
  bool userptr = false;
  PageSpan user_pages;
};

struct JobBuffer {
  BufferId buffer = 0;
  Access access = Access::read;
};

struct TimelinePoint {
  TimelineId timeline = 0;
  std::uint64_t point = 0;
};

inline constexpr unsigned job_buffers_max = 64;
inline constexpr unsigned job_waits_max = 64;
inline constexpr unsigned job_priorities = 4;  ///< 0 lowest .. 3 highest; higher ones first, with ageing
inline constexpr std::uint64_t job_timeout_max_ns = 60'000'000'000;

struct JobSpec {
  FenceId fence = 0;  ///< names the job, and the fence that it signals
  Engine engine = Engine::copy;
  DeviceId device = 0;
  unsigned priority = 1;
  unsigned cus_min = 1;  ///< graphics: the job runs on at least so many compute units at a time ...
  unsigned cus_max = 1;  ///< ... and at most so many
  /// From its dispatch; then it is cancelled and fails with timed_out. 1 to job_timeout_max_ns.
  std::uint64_t timeout_ns = 10'000'000'000;
  std::vector<JobBuffer> buffers;
  std::vector<FenceId> waits;
  std::vector<TimelinePoint> wait_points;
  std::vector<TimelinePoint> signal_points;
};

/// How a fence stands.
struct FenceInfo {
  bool known = false;
  bool visible = false;    ///< others may wait for it: it will signal in bounded time
  bool signalled = false;  ///< `status` is final
  Status status;
  std::uint64_t deadline_ns = 0;  ///< the earliest that anybody asked for; 0: none
};

/// How a buffer stands.
struct BufferInfo {
  bool known = false;
  enum class Where : std::uint8_t { nowhere, system, vram, store } where = Where::nowhere;
  DeviceId device = no_device;
  bool busy = false;  ///< a visible fence that has not signalled uses it
  bool moving = false;
  bool stale = false;    ///< userptr: its pages changed since they were looked up
  unsigned holders = 0;  ///< clients that hold it
};

/// Who asks for memory, carried down to reclaim and notifier so that they know what they may wait for.
struct AllocContext {
  enum class For : std::uint8_t { fault, job, request } what = For::request;
  DeviceId device = no_device;  ///< fault: whose compute engine waits
  ClientId client = 0;
  unsigned cu = no_cu;  ///< fault: which compute unit holds the wave, where known
  FenceId fence = 0;    ///< job: whose buffers, not yet visible
  static constexpr unsigned no_cu = 0xff;
};

}  // namespace ferry::core
