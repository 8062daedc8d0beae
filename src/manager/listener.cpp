#include "manager/listener.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "linux/socket.h"

namespace ferry::manager {
namespace {
constexpr int backlog = 64;
}

Listener::~Listener() {
  if (!fd_ || path_.empty()) return;
  // The lock says that the path is still ours.
  ::unlink(path_.c_str());
  ::unlink((path_ + ".lock").c_str());
}

Result<Listener> Listener::make(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // Whoever finds a socket at the path may connect at once: until it listens it has another name.
  const std::string early = path + "~";
  if (path.empty() || early.size() >= sizeof address.sun_path) return Status(Code::io_error, ENAMETOOLONG);
  std::memcpy(address.sun_path, early.c_str(), early.size() + 1);

  // Two managers that start at once must not both find the old socket dead and remove it, one the other's new one.
  Listener l;
  const std::string lock_path = path + ".lock";
  for (;;) {
    l.lock_.reset(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!l.lock_) return Status(Code::io_error, errno);
    if (::flock(l.lock_.get(), LOCK_EX | LOCK_NB) != 0) {
      return errno == EWOULDBLOCK ? Status(Code::overlap) : Status(Code::io_error, errno);
    }
    // Its last owner may have removed it between the two calls: a lock on a file that is nowhere keeps nobody out.
    struct stat mine {};
    struct stat there {};
    if (::fstat(l.lock_.get(), &mine) == 0 && ::stat(lock_path.c_str(), &there) == 0 && mine.st_ino == there.st_ino) {
      break;
    }
  }
  struct stat st {};
  if (::lstat(path.c_str(), &st) == 0) {
    if (!S_ISSOCK(st.st_mode)) return Status(Code::io_error, EEXIST);
    const auto live = linux::connect_socket(path.c_str());
    if (live.ok()) return Code::overlap;
    if (live.status().sys_errno != ECONNREFUSED) return live.status();
    if (::unlink(path.c_str()) != 0) return Status(Code::io_error, errno);
  }
  l.fd_.reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!l.fd_) return Status(Code::io_error, errno);
  ::unlink(early.c_str());  // of a manager that was killed in between
  const mode_t old = ::umask(0177);
  const int bound = ::bind(l.fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  const int error = errno;
  ::umask(old);
  if (bound != 0) return Status(Code::io_error, error);
  if (::listen(l.fd_.get(), backlog) != 0 || ::rename(early.c_str(), path.c_str()) != 0) {
    const int failed = errno;
    ::unlink(early.c_str());
    return Status(Code::io_error, failed);
  }
  l.path_ = path;
  return l;
}

Result<Listener> Listener::adopt(linux::Fd fd) {
  int listening = 0;
  socklen_t size = sizeof listening;
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) != 0 || listening == 0) {
    return Code::bad_message;
  }
  ::fcntl(fd.get(), F_SETFD, FD_CLOEXEC);
  ::fcntl(fd.get(), F_SETFL, ::fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
  Listener l;
  l.fd_ = std::move(fd);
  return l;
}

linux::Fd Listener::accept() const {
  for (;;) {
    const int fd = ::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC);
    if (fd >= 0 || errno != EINTR) return linux::Fd(fd);
  }
}

}  // namespace ferry::manager
