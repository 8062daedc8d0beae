// Which resident granule goes when room is needed, for one device. What follows is of VictimKind::probe; the other kinds
// are there to compare it with, and keep all residents in one list.
//
// A device has no accessed bits that the manager could read, so use is learnt from faults, and to learn more of it the
// policy probes: it has the mapping of a granule taken away (batched with an eviction that does so anyway) and sees
// whether, and how soon, a fault asks for it back. Programs walk through their data again and again; then least
// recently used, and first in first out, evict just what comes next. So residents are of three kinds:
//
//   hot     stays. Probed in turn, oldest reference first.
//   probed  hot, its mapping taken away, no fault since. One that stays so for longer than granules that were evicted
//           take to come back is of less use than those: it goes first.
//   cold    came by last, while hot is full. Leaves first in, first out: a walk through more than VRAM holds cycles
//           through these few and hits all that is hot.
//
// The idea of a small queue for newcomers beside a set that proves its reuse is that of 2Q and LIRS; what stands for
// their hits is the probe. Time is the device's count of evictions. Deterministic; O(1) but for busy slots skipped.
#pragma once

#include <cstdint>
#include <vector>

#include "core/digest.h"
#include "core/policy/choice.h"

namespace ferry::core {

class VictimPolicy {
 public:
  static constexpr std::uint32_t none = 0xffff'ffff;

  /// `capacity`: slots of the device.
  void configure(VictimKind kind, std::uint64_t capacity);

  /// `slot` becomes resident. `distance`: evictions since its granule was evicted, or none_distance.
  static constexpr std::uint64_t none_distance = ~std::uint64_t{0};
  void insert(std::uint32_t slot, std::uint64_t now, std::uint64_t distance);
  /// A fault showed that the granule is in use.
  void reference(std::uint32_t slot, std::uint64_t now);
  void remove(std::uint32_t slot);
  /// It was chosen and could not leave: it goes to the far end of what it may be taken from.
  void spare(std::uint32_t slot, std::uint64_t now);

  /// The slot to evict next among those that `usable` allows, or none.
  template <typename Usable>
  [[nodiscard]] std::uint32_t pick(std::uint64_t now, Usable&& usable) const {
    if (kind_ == VictimKind::random) {
      return any_from(now, usable);
    }
    const std::uint32_t dead = lists_[probed].head;
    if (dead != none && now - slots_[dead].since > patience() && usable(dead)) {
      return dead;
    }
    for (const List list : {cold, probed, hot}) {
      const std::uint32_t found = first(list, usable);
      if (found != none) {
        return found;
      }
    }
    return none;
  }
  /// A hot slot whose use is worth asking about now, or none. The caller takes its mapping away and says so.
  template <typename Usable>
  [[nodiscard]] std::uint32_t probe_candidate(std::uint64_t now, Usable&& usable) const {
    if (kind_ != VictimKind::probe) {
      return none;
    }
    const std::uint32_t slot = lists_[hot].head;
    return slot != none && now - slots_[slot].since >= capacity_ / 2 && usable(slot) ? slot : none;
  }
  void set_probed(std::uint32_t slot, std::uint64_t now);

  /// Any slot for which `wanted` holds.
  template <typename Wanted>
  [[nodiscard]] bool any(Wanted&& wanted) const {
    return first(cold, wanted) != none || first(probed, wanted) != none || first(hot, wanted) != none;
  }
  /// `place` names what lies in a slot, since a slot's number means nothing.
  template <typename Place>
  [[nodiscard]] std::uint64_t digest(std::uint64_t now, Place&& place) const {
    Digest d;
    if (kind_ == VictimKind::random) {
      d.add(now);  // it draws the next victim, and where the slots lie is part of the draw
      for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
        d.add(slots_[slot].list == list_count ? none : place(slot));
      }
    }
    for (const Ends& ends : lists_) {
      for (std::uint32_t slot = ends.head; slot != none; slot = slots_[slot].next) {
        d.add(place(slot)).add(now - slots_[slot].since);
      }
      d.add(ends.size);
    }
    return d.add(window_).add(window_ > window_least_ ? now - window_grown_ : 0).add(usual_distance_).value();
  }
  [[nodiscard]] std::uint64_t size() const { return lists_[0].size + lists_[1].size + lists_[2].size; }

 private:
  enum List : std::uint8_t { cold, probed, hot, list_count };
  struct Slot {
    std::uint32_t previous = none;
    std::uint32_t next = none;
    std::uint64_t since = 0;  ///< hot: last known reference; probed: when it was probed; cold: arrival
    List list = list_count;   ///< list_count: not resident
  };
  struct Ends {
    std::uint32_t head = none;
    std::uint32_t tail = none;
    std::uint64_t size = 0;
  };

  void push(std::uint32_t slot, List list, std::uint64_t since);
  void push_first(std::uint32_t slot, List list, std::uint64_t since);
  void unlink(std::uint32_t slot);
  void make_hot(std::uint32_t slot, std::uint64_t now);
  [[nodiscard]] std::uint64_t hot_target() const { return capacity_ > window_ ? capacity_ - window_ : 0; }
  /// Evictions after which a probed slot that nobody asked for counts as dead: what evicted granules take to come
  /// back, and half as much again.
  [[nodiscard]] std::uint64_t patience() const { return usual_distance_ + usual_distance_ / 2 + window_; }

  template <typename Usable>
  [[nodiscard]] std::uint32_t first(List list, Usable& usable) const {
    for (std::uint32_t slot = lists_[list].head; slot != none; slot = slots_[slot].next) {
      if (usable(slot)) {
        return slot;
      }
    }
    return none;
  }

  /// A slot drawn by `now`, or the next one that may go.
  template <typename Usable>
  [[nodiscard]] std::uint32_t any_from(std::uint64_t now, Usable& usable) const {
    const std::uint64_t start = Digest().add(now).value();
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      const auto slot = static_cast<std::uint32_t>((start + i) % slots_.size());
      if (slots_[slot].list != list_count && usable(slot)) {
        return slot;
      }
    }
    return none;
  }

  VictimKind kind_ = VictimKind::probe;
  std::vector<Slot> slots_;
  Ends lists_[list_count];
  std::uint64_t capacity_ = 1;
  /// Slots kept for newcomers: large enough for what runs at a time. Grows when newcomers come back at once.
  std::uint64_t window_ = 1;
  std::uint64_t window_least_ = 1;
  std::uint64_t window_grown_ = 0;    ///< when it last grew
  std::uint64_t usual_distance_ = 1;  ///< running mean of refault distances
};

}  // namespace ferry::core
