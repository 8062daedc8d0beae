// The manager's brain as a deterministic state machine: events in, actions out. No system calls, no threads, no clock:
// time is what the caller says, and the same calls give the same actions, to the last byte. One thread at a time.
//
// The caller's loop: call event methods, then take_actions(), perform them, and report each one that carries an id with
// action_done(). Actions of one take_actions() may be performed in any order and at any time, together or apart.
// Invariants: docs/INVARIANTS.md.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/types.h"
#include "core/action.h"
#include "core/config.h"
#include "core/observer.h"
#include "core/svm/types.h"
#include "core/work/types.h"
#include "graph/graph.h"

namespace ferry::core {

/// Counters since start, or of one client since it came. Pages unless said otherwise.
struct Stats {
  std::uint64_t device_faults = 0;
  std::uint64_t device_faults_merged = 0;
  std::uint64_t cpu_faults = 0;
  std::uint64_t cpu_faults_merged = 0;
  std::uint64_t faults_failed = 0;
  std::uint64_t pages_to_vram = 0;    ///< copied
  std::uint64_t pages_to_system = 0;  ///< copied
  std::uint64_t pages_dropped_clean = 0;
  std::uint64_t migrations_to_vram = 0;
  std::uint64_t migrations_to_system = 0;
  std::uint64_t evictions = 0;  ///< granules
  std::uint64_t evicted_pages = 0;
  std::uint64_t refaults = 0;  ///< granules faulted again after an eviction
  std::uint64_t in_place_maps = 0;
  std::uint64_t contention_pins = 0;
  std::uint64_t contention_waits = 0;  ///< faults that waited for the end of another's slice
  std::uint64_t speculated_pages = 0;
  std::uint64_t copy_errors = 0;
  std::uint64_t dma_mapped_pages = 0;    ///< system pages opened to devices so far ...
  std::uint64_t dma_unmapped_pages = 0;  ///< ... and closed; equal when no client is left (I-07)
  std::uint64_t vram_peak_pages = 0;     ///< largest vram_pages of one device
  std::uint64_t vram_pages = 0;          ///< chunks owned now, all devices
  std::uint64_t system_pages = 0;        ///< counted against the budget now: managed pages and buffers
  std::uint64_t system_peak_pages = 0;
  std::uint64_t over_budget_pages = 0;  ///< given although the budget was used up, as nothing could be reclaimed
  std::uint64_t stored_pages = 0;       ///< lie in the store now
  std::uint64_t pages_to_store = 0;     ///< moved, so far
  std::uint64_t pages_from_store = 0;
  std::uint64_t store_errors = 0;
  std::uint64_t fence_waits_in_reclaim = 0;  ///< reclaim waited for a fence before it could go on
  std::uint64_t fence_waits_refused = 0;     ///< policies query, track: it tried other memory instead
  std::uint64_t reserve_repairs = 0;         ///< policy track: granules given from the reserve
  std::uint64_t jobs_done = 0;
  std::uint64_t jobs_failed = 0;
  std::uint64_t preemptions = 0;    ///< compute units taken from running compute
  std::uint64_t mode_switches = 0;  ///< policy exclusive
  std::uint64_t circles = 0;        ///< deadlocks found
  std::uint64_t buffer_moves = 0;
  std::uint64_t pages_direct = 0;            ///< copied from one device's VRAM to another's
  std::uint64_t discarded_pages = 0;         ///< left VRAM without a copy, as their contents were given up
  std::uint64_t pages_duplicated = 0;        ///< copied so that one more processor has its own (svm_read_mostly)
  std::uint64_t pages_carried = 0;           ///< have another address, and lie in VRAM where they lay
  std::uint64_t pages_copied_in_vram = 0;    ///< for another address, inside the VRAM of one device
  std::uint64_t pages_copied_in_system = 0;  ///< for another address, inside system memory
  std::uint64_t pages_collapsed = 0;  ///< lost all copies but one, as somebody writes them or the flag was taken back
};

/// Where a page is and who reaches it, for `ferry explain` and ferry::query.
struct Residency {
  bool allocated = false;
  bool system_current = false;       ///< the system copy is the newest
  DeviceId vram_device = no_device;  ///< a device that holds a current copy, or no_device
  VramPage vram_page = 0;            ///< ... and where in its memory
  bool dirty = false;                ///< VRAM holds the only current copy
  bool cpu_may_map = false;
  std::uint16_t device_mapped = 0;    ///< bit d: device d has a mapping
  std::uint16_t device_writable = 0;  ///< bit d: ... that allows writes; never set without device_mapped
  bool moving = false;                ///< an operation on the page is under way
  bool contended = false;             ///< held in system memory because both sides want it
  Cause last_move_cause = Cause::none;
  std::uint64_t last_move_ns = 0;  ///< 0: never moved
  bool held = false;               ///< under a budget of system memory: the page is counted against it
  bool stored = false;             ///< the store has the newest bytes
  bool pinned = false;             ///< keeps its place and memory
  bool cpu_may_write = false;      ///< never without cpu_may_map
  std::uint16_t copies = 0;        ///< bit d: device d has a copy beside vram_device and system memory
};

/// Of all allocated pages of a span.
struct SpanState {
  bool home = true;            ///< all are in system memory, and nothing is under way there
  bool pinned = false;         ///< some are, or will be: a pin is under way
  bool placed_system = false;  ///< some have Placement::system
};

/// Where an allocation wants to live. `automatic`: a device fault migrates. `system`: devices reach it in place.
enum class Placement : std::uint8_t { automatic, system };

class Core {
 public:
  /// `observer` may be null; it must outlive the core.
  explicit Core(const Config& config, Observer* observer = nullptr);
  ~Core();
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  // --- clients and devices -------------------------------------------------------------------------------------------
  /// REQUIRES: the id is not in use (it is free again when the reply of client_gone came).
  void client_open(ClientId client);
  /// The application has ended. Its devices must have been reported gone first or be reported soon; waits for actions
  /// in flight, gives everything back, then replies to `cookie`. Calls for this client after it are ignored.
  void client_gone(std::uint64_t now_ns, ClientId client, Cookie cookie);
  /// The client's device process runs. A device fault before this is an error of the caller. After device_gone another
  /// process may take its place; actions meant for the former one still end with device_lost.
  void device_attach(ClientId client, DeviceId device);
  /// The device process has ended: nothing is mapped there any more; its newest pages stay valid in VRAM and are
  /// served to the CPU from there. Waves of it are forgotten, not woken.
  void device_gone(std::uint64_t now_ns, ClientId client, DeviceId device);

  // --- ranges --------------------------------------------------------------------------------------------------------
  /// With a budget of system memory no CPU thread may reach the span when this returns: each page gets its memory by a
  /// fault. Without one the span is the application's until the core revokes something.
  /// ERRORS: bad_range (empty or past 2^52 pages), overlap.
  [[nodiscard]] Status alloc(std::uint64_t now_ns, ClientId client, PageSpan span, Placement placement);
  /// Frees pages, whole allocations or parts. Replies to `cookie` when no processor maps them and no copy uses them;
  /// the span may be allocated again from then on. The executor has seen to it that the CPU side is unmapped already.
  /// ERRORS: not_allocated (some page of it is not, or is being freed): then nothing happens and no reply comes.
  [[nodiscard]] Status free(std::uint64_t now_ns, ClientId client, PageSpan span, Cookie cookie);
  /// Brings the allocated pages of the span to a device's VRAM, or home (device == no_device). Best effort: replies
  /// when done; what could not be moved (no room but for pages in use) stays where it is.
  /// ERRORS: bad_range, not_allocated (no page of it is).
  [[nodiscard]] Status prefetch(std::uint64_t now_ns, ClientId client, PageSpan span, DeviceId device, Cookie cookie);

  // --- faults --------------------------------------------------------------------------------------------------------
  /// A wave touched a page that its device does not map (or not with that access). Ends in exactly one wake_wave for
  /// the token, or in a map_device that carries it, or in nothing if the device is gone before (I-06).
  /// `cu`: the compute unit that the wave holds until the fault is repaired, where the caller knows.
  /// `seen`: changes() as the device knew it when the wave touched the page; where that is older than an unmap of the
  /// page, the wave is woken to try again.
  void device_fault(std::uint64_t now_ns, ClientId client, DeviceId device, Page page, Access access, FaultToken token,
                    unsigned cu = AllocContext::no_cu, std::uint64_t seen = ~std::uint64_t{0});
  /// A CPU thread touched a page that was revoked. Ends in map_cpu or wake_cpu of the page.
  void cpu_fault(std::uint64_t now_ns, ClientId client, Page page, Access access);

  // --- attributes ----------------------------------------------------------------------------------------------------
  // Rules: core/svm/types.h, docs/design/0017-svm.md. Spans need not be allocated as a whole; attributes of pages that
  // are not allocated are not kept, and a span without any allocated page is refused (not_allocated).
  /// All of `changes`, in order, or, on an error, none; `wrong` is then the number of the first bad one. Replies when
  /// what was asked for at once has happened: access taken away is gone, a prefetch is done, what must be mapped is.
  /// ERRORS: bad_range (span, or a type, device, value, flag that is none), not_allocated, not_permitted (a prefetch to
  /// a device without access).
  [[nodiscard]] Status svm_set(std::uint64_t now_ns, ClientId client, PageSpan span,
                               const std::vector<Attribute>& changes, Cookie cookie, unsigned& wrong);
  /// Fills in each query's value by the intersection rules: undefined (locations) or the weakest (access, granularity)
  /// where pages differ, set_flags: flags set on all pages, clr_flags: cleared on all. ERRORS as svm_set.
  [[nodiscard]] Status svm_get(ClientId client, PageSpan span, std::vector<Attribute>& queries, unsigned& wrong) const;
  /// Back to defaults. Replies as svm_set.
  [[nodiscard]] Status svm_reset(std::uint64_t now_ns, ClientId client, PageSpan span, Cookie cookie);
  [[nodiscard]] Attributes attributes(ClientId client, Page page) const;
  /// KFD's XNACK mode of one application: cleared, what its queues may touch is mapped before they run.
  /// ERRORS: in_use (its compute wants units now), unsupported (a device that has no retry faults).
  [[nodiscard]] Status set_retry_faults(std::uint64_t now_ns, ClientId client, bool on);
  [[nodiscard]] bool retry_faults(ClientId client, DeviceId device) const;
  /// Range groups (nvidia-uvm): pages of a group whose migration is prevented stay where they are and are served in
  /// place. Group 0: none. ERRORS: bad_range, not_allocated.
  [[nodiscard]] Status group_assign(std::uint64_t now_ns, ClientId client, PageSpan span, std::uint32_t group);
  [[nodiscard]] Status group_migration(std::uint64_t now_ns, ClientId client, std::uint32_t group, bool allowed);

  // --- moves on request ----------------------------------------------------------------------------------------------
  /// As prefetch, but `fence` (a new id, held by the client) signals when it is done.
  [[nodiscard]] Status migrate(std::uint64_t now_ns, ClientId client, PageSpan span, DeviceId device, FenceId fence);
  /// Pages get memory, where they are or on `device`, without contents being moved. Replies when they have it.
  [[nodiscard]] Status populate(std::uint64_t now_ns, ClientId client, PageSpan span, DeviceId device, Cookie cookie);
  /// They do not move, and keep their memory, until as many unpin. `device`: no_device for system memory, or the device
  /// whose VRAM they are to be in. Replies when they are there. ERRORS: bad_range, not_allocated, no_memory (limits).
  [[nodiscard]] Status pin(std::uint64_t now_ns, ClientId client, PageSpan span, DeviceId device, Cookie cookie);
  [[nodiscard]] Status unpin(std::uint64_t now_ns, ClientId client, PageSpan span);

  // --- changes of the address space ----------------------------------------------------------------------------------
  /// The notifier. Replies when no processor reaches the pages as they were; the application's system call is to be
  /// made then. `to`: of Change::move; `prot`: of Change::protect (SpanProt bits).
  /// A move's target is allocated, and no block has pages of both. Its reply says no_memory or io_error where pages could not
  /// be moved: they are where they were, and zeros in their stead at `to`.
  /// ERRORS: bad_range, not_allocated (no page of the span is; move: some page of either is not), in_use (move, discard:
  /// pinned pages; move: another is under way there, or a fork), unsupported (move: a block has pages of both).
  [[nodiscard]] Status change(std::uint64_t now_ns, ClientId client, Change change, PageSpan span, Page to,
                              std::uint8_t prot, Cookie cookie);
  /// Number of the client's last unmap. To be told to its devices after each change(), before the application is answered.
  [[nodiscard]] std::uint64_t changes(ClientId client) const;
  /// Costs what the client has blocks, however large the span is.
  [[nodiscard]] SpanState span_state(ClientId client, PageSpan span) const;
  /// Some page of the span is pinned, or was when it was freed. At once for clients that have pinned nothing.
  [[nodiscard]] bool is_pinned(ClientId client, PageSpan span) const;
  /// A fork of the application is about to happen. Replies when no device reaches any page of it and no action that
  /// would let one is under way, so that all bytes stay as they are until the next map_cpu or map_device is performed.
  /// The executor keeps the CPU side, and gives the children what a mapping would let change (docs/design/0018-fork.md).
  /// It has to hold back device faults of the client meanwhile. ERRORS: client_gone.
  [[nodiscard]] Status client_fork(std::uint64_t now_ns, ClientId client, Cookie cookie);

  // --- buffers and their fences --------------------------------------------------------------------------------------
  // A client may name only what it holds: what it made, or opened. ERRORS of all: not_held, and what each says.
  /// No memory is taken before somebody uses it. ERRORS: bad_range (no pages, more than fit, userptr over foreign
  /// pages), in_use (the id), no_memory (policy pinned: more than its half).
  [[nodiscard]] Status buffer_create(std::uint64_t now_ns, ClientId client, BufferId buffer, const BufferSpec& spec);
  /// Another client (or the same again) holds it too. ERRORS: not_held (no such buffer), bad_range (userptr: never).
  [[nodiscard]] Status buffer_open(std::uint64_t now_ns, ClientId client, BufferId buffer);
  /// One hold less. With the last one the buffer goes, once no fence uses it. Its mappings in this client go with the
  /// client's last hold.
  [[nodiscard]] Status buffer_close(std::uint64_t now_ns, ClientId client, BufferId buffer);
  /// The client's threads and device waves reach the buffer from page `at` of its window on; mapped when touched. The
  /// span must not be allocated. ERRORS: overlap, bad_range.
  [[nodiscard]] Status buffer_map(std::uint64_t now_ns, ClientId client, BufferId buffer, Page at);
  /// Replies when nobody of this client reaches it any more; waits for jobs that use it here. ERRORS: not_allocated.
  [[nodiscard]] Status buffer_unmap(std::uint64_t now_ns, ClientId client, Page at, Cookie cookie);
  /// The notifier: pages of the client changed on the CPU side. Marks userptr buffers over them; never waits.
  void userptr_invalidate(std::uint64_t now_ns, ClientId client, PageSpan span);

  // --- fences and timelines ------------------------------------------------------------------------------------------
  /// A fence that signals when all (or any one) of `parts` have. Visible at once: all parts must be.
  /// ERRORS: not_held (unknown part, or not visible), bad_range (none, or more than job_waits_max), in_use.
  [[nodiscard]] Status fence_array(std::uint64_t now_ns, ClientId client, FenceId fence,
                                   const std::vector<FenceId>& parts, bool any);
  /// Somebody needs it by then: its job and what that waits for are put before others, compute is asked to leave early.
  [[nodiscard]] Status fence_deadline(std::uint64_t now_ns, FenceId fence, std::uint64_t deadline_ns);
  [[nodiscard]] FenceInfo fence_info(FenceId fence) const;
  /// Nobody outside will ask for this fence again; it is forgotten once it has signalled.
  void fence_forget(FenceId fence);
  /// Points grow; a job may wait for a point before the job that signals it was submitted: it is then held back,
  /// unseen by memory management, until the point has a fence (as a DRM syncobj's wait-for-submit).
  [[nodiscard]] Status timeline_create(std::uint64_t now_ns, ClientId client, TimelineId timeline);
  [[nodiscard]] Status timeline_open(std::uint64_t now_ns, ClientId client, TimelineId timeline);
  [[nodiscard]] Status timeline_close(std::uint64_t now_ns, ClientId client, TimelineId timeline);
  /// From the CPU. ERRORS: not_held, in_use (the point, or a later one, has a fence or was signalled).
  [[nodiscard]] Status timeline_signal(std::uint64_t now_ns, ClientId client, TimelinePoint point);
  /// Highest point such that it and all before it have signalled.
  [[nodiscard]] std::uint64_t timeline_value(TimelineId timeline) const;

  // --- jobs ----------------------------------------------------------------------------------------------------------
  /// Order inside: dependencies known, policy's gate, memory of all buffers, fence visible, dependencies signalled,
  /// engine, run, signal. The reply comes when the fence is visible (others may wait for it then), or says why it never
  /// will be. ERRORS at once, nothing happened: bad_range (engine, device, priority, timeout, units or counts out of
  /// range; more pages than the budget; policy reserve: more units than are reserved), not_held, in_use (fence id or a
  /// point), would_deadlock (the waits of this and of held jobs form a loop; last_loop() tells it).
  [[nodiscard]] Status job_submit(std::uint64_t now_ns, ClientId client, const JobSpec& spec, Cookie cookie);
  /// Best effort: a job that is not visible yet is dropped (its reply: cancelled); a running one is asked to end.
  void job_cancel(std::uint64_t now_ns, ClientId client, FenceId fence);
  [[nodiscard]] const std::string& last_loop() const;

  // --- compute units -------------------------------------------------------------------------------------------------
  /// The client's compute on this device has waves for so many units (0: idle). Grants follow as actions. A client
  /// that never says anything has none and needs none granted before it says.
  void compute_demand(std::uint64_t now_ns, ClientId client, DeviceId device, unsigned cus);
  /// Units that the client's compute holds now.
  [[nodiscard]] std::uint64_t compute_units(ClientId client, DeviceId device) const;

  // --- memory pressure -----------------------------------------------------------------------------------------------
  /// The machine wants so many pages of system memory back (budget of the machine, cgroup, PSI). Best effort.
  void pressure(std::uint64_t now_ns, std::uint64_t pages);
  /// The budget changes; 0 is refused where the core began with one. Reclaim begins at once if less than is used.
  void set_system_budget(std::uint64_t now_ns, std::uint64_t pages);

  // --- the machine answers -------------------------------------------------------------------------------------------
  void action_done(std::uint64_t now_ns, ActionId id, Status status);

  /// Time passes: to be called at next_tick_ns(), and about once a second while something is under way.
  void tick(std::uint64_t now_ns);
  /// When something is due (a slice, a timeout); ~0: nothing.
  [[nodiscard]] std::uint64_t next_tick_ns() const;

  /// Moves all actions decided so far into `out` (cleared first). Swap-based: no allocation in steady state.
  void take_actions(std::vector<Action>& out);
  [[nodiscard]] bool has_actions() const;

  // --- looking in ----------------------------------------------------------------------------------------------------
  [[nodiscard]] Residency query(ClientId client, Page page) const;
  [[nodiscard]] BufferInfo buffer_info(BufferId buffer) const;
  /// Circles, class circles and broken fence rules found so far, as sentences; each is given once.
  [[nodiscard]] std::vector<std::string> take_reports();
  /// The same with what each is, for checkers; either call takes them.
  [[nodiscard]] std::vector<graph::Report> take_graph_reports();
  /// A circle that exists now (policy none), as sentences; empty: none.
  [[nodiscard]] std::string deadlock() const;
  /// Who waits for whom now, a sentence a wait.
  [[nodiscard]] std::string waits() const;
  /// Equal for equal states; times count only relative to now. For explorers (O(everything)).
  [[nodiscard]] std::uint64_t digest() const;
  [[nodiscard]] const Stats& stats() const;
  /// Zero stats for an unknown client. Kept until the id is opened again.
  [[nodiscard]] Stats client_stats(ClientId client) const;
  [[nodiscard]] std::uint64_t vram_used_pages(DeviceId device) const;
  /// Waves of one compute unit of the device that may wait in faults before it should begin no more; 0: no limit.
  /// Advice (policy/throttle.h): a device that ignores it is slower, nothing else.
  [[nodiscard]] unsigned wave_limit(DeviceId device) const;
  /// Nothing is in flight: no operation, no waiter, no action unanswered.
  [[nodiscard]] bool quiescent() const;
  /// Walks everything and aborts through FERRY_CHECK on a broken invariant. O(all blocks): for tests, the simulator
  /// and quiescent moments.
  void verify() const;

  class Impl;  ///< core/impl.h

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace ferry::core
