// The device's agent: carries out the manager's commands that no faulting wave can (wire::DownKind map, revoke, rearm,
// quit). Runs on the device's main thread. Never touches managed memory.
#pragma once

#include <span>

#include "device/cu.h"
#include "device/memory.h"
#include "wire/control.h"

namespace ferry::device {

/// `kick_fd`: the manager's eventfd.
[[noreturn]] void run_agent(wire::DeviceControl& control, DeviceMemory& memory, Units& units, std::span<const Cu> cus,
                            int kick_fd, int manager_socket, int files_socket);

}  // namespace ferry::device
