// What a fork's child may do with the window's memory: what its parent allowed itself (mprotect). The kernel cannot keep it, as
// every managed span is kept from children, and mapped anew in them.
#pragma once

namespace ferry::client {

struct Session;

/// From now on forks look for protections. Any thread.
void note_protection();
/// What this process's next child may do is as it is now. By the thread that forks; allocates nothing from a heap.
void freeze_protections(const Session& session);
/// In the child, where its memory is mapped, and what it is not to have is gone. False: the kernel refused.
bool apply_protections();

}  // namespace ferry::client
