// Starting a program and knowing whether it could be started. The child gets the descriptors and handlers that this
// process began with, and nothing that this process opened.
#pragma once

#include <sys/types.h>

#include <csignal>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "linux/fd.h"

namespace ferry::cli {

struct Child {
  pid_t pid = 0;
  linux::Fd pidfd;  ///< readable once it has ended
  int error = 0;    ///< errno of what kept it from starting; pid is then 0 and nothing is left to wait for
};

struct ChildSpec {
  std::vector<std::string> arguments;                            ///< arguments[0] is looked up in PATH if it has no '/'
  std::vector<std::pair<std::string, std::string>> environment;  ///< set over the one of this process
  sigset_t mask{};                                               ///< signals that it starts with blocked
  std::function<int()> before_exec;                              ///< in the child; not 0: errno, the child ends
};

/// REQUIRES: this process has one thread.
[[nodiscard]] Child start(const ChildSpec& spec);

/// Exit status as a shell has it: the code, or 128 + signal. Waits for the end.
[[nodiscard]] int wait_for(const Child& child);

}  // namespace ferry::cli
