// The side of the core that deals in fences: its state, and which file does what.
//   fence.cpp     fences, arrays, deadlines, who waits     job.cpp     a job's stages, submission to signal
//   timeline.cpp  points, jobs held back for them          engine.cpp  queues, slots, priorities, timeouts
//   buffer.cpp    holds, mappings, faults, moves           unit.cpp    compute units: who holds them
//   userptr.cpp   the notifier's mark                      slice.cpp   shares of compute: demand, grants, turns
//   policy.cpp    what a policy allows                     gate.cpp    what a policy asks before a fence is visible
//   stop.cpp      compute without retry faults             circle.cpp  faults and units in the wait graph; its end
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
  std::uint64_t id = 0;       ///< buffer; job's fence; client
  std::uint64_t sub = 0;      ///< buffer_map, buffer_revoke: client << 8 | device; revoke_units: device << 32 | process
  Page at = 0;                ///< buffer_map, buffer_revoke: first page of the mapping
  std::uint32_t process = 0;  ///< buffer_map: the device process that was asked
  std::uint64_t cu_mask = 0;  ///< revoke_units
};

/// Who is told when a fence has signalled.
struct FenceWaiter {
  enum class Who : std::uint8_t { job, array, timeline, reclaim, buffer } who = Who::job;
  std::uint64_t id = 0;  ///< fence of the job or array; timeline; reclaim: request; buffer
  friend constexpr bool operator==(const FenceWaiter&, const FenceWaiter&) = default;
};

struct Fence {
  FenceId id = 0;
  ClientId owner = 0;
  bool is_array = false;
  bool any = false;  ///< array: one part is enough
  bool visible = false;
  bool signalled = false;
  bool forgotten = false;  ///< by the outside; erased when signalled and no waiter is left
  Status status;           ///< until it signals: the first error of an array's parts
  std::uint64_t visible_ns = 0;
  std::uint64_t deadline_ns = 0;
  std::vector<FenceId> parts;  ///< array: those that have not signalled yet
  std::vector<FenceWaiter> waiters;
  graph::NodeId node = graph::no_node;
};

/// A point of a timeline that is spoken for. It has signalled when `done` is set and all points before it are gone.
struct Point {
  FenceId promised_by = 0;  ///< the job that will signal it; 0: signalled from the CPU
  bool fenced = false;      ///< that job is visible. Cleared: whoever waits for this point or a later one is held back
  bool done = false;
  Status status;
  graph::NodeId node = graph::no_node;
};

/// A point signals when its fence and all points before it have; its status is the first error among them. A wait for a
/// point that nobody made is a wait for the next one after it, once that has a fence.
struct Timeline {
  TimelineId id = 0;
  std::map<ClientId, std::uint32_t> holds;             ///< none: it goes with its last point
  std::uint64_t value = 0;                             ///< all points up to it have signalled
  std::map<std::uint64_t, Point> points;               ///< those above `value`
  std::map<std::uint64_t, std::vector<FenceId>> held;  ///< by the point they wait for, jobs that are held back
  std::uint64_t error_point = 0;                       ///< the first that failed; 0: none
  Status error;
};

/// Fences of a buffer, as a dma-buf's reservation object: one writer, or readers since the last writer.
/// A reader is ordered behind `exclusive`, a writer behind `shared` too.
struct Reservation {
  FenceId exclusive = 0;
  std::vector<FenceId> shared;
  /// All that have not signalled, oldest first, whether or not others are ordered behind them: what memory management
  /// looks at.
  std::vector<FenceId> users;
};

/// One client's address of a buffer.
struct BufferMapping {
  ClientId client = 0;
  Page at = 0;
  bool cpu_mapped = false;          ///< set: may be reached. From the question to map to the answer of a revocation
  std::uint16_t device_mapped = 0;  ///< bit d, likewise
  bool cpu_busy = false;            ///< a map or revoke action is under way: never two at a time
  std::uint16_t device_busy = 0;
  bool cpu_doubt = false;  ///< a map failed: what is reached is unknown, so it is revoked before anything else
  std::uint16_t device_doubt = 0;
  bool unmapping = false;  ///< goes when nobody reaches it and no job uses it
  bool wants_reply = false;
  Cookie unmap_cookie;
  bool cpu_waiting = false;  ///< CPU threads wait in a fault on it
  struct Wave {
    FaultToken token;
    DeviceId device;
    Page page;
    Access access;
    unsigned cu;
  };
  std::vector<Wave> waves;  ///< device waves that wait
};

struct Buffer {
  using Where = BufferInfo::Where;
  BufferId id = 0;
  BufferSpec spec;
  ClientId maker = 0;
  std::map<ClientId, std::uint32_t> holds;
  Where where = Where::nowhere;
  DeviceId device = no_device;  ///< of where == vram
  /// | step        | waits for                                                    | reached by processors |
  /// |-------------|--------------------------------------------------------------|-----------------------|
  /// | rest        | nothing                                                      | where it is           |
  /// | need_memory | system memory, of which it holds none: charged by the grant  | where it is (VRAM)    |
  /// | revoke      | nobody to reach it                                           | less and less         |
  /// | move        | the bytes to be at `to`                                      | no                    |
  /// | release     | its memory at `leaving` to be given back                     | no                    |
  enum class Step : std::uint8_t { rest, need_memory, revoke, move, release } step = Step::rest;
  Where to = Where::nowhere;
  DeviceId to_device = no_device;
  Where leaving = Where::nowhere;
  DeviceId leaving_device = no_device;
  FenceId claimed_by = 0;            ///< a job that gathers its memory: the buffer does not move until it is visible
  bool placed = false;               ///< for that job: it was tried to bring it nearer, once
  bool foreign = false;              ///< a device that is not its home used it: it is not brought to VRAM again
  std::uint32_t outstanding = 0;     ///< actions under way
  Status failure;                    ///< of the last move, or of a map for the job: who waits is told
  std::uint64_t vram_chunks = 0;     ///< of the budget of the device where it is, comes from or goes to; never of two
  std::uint64_t charged_pages = 0;   ///< against the budget of system memory
  std::uint64_t stored_pages = 0;    ///< counted in Stats::stored_pages
  std::uint64_t memory_request = 0;  ///< in Reclaim's line; 0: none
  std::uint64_t lru = 0;             ///< Reclaim's entry
  bool closing = false;              ///< nobody holds it: it goes when idle
  bool looked_for = false;           ///< it is in Work::looking
  // userptr
  bool stale = false;           ///< its pages changed since they were looked up
  bool walking = false;         ///< they are brought in place
  bool in_place = false;        ///< for the job that claims it: they are
  std::uint32_t looked_up = 0;  ///< bit d: device d knows them; bit max_devices: the engines that need no mapping do
  std::uint32_t lookups = 0;    ///< for the job that claims it: walks and lookups so far
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
  /// How it stands with the policy. `passed` from then until its fence has signalled (or it was dropped).
  enum class Gate : std::uint8_t { before, waiting, passed } gate = Gate::before;
  std::uint32_t points_left = 0;  ///< stage held: of spec.wait_points, those that are held back
  struct Dependency {
    FenceId fence = 0;
    bool told = false;  ///< set: asked for by the client, so its failure fails the job; cleared: it only orders
  };
  std::vector<Dependency> ordered_by;  ///< stage depends: those that have not signalled
  bool gathered = false;               ///< stage memory: all of it is there
  std::uint64_t arrival = 0;           ///< of the engine's queue
  std::uint64_t queued_ns = 0;
  std::uint64_t dispatched_ns = 0;
  std::uint64_t cancelled_ns = 0;  ///< running: the machine was asked to end it; 0: it was not
  std::uint64_t cu_mask = 0;       ///< running on graphics
  bool overran = false;            ///< its timeout passed
  bool reset_sent = false;
  Status failure;                ///< a dependency failed, or it was cancelled: signalled without running
  std::uint64_t unit_waits = 0;  ///< units that it waits for now (gate, queued), of which ...
  unsigned units_short = 0;      ///< ... so many are needed; 0: it waits for none
  FenceId behind = 0;            ///< the job that it waits behind (line, queued); 0: none
  graph::NodeId behind_node = graph::no_node;
  /// Of class `unseen` until the job is visible, of class `job` then: what may wait for what changes with that.
  graph::NodeId node = graph::no_node;
  graph::NodeId units_node = graph::no_node;  ///< between the job and units of which some are enough
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

/// A fault of a client that has compute on the device: it may hold units until it is repaired.
struct UnitFault {
  std::uint64_t cu_mask = 0;
  graph::NodeId node = graph::no_node;
};

/// One client's compute on one device.
struct Compute {
  unsigned demand = 0;
  std::uint32_t process = 0;     ///< counts its device processes
  std::uint64_t waiting_ns = 0;  ///< since when it wants units and has none; 0: it has some, or wants none
  bool evicted = false;          ///< queue_eviction was told and queue_restore was not
  // Retry faults off (stop.cpp):
  bool stopped = false;          ///< no units: its memory is being taken, or brought back
  std::uint64_t restore_ns = 0;  ///< when its memory is brought back, or looked at again
  std::uint64_t backoff_ns = 0;
  unsigned tries = 0;         ///< looks without progress; 0: none since it was stopped
  std::uint64_t missing = 0;  ///< granules, the fewest at any of those looks
  std::uint64_t awaited = 0;  ///< serial of an operation that had unanswered actions at the last look; 0: none had
  std::vector<Action> held;   ///< revocations that wait for its units
};

struct WorkDevice {
  DeviceModel model;
  std::vector<Unit> units;
  std::map<ClientId, Compute> compute;
  std::map<std::pair<ClientId, std::uint64_t>, UnitFault> faults;  ///< by token
  ClientId turn = 0;                                               ///< whose demand goes first
  std::uint64_t turn_ns = 0;                ///< since when it has units in this turn; 0: it has none yet
  std::vector<std::deque<FenceId>> queued;  ///< by engine, each in order of arrival
  std::vector<unsigned> running;            ///< by engine
  std::vector<FenceId> at_gate;             ///< in order of arrival
  unsigned fences_in_flight = 0;            ///< graphics jobs from gate to signal
  unsigned kept_cus = 0;                    ///< policy reserve_in_flight: promised to those in flight
  bool fenced_mode = false;                 ///< policy exclusive: compute is out
  std::uint64_t mode_ns = 0;                ///< since when; 0: from the start
  bool pumping = false;                     ///< unit_pump() runs and will look again
  bool again = false;
  std::uint64_t due_ns = ~std::uint64_t{0};   ///< when time alone changes something
  std::map<ClientId, std::uint32_t> revokes;  ///< revoke_cus not answered
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
  void array_part_done(FenceId array, FenceId part, Status status);
  void fence_drop(FenceId fence);  ///< it will never be visible: nothing is left of it. REQUIRES: it is not
  void verify_fences() const;
  [[nodiscard]] std::uint64_t digest_fences() const;

  // timeline.cpp
  Status timeline_create(ClientId client, TimelineId timeline);
  Status timeline_open(ClientId client, TimelineId timeline);
  Status timeline_close(ClientId client, TimelineId timeline);
  Status timeline_signal(ClientId client, TimelinePoint point);
  [[nodiscard]] std::uint64_t timeline_value(TimelineId timeline) const;
  /// At submission, with spec and client set; changes nothing. not_held, bad_range (point 0), in_use, would_deadlock.
  Status timeline_check(const Job& job);
  /// The job is in `jobs`: the points that it will signal are spoken for. Sets points_left; unless that is 0, the job is
  /// held and job_points_ready() follows.
  void timeline_promise(Job& job);
  /// Fences of the points that it waits for and all points before them, some perhaps twice; all exist once it is not
  /// held any more. The status: an error if one of those points has failed already.
  Status timeline_fences(const Job& job, std::vector<FenceId>& fences) const;
  void timeline_publish(Job& job);  ///< after fence_publish(): its points have its fence now; lets held jobs on
  /// The job will never be visible: it is held no more, its points fail, and what is held on them with them.
  void timeline_break(Job& job, Status status);
  void timeline_fence_done(TimelineId timeline, FenceId fence, Status status);
  void timeline_unheld(TimelineId timeline);
  void timeline_advance(TimelineId timeline);
  void timeline_drop_if_over(TimelineId timeline);
  [[nodiscard]] bool point_taken(const Timeline& timeline, std::uint64_t point) const;
  void point_known(FenceId job, Status status);
  void let_on();
  void show_point(const Timeline& timeline, std::uint64_t at, Point& point, const Job& job);
  bool find_loop(const Job& job);
  void timelines_client_gone(ClientId client);  ///< its holds end. Its jobs are dropped by job.cpp
  void verify_timelines() const;
  [[nodiscard]] std::uint64_t digest_timelines() const;

  // buffer.cpp
  Status buffer_create(ClientId client, BufferId buffer, const BufferSpec& spec);
  Status buffer_open(ClientId client, BufferId buffer);
  Status buffer_close(ClientId client, BufferId buffer);
  Status buffer_map(ClientId client, BufferId buffer, Page at);
  Status buffer_unmap(ClientId client, Page at, Cookie cookie);
  [[nodiscard]] BufferInfo buffer_info(BufferId buffer) const;
  [[nodiscard]] bool holds(ClientId client, BufferId buffer) const;
  [[nodiscard]] bool busy(const Buffer& buffer) const;  ///< a visible fence that has not signalled uses it
  /// Fences that order the job behind earlier users of its buffers; then the job's fence takes its place in them.
  std::vector<FenceId> implicit_fences(const Job& job) const;
  void install_fence(const Job& job);
  void buffer_fence_done(BufferId buffer);
  void buffers_client_gone(ClientId client);  ///< its holds and waiters end
  /// Nothing of its mappings is left. When that becomes so, core.finish_client_if_idle() is called.
  [[nodiscard]] bool buffers_client_idle(ClientId client) const;
  [[nodiscard]] bool buffers_quiescent() const;  ///< no buffer is on its way, nobody waits for one
  void verify_buffers() const;
  [[nodiscard]] std::uint64_t digest_buffers() const;
  void buffer_hold_ends(Buffer& buffer, ClientId client);
  void buffer_forget(Buffer& buffer);
  [[nodiscard]] bool pinned() const;  ///< some device has policy pinned: no buffer ever moves

  // place.cpp: where a buffer's memory is
  /// Claims all buffers of the job, brings them where it needs them and maps them on its device. True: done. False:
  /// job_memory_ready() or job_memory_failed() follows (the latter from inside this call too). One job at a time.
  bool claim_buffers(Job& job);
  void unclaim_buffers(Job& job);  ///< at publication, or when it is dropped
  /// Reclaim's question. started: its memory comes back. wait: it does when `fence` has signalled.
  struct Reclaimable {
    enum class Answer : std::uint8_t { started, wait, never } answer = Answer::never;
    FenceId fence = 0;
  };
  Reclaimable reclaim_buffer(BufferId buffer);
  void buffer_memory_granted(BufferId buffer, Status status);  ///< Reclaim's answer to a request in its line
  void buffer_action_done(const WorkRef& ref, Status status);  ///< of the four kinds buffer_*
  /// The buffer is looked at again, soon: nothing here runs inside itself.
  void look_at(Buffer& buffer);
  void look();
  /// While one lives look() does nothing, so that no buffer is forgotten: for loops over them that call others.
  class Still {
   public:
    explicit Still(Work& work) : work_(work), outer_(work.looking_now) { work.looking_now = true; }
    ~Still() { work_.looking_now = outer_; }
    Still(const Still&) = delete;
    Still& operator=(const Still&) = delete;

   private:
    Work& work_;
    bool outer_;
  };
  void buffer_go_on(Buffer& buffer);
  void claim_go_on();
  enum class Claim : std::uint8_t { ready, waits, failed };
  Claim claim_look(Job& job, Status& failure);
  Claim claim_place(Buffer& buffer, const Job& job);
  void bring(Buffer& buffer, Buffer::Where to, DeviceId device, const AllocContext& context);
  void move_answered(Buffer& buffer, Status status);
  void release_answered(Buffer& buffer);
  void release(Buffer& buffer, Buffer::Where place, DeviceId device);
  void arrived(Buffer& buffer);
  void list_for_reclaim(Buffer& buffer);
  Action& ask_buffer(Verb verb, WorkRef::What what, Buffer& buffer);

  // reach.cpp: who reaches a buffer at which address
  /// Is the page inside a mapped buffer of the client? Then these serve its faults.
  [[nodiscard]] bool is_buffer_page(ClientId client, Page page) const;
  [[nodiscard]] bool overlaps_buffer(ClientId client, PageSpan span) const;
  void device_fault(ClientId client, DeviceId device, Page page, Access access, FaultToken token,
                    unsigned cu = AllocContext::no_cu);
  void cpu_fault(ClientId client, Page page, Access access);
  void buffers_device_gone(ClientId client, DeviceId device);
  void mapping_end(Buffer& buffer, BufferMapping& mapping);
  BufferMapping* find_mapping(ClientId client, Page page);
  void serve_mapping(Buffer& buffer, BufferMapping& mapping);
  bool drop_mappings(Buffer& buffer);
  void ask_map(Buffer& buffer, BufferMapping& mapping, DeviceId target);
  void ask_revoke(Buffer& buffer, BufferMapping& mapping, DeviceId target);
  bool revoke_all(Buffer& buffer);
  std::uint64_t map_all_buffers(ClientId client, DeviceId device);
  /// For a job on the device. True: it is mapped there.
  bool claim_mapping(Buffer& buffer, BufferMapping& mapping, DeviceId device);
  void mapping_answered(Buffer& buffer, const WorkRef& ref, Status status);
  void fail_waves(BufferMapping& mapping, DeviceId device, Status status);
  void wake_buffer_cpu(Buffer& buffer, BufferMapping& mapping);
  [[nodiscard]] bool used_here(const Buffer& buffer, ClientId client) const;

  // userptr.cpp
  void userptr_invalidate(ClientId client, PageSpan span);
  /// Pages under a busy userptr buffer are not dropped before its fences have signalled. The fence, or 0.
  [[nodiscard]] FenceId userptr_fence(ClientId client, PageSpan span) const;
  /// A job has claimed pages of the span through a userptr buffer, or its fence uses them: they stay in system memory
  /// at their place. Devices reach them there.
  [[nodiscard]] bool userptr_in_use(ClientId client, PageSpan span) const;
  /// A visible fence uses pages of the span, or they are being looked up: they are not given up. They are in place.
  [[nodiscard]] bool userptr_keeps(ClientId client, PageSpan span) const;
  Claim userptr_claim(Buffer& buffer, const Job& job);
  /// client/range.cpp: the walk over its pages has ended; `moved`: some were not in place when it came by.
  void userptr_walked(BufferId buffer, bool moved);
  void userptr_looked_up(Buffer& buffer, const WorkRef& ref, Status status);
  /// It may be that no job uses it any more, or nobody uses pages of it that were freed: they move and go.
  void userptr_let_go(Buffer& buffer);

  // job.cpp
  Status job_submit(ClientId client, const JobSpec& spec, Cookie cookie);
  void job_cancel(ClientId client, FenceId fence);
  /// timeline.cpp: the last missing point has a fence; or Job::failure is set, since one never will: it is dropped.
  void job_points_ready(FenceId job);
  void job_memory_ready(FenceId job);
  void job_memory_failed(FenceId job, Status status);
  void job_gate_open(FenceId job);  ///< unit.cpp: the policy lets it become visible
  void job_fence_done(FenceId job, FenceId fence, Status status);
  void job_done(FenceId job, Status status);  ///< the machine's answer
  void advance_line();
  /// fence.cpp: somebody needs the job's fence by Fence::deadline_ns, which has just become earlier.
  void job_deadline(FenceId job);
  [[nodiscard]] Status job_check(ClientId client, JobSpec& spec) const;  ///< merges buffers that are listed twice
  void job_publish(FenceId id);
  void job_ready(Job& job);                     ///< nothing orders it any more: to its engine, or to its failure
  void job_drop(FenceId job, Status status);    ///< never visible
  void job_finish(FenceId job, Status status);  ///< its fence signals
  void jobs_client_gone(ClientId client);
  bool advance_first();                       ///< true: the line has changed
  void wait_behind(Job& job, FenceId other);  ///< 0: behind nobody

  // engine.cpp
  void engine_enqueue(Job& job);
  void engine_pump(DeviceId device);
  void engine_timeouts();
  [[nodiscard]] std::uint64_t engine_due_ns() const;
  [[nodiscard]] FenceId engine_first(DeviceId device, Engine engine) const;  ///< whose turn it is; 0: nobody's
  [[nodiscard]] bool goes_before(const Job& a, const Job& b) const;
  void engine_remove(Job& job);  ///< from its queue
  void dispatch(Job& job, std::uint64_t cu_mask);
  void cancel_running(Job& job);

  // unit.cpp
  void unit_pump(DeviceId device);  ///< looks at all units of a device again
  [[nodiscard]] std::uint64_t compute_units(ClientId client, DeviceId device) const;
  void graphics_pump(DeviceId device);
  [[nodiscard]] std::uint64_t units_of(DeviceId device, Unit::Holder holder) const;
  [[nodiscard]] std::uint64_t all_units(DeviceId device) const;
  [[nodiscard]] std::uint64_t compute_allowed(DeviceId device) const;  ///< units that may ever run compute
  [[nodiscard]] std::uint64_t stuck_units(DeviceId device) const;      ///< not left before a fault is repaired
  /// Of units that are held, some that a job waits for: it is stuck if, and only if, all of these are.
  [[nodiscard]] std::uint64_t decisive_units(DeviceId device, std::uint64_t held, unsigned needed) const;
  [[nodiscard]] bool compute_turn(DeviceId device) const;        ///< set: compute goes before jobs that are not urgent
  [[nodiscard]] std::uint64_t urgent_ns(DeviceId device) const;  ///< since or from when it is; ~0: no deadline
  /// Set: a deadline asks for units before compute has had its minimum run.
  [[nodiscard]] bool urgent(DeviceId device) const { return urgent_ns(device) <= now(); }
  [[nodiscard]] std::uint64_t now() const;
  void units_left(const WorkRef& ref, Status status);
  void unit_free(DeviceId device, unsigned cu);
  void unit_take(DeviceId device, unsigned cu, Unit::Holder holder, ClientId client, FenceId job);

  // slice.cpp
  void compute_demand(ClientId client, DeviceId device, unsigned cus);
  void share_units(DeviceId device);
  [[nodiscard]] unsigned compute_limit(DeviceId device) const;      ///< units that compute may keep now
  [[nodiscard]] unsigned compute_grantable(DeviceId device) const;  ///< free ones that it may have now
  /// How many units each client's compute should have. Moves the turn on when its slice is over.
  [[nodiscard]] std::map<ClientId, unsigned> shares(DeviceId device);
  void take_back(DeviceId device, ClientId client, unsigned keep);
  void tell_queues(EventKind kind, ClientId client, DeviceId device, Cause cause);
  void grant(DeviceId device, ClientId client, std::uint64_t cu_mask);

  // gate.cpp
  bool gate(Job& job);        ///< true: open at once
  void gate_leave(Job& job);  ///< its fence signalled, or it was dropped before
  void gate_pump(DeviceId device);
  void gate_exclusive(DeviceId device);
  void gate_reserve(DeviceId device);
  void let_in(FenceId job);
  [[nodiscard]] unsigned kept_for(const Job& job) const;     ///< units that its gate keeps free of compute
  [[nodiscard]] unsigned kept_units(DeviceId device) const;  ///< policy reserve_in_flight: no compute on so many
  [[nodiscard]] bool compute_waited(DeviceId device) const;  ///< a slice, and it has no unit
  void switch_mode(DeviceId device, bool fenced);
  [[nodiscard]] std::uint64_t compute_waiting_since(DeviceId device) const;  ///< ~0: none waits

  // circle.cpp
  /// A wave of the client waits in a fault; on unit `cu`, or no_cu: on all that the client has, for all the core knows.
  /// Costs nothing where the client has no compute on the device.
  void fault_begins(ClientId client, DeviceId device, unsigned cu, std::uint64_t token);
  void fault_ends(ClientId client, DeviceId device, std::uint64_t token);
  /// For who adds what a fault waits for; no_node where faults hold nothing.
  [[nodiscard]] graph::NodeId fault_node(ClientId client, DeviceId device, std::uint64_t token) const;
  /// `job` needs `count` of the units in `cu_mask` (0: none any more).
  void wait_for_units(Job& job, std::uint64_t cu_mask, unsigned count);
  /// Whoever adds a wait that closes a circle says so here.
  void circle_found(const graph::Circle& circle);
  /// A wait that may be the last of a circle. Policies query and track: reclaim's wait for a fence ends before it would
  /// be, and is asked for anew (the caller sees to Reclaim::pump()).
  void add_wait(graph::NodeId from, graph::NodeId to, const char* how = "waits for");
  [[nodiscard]] graph::Circle find_circle() const;  ///< that stands now
  void end_circles();
  void fail_fault(ClientId client, DeviceId device, std::uint64_t token, Status status);
  void units_changed(DeviceId device);
  /// Set: a unit is taken from waves although their faults are pending.
  [[nodiscard]] bool leaves_while_faulting(DeviceId device) const;

  // stop.cpp
  /// The core's last action takes memory of the client from the device: if that must wait, it is kept here.
  void hold_revocation(ClientId client, DeviceId device);
  void let_revocations_go(DeviceId device, ClientId client);
  void range_added(ClientId client);
  [[nodiscard]] bool computes(ClientId client) const;
  void mode_changed(ClientId client);
  /// What a fault of managed memory means on the device. again: the wave retries until it has left its unit.
  enum class Stray : std::uint8_t { none, again, fails };
  [[nodiscard]] Stray stray_fault(ClientId client, DeviceId device) const;
  [[nodiscard]] bool restore(ClientId client, DeviceId device);
  void restore_stopped(DeviceId device);
  [[nodiscard]] std::uint64_t restore_due_ns(DeviceId device) const;

  // policy.cpp
  /// May reclaim, on behalf of `context`, wait for this fence? Counts and explains a refusal. `from`: the node that
  /// would wait; without it the faults of the context's unit are taken for it.
  [[nodiscard]] bool may_wait(const AllocContext& context, FenceId fence, graph::NodeId from = graph::no_node);
  [[nodiscard]] bool closes_circle(const AllocContext& context, FenceId fence, graph::NodeId from);
  [[nodiscard]] bool units_may_deadlock(const Job& job) const;
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
  /// No fence uses memory that is the client's own.
  [[nodiscard]] bool memory_idle(ClientId client) const;
  void device_attach(ClientId client, DeviceId device);
  void device_gone(ClientId client, DeviceId device);
  void action_done(const WorkRef& ref, Status status);
  void tick();
  [[nodiscard]] std::uint64_t next_tick_ns() const;
  [[nodiscard]] bool quiescent() const;
  void verify() const;
  void verify_jobs() const;
  void verify_units(DeviceId device) const;
  [[nodiscard]] std::uint64_t digest() const;

  Core::Impl& core;
  std::vector<WorkDevice> devices;
  std::map<FenceId, Fence> fences;  ///< until signalled and forgotten
  std::map<TimelineId, Timeline> timelines;
  std::map<BufferId, Buffer> buffers;
  std::map<FenceId, Job> jobs;                              ///< until signalled
  std::deque<FenceId> line;                                 ///< jobs that gather memory; only the first does
  std::map<std::pair<ClientId, Page>, BufferId> mapped_at;  ///< first page of each mapping
  std::set<std::pair<ClientId, BufferId>> userptrs;
  std::set<BufferId> userptrs_in_use;  ///< claimed, or busy
  FenceId claiming = 0;                ///< the job whose buffers are gathered; 0: none
  std::deque<BufferId> looking;
  bool looking_now = false;
  bool claim_again = false;
  // Who is still to be told, so that chains of fences and points of any length need no stack (fence.cpp, timeline.cpp).
  struct Told {
    FenceWaiter waiter;
    FenceId fence = 0;
    Status status;
  };
  std::deque<Told> telling;
  bool telling_now = false;
  std::deque<FenceId> raising;  ///< fences whose deadline became earlier
  bool raising_now = false;
  std::deque<FenceId> letting_on;  ///< jobs whose last missing point has a fence now, or never will
  bool letting_on_now = false;
  std::string last_loop;
  std::string last_refusal;  ///< of may_wait under policy track, as sentences
  FenceId gathering = 0;     ///< the job of the line that gathers memory; 0: none
  bool advancing = false;    ///< advance_line() runs and will look again
  bool advance_again = false;
  std::uint64_t arrivals = 0;
  bool asks_fences = false;     ///< a device's policy is query or track: answers change with faults
  std::uint64_t circle_ns = 0;  ///< since when a circle stands; 0: none does
};

}  // namespace ferry::core
