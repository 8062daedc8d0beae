// What code that may run in a kernel can ask about where it runs.
#pragma once

#include <cstdint>

namespace ferry::device {

struct WaveInfo {
  std::uint64_t launch = 0;  ///< number of the launch on its queue
  std::uint64_t wave = 0;    ///< index of the wave in its grid
  std::uint64_t first = 0;   ///< first item
  std::uint64_t count = 0;   ///< items
  unsigned queue = 0;
  unsigned cu = 0;
  unsigned slot = 0;             ///< of the compute unit
  const char* kernel = nullptr;  ///< name of the launch, NUL-terminated
};

/// True in every thread of a device process.
[[nodiscard]] bool in_device();

/// The wave that calls, or nullptr outside of waves. Valid until the wave ends.
[[nodiscard]] const WaveInfo* current_wave();

}  // namespace ferry::device
