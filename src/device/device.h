// The device process: one software GPU for one application. Forked from the application's zygote before main, so that
// code and constants are at the same addresses; sees managed memory, and nothing of the application besides.
//
// Threads: one a compute unit (cu.h), the agent on the main thread (agent.h), one that watches for the end of manager
// and application.
// Launches: see queue.h. A failed launch cancels those that stand behind it in its queue when it ends; later ones run.
#pragma once

#include <cstdint>

namespace ferry::device {

struct DeviceStart {
  unsigned device = 0;
  std::uint64_t window_base = 0;
  std::uint64_t window_bytes = 0;
  int system_fd = -1;       ///< system file, offset = address - window_base
  int vram_fd = -1;         ///< this device's VRAM file
  int control_fd = -1;      ///< wire::DeviceControl
  int queue_fd = -1;        ///< wire::QueueControl
  int kick_fd = -1;         ///< eventfd of the manager
  int manager_socket = -1;  ///< device_hello goes there; end of file ends the device
  int files_socket = -1;    ///< the application sends files there that it has mapped; -1: none come
  int owner_socket = -1;    ///< end of file ends the device; -1: none
  unsigned cu_count = 1;
  unsigned waves_per_cu = 1;
};

/// Becomes the device: call in a freshly forked process with one thread. Takes the descriptors over. Ends the process
/// with _exit: 0 when manager or application are gone or the manager says quit, 70 with a line on stderr when it
/// cannot start.
[[noreturn]] void run_device(const DeviceStart& start);

}  // namespace ferry::device
