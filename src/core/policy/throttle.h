// How many faulting waves a device should have at a time. Waves hide each other's faults, but each brings its own
// working set: when more run than VRAM can serve, granules are evicted while they are in use, and every wave added
// makes all of them slower. The sign is an early refault: a granule wanted again within a quarter of a turnover of
// VRAM after it was evicted. (A walk through more than VRAM holds refaults late, and is no reason to throttle.)
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/digest.h"

namespace ferry::core {

class Throttle {
 public:
  /// `waves`: what a compute unit can hold; `capacity`: slots of the device.
  void configure(unsigned waves, std::uint64_t capacity) {
    most_ = limit_ = std::max(waves, 1U);
    early_ = capacity / 4;
    period_ = std::clamp<std::uint64_t>(capacity / 4, 32, 1024);
  }
  /// A granule got a slot, `distance` evictions after it lost one (or a huge number).
  void note(std::uint64_t distance) {
    ++arrivals_;
    early_refaults_ += distance <= early_ ? 1 : 0;
    if (arrivals_ < period_) {
      return;
    }
    if (early_refaults_ * 4 > arrivals_) {
      limit_ = std::max(limit_ / 2, 1U);
    } else if (early_refaults_ * 16 < arrivals_) {
      limit_ = std::min(limit_ + 1, most_);
    }
    arrivals_ = early_refaults_ = 0;
  }
  /// Waves of one compute unit that may wait in faults before it begins no more; 0: no limit.
  [[nodiscard]] unsigned limit() const { return limit_ == most_ ? 0 : limit_; }
  [[nodiscard]] std::uint64_t digest() const {
    return Digest().add(limit_).add(arrivals_).add(early_refaults_).value();
  }

 private:
  unsigned most_ = 1;
  unsigned limit_ = 1;
  std::uint64_t early_ = 0;
  std::uint64_t period_ = 32;
  std::uint64_t arrivals_ = 0;
  std::uint64_t early_refaults_ = 0;
};

}  // namespace ferry::core
