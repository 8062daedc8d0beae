// Devices and a CPU as the core's machine sees them: a touch of a page that is not mapped (or not for writing) faults,
// and every action is answered at once.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "machine.h"

namespace ferry::core::test {

class Toucher {
 public:
  Toucher(const Config& config, std::uint64_t pages)
      : machine(config), device_maps_(config.device_count, std::vector<int>(pages)), cpu_maps_(pages, 2) {
    EXPECT_TRUE(machine.core.alloc(1, 1, {0, pages}, Placement::automatic).ok());
  }
  void touch(Page page, Access access = Access::read, DeviceId device = 0) {
    const int need = access == Access::write ? 2 : 1;
    for (int tries = 0; device_maps_[device][page] < need; ++tries) {
      ASSERT_LT(tries, 20) << "page " << page << " is never mapped";
      ++faults;
      machine.now += 10'000;
      machine.core.device_fault(machine.now, 1, device, page, access, FaultToken{++machine.last_token});
      settle();
    }
  }
  void touch_cpu(Page page) {
    for (int tries = 0; cpu_maps_[page] == 0; ++tries) {
      ASSERT_LT(tries, 20) << "page " << page << " is never mapped";
      ++faults;
      machine.now += 10'000;
      machine.core.cpu_fault(machine.now, 1, page, Access::write);
      settle();
    }
  }
  /// Answers all that is asked, and lets time pass where the core waits for it.
  void settle() {
    for (;;) {
      machine.take();
      if (machine.open.empty()) {
        const std::uint64_t due = machine.core.next_tick_ns();
        if (machine.core.quiescent() || due == ~std::uint64_t{0}) break;
        machine.now = std::max(machine.now + 1, due);
        machine.core.tick(machine.now);
        continue;
      }
      const Action action = machine.open.front();
      for (Page page = action.pages.first; page < action.pages.end(); ++page) {
        if (action.verb == Verb::revoke_device) device_maps_[action.device][page] = 0;
        if (action.verb == Verb::map_device) {
          device_maps_[action.device][page] = action.prot == Prot::read_write ? 2 : 1;
        }
        if (action.verb == Verb::revoke_cpu) cpu_maps_[page] = 0;
        if (action.verb == Verb::map_cpu) cpu_maps_[page] = 2;
      }
      machine.answer(action.verb);
    }
    machine.said.clear();
    machine.history.clear();
    machine.resumed.clear();
  }
  [[nodiscard]] const Stats& stats() const { return machine.core.stats(); }
  [[nodiscard]] std::uint64_t moved_pages() const { return stats().pages_to_vram + stats().pages_to_system; }

  Machine machine;
  std::uint64_t faults = 0;

 private:
  std::vector<std::vector<int>> device_maps_;  ///< 0 not mapped, 1 to read, 2 to write
  std::vector<int> cpu_maps_;
};

}  // namespace ferry::core::test
