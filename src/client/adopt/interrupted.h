// System calls that a handled signal ends with EINTR whatever its handler was installed with (signal(7)): poll, nanosleep,
// a futex with a time limit. Programs that use no signals need not be prepared for it, so a stop must not show.
#pragma once

#include <ucontext.h>

namespace ferry::client {

/// Calls in which threads sleep long, and which a handled signal ends with EINTR. A thread that sleeps in one is left alone.
[[nodiscard]] bool ends_by_signal(long call, unsigned long first_argument);

/// Of the handler of `signal`, which blocks all others, before it returns: where the signal has ended such a call that had only just begun, it is made
/// again, as the kernel does for others. Not where another signal waits that may have ended it, too.
/// Known limits: the number of the call is no longer in any register, and is read from the code before it; code that brings it
/// in a way which is not known there (syscall(2) of the C library) sees EINTR. x86-64 only: elsewhere the first argument
/// is lost as well.
void make_call_again(int signal, ucontext_t& context);

}  // namespace ferry::client
