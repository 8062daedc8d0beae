// What the core tells about itself: one call an event, synchronous, for traces, reports and checkers. An observer must
// not call back into the core.
#pragma once

#include <cstdint>

#include "base/types.h"
#include "core/action.h"

namespace ferry::core {

enum class EventKind : std::uint8_t {
  device_fault,         ///< a fault was taken in (pages.first is the page)
  device_fault_merged,  ///< it joined one that is being served
  cpu_fault,
  cpu_fault_merged,
  migrate_begin,  ///< pages start to move; to == vram: towards the device, system: home
  migrate_end,
  evict,         ///< pages chosen as victim (their move home, if dirty, follows as migrate_begin)
  drop_clean,    ///< a clean VRAM copy was let go without a copy
  refault,       ///< a page comes back soon after it was evicted
  map_in_place,  ///< the device reaches pages in system memory
  contention_pin,
  fault_failed,  ///< a wave got an error
  alloc,
  free,
  vram_level,  ///< pages.count_pages is the VRAM in use on the device, in pages
};
[[nodiscard]] const char* to_string(EventKind kind);

struct Event {
  std::uint64_t time_ns = 0;
  EventKind kind = EventKind::alloc;
  Cause cause = Cause::none;
  Place to = Place::system;
  Access access = Access::read;
  DeviceId device = no_device;
  ClientId client = 0;
  PageSpan pages;
};

class Observer {
 public:
  virtual void on_event(const Event& event) = 0;

 protected:
  ~Observer() = default;
};

}  // namespace ferry::core
