// What one application holds of the machine's buffers, fences and timelines, by number. The core refuses foreign buffers
// and timelines itself; fences it does not ask about, so what is not in here does not exist for this application.
// Main thread only.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>

#include "base/types.h"
#include "core/work/types.h"
#include "wire/slots.h"

namespace ferry::manager {

/// Small numbers, given again as late as can be.
class SlotPool {
 public:
  explicit SlotPool(std::uint32_t limit) : limit_(limit) {}
  [[nodiscard]] std::optional<std::uint32_t> take() {
    if (next_ < limit_) return next_++;
    if (free_.empty()) return std::nullopt;
    const std::uint32_t slot = free_.front();
    free_.pop_front();
    return slot;
  }
  void give(std::uint32_t slot) { free_.push_back(slot); }

 private:
  std::uint32_t limit_;
  std::uint32_t next_ = 0;
  std::deque<std::uint32_t> free_;
};

struct Handle {
  std::uint32_t slot = 0;
  std::uint32_t holds = 0;  ///< the application closes it as often
};

/// An address of a buffer in the application's window, from its first page on.
struct BufferPlace {
  core::BufferId buffer = 0;
  std::uint64_t count_pages = 0;
  bool armed = false;    ///< registered with the application's userfaultfd: its touches come here
  bool guarded = false;  ///< ... and its writes can be stopped from here
};

struct ClientWork {
  std::map<core::BufferId, Handle> buffers;
  std::map<core::FenceId, Handle> fences;
  std::map<core::TimelineId, Handle> timelines;
  std::map<Page, BufferPlace> places;
  SlotPool buffer_slots{wire::buffer_slots};
  SlotPool fence_slots{wire::fence_slots};
  SlotPool timeline_slots{wire::timeline_slots};
  std::uint32_t jobs = 0;          ///< submitted and not signalled
  std::uint32_t arrays = 0;        ///< merged and not signalled
  std::uint32_t tokens = 0;        ///< exported and still open somewhere
  std::uint32_t asked = 0;         ///< requests that the core has not answered
  std::uint32_t late = 0;          ///< ... that the core does not have yet, as children of forks come first
  std::uint32_t next_group = 1;    ///< of range groups; a number is never given again
  std::set<std::uint32_t> groups;  ///< range groups that exist

  /// The place that the page lies in, or null.
  [[nodiscard]] BufferPlace* place_of(Page page, Page& first) {
    auto it = places.upper_bound(page);
    if (it == places.begin()) return nullptr;
    --it;
    if (page - it->first >= it->second.count_pages) return nullptr;
    first = it->first;
    return &it->second;
  }
};

}  // namespace ferry::manager
