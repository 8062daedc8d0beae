#include "cli/child.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>

#include "cli/exit_code.h"

namespace ferry::cli {
namespace {

[[noreturn]] void become(const ChildSpec& spec, char** arguments, int report) {
  int error = spec.before_exec ? spec.before_exec() : 0;
  if (error == 0) {
    for (const auto& [name, value] : spec.environment) setenv(name.c_str(), value.c_str(), 1);
    sigprocmask(SIG_SETMASK, &spec.mask, nullptr);
    // As a shell would: with PATH, and a script without "#!" goes to sh.
    execvp(arguments[0], arguments);
    error = errno;
  }
  [[maybe_unused]] const ssize_t told = write(report, &error, sizeof error);
  _exit(exit_not_found);
}

}  // namespace

Child start(const ChildSpec& spec) {
  Child child;
  std::vector<char*> arguments;
  for (const std::string& argument : spec.arguments) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  // Closed by a successful exec; else it brings the errno.
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    child.error = errno;
    return child;
  }
  linux::Fd read_end(ends[0]);
  linux::Fd write_end(ends[1]);
  const pid_t pid = fork();
  if (pid < 0) {
    child.error = errno;
    return child;
  }
  if (pid == 0) become(spec, arguments.data(), write_end.get());
  write_end.reset();
  int error = 0;
  ssize_t got;
  while ((got = read(read_end.get(), &error, sizeof error)) < 0 && errno == EINTR) {}
  if (got == static_cast<ssize_t>(sizeof error)) {
    waitpid(pid, nullptr, 0);
    child.error = error != 0 ? error : EIO;
    return child;
  }
  child.pid = pid;
  child.pidfd.reset(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  return child;
}

int wait_for(const Child& child) {
  int status = 0;
  while (waitpid(child.pid, &status, 0) < 0) {
    if (errno != EINTR) return exit_ferry;
  }
  return WIFSIGNALED(status) ? exit_signal + WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace ferry::cli
