// Which resident granule goes when room is needed. A device has no accessed bits that the manager can read, so use is
// learnt from faults: a granule's arrival, and each later fault on it (an upgrade to writable, a remapping).
#pragma once

#include <cstdint>
#include <vector>

namespace ferry::core {

/// Order of the slots of one device, by last known use. Intrusive list by slot number: O(1) but for pick().
class VictimQueue {
 public:
  /// `slot` becomes resident and is the most recently used.
  void insert(std::uint32_t slot) {
    if (slot >= links_.size()) {
      links_.resize(slot + 1);
    }
    links_[slot] = {tail_, none, true};
    (tail_ == none ? head_ : links_[tail_].next) = slot;
    tail_ = slot;
    ++size_;
  }
  void remove(std::uint32_t slot) {
    Link& link = links_[slot];
    (link.previous == none ? head_ : links_[link.previous].next) = link.next;
    (link.next == none ? tail_ : links_[link.next].previous) = link.previous;
    link = {};
    --size_;
  }
  void touch(std::uint32_t slot) {
    remove(slot);
    insert(slot);
  }
  /// The least recently used slot that `usable` allows, or none.
  template <typename Usable>
  [[nodiscard]] std::uint32_t pick(Usable&& usable) const {
    for (std::uint32_t slot = head_; slot != none; slot = links_[slot].next) {
      if (usable(slot)) {
        return slot;
      }
    }
    return none;
  }
  [[nodiscard]] std::uint64_t size() const { return size_; }

  static constexpr std::uint32_t none = 0xffff'ffff;

 private:
  struct Link {
    std::uint32_t previous = none;
    std::uint32_t next = none;
    bool present = false;
  };
  std::vector<Link> links_;
  std::uint32_t head_ = none;
  std::uint32_t tail_ = none;
  std::uint64_t size_ = 0;
};

}  // namespace ferry::core
