// No other thread of the program runs its code while one of these lives. For the few system calls that look at a mapping and
// then replace it: another thread could unmap it in between, and a third be given the address, and what that one wrote
// would be lost. The kernel has no call that replaces a mapping only if it is still the one that was looked at.
//
// | the thread                                           | what is done                                                  |
// |------------------------------------------------------|---------------------------------------------------------------|
// | runs                                                 | a signal: it sleeps in the handler                            |
// | sleeps in a call that changes mappings               | the signal, and it is waited for until it is in the handler   |
// | sleeps on a futex word in the span, not a private one | the same: it goes back to sleep on what is mapped there then |
// | sleeps in a page fault, or in a call that restarts   | the signal: it is in the handler before it runs again         |
// | sleeps in one of Ferry's own waits (wait_on)         | nothing: woken by a device or the manager, it stays in there  |
// | sleeps on another futex word, with no time limit     | a private one: nothing, as nobody runs who could wake it; one that other processes can wake: the signal |
// | sleeps in a call that a signal ends with EINTR (poll, a timed wait) | nothing: programs are not prepared for it     |
// | is the session's own                                 | nothing: it changes nothing outside the window but what is adopted |
//
// A thread that runs may be about to sleep in a call that a signal ends: it makes the call again (interrupted.h).
//
// On a busy machine who stops them is itself held up between two of its calls, for as long as the others' turns last: what
// wakes a thread comes within that time. So whoever was left asleep waits in Ferry's calls: before it goes on from one of
// Ferry's waits, and before it changes mappings by a call that Ferry sees (wait_while_stopped).
//
// Known limit: a thread that sleeps in a call which a signal ends, is woken meanwhile by a timer or a peer, and changes
// mappings from within the C library (a large malloc) or by the number of the call.
#pragma once

#include <atomic>
#include <cstdint>

#include "client/change/change.h"
#include "linux/futex.h"

namespace ferry::client {

/// The thread waits while others count on its standing still. Any thread, signal handlers too; the session's own go on.
/// Who stops threads waits for nobody, so any lock may be held. Nothing is stopped: one load.
FERRY_CHANGE_EXPORT void wait_while_stopped();

/// linux::futex_wait for threads of the program: it does not return while they are stopped.
int wait_on(std::atomic<std::uint32_t>& word, std::uint32_t expected, std::uint64_t timeout_ns = 0);

class StoppedThreads {
 public:
  /// The session's own threads only; one waits for the other. REQUIRES until it ends: no malloc, no lock, nothing that
  /// waits for another thread of the program or of the session.
  StoppedThreads(std::uint64_t begin, std::uint64_t end);
  ~StoppedThreads();
  StoppedThreads(const StoppedThreads&) = delete;
  StoppedThreads& operator=(const StoppedThreads&) = delete;

  /// False: some thread could not be stopped (it blocks the signal, or there is none to be had), and all run.
  [[nodiscard]] bool all() const { return all_; }

 private:
  bool all_ = false;
};

}  // namespace ferry::client
