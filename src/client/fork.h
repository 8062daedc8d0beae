// What fork() means for a program with a session. The child has neither session nor managed memory: every call fails,
// and touching managed memory ends it with SIGSEGV after a line that says so. What execs at once (system, posix_spawn,
// fork and exec) is not concerned. All descriptors are close-on-exec.
// Where malloc is preloaded the child's heap would be gone with that. It gets a private copy of every span instead, as
// fork's copy-on-write would give it: the parent brings all pages home before, and waits until the child has copied.
// What other threads of the parent write in between may or may not be in the copy.
#pragma once

#include <cstddef>

namespace ferry::client {

/// Registers the handlers, once.
void watch_forks();

/// In the child, for every span of the heap: what ManagedSpanHooks::fork_child says.
bool fork_child_span(void* span, std::size_t bytes);

}  // namespace ferry::client
