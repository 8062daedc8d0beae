// Crashes in words: what a kernel did, and what lies at the address. Runs on the scheduler's stack of a compute unit
// or later; allocates nothing and takes no lock.
#pragma once

#include "device/fiber.h"
#include "device/memory.h"
#include "device/text.h"

namespace ferry::device {

/// A line of /proc/self/maps.
struct MappingInfo;
bool visit_mappings(bool (*fn)(void* context, const MappingInfo& mapping), void* context);

struct MappingInfo {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint64_t offset = 0;
  std::uint64_t inode = 0;  ///< 0: no file
  std::uint32_t major = 0;  ///< of the file's device
  std::uint32_t minor = 0;
  bool readable = false;
  bool writable = false;
  bool executable = false;
  bool shared = false;
  char path[160] = {};
};

/// The mapping that holds `address`, or else the next one above it. False: there is none, or the kernel does not say.
/// Takes the same time however many mappings there are, from Linux 6.11 on. No malloc.
bool next_mapping(std::uint64_t address, MappingInfo& found);

/// Calls fn(mapping) in order of addresses until it returns false. False: the kernel does not list them. No malloc.
template <typename Fn>
bool visit_mappings(Fn&& fn) {
  return visit_mappings([](void* context, const MappingInfo& m) { return (*static_cast<Fn*>(context))(m); }, &fn);
}
/// The mapping that holds the address. False: there is none.
[[nodiscard]] bool find_mapping(std::uint64_t address, MappingInfo& found);

/// A sentence that names the kernel, the wave, the access, the address, what lies there, and the instruction.
void describe_crash(const Fiber& fiber, const DeviceMemory& memory, Text& text);

}  // namespace ferry::device
