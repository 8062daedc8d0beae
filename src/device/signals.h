// Signals of the device process: faults of waves come in here, crashes are told from them, and the clock that lets
// several waves share a compute unit. Fault handlers run on the wave's alternate stack and are entered again and again
// (SA_NODEFER) while earlier ones wait.
#pragma once

#include <csignal>

#include "device/memory.h"

namespace ferry::device {

/// Of the compute units' clocks. No program's kernel should have a use for it.
inline constexpr int clock_signal = SIGVTALRM;

/// Sets the dispositions of the whole process and the mask of this thread (threads made later inherit it): faults and
/// the clock handled, SIGINT and SIGPIPE ignored, everything else as in a fresh process. `memory` must stay.
/// `adopts`: touches outside the window are told to the manager, too.
void install_signals(const DeviceMemory& memory, bool adopts);

/// The mask that waves run with.
void unblock_signals();

}  // namespace ferry::device
