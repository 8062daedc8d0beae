// How a device fault is timed, for the rows that compare something with it.
#pragma once

#include <cstddef>

#include <ferry/ferry.hpp>

namespace ferry::bench {

/// Microseconds a fault over a fresh range: memory that the CPU has written and the device has never touched, one
/// write a page. `wave` items a wave: all of them (one wave, one fault outstanding), fewer (waves hide each other), or 0:
/// as many as Ferry chooses. For a manager whose granules are 4 KiB.
[[nodiscard]] double sample_device_fault_us(queue& launches, std::size_t wave);

}  // namespace ferry::bench
