// Data that the program's code comes by wherever it runs (device/program_data.h, in_place): for kernels that may not fault.
#pragma once

#include <cstdint>

#include "client/session.h"

namespace ferry::client {

/// They are adopted, and mapped on the device, which runs, and stay so until the next fork. What cannot be had is left: code
/// that needs it says so. Any thread but the session's own; may wait for the manager.
void map_code_data(Session& session, unsigned device);

/// The device's process is a new one, and has nothing mapped.
void forget_code_data(unsigned device);

/// A fork has taken them from all devices: those that had them have them again, for jobs that wait already.
void map_code_data_again(Session& session);

/// Jobs of some device count on them: what the program releases is what it knows of, and not what shares a page with it.
[[nodiscard]] bool code_data_are_needed();
/// [begin, end) is cut to its first part that has none of them. False: it has no such part.
[[nodiscard]] bool cut_at_code_data(std::uint64_t& begin, std::uint64_t& end);

}  // namespace ferry::client
