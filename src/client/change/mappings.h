// What the kernel says of addresses of this process. Allocates nothing.
#pragma once

#include <cstdint>

namespace ferry::client {

struct OwnMapping {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  bool readable = false;
  bool writable = false;
  bool executable = false;
  bool shared = false;  ///< of memory: no hole that was made by munmap
};

/// False: nothing is mapped there.
bool find_own_mapping(std::uint64_t address, OwnMapping& found);

/// Calls fn(context, mapping) for all that overlap [first, end), rising; fn must not map or unmap. False: the kernel did not say.
bool visit_own_mappings(std::uint64_t first, std::uint64_t end, void (*fn)(void*, const OwnMapping&), void* context);

}  // namespace ferry::client
