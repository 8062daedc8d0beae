// The manager's brain as a deterministic state machine: events in, actions out. No system calls, no threads, no clock:
// time is what the caller says, and the same calls give the same actions, to the last byte. One thread at a time.
//
// The caller's loop: call event methods, then take_actions(), perform them, and report each one that carries an id with
// action_done(). Actions of one take_actions() may be performed in any order and at any time, together or apart.
// Invariants: docs/INVARIANTS.md.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "base/types.h"
#include "core/action.h"
#include "core/config.h"
#include "core/observer.h"

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
  std::uint64_t speculated_pages = 0;
  std::uint64_t copy_errors = 0;
  std::uint64_t dma_mapped_pages = 0;    ///< system pages opened to devices so far ...
  std::uint64_t dma_unmapped_pages = 0;  ///< ... and closed; equal when no client is left (I-07)
  std::uint64_t vram_peak_pages = 0;     ///< largest vram_pages of one device
  std::uint64_t vram_pages = 0;          ///< chunks owned now, all devices
};

/// Where a page is and who reaches it, for `ferry explain` and ferry::query.
struct Residency {
  bool allocated = false;
  bool system_current = false;       ///< the system copy is the newest
  DeviceId vram_device = no_device;  ///< a device that holds a current copy, or no_device
  bool dirty = false;                ///< VRAM holds the only current copy
  bool cpu_may_map = false;
  std::uint16_t device_mapped = 0;    ///< bit d: device d has a mapping
  std::uint16_t device_writable = 0;  ///< bit d: ... that allows writes; never set without device_mapped
  bool moving = false;                ///< an operation on the page is under way
  bool contended = false;             ///< held in system memory because both sides want it
  Cause last_move_cause = Cause::none;
  std::uint64_t last_move_ns = 0;  ///< 0: never moved
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
  void device_fault(std::uint64_t now_ns, ClientId client, DeviceId device, Page page, Access access, FaultToken token);
  /// A CPU thread touched a page that was revoked. Ends in map_cpu or wake_cpu of the page.
  void cpu_fault(std::uint64_t now_ns, ClientId client, Page page, Access access);

  // --- the machine answers -------------------------------------------------------------------------------------------
  void action_done(std::uint64_t now_ns, ActionId id, Status status);

  /// Time passes: to be called about once a second while something is under way.
  void tick(std::uint64_t now_ns);

  /// Moves all actions decided so far into `out` (cleared first). Swap-based: no allocation in steady state.
  void take_actions(std::vector<Action>& out);
  [[nodiscard]] bool has_actions() const;

  // --- looking in ----------------------------------------------------------------------------------------------------
  [[nodiscard]] Residency query(ClientId client, Page page) const;
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

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ferry::core
