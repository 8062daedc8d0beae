#include "core/policy/victim.h"

#include <algorithm>

#include "base/check.h"

namespace ferry::core {

void VictimPolicy::configure(VictimKind kind, std::uint64_t capacity) {
  kind_ = kind;
  capacity_ = std::max<std::uint64_t>(capacity, 1);
  // An eighth, and room for a handful of arrays walked side by side, but never more than half.
  window_least_ =
      std::clamp<std::uint64_t>(capacity_ / 8, std::min<std::uint64_t>(4, capacity_ / 2 + 1), capacity_ / 2 + 1);
  window_ = window_least_;
  usual_distance_ = 2 * capacity_;  // until something comes back: patient
}

void VictimPolicy::push(std::uint32_t slot, List list, std::uint64_t since) {
  Ends& ends = lists_[list];
  slots_[slot] = {ends.tail, none, since, list};
  (ends.tail == none ? ends.head : slots_[ends.tail].next) = slot;
  ends.tail = slot;
  ++ends.size;
}

void VictimPolicy::push_first(std::uint32_t slot, List list, std::uint64_t since) {
  Ends& ends = lists_[list];
  slots_[slot] = {none, ends.head, since, list};
  (ends.head == none ? ends.tail : slots_[ends.head].previous) = slot;
  ends.head = slot;
  ++ends.size;
}

void VictimPolicy::unlink(std::uint32_t slot) {
  const Slot link = slots_[slot];
  FERRY_CHECK_NE(static_cast<int>(link.list), static_cast<int>(list_count));
  Ends& ends = lists_[link.list];
  (link.previous == none ? ends.head : slots_[link.previous].next) = link.next;
  (link.next == none ? ends.tail : slots_[link.next].previous) = link.previous;
  --ends.size;
  slots_[slot] = {};
}

/// Hot, at the price of the hot slot that is of least use if there are enough.
void VictimPolicy::make_hot(std::uint32_t slot, std::uint64_t now) {
  if (lists_[hot].size + lists_[probed].size >= hot_target()) {
    const std::uint32_t least = lists_[probed].head != none ? lists_[probed].head : lists_[hot].head;
    if (least != none) {
      unlink(least);
      push_first(least, cold, now);
    }
  }
  push(slot, hot, now);
}

void VictimPolicy::insert(std::uint32_t slot, std::uint64_t now, std::uint64_t distance) {
  if (slot >= slots_.size()) {
    slots_.resize(std::size_t{slot} + 1);
  }
  FERRY_CHECK_EQ(static_cast<int>(slots_[slot].list), static_cast<int>(list_count));
  if (kind_ != VictimKind::probe) {
    push(slot, cold, now);
    return;
  }
  if (distance != none_distance) {
    const std::uint64_t bounded = std::min(distance, 16 * capacity_);
    usual_distance_ = (usual_distance_ * 7 + bounded + 4) / 8;
    if (distance <= window_) {
      // Evicted while it was in use: the newcomers' queue is too short for what runs at a time.
      window_ = std::min(window_ + 1, capacity_ / 2 + 1);
      window_grown_ = now;
      make_hot(slot, now);
      return;
    }
  }
  if (window_ > window_least_ && now - window_grown_ > 2 * capacity_) {
    --window_;
    window_grown_ = now;
  }
  if (lists_[hot].size + lists_[probed].size < hot_target()) {
    push(slot, hot, now);
  } else {
    push(slot, cold, now);
  }
}

void VictimPolicy::reference(std::uint32_t slot, std::uint64_t now) {
  if (kind_ == VictimKind::lru) {
    spare(slot, now);
    return;
  }
  if (slots_[slot].list == cold) {
    return;  // its turn in the queue says how long it has been used, and that is known
  }
  unlink(slot);
  push(slot, hot, now);
}

void VictimPolicy::remove(std::uint32_t slot) { unlink(slot); }

void VictimPolicy::spare(std::uint32_t slot, std::uint64_t now) {
  const List list = slots_[slot].list;
  unlink(slot);
  push(slot, list, now);
}

void VictimPolicy::set_probed(std::uint32_t slot, std::uint64_t now) {
  unlink(slot);
  push(slot, probed, now);
}

}  // namespace ferry::core
