// What belongs to the device process as a whole.
#pragma once

#include "wire/control.h"

namespace ferry::device {

/// The queues of this device process; nullptr in any other process.
[[nodiscard]] wire::QueueControl* process_queues();

/// Takes away what a forked process still has of its application and what is stale from then on: the stack of the
/// application's main thread and the free top of its heap. A kernel that follows a pointer there then fails in place
/// of reading old bytes. `stack_address` lies in that stack; the caller must run on another one.
void hide_application_memory(const void* stack_address);

/// True for addresses in the hidden stack.
[[nodiscard]] bool is_application_stack(std::uint64_t address);

}  // namespace ferry::device
