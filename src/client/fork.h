// What fork() means for a program with a session: the child gets all managed memory as it was at the fork, as private
// memory of its own that is filled as it is touched (docs/design/0018-fork.md). It has no session and no devices.
// What execs at once (system, posix_spawn, vfork) is not concerned. All descriptors are close-on-exec.
// Where userfaultfd serves no faults inside system calls (an ordinary user without /dev/userfaultfd), the child gets
// everything at once instead, while the parent waits; what other threads of the parent write meanwhile may or may not be
// in it then.
// The functions are the heap's hooks: called under all its locks, as the last before the fork and the first after it.
#pragma once

#include <cstddef>

namespace ferry::client {

void before_fork();
void after_fork_in_parent();
/// True: the child has its heap, as private memory.
bool after_fork_in_child();

/// In the child of a fork: it has the memory that its parent had.
[[nodiscard]] bool child_has_memory();

}  // namespace ferry::client
