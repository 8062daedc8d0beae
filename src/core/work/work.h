// The side of the core that deals in fences: its state, and which file does what.
//   fence.cpp     fences, arrays, deadlines, who waits     job.cpp     a job's stages, submission to signal
//   timeline.cpp  points, jobs held back for them          engine.cpp  queues, slots, priorities, timeouts
//   buffer.cpp    holds, mappings, faults, moves           unit.cpp    compute units: who holds them, slices, gates
//   userptr.cpp   the notifier's mark                      policy.cpp  what a policy allows; the wait graph's nodes
// Inside, nothing blocks: who waits is a state, and a node of the graph.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/core.h"
#include "graph/graph.h"

namespace ferry::core {

class Reclaim;

/// Whom an answered action of this side concerns.
struct WorkRef {
  enum class What : std::uint8_t { buffer_move, buffer_map, buffer_revoke, buffer_release, run_job, revoke_units };
  What what = What::run_job;
  std::uint64_t id = 0;   ///< buffer; job's fence; client
  std::uint64_t sub = 0;  ///< buffer_map, buffer_revoke: client << 8 | device; revoke_units: device << 32 | process
};

/// Who is told when a fence has signalled.
struct FenceWaiter {
  enum class Who : std::uint8_t { job, array, timeline, reclaim, buffer } who = Who::job;
  std::uint64_t id = 0;  ///< fence of the job or array; timeline; reclaim: request; buffer
};

struct Fence {
  FenceId id = 0;
  ClientId owner = 0;
  bool is_array = false;
  bool any = false;  ///< array: one part is enough
  bool visible = false;
  bool signalled = false;
  bool forgotten = false;  ///< by the outside; erased when signalled and no waiter is left
  std::uint32_t parts_left = 0;
  Status status;
  std::uint64_t visible_ns = 0;
  std::uint64_t deadline_ns = 0;
  std::vector<FenceId> parts;
  std::vector<FenceWaiter> waiters;
  graph::NodeId node = graph::no_node;
};

struct Timeline {
  TimelineId id = 0;
  std::map<ClientId, std::uint32_t> holds;
  std::uint64_t value = 0;                             ///< all points up to it have signalled
  std::map<std::uint64_t, FenceId> points;             ///< not yet signalled; 0: promised by a job that is held back
  std::map<std::uint64_t, std::vector<FenceId>> held;  ///< jobs that wait for a point without a fence
  Status error;                                        ///< of the first point that failed
};

/// Fences of a buffer, as a dma-buf's reservation object: one writer, or readers since the last writer.
struct Reservation {
  FenceId exclusive = 0;
  std::vector<FenceId> shared;
};

/// One client's address of a buffer.
struct BufferMapping {
  ClientId client = 0;
  Page at = 0;
  bool cpu_mapped = false;
  std::uint16_t device_mapped = 0;  ///< bit d
  std::uint16_t device_writable = 0;
  std::uint32_t pending = 0;  ///< map and revoke actions under way
  bool unmapping = false;
  Cookie unmap_cookie;
  bool cpu_waiting = false;  ///< CPU threads wait in a fault on it
  struct Wave {
    FaultToken token;
    DeviceId device;
    Page page;
    Access access;
  };
  std::vector<Wave> waves;  ///< device waves that wait
};

struct Buffer {
  BufferId id = 0;
  BufferSpec spec;
  ClientId maker = 0;
  std::map<ClientId, std::uint32_t> holds;
  BufferInfo::Where where = BufferInfo::Where::nowhere;
  DeviceId device = no_device;  ///< of where == vram
  enum class Step : std::uint8_t { rest, need_memory, revoke, move, release } step = Step::rest;
  BufferInfo::Where to = BufferInfo::Where::nowhere;  ///< of a move
  DeviceId to_device = no_device;
  FenceId claimed_by = 0;            ///< a job that gathers its memory: the buffer does not move until it is visible
  std::uint32_t outstanding = 0;     ///< actions under way
  bool stale = false;                ///< userptr
  bool closing = false;              ///< nobody holds it: it goes when idle
  std::uint64_t charged_pages = 0;   ///< against the budget of system memory
  std::uint64_t memory_request = 0;  ///< in Reclaim's line; 0: none
  std::uint64_t lru = 0;             ///< Reclaim's entry
  Reservation reservation;
  std::vector<BufferMapping> mappings;
};

struct Job {
  JobSpec spec;
  ClientId client = 0;
  Cookie cookie;
  /// | stage    | waits for                                    | its fence is visible |
  /// |----------|----------------------------------------------|----------------------|
  /// | held     | timeline points that have no fence yet       | no                   |
  /// | line     | jobs before it that gather memory            | no                   |
  /// | gate     | the policy: compute to leave units           | no                   |
  /// | memory   | its buffers' memory and mappings             | no                   |
  /// | depends  | fences of others                             | yes                  |
  /// | queued   | its engine                                   | yes                  |
  /// | running  | the machine                                  | yes                  |
  enum class Stage : std::uint8_t { held, line, gate, memory, depends, queued, running, done } stage = Stage::held;
  std::uint32_t points_left = 0;  ///< stage held
  std::uint32_t fences_left = 0;  ///< stage depends
  std::uint64_t queued_ns = 0;
  std::uint64_t dispatched_ns = 0;
  std::uint64_t cu_mask = 0;  ///< running on graphics
  bool cancelled = false;
  Status failure;  ///< a dependency failed, or it was cancelled: signalled without running
  graph::NodeId node = graph::no_node;
};

/// What holds a compute unit.
struct Unit {
  enum class Holder : std::uint8_t { nobody, compute, job } holder = Holder::nobody;
  ClientId client = 0;
  FenceId job = 0;
  bool leaving = false;  ///< revoke_cus is under way
  std::uint64_t since_ns = 0;
  std::set<std::uint64_t> faults;  ///< tokens of pending faults of waves that hold it
  graph::NodeId node = graph::no_node;
};

/// One client's compute on one device.
struct Compute {
  unsigned demand = 0;
  std::uint32_t process = 0;  ///< counts its device processes
  bool stopped = false;       ///< retry faults off: its memory is being taken or brought back
  std::uint64_t granted_ns = 0;
};

struct WorkDevice {
  DeviceModel model;
  std::vector<Unit> units;
  std::map<ClientId, Compute> compute;
  ClientId next_client = 0;                 ///< whose turn the slice is
  std::vector<std::deque<FenceId>> queued;  ///< by engine, each in order of arrival
  std::vector<unsigned> running;            ///< by engine
  unsigned fences_in_flight = 0;            ///< graphics jobs from gate to signal
  bool fenced_mode = false;                 ///< policy exclusive: compute is out
  std::uint64_t mode_ns = 0;
};

class Work {
 public:
  explicit Work(Core::Impl& core);
  ~Work();

  // fence.cpp
  Status fence_array(ClientId client, FenceId fence, const std::vector<FenceId>& parts, bool any);
  Status fence_deadline(FenceId fence, std::uint64_t deadline_ns);
  [[nodiscard]] FenceInfo fence_info(FenceId fence) const;
  void fence_forget(FenceId fence);
  Fence& fence_make(FenceId fence, ClientId owner);  ///< not visible yet
  void fence_publish(FenceId fence);                 ///< visible: owed a signal from now on
  void fence_signal(FenceId fence, Status status);   ///< tells every waiter, and the outside
  /// False: signalled already (or unknown: signalled and forgotten). True: the waiter will be told by notify().
  bool fence_wait(FenceId fence, FenceWaiter waiter);
  void fence_unwait(FenceId fence, FenceWaiter waiter);
  void notify(const FenceWaiter& waiter, FenceId fence, Status status);

  // timeline.cpp
  Status timeline_create(ClientId client, TimelineId timeline);
  Status timeline_open(ClientId client, TimelineId timeline);
  Status timeline_close(ClientId client, TimelineId timeline);
  Status timeline_signal(ClientId client, TimelinePoint point);
  [[nodiscard]] std::uint64_t timeline_value(TimelineId timeline) const;
  /// At submission: which points have no fence yet (the job is then held), and loops among held jobs.
  Status timeline_check(const Job& job);
  void timeline_promise(Job& job);               ///< the points that it will signal are spoken for
  void timeline_publish(Job& job);               ///< ... and have its fence now; lets held jobs on
  void timeline_break(Job& job, Status status);  ///< the job will never be visible: its points fail
  void timeline_fence_done(TimelineId timeline, FenceId fence, Status status);

  // buffer.cpp
  Status buffer_create(ClientId client, BufferId buffer, const BufferSpec& spec);
  Status buffer_open(ClientId client, BufferId buffer);
  Status buffer_close(ClientId client, BufferId buffer);
  Status buffer_map(ClientId client, BufferId buffer, Page at);
  Status buffer_unmap(ClientId client, Page at, Cookie cookie);
  [[nodiscard]] BufferInfo buffer_info(BufferId buffer) const;
  [[nodiscard]] bool holds(ClientId client, BufferId buffer) const;
  [[nodiscard]] bool busy(const Buffer& buffer) const;  ///< a visible fence that has not signalled uses it
  /// Is the page inside a mapped buffer of the client? Then these serve its faults.
  [[nodiscard]] bool is_buffer_page(ClientId client, Page page) const;
  [[nodiscard]] bool overlaps_buffer(ClientId client, PageSpan span) const;
  void device_fault(ClientId client, DeviceId device, Page page, Access access, FaultToken token);
  void cpu_fault(ClientId client, Page page, Access access);
  /// Claims all buffers of the job, brings them where it needs them and maps them on its device. True: done. False:
  /// under way, job_memory_ready() or job_memory_failed() follows. Called once a job, when it is first in line.
  bool claim_buffers(Job& job);
  void unclaim_buffers(Job& job);  ///< at publication, or when it is dropped
  /// Fences that order the job behind earlier users of its buffers; then the job's fence takes its place in them.
  std::vector<FenceId> implicit_fences(const Job& job) const;
  void install_fence(const Job& job);
  void buffer_fence_done(BufferId buffer);
  /// Reclaim's question. started: its memory comes back. wait: it does when `fence` has signalled.
  struct Reclaimable {
    enum class Answer : std::uint8_t { started, wait, never } answer = Answer::never;
    FenceId fence = 0;
  };
  Reclaimable reclaim_buffer(BufferId buffer);
  void buffer_memory_granted(BufferId buffer, Status status);  ///< Reclaim's answer to a request in its line

  // userptr.cpp
  void userptr_invalidate(ClientId client, PageSpan span);
  /// Pages under a busy userptr buffer are not dropped before its fences have signalled. The fence, or 0.
  [[nodiscard]] FenceId userptr_fence(ClientId client, PageSpan span) const;

  // job.cpp
  Status job_submit(ClientId client, const JobSpec& spec, Cookie cookie);
  void job_cancel(ClientId client, FenceId fence);
  void job_points_ready(FenceId job);  ///< timeline.cpp: the last missing point has a fence
  void job_memory_ready(FenceId job);
  void job_memory_failed(FenceId job, Status status);
  void job_gate_open(FenceId job);  ///< unit.cpp: the policy lets it become visible
  void job_fence_done(FenceId job, FenceId fence, Status status);
  void job_done(FenceId job, Status status);  ///< the machine's answer
  void advance_line();

  // engine.cpp
  void engine_enqueue(Job& job);
  void engine_pump(DeviceId device);
  void engine_timeouts();

  // unit.cpp
  void compute_demand(ClientId client, DeviceId device, unsigned cus);
  [[nodiscard]] std::uint64_t compute_units(ClientId client, DeviceId device) const;
  void unit_pump(DeviceId device);  ///< looks at all units of a device again
  bool gate(Job& job);              ///< true: open at once
  void gate_leave(Job& job);        ///< its fence signalled, or it was dropped before
  void fault_begins(ClientId client, DeviceId device, unsigned cu, std::uint64_t token);
  void fault_ends(ClientId client, DeviceId device, std::uint64_t token);

  // policy.cpp
  /// May reclaim, on behalf of `context`, wait for this fence? Counts and explains a refusal.
  [[nodiscard]] bool may_wait(const AllocContext& context, FenceId fence);
  /// Query's question, forwarded through everything the fence waits for. True: waiting may deadlock.
  [[nodiscard]] bool may_deadlock(FenceId fence) const;
  /// Granules that only track's repairs may take; 0 under other policies.
  [[nodiscard]] std::uint64_t repair_reserve_pages() const;
  [[nodiscard]] const DeviceModel& model(DeviceId device) const { return devices[device].model; }

  // comings and goings
  void client_open(ClientId client);
  /// True: nothing of it is under way any more. Else finished through Core::Impl::finish_client_if_idle.
  void client_gone(ClientId client);
  [[nodiscard]] bool client_idle(ClientId client) const;
  void device_attach(ClientId client, DeviceId device);
  void device_gone(ClientId client, DeviceId device);
  void action_done(const WorkRef& ref, Status status);
  void tick();
  [[nodiscard]] std::uint64_t next_tick_ns() const;
  [[nodiscard]] bool quiescent() const;
  void verify() const;
  [[nodiscard]] std::uint64_t digest() const;

  Core::Impl& core;
  std::vector<WorkDevice> devices;
  std::map<FenceId, Fence> fences;
  std::map<TimelineId, Timeline> timelines;
  std::map<BufferId, Buffer> buffers;
  std::map<FenceId, Job> jobs;                              ///< until signalled
  std::deque<FenceId> line;                                 ///< jobs that gather memory; only the first does
  std::map<std::pair<ClientId, Page>, BufferId> mapped_at;  ///< first page of each mapping
  std::string last_loop;
};

}  // namespace ferry::core
