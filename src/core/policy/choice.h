// Which policies a core runs. Mechanism knows none of them by name: each kind is one implementation of an interface in
// this folder, made by its factory. docs/design/0020-policies.md compares them.
#pragma once

#include <cstdint>

namespace ferry::core {

/// What comes along with a device fault, into VRAM that is free (policy/prefetch.h).
enum class PrefetchKind : std::uint8_t {
  none,
  sequential,  ///< granules after a walk that goes up one by one
  stride,      ///< ... or in equal steps up or down, several walks at a time
  density,     ///< the rest of a part of the block, once the device has most of that part
  both,        ///< stride, then density
};
inline constexpr unsigned prefetch_kind_count = 5;

/// Which granule goes when VRAM is full (policy/victim.h).
enum class VictimKind : std::uint8_t {
  probe,   ///< by use, learnt by taking mappings away and seeing who asks
  lru,     ///< the one whose last fault is longest ago
  fifo,    ///< the one that has been there longest
  random,  ///< any
};
inline constexpr unsigned victim_kind_count = 4;

/// When a granule stays in system memory although a device faults on it (policy/leave.h).
enum class LeaveKind : std::uint8_t {
  never,   ///< a fault always migrates, but for contention
  thrash,  ///< granules that came and went several times, until enough of one was touched in place
  cost,    ///< ... and, with VRAM full, every granule: it has to show that it is used before others leave for it
};
inline constexpr unsigned leave_kind_count = 3;

[[nodiscard]] const char* to_string(PrefetchKind kind);
[[nodiscard]] const char* to_string(VictimKind kind);
[[nodiscard]] const char* to_string(LeaveKind kind);

}  // namespace ferry::core
