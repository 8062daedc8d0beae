// The template process (zygote): forked from the program between its static constructors and main(), so that every
// device process forked from it later has the program's code at the program's addresses and none of its threads.
// It sleeps on a socket until the program asks for a device process or a private manager, and ends both when the
// program has gone. It is forked twice, so that the program's wait() never sees it.
// Owns: the processes. Does not own: what a device process does (device/device.h).
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "base/status.h"
#include "linux/fd.h"
#include "wire/message.h"

namespace ferry::client {

/// Forks the template process unless there is one. Any thread, one at a time. `early`: main() has not begun, so the
/// stack and the ordinary heap can be made unreachable for kernels.
/// ERRORS: no_memory (fork failed, with errno).
Status start_zygote(bool early);

/// Closes this process's end: in a child of the application's fork.
void abandon_zygote();

/// True if [address] is code that device processes have, too: loaded before the template process was forked.
[[nodiscard]] bool zygote_has_code(std::uintptr_t address);

struct DeviceSpawn {
  std::uint32_t device = 0;
  std::uint32_t cu_count = 0;
  std::uint32_t waves_per_cu = 0;
  std::uint32_t granularity_pages = 0;
  std::uint64_t vram_bytes = 0;
  std::uint64_t window_base = 0;
  std::uint64_t window_bytes = 0;
};

/// Order of the descriptors of a device process.
enum DeviceFd : unsigned {
  fd_manager,
  fd_kick,
  fd_system,
  fd_vram,
  fd_device_control,
  fd_queue_control,
  fd_files,  ///< where the application sends files that it has mapped
  device_fd_count
};

/// Forks a device process. The descriptors are copied. ERRORS: device_lost (the template process is gone), no_memory.
Result<pid_t> spawn_device(const DeviceSpawn& spawn, const int (&fds)[device_fd_count]);

/// Starts `path --private-fd N` with the socket as N, and FERRY_* of the environment as they are now. It is a child of
/// the template process, not of the program. ERRORS: as spawn_device.
Result<pid_t> spawn_manager(const char* path, int socket);

}  // namespace ferry::client
