// A block: the state of 512 pages of one client. Pages move by granule (Config::granularity_pages); masks are by page,
// because ranges may start and end inside a granule and a device may hold part of one.
//
// State of one page, beside `allocated` (all else is meaningless while that is cleared):
//
// | system_current | vram_current | means                                                    |
// |----------------|--------------|----------------------------------------------------------|
// | set            | cleared      | system memory holds it (zeros, if never written)         |
// | set            | set          | clean in VRAM: both equal, so no mapping may write VRAM   |
// | cleared        | set          | dirty in VRAM: the only copy                             |
// | cleared        | cleared      | impossible (I-01)                                        |
//
// With a budget of system memory (core/reclaim/) two more bits say where the bytes are; without one both stay cleared:
//
// | held    | stored  | system_current | means                                                                     |
// |---------|---------|----------------|---------------------------------------------------------------------------|
// | cleared | cleared | set            | never written: zeros, no memory                                           |
// | set     | cleared | set            | in system memory                                                          |
// | set     | set     | set            | ... and the store has an equal copy: it can leave without being written   |
// | cleared | set     | cleared        | only the store has it, and VRAM if vram_current: both equal then          |
// | set     | -       | cleared        | stale: can be given back without any work                                 |
//
// `stored` is set only while no mapping may write the page. No page is mapped in system memory that is not held.
//
// | mapping                           | allowed while                                                  |
// |-----------------------------------|----------------------------------------------------------------|
// | CPU (cpu_mapped)                  | system_current and not vram_current                            |
// | device, in place (in_place)       | system_current and not vram_current; CPU may be mapped too     |
// | owner device, VRAM read-only      | vram_current                                                   |
// | owner device, VRAM writable       | vram_current and not system_current                            |
//
// Where pages have copies (Copies below), nobody may write them, and these hold beside each other:
//
// | mapping                           | allowed while                                                  |
// |-----------------------------------|----------------------------------------------------------------|
// | CPU, read-only (cpu_read_only)    | system_current                                                 |
// | device, in place, read-only       | system_current                                                 |
// | device with a copy, read-only     | Copies::current of the device                                  |
//
// A device may also reach pages in another's VRAM, where both are of one hive (peer): allowed as the owner's own mapping is.
// Bits that few blocks need lie in Extras, which most blocks do not have.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/bitmap.h"
#include "base/types.h"
#include "core/action.h"

namespace ferry::core {

using OpIndex = std::uint32_t;
using SlotIndex = std::uint32_t;
inline constexpr std::uint32_t none_index = 0xffff'ffff;

struct Client;

/// What one device reaches of a block.
struct DeviceView {
  PageMask mapped;    ///< set: the device may have an entry. Cleared: it has none, every touch faults
  PageMask writable;  ///< set: the entry allows writes; only with mapped
  PageMask in_place;  ///< set: the entry leads to system memory; cleared, with mapped: to the granule's VRAM slot
  PageMask peer;      ///< set: the entry leads to VRAM of the granule's owner, another device; never with in_place
};

/// What few blocks need. Made when first used, gone when all of it is empty.
struct Extras {
  PageMask pinned;  ///< pin_count > 0: keeps its place and memory. VRAM's if vram_current is set, else the system's
  /// Contents may be dropped: reads as before, or as zeros. Nobody maps such a page; whoever does clears it.
  PageMask discarded;
  /// CPU threads were told that they may not have the page where it is, and whoever touches it next is told without a
  /// message: set until they may (I-75).
  PageMask refused;
  std::array<std::uint16_t, block_pages> pin_count{};
  [[nodiscard]] bool empty() const { return pinned.none() && discarded.none() && refused.none(); }
};

/// Pages that several processors read at once, each its own copy (svm_read_mostly; svm/replica.cpp). A copy is one beside
/// the home that the page tables of Block tell of, on a device that is not the granule's owner; it is equal to the newest
/// and nobody may write the page. Made with the first copy, gone with the last and when the CPU may write again.
struct Copies {
  PageMask cpu_read_only;  ///< set: the CPU's entry allows no write; only with cpu_mapped
  /// Set: those who wait for the page (cpu_waiting) only want to read it. Without meaning where nobody waits.
  PageMask cpu_reads;
  std::vector<PageMask> current;  ///< by device: pages that its slot has
  std::vector<SlotIndex> slots;   ///< granule * devices + device; none_index: the device has no copy of it
};

struct Granule {
  OpIndex op = none_index;  ///< the operation under way; at most one, so it orders everything that touches the granule
  SlotIndex slot = none_index;  ///< VRAM that the granule has, current or being filled
  DeviceId owner = no_device;   ///< device of `slot`
  Cause last_move_cause = Cause::none;
  /// Brought ahead of a fault and not mapped, so that its first touch tells that it was wanted. Cleared by that, and when
  /// it leaves VRAM.
  bool sample = false;
  std::uint8_t returns = 0;  ///< times that it was evicted and soon wanted again (policy/leave.cpp)
  std::uint8_t touches = 0;  ///< parts of it served in place since it last had VRAM
  bool op_failed = false;    ///< its last move to where it is preferred did not do: not tried again for each touch
  std::uint8_t flips = 0;    ///< changes of side since flip_window_ns began
  std::uint8_t longer = 0;   ///< contended: slices are so many times doubled
  std::uint64_t flip_window_ns = 0;
  std::uint64_t pinned_until_ns = 0;  ///< contended: served in place until then
  std::uint64_t last_move_ns = 0;
  /// Device's eviction count when this granule was last evicted from it, plus one; 0: never evicted. The difference to
  /// the count now is the refault distance.
  std::uint64_t evict_mark = 0;
  std::uint64_t lru = 0;  ///< Reclaim's entry while some page is held; 0: none
};

/// What an application forbade its pages (mprotect), whoever touches them. Blocks that nobody forbade anything have none.
struct Protection {
  PageMask no_read;   ///< no device maps them at all; set with no_write
  PageMask no_write;  ///< devices map them read-only
};

struct Block {
  Client* client = nullptr;
  BlockIndex index = 0;
  std::uint32_t holds = 0;  ///< callers that go on using the block: it is not dropped, even when empty
  PageMask allocated;
  PageMask freeing;        ///< free() asked for, not done; faults on them fail. Subset of allocated
  PageMask placed_system;  ///< Placement::system
  PageMask system_current;
  PageMask vram_current;
  PageMask held;         ///< charged against the budget of system memory. Cleared: has none there
  PageMask stored;       ///< the store has the newest bytes
  PageMask cpu_mapped;   ///< set: a CPU entry may exist. Cleared: none does, every touch faults
  PageMask cpu_waiting;  ///< CPU threads wait in a fault on them
  /// Set: nothing was said about any page of it (svm/): faults look no further. Cleared: they are routed page by page.
  bool plain = true;
  std::unique_ptr<Extras> extras;          ///< null: nothing is pinned, discarded or refused
  std::unique_ptr<Protection> protection;  ///< null: everything is allowed
  std::unique_ptr<Copies> copies;          ///< null: no page has more than one reader's copy
  std::vector<DeviceView> devices;
  std::vector<Granule> granules;
};

}  // namespace ferry::core
