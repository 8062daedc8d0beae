// The machine that a bench runs on: a manager of its own, with its own devices and policy.
#pragma once

#include <string>

#include <sys/types.h>

namespace ferry::bench {

/// What the manager's configuration says about it.
struct Machine {
  std::string vram = "256M";
  unsigned cus = 1;
  std::string granularity = "2M";
  /// Granules brought ahead of a sequential fault; below 0: the manager's default.
  int speculation = -1;
  unsigned copy_threads = 0;  ///< 0: the manager's default
  std::string system = {};    ///< budget of system memory; empty: none
  unsigned devices = 1;       ///< all of them linked to each other
  std::string leave = {};     ///< what is served in place though VRAM could have it; empty: the manager's default
};

/// CPUs that this process may run on.
[[nodiscard]] unsigned usable_cpus();

/// A ferryd on a socket in a directory of its own; ended, and the directory removed, with the object. It gets SIGTERM
/// when this process dies. Made and destroyed by the thread that lives longest: the kernel sends that signal when the
/// thread that made it ends.
class Manager {
 public:
  /// Throws std::system_error where it cannot be started. Whoever connects before it listens is held, not refused.
  explicit Manager(const Machine& machine);
  Manager(const Manager&) = delete;
  Manager& operator=(const Manager&) = delete;
  ~Manager();
  /// For FERRY_SOCKET.
  [[nodiscard]] std::string socket_path() const { return folder_ + "/socket"; }

 private:
  std::string folder_;
  pid_t pid_ = -1;
};

}  // namespace ferry::bench
