// Processes of others, by pidfd: safe against reuse of their number. Any thread.
#pragma once

#include <sys/types.h>

#include "base/status.h"
#include "linux/fd.h"

namespace ferry::linux {

class Process {
 public:
  Process() = default;
  /// ERRORS: client_gone (no such process), unsupported.
  static Result<Process> open(pid_t pid);

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// For poll: readable once the process has ended.
  [[nodiscard]] int fd() const { return fd_.get(); }
  explicit operator bool() const { return fd_.valid(); }

  /// It runs no further instruction and its address space is gone or going. Does not need to be its parent.
  [[nodiscard]] bool ended() const;
  /// Stopped by a signal (job control, SIGSTOP) or a debugger.
  [[nodiscard]] bool stopped() const;
  /// The thread of it that it numbers so sleeps in a system call or a page fault that can be interrupted. False too
  /// where that cannot be told.
  [[nodiscard]] bool thread_sleeps(pid_t thread) const;
  /// SIGKILL. Quiet if it has ended.
  void kill() const;

 private:
  Fd fd_;
  pid_t pid_ = 0;
};

/// This process may open as many descriptors as its hard limit says. For processes of Ferry's own, not for applications.
void raise_descriptor_limit();

}  // namespace ferry::linux
