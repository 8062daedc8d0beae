// Crashes in words: what a kernel did, and what lies at the address. Runs on the scheduler's stack of a compute unit
// or later; allocates nothing and takes no lock.
#pragma once

#include "device/fiber.h"
#include "device/memory.h"
#include "device/text.h"

namespace ferry::device {

/// A line of /proc/self/maps.
struct MappingInfo {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint64_t offset = 0;
  bool readable = false;
  bool writable = false;
  bool executable = false;
  char path[160] = {};
};

/// The mapping that holds the address. False: there is none.
[[nodiscard]] bool find_mapping(std::uint64_t address, MappingInfo& found);

/// A sentence that names the kernel, the wave, the access, the address, what lies there, and the instruction.
void describe_crash(const Fiber& fiber, const DeviceMemory& memory, Text& text);

}  // namespace ferry::device
