// Which addresses of the window are taken. Free ranges are found by size, oldest first, so that an address is reused as
// late as can be (a use after free then meets no memory rather than somebody else's), and merged with their neighbours
// through a map of their ends. Its records are out of the window, as all metadata of the heap. Not locked: the caller
// holds the heap's span lock.
#pragma once

#include <cstddef>
#include <cstdint>

#include "client/heap/metadata_arena.h"
#include "client/heap/radix_map.h"

namespace ferry::client {

class WindowRanges {
 public:
  constexpr WindowRanges() = default;

  /// `base` and `bytes` are multiples of heap_unit_bytes. False when there is no memory.
  [[nodiscard]] bool init(MetadataArena& arena, std::uintptr_t base, std::size_t bytes) noexcept;

  /// `bytes` a multiple of heap_unit_bytes, `align` a power of two of at least that. 0 when nothing fits.
  [[nodiscard]] std::uintptr_t take(std::size_t bytes, std::size_t align) noexcept;
  /// Just this range. False: some of it is taken, or there is no memory for records. O(holes).
  [[nodiscard]] bool take_at(std::uintptr_t at, std::size_t bytes) noexcept;
  /// Gives back exactly what take returned, or take_at took.
  void give(std::uintptr_t at, std::size_t bytes) noexcept;

  [[nodiscard]] std::size_t free_bytes() const noexcept;
  /// Free ranges, neighbours merged: as many holes are between what is taken.
  [[nodiscard]] std::size_t holes() const noexcept { return holes_; }

 private:
  struct Range {
    std::size_t first;  // units from base_
    std::size_t units;
    Range* next;
    Range* prev;
  };
  static constexpr unsigned bins = 40;

  /// Ranges looked at in a bin before the next one is asked, which holds larger ones: bounds the time. What would be
  /// missed by it is found by a second pass without the bound, before the window is called full.
  static constexpr std::size_t patience = 64;

  std::uintptr_t take_bounded(std::size_t units, std::size_t align, std::size_t patience_left) noexcept;
  std::uintptr_t take_from(Range* range, std::size_t skipped, std::size_t units) noexcept;
  Range* new_range() noexcept;
  void recycle(Range* range) noexcept;
  void add(Range* range, std::size_t first, std::size_t units) noexcept;
  void remove(Range* range) noexcept;
  [[nodiscard]] Range* range_at(std::size_t unit) const noexcept;

  MetadataArena* arena_ = nullptr;
  std::uintptr_t base_ = 0;
  std::size_t units_ = 0;
  std::size_t free_units_ = 0;
  std::size_t holes_ = 0;
  RadixMap<Range> ends_;  // first and last unit of every free range; nothing for the units between
  Range* heads_[bins] = {};
  Range* tails_[bins] = {};
  Range* recycled_ = nullptr;
};

}  // namespace ferry::client
