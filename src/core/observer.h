// What the core tells about itself: one call an event, synchronous, for traces, reports and checkers. An observer must
// not call back into the core.
#pragma once

#include <cstdint>

#include "base/status.h"
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
  vram_level,        ///< pages.count_pages is the VRAM in use on the device, in pages
  device_fault_end,  ///< the wave goes on, or (status) ends with an error
  cpu_fault_end,     ///< threads that waited for the pages go on
  queue_eviction,    ///< compute of the device has to leave all units, and still wants some; no pages
  queue_restore,     ///< it has units again; no pages
  unmap_device,      ///< a mapping of the device is being taken away
  prefetch,          ///< the application asked for it; to == vram: to the device, system: home
  duplicate,         ///< the device reads its own copy of pages beside others (no_device: the CPU)
  collapse,          ///< pages with several copies keep one: somebody writes them, or the flag was taken back
};
[[nodiscard]] const char* to_string(EventKind kind);

struct Event {
  std::uint64_t time_ns = 0;
  EventKind kind = EventKind::alloc;
  Cause cause = Cause::none;
  Place to = Place::system;
  Access access = Access::read;
  DeviceId device = no_device;
  DeviceId from = no_device;  ///< migrate_*: whose VRAM they leave; no_device: system memory
  Code status = Code::ok;     ///< of the ends
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
