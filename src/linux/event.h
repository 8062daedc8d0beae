// An eventfd as a bell: rung from anywhere, waited for with epoll, edge triggered. Header only.
// Nobody reads it: a peer shares the file's flags, could clear O_NONBLOCK, and would make a reader wait.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "base/status.h"
#include "linux/fd.h"

namespace ferry::linux {

class Bell {
 public:
  Bell() = default;
  static Result<Bell> make() {
    Bell b;
    b.fd_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!b.fd_) return Status(Code::no_memory, errno);
    return b;
  }
  [[nodiscard]] int fd() const { return fd_.get(); }
  void ring() const { ring_fd(fd_.get()); }
  static void ring_fd(int fd) {
    const std::uint64_t one = 1;
    const int saved = errno;
    [[maybe_unused]] const auto n = ::write(fd, &one, sizeof one);
    errno = saved;
  }

 private:
  Fd fd_;
};

}  // namespace ferry::linux
