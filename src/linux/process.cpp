#include "linux/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

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

namespace {

/// Of a stat file of /proc; 0: it cannot be read.
char state_in(const char* path) {
  char text[512];
  const Fd file(::open(path, O_RDONLY | O_CLOEXEC));
  if (!file) return 0;
  const ssize_t n = ::read(file.get(), text, sizeof text - 1);
  if (n <= 0) return 0;
  text[n] = '\0';
  // The name, which may hold anything, ends at the last parenthesis.
  const char* after = std::strrchr(text, ')');
  return after != nullptr && after + 2 < text + n ? after[2] : '\0';
}

}  // namespace

bool Process::stopped() const {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/stat", pid_);
  const char state = state_in(path);
  return (state == 'T' || state == 't') && !ended();
}

bool Process::thread_sleeps(pid_t thread) const {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid_, thread);
  return state_in(path) == 'S' && !ended();
}

void Process::kill() const {
  if (fd_) ::syscall(SYS_pidfd_send_signal, fd_.get(), SIGKILL, nullptr, 0);
}

void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
}

}  // namespace ferry::linux
