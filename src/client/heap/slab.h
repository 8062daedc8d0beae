// Records of the heap, all in the metadata arena and recycled by type.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "client/heap/size_classes.h"

namespace ferry::client {

/// What the page map holds for a unit.
struct PageRecord {
  enum class Kind : std::uint8_t {
    slab,
    large,    ///< only the first unit of a large allocation has an entry: no other address in it can be freed
    retired,  ///< was allocated from and was given back: freeing here is a double free
  };
  std::uintptr_t base = 0;
  Kind kind = Kind::retired;
  std::uint8_t size_class = 0;
};

/// One byte a slot, changed by whoever allocates (plain store: the slot is his) and frees (exchange: of two who free at
/// once, one sees that it was free). A byte rather than a bit, so that neighbours do not need atomic writes.
namespace slot_state {
inline constexpr std::uint8_t fresh = 0;  ///< free, never allocated, reads as zero
inline constexpr std::uint8_t live = 1;
inline constexpr std::uint8_t used = 2;  ///< free, contents unknown
}  // namespace slot_state

/// 2 MiB from the source, cut into runs of units, each a slab.
struct SlabSpan {
  std::uintptr_t base;
  std::uint32_t free_units;   ///< bit set: unit belongs to no slab
  std::uint32_t dirty_units;  ///< bit set: unit has been in a slab since the span was zero
  std::uint8_t order;         ///< list it is in; span_orders when in none
  SlabSpan* next;             ///< in that list; also links recycled records
  SlabSpan* prev;
  SlabSpan* all_next;
  SlabSpan* all_prev;
};

struct LargeSpan : PageRecord {
  std::atomic<std::uint8_t> state;  ///< slot_state::live or used
  std::size_t bytes;                ///< a multiple of heap_unit_bytes
  LargeSpan* next;                  ///< among those allocated, those cached or the recycled records
  LargeSpan* prev;
};

/// Followed in memory by the free bits and then the states of its slots. What free() reads is in the first 64 bytes.
struct Slab : PageRecord {
  std::uint32_t slots;
  std::uint32_t slot_bytes;
  std::uint64_t reciprocal;
  std::atomic<std::uint8_t>* states;
  SlabSpan* span;
  // The following belong to the lock of the class.
  std::uint32_t free_slots;  ///< neither allocated nor in a thread's cache
  std::uint32_t first_word;  ///< no word of free_bits before this one has a bit set
  Slab* next;                ///< in the class's list of partial or of recycled slabs
  Slab* prev;

  [[nodiscard]] static constexpr std::size_t words(std::uint32_t slots) { return (slots + 63) / 64; }
  [[nodiscard]] static constexpr std::size_t record_bytes(std::uint32_t slots) {
    return sizeof(Slab) + words(slots) * sizeof(std::uint64_t) + slots;
  }
  /// Bit set: the slot is in nobody's hands.
  [[nodiscard]] std::uint64_t* free_bits() noexcept { return reinterpret_cast<std::uint64_t*>(this + 1); }
  /// Slot that `address`, inside the slab, lies in; may be >= slots, in what is lost at the end.
  [[nodiscard]] std::uint32_t slot_of(std::uintptr_t address) const noexcept {
    return static_cast<std::uint32_t>(((address - base) * reciprocal) >> reciprocal_shift);
  }
};

}  // namespace ferry::client
