// Keeps a little of the budget free ahead of those who will want it: memory that is asked for then is there, and nobody
// waits until something else was stored. Nothing is set aside: whoever asks first has it.
// Also the hysteresis of what the machine asks for. Pure; time is what the caller says.
#pragma once

#include <algorithm>
#include <cstdint>

namespace ferry::manager {

class Watermark {
 public:
  Watermark() = default;
  /// `granule_pages`: what leaves at a time.
  Watermark(std::uint64_t budget_pages, std::uint64_t granule_pages)
      : budget_(budget_pages),
        low_(std::min(budget_pages / 16, std::max(budget_pages / 64, 8 * granule_pages))),
        high_(std::min(budget_pages / 8, 2 * low_)) {}

  /// Pages to reclaim now, 0 for none. To be asked again and again.
  [[nodiscard]] std::uint64_t want(std::uint64_t now_ns, std::uint64_t used_pages) {
    if (budget_ == 0 || used_pages + low_ <= budget_) {
      asked_ns_ = 0;
      return 0;
    }
    // What was asked for is on its way, or could not be had.
    if (asked_ns_ != 0 && now_ns - asked_ns_ < patience_ns) return 0;
    asked_ns_ = std::max<std::uint64_t>(now_ns, 1);
    return used_pages + high_ - budget_;
  }

 private:
  static constexpr std::uint64_t patience_ns = 1'000'000;
  std::uint64_t budget_ = 0;
  std::uint64_t low_ = 0;
  std::uint64_t high_ = 0;
  std::uint64_t asked_ns_ = 0;
};

}  // namespace ferry::manager
