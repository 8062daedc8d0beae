// Finds a manager: connects to one that runs, or has a private one started. Says in words what is wrong otherwise.
// Called while the session opens; keeps no state.
#pragma once

#include <ferry/ferry.h>

#include "base/status.h"
#include "linux/fd.h"

namespace ferry::client {

/// Connects to the manager that listens at `path` and checks whose it is. Invalid, with `error` filled, on
/// manager_lost, not_permitted.
linux::Fd connect_manager(const char* path, ferry_error* error);

/// Starts a private manager. Invalid, with `error` filled, when no ferryd is found or it cannot be started.
linux::Fd start_private_manager(ferry_error* error);

}  // namespace ferry::client
