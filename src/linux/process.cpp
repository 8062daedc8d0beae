#include "linux/process.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace ferry::linux {

Result<Process> Process::open(pid_t pid) {
  if (pid <= 0) return Code::client_gone;
  Process p;
  p.fd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!p.fd_) return Status(errno == ESRCH ? Code::client_gone : Code::unsupported, errno);
  p.pid_ = pid;
  return p;
}

bool Process::ended() const {
  pollfd p{fd_.get(), POLLIN, 0};
  return ::poll(&p, 1, 0) > 0;
}

void Process::kill() const {
  if (fd_) ::syscall(SYS_pidfd_send_signal, fd_.get(), SIGKILL, nullptr, 0);
}

}  // namespace ferry::linux
