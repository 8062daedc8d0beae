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
// | sleeps on another futex word                         | nothing: nobody runs who could wake it                        |
// | sleeps in a call that a signal ends with EINTR (poll) | nothing: programs are not prepared for it                    |
// | is the session's own                                 | nothing: it changes nothing outside the window but what is adopted |
//
// A thread that runs may be about to sleep in a call that a signal ends: it makes the call again (interrupted.h).
//
// Known limit: a thread of the last kind but one that a timer or a peer wakes within these microseconds runs.
#pragma once

#include <cstdint>

namespace ferry::client {

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
