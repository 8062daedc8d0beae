// What a core is built for. Fixed over its life.
#pragma once

#include <cstdint>
#include <vector>

#include "base/types.h"
#include "core/policy/choice.h"
#include "core/work/types.h"

namespace ferry::core {

/// Bugs planted on purpose, one at a time, to show that the checkers can fail. Only tests and the simulator set one.
/// docs/INVARIANTS.md says which checker finds which.
enum class PlantedBug : std::uint8_t {
  none,
  skip_cpu_revoke,      ///< copy to VRAM while CPU threads can still write the source
  skip_device_revoke,   ///< copy back while the device can still write the source
  drop_wake,            ///< one waiter in a merged fault is never woken
  lose_dirty,           ///< a written VRAM page counts as clean and is evicted without a copy
  free_before_revoke,   ///< a VRAM granule is reused before the device's mapping of it is gone
  free_before_copy,     ///< a VRAM granule is reused before its copy home is done
  stale_map,            ///< map the system copy on the CPU although VRAM holds the newest
  write_map_on_read,    ///< a read fault maps writable, so the write that follows is not seen
  over_budget,          ///< one chunk more than the budget
  ignore_copy_error,    ///< a failed copy counts as done
  wrong_vram_page,      ///< off by one granule when a chunk has several
  forget_free_waiter,   ///< a free during a migration is never answered
  leak_chunk,           ///< a dead client's chunk is never given back
  keep_chunk_contents,  ///< a chunk passes to another client without being released
  map_both_writable,    ///< after a CPU fault the device keeps its writable mapping of VRAM
  // fences, engines, policies
  signal_before_done,    ///< a fence signals when its job is dispatched
  forget_fence_waiter,   ///< of several that wait for one fence, the last is not told
  skip_shared_fence,     ///< a job that writes does not wait for the buffer's readers
  evict_busy_buffer,     ///< a buffer moves while a visible fence uses it
  claim_before_gate,     ///< a job takes its memory before it waits for compute units
  publish_before_gate,   ///< a fence is visible before the compute units that it needs are kept free
  leak_cu,               ///< a compute unit whose job failed is not given back
  grant_reserved_cu,     ///< compute gets a unit that is kept for fenced work
  switch_while_visible,  ///< policy exclusive lets compute in while a fence is visible
  query_says_no,         ///< a fence whose job waits for a faulting compute unit answers that waiting is safe
  track_forgets_unit,    ///< policy track does not know that a faulting wave holds its compute unit
  refill_nothing,        ///< the memory that track lent for a repair never returns to its reserve
  userptr_keeps_old,     ///< the job after an invalidation uses the pages of before
  // reclaim
  drop_before_stored,    ///< system memory is given back before the store has the bytes
  ignore_store_error,    ///< a failed store counts as done
  stale_store,           ///< what was stored before the page was written again is loaded
  leak_system_charge,    ///< a freed page stays counted against the budget
  forget_memory_waiter,  ///< whoever waits for system memory is not told when some is given back
  // attributes
  keep_lost_access,     ///< a device keeps mappings of pages that it has no access to any more
  write_map_read_only,  ///< pages that devices may only read are mapped for writing
  leak_attributes,      ///< what was said about freed pages holds for what is allocated there next
  // places of pages
  move_pinned,           ///< a pinned page is evicted, stored or moved like any other
  keep_refusal,          ///< CPU threads that were refused a page are not told when they may have it
  discard_shows_others,  ///< a discarded page gets VRAM that still has another page's bytes
  keep_peer_mapping,     ///< a device goes on reaching VRAM of another that its granule has left
  // changes of the address space
  keep_discarded,          ///< what VRAM has of discarded pages stays the newest
  keep_protected_mapping,  ///< a device goes on with a mapping that allows what was forbidden
  serve_old_fault,         ///< a fault from before an unmap is answered as if it were a new one
  // contention
  forget_turn,      ///< whoever waits for the end of a slice is not told
  keep_empty_slot,  ///< an operation that brought nothing into VRAM keeps its slot
  // forks, changes
  keep_fork_mapping,  ///< a device goes on with what it maps in place when its application forks
  free_before_child,  ///< the executor's: pages go before a fork's child, which still needs them, has its copy
  forget_protection,  ///< what was said of pages that nothing had touched is forgotten when something does
  // several copies
  keep_copy,            ///< a write leaves one device's copy as it was, and its mapping
  write_back_copy,      ///< a copy that leaves VRAM is written home, whatever is there by then
  drop_last_copy,       ///< a copy somewhere counts as a copy of all pages: what only the home has is dropped
  map_copied_writable,  ///< the CPU may write a page of which devices have copies
  // moves
  keep_moved_mapping,  ///< devices go on with what they map at the old address
  lose_moved,          ///< what lies in system memory is not at the new address
  // endings
  keep_freed_mapping,    ///< a free is answered while devices still reach the pages
  keep_protection,       ///< what was forbidden of freed pages holds for what is allocated there next
  forget_set_waiter,     ///< a SET is not told that the operation which it waits for has ended
  forget_moves_fence,    ///< the fence of a migration never signals
  forget_to_look_again,  ///< a block goes on as one that nothing was said about
};
inline constexpr unsigned planted_bug_count = 60;
inline constexpr unsigned memory_bug_count = 16;  ///< those before it concern granules only
/// Those that `ferry sim` must find; it knows nothing of buffers and fences.
[[nodiscard]] constexpr bool is_simulated(PlantedBug bug) {
  const auto number = static_cast<unsigned>(bug);
  return (number > 0 && number < memory_bug_count) || bug == PlantedBug::refill_nothing ||
         (number >= static_cast<unsigned>(PlantedBug::drop_before_stored) &&
          number <= static_cast<unsigned>(PlantedBug::keep_peer_mapping)) ||
         (number >= static_cast<unsigned>(PlantedBug::keep_discarded) &&
          number <= static_cast<unsigned>(PlantedBug::forget_turn)) ||
         (number >= static_cast<unsigned>(PlantedBug::keep_fork_mapping) &&
          number <= static_cast<unsigned>(PlantedBug::forget_to_look_again));
}
[[nodiscard]] const char* to_string(PlantedBug bug);

struct Config {
  unsigned device_count = 1;
  /// Budget of VRAM for each device, in pages, rounded down to whole chunks; at least one chunk.
  std::uint64_t vram_pages = 64 * block_pages;
  /// Pages that move together; a power of two, 1 to block_pages.
  unsigned granularity_pages = block_pages;
  /// Times that a granule changes between CPU and device within `contention_window_ns` before it stays in system
  /// memory, mapped by both, for `contention_hold_ns` (the numbers follow nvidia-uvm's thrash detection).
  unsigned contention_threshold = 4;
  std::uint64_t contention_window_ns = 20'000'000;
  std::uint64_t contention_hold_ns = 300'000'000;
  /// A contended granule that is not held in system memory (svm_coherent cleared, or preferred on a device) stays with
  /// whom it came to for at least so long: those who would take it away wait. Doubled from turn to turn, up to 32 ms. 0: they
  /// do not.
  std::uint64_t contention_slice_ns = 500'000;
  /// When nobody who waits for VRAM got any for so long, because an application or device does not answer while its
  /// granules are on their way, those who wait are served in place.
  std::uint64_t line_patience_ns = 2'000'000'000;
  /// Copies that failed in a row for one granule before the fault is served in place, or fails where it cannot be.
  unsigned copy_retries = 3;
  /// Most granules that a walk of a device brings ahead of it; 0 switches all prefetch by policy off.
  unsigned speculation_granules = 4;
  PrefetchKind prefetch = PrefetchKind::stride;
  /// Percent of a part of a block that a device has in VRAM when the rest is brought too (prefetch by density).
  unsigned density_percent = 51;
  VictimKind victims = VictimKind::probe;
  LeaveKind leave = LeaveKind::thrash;
  /// Evictions from which a granule came back before it has to prove its use (leave).
  unsigned leave_returns = 4;
  /// Waves that a compute unit can hold; where wave_limit() starts from.
  unsigned waves_per_cu = 16;
  /// One for each device; those that are missing are as DeviceModel's defaults.
  std::vector<DeviceModel> models;
  /// Budget of system memory for all managed pages and buffers together; 0: none, nothing is counted or stored.
  std::uint64_t system_pages = 0;
  /// Room beneath system memory; 0: none, pages that only system memory holds cannot leave it.
  std::uint64_t store_pages = 0;
  /// Counted waits: the wait graph is kept and checked. Cleared only to measure what it costs.
  bool wait_graph = true;
  /// A job goes up by one priority for each such time that it has waited for its engine.
  std::uint64_t ageing_ns = 20'000'000;
  /// Set: a circle that has stood for deadlock_ns is ended: the faults of compute that are part of it fail with
  /// would_deadlock, so that its units come free. Cleared: it stands, for checkers to see.
  bool end_deadlocks = true;
  std::uint64_t deadlock_ns = 1'000'000'000;
  /// Hives: devices of one number (not 0) are linked: they reach each other's VRAM and copy to each other directly.
  std::vector<std::uint8_t> hives;
  /// Most pages that one client may have pinned; 0: a quarter of the budget, or no limit where there is none.
  std::uint64_t pin_pages = 0;
  PlantedBug bug = PlantedBug::none;
};

}  // namespace ferry::core
