// Data that the program's code comes by wherever it runs (device/program_data.h, in_place): for kernels that may not fault.
#pragma once

#include "client/session.h"

namespace ferry::client {

/// They are adopted, and mapped on the device, which runs, and stay so until the next fork. What cannot be had is left: code
/// that needs it says so. Any thread but the session's own; may wait for the manager.
void map_code_data(Session& session, unsigned device);

/// The device's process is a new one, and has nothing mapped.
void forget_code_data(unsigned device);

}  // namespace ferry::client
