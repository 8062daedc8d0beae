// What the kernel says of one address of this process. Allocates nothing.
#pragma once

#include <cstdint>

namespace ferry::client {

struct OwnMapping {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  bool readable = false;
  bool writable = false;
};

/// False: nothing is mapped there.
bool find_own_mapping(std::uint64_t address, OwnMapping& found);

}  // namespace ferry::client
