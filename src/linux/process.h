// Processes of others, by pidfd: safe against reuse of their number. Any thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "linux/fd.h"

namespace ferry::linux {

class Process {
 public:
  Process() = default;
  /// ERRORS: client_gone (no such process), unsupported.
  static Result<Process> open(pid_t pid);
  /// `pidfd` is of the process that has, or had, that number.
  static Process adopt(Fd pidfd, pid_t pid);

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// For poll: readable once the process has ended.
  [[nodiscard]] int fd() const { return fd_.get(); }
  explicit operator bool() const { return fd_.valid(); }

  /// It runs no further instruction and its address space is gone or going. Does not need to be its parent.
  [[nodiscard]] bool ended() const;
  /// Stopped by a signal (job control, SIGSTOP) or a debugger.
  [[nodiscard]] bool stopped() const;
  struct Thread {
    pid_t number;          ///< as the process numbers it
    char state;            ///< R runs or is ready to, S sleeps where a signal can wake it, D where none can, T stopped
    std::uint64_t ran_ns;  ///< on a processor, since it began
  };
  /// Those that there are, as one after the other was looked at. Empty where that cannot be told.
  [[nodiscard]] std::vector<Thread> threads() const;
  struct MappedSpan {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
  };
  /// Its mappings from `begin` to `end`, whole: the first and the last may reach beyond. Any number of them costs as many
  /// calls. ERRORS: unsupported (a kernel before 6.11, or a process that this one may not look into).
  [[nodiscard]] Result<std::vector<MappedSpan>> mappings(std::uint64_t begin, std::uint64_t end) const;
  /// SIGKILL. Quiet if it has ended.
  void kill() const;

 private:
  Fd fd_;
  pid_t pid_ = 0;
};

/// This process may open as many descriptors as its hard limit says. For processes of Ferry's own, not for applications.
void raise_descriptor_limit();

}  // namespace ferry::linux
