// What fork() means for a program with a session. The child has neither session nor managed memory: every call fails,
// and touching managed memory ends it with SIGSEGV after a line that says so. What execs at once (system, posix_spawn,
// fork and exec) is not concerned. All descriptors are close-on-exec.
// Where malloc is preloaded the child's heap would be gone with that; it gets a private copy of every span instead.
#pragma once

#include <cstddef>

namespace ferry::client {

/// Registers the handlers, once.
void watch_forks();

/// In the child, for every span of the heap.
void fork_child_span(void* span, std::size_t bytes);

}  // namespace ferry::client
