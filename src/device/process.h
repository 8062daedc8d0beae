// What belongs to the device process as a whole.
#pragma once

#include "wire/control.h"

namespace ferry::device {

/// The queues of this device process; nullptr in any other process.
[[nodiscard]] wire::QueueControl* process_queues();

/// The environment's strings and the program's name move to memory of the device's own, and unused heap is given back.
void keep_own_environment();

/// Takes away the stack of the application's main thread, so that a kernel that follows a pointer there does not read old
/// bytes. `stack_address` lies in that stack; the caller must run on another one. After keep_own_environment().
void hide_application_stack(const void* stack_address);

/// True for addresses in the hidden stack.
[[nodiscard]] bool is_application_stack(std::uint64_t address);

}  // namespace ferry::device
