// See window_ranges.h.
#include "client/heap/window_ranges.h"

#include <bit>
#include <new>

#include "client/heap/size_classes.h"

namespace ferry::client {

namespace {
unsigned bin_of(std::size_t units) { return static_cast<unsigned>(std::bit_width(units)) - 1; }
}  // namespace

bool WindowRanges::init(MetadataArena& arena, std::uintptr_t base, std::size_t bytes) noexcept {
  arena_ = &arena;
  base_ = base;
  units_ = bytes >> heap_unit_shift;
  if (units_ == 0 || !ends_.init(arena, units_) || !ends_.prepare(0, 1) || !ends_.prepare(units_ - 1, 1)) return false;
  Range* all = new_range();
  if (all == nullptr) return false;
  add(all, 0, units_);
  return true;
}

WindowRanges::Range* WindowRanges::new_range() noexcept {
  if (recycled_ != nullptr) {
    Range* range = recycled_;
    recycled_ = range->next;
    return range;
  }
  void* memory = arena_->allocate(sizeof(Range));
  return memory == nullptr ? nullptr : new (memory) Range{};
}

void WindowRanges::recycle(Range* range) noexcept {
  if (range == nullptr) return;
  range->next = recycled_;
  recycled_ = range;
}

WindowRanges::Range* WindowRanges::range_at(std::size_t unit) const noexcept {
  return unit < units_ ? ends_.get(unit) : nullptr;
}

void WindowRanges::add(Range* range, std::size_t first, std::size_t units) noexcept {
  const unsigned bin = bin_of(units);
  *range = Range{first, units, nullptr, tails_[bin]};
  if (tails_[bin] != nullptr) {
    tails_[bin]->next = range;
  } else {
    heads_[bin] = range;
  }
  tails_[bin] = range;
  free_units_ += units;
  ++holes_;
  ends_.set(first, range);
  ends_.set(first + units - 1, range);
}

void WindowRanges::remove(Range* range) noexcept {
  const unsigned bin = bin_of(range->units);
  (range->prev != nullptr ? range->prev->next : heads_[bin]) = range->next;
  (range->next != nullptr ? range->next->prev : tails_[bin]) = range->prev;
  free_units_ -= range->units;
  --holes_;
  ends_.set(range->first, nullptr);
  ends_.set(range->first + range->units - 1, nullptr);
}

std::uintptr_t WindowRanges::take(std::size_t bytes, std::size_t align) noexcept {
  const std::size_t units = bytes >> heap_unit_shift;
  if (units == 0 || units > free_units_) return 0;
  const std::uintptr_t at = take_bounded(units, align, patience);
  return at != 0 ? at : take_bounded(units, align, SIZE_MAX);
}

std::uintptr_t WindowRanges::take_bounded(std::size_t units, std::size_t align, std::size_t patience_left) noexcept {
  for (unsigned bin = bin_of(units); bin < bins; ++bin) {
    std::size_t looks = patience_left;
    for (Range* range = heads_[bin]; range != nullptr && looks != 0; range = range->next, --looks) {
      const std::uintptr_t start = base_ + (range->first << heap_unit_shift);
      const std::uintptr_t aligned = (start + align - 1) & ~(align - 1);
      if (aligned < start) continue;
      const std::size_t skipped = (aligned - start) >> heap_unit_shift;
      if (range->units < skipped || range->units - skipped < units) continue;
      return take_from(range, skipped, units);
    }
  }
  return 0;
}

bool WindowRanges::take_at(std::uintptr_t at, std::size_t bytes) noexcept {
  const std::size_t first = (at - base_) >> heap_unit_shift;
  const std::size_t units = bytes >> heap_unit_shift;
  if (at < base_ || units == 0) return false;
  for (unsigned bin = bin_of(units); bin < bins; ++bin) {
    for (Range* range = heads_[bin]; range != nullptr; range = range->next) {
      if (first >= range->first && first - range->first <= range->units &&
          units <= range->units - (first - range->first)) {
        return take_from(range, first - range->first, units) != 0;
      }
    }
  }
  return false;
}

std::uintptr_t WindowRanges::take_from(Range* range, std::size_t skipped, std::size_t units) noexcept {
  const std::size_t first = range->first;
  const std::size_t taken = first + skipped;
  const std::size_t end = taken + units;
  const std::size_t left = range->units - skipped - units;
  // Everything that can fail comes before the first change. The ends of what is taken are prepared too: give() must
  // not fail.
  const bool splits = skipped != 0 && left != 0;
  Range* second = splits ? new_range() : nullptr;
  if (splits && second == nullptr) return 0;
  if (!ends_.prepare(taken, 1) || !ends_.prepare(end - 1, left != 0 ? 2 : 1) ||
      (skipped != 0 && !ends_.prepare(taken - 1, 1))) {
    recycle(second);
    return 0;
  }
  remove(range);
  if (skipped != 0) {
    add(range, first, skipped);
    range = second;
  }
  if (left != 0) {
    add(range, end, left);
  } else {
    recycle(range);
  }
  return base_ + (taken << heap_unit_shift);
}

void WindowRanges::give(std::uintptr_t at, std::size_t bytes) noexcept {
  std::size_t first = (at - base_) >> heap_unit_shift;
  std::size_t units = bytes >> heap_unit_shift;
  Range* range = nullptr;
  if (Range* before = first != 0 ? range_at(first - 1) : nullptr) {
    remove(before);
    first = before->first;
    units += before->units;
    range = before;
  }
  if (Range* after = range_at(first + units)) {
    remove(after);
    units += after->units;
    if (range == nullptr) {
      range = after;
    } else {
      recycle(after);
    }
  }
  if (range == nullptr) range = new_range();
  // Without a record the addresses are lost, not the memory: 64 bytes could not be had.
  if (range != nullptr) add(range, first, units);
}

std::size_t WindowRanges::free_bytes() const noexcept { return free_units_ << heap_unit_shift; }

}  // namespace ferry::client
