// Input and output as this library exports them: libc's, and where that fails with EFAULT for managed memory that the
// kernel could not reach, brought home and tried again (change.h, bring_for_kernel). Costs a call through a pointer.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstdio>

#include "client/change/change.h"
#include "client/change/direct.h"
#include "client/change/libc.h"

using ferry::client::bring_for_kernel;
using ferry::client::Libc;

namespace {

/// Others may take the pages away again before the next try: as often as this, then the error is told.
constexpr int tries_max = 64;
/// stdio copies smaller blocks through its own buffer.
constexpr std::size_t direct_min = 1024;

/// Calls `io`; while it fails with EFAULT and `bring` finds managed memory to bring, again.
template <typename Io, typename Bring>
auto with_memory(Io&& io, Bring&& bring) {
  auto result = io();
  for (int tries = 0; result < 0 && errno == EFAULT && tries < tries_max; ++tries) {
    if (!bring()) {
      errno = EFAULT;
      break;
    }
    result = io();
  }
  return result;
}

bool bring_all(const iovec* parts, int count, bool kernel_writes) {
  bool some = false;
  for (int i = 0; i < count && i < IOV_MAX; ++i) {
    some |= bring_for_kernel(parts[i].iov_base, parts[i].iov_len, kernel_writes);
  }
  return some;
}

bool bring_message(const msghdr* message, bool kernel_writes) {
  bool some = bring_all(message->msg_iov, static_cast<int>(message->msg_iovlen), kernel_writes);
  some |= bring_for_kernel(message->msg_name, message->msg_namelen, kernel_writes);
  some |= bring_for_kernel(message->msg_control, message->msg_controllen, kernel_writes);
  return some;
}

/// A datagram whose bytes the kernel cannot place is gone: its memory is brought before.
bool loses_on_fault(int fd, const void* buffer) {
  if (!ferry::client::kernel_needs_help(buffer)) return false;
  int type = 0;
  socklen_t bytes = sizeof type;
  const int before = errno;
  const bool datagrams = ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &bytes) == 0 && type != SOCK_STREAM;
  errno = before;
  return datagrams;
}

/// A file's read or write that stopped where the kernel could not reach on: programs take a short one for the file's end.
template <typename Io>
ssize_t go_on(int fd, const void* buffer, std::size_t bytes, ssize_t done, bool kernel_writes, Io&& io) {
  struct stat file {};
  while (done > 0 && static_cast<std::size_t>(done) < bytes) {
    const auto* rest = static_cast<const char*>(buffer) + done;
    const std::size_t left = bytes - static_cast<std::size_t>(done);
    const int before = errno;
    if (!ferry::client::touches_managed(rest, 1) || ::fstat(fd, &file) != 0 || !S_ISREG(file.st_mode) ||
        !bring_for_kernel(rest, left, kernel_writes)) {
      errno = before;
      return done;
    }
    const ssize_t more = io(static_cast<std::size_t>(done));
    errno = before;
    if (more <= 0) return done;
    done += more;
  }
  return done;
}

constinit Libc<decltype(&::read)> libc_read("read");
constinit Libc<decltype(&::write)> libc_write("write");
constinit Libc<decltype(&::pread)> libc_pread("pread");
constinit Libc<decltype(&::pwrite)> libc_pwrite("pwrite");
constinit Libc<decltype(&::readv)> libc_readv("readv");
constinit Libc<decltype(&::writev)> libc_writev("writev");
constinit Libc<decltype(&::preadv)> libc_preadv("preadv");
constinit Libc<decltype(&::pwritev)> libc_pwritev("pwritev");
constinit Libc<decltype(&::preadv2)> libc_preadv2("preadv2");
constinit Libc<decltype(&::pwritev2)> libc_pwritev2("pwritev2");
constinit Libc<decltype(&::send)> libc_send("send");
constinit Libc<decltype(&::sendto)> libc_sendto("sendto");
constinit Libc<decltype(&::sendmsg)> libc_sendmsg("sendmsg");
constinit Libc<decltype(&::recv)> libc_recv("recv");
constinit Libc<decltype(&::recvfrom)> libc_recvfrom("recvfrom");
constinit Libc<decltype(&::recvmsg)> libc_recvmsg("recvmsg");
constinit Libc<decltype(&::getrandom)> libc_getrandom("getrandom");
constinit Libc<decltype(&::fread)> libc_fread("fread");
constinit Libc<decltype(&::fwrite)> libc_fwrite("fwrite");

/// A read of a file past the page cache puts the bytes where the pages were when it began: they are kept there. Where they
/// cannot be kept, the file is read into memory that does not move. `io` reads into the parts that it is given.
template <typename Io>
ssize_t read_directly(const iovec* parts, std::size_t count, Io&& io) {
  ferry::client::DirectPins pins;
  if (pins.add(parts, count)) return io(parts, static_cast<int>(count));
  const ferry::client::Bounce bounce(parts, count);
  if (!bounce) return -1;
  const iovec whole{bounce.base(), bounce.bytes()};
  const ssize_t done = io(&whole, 1);
  if (done > 0 && !bounce.give(static_cast<std::size_t>(done))) return -1;
  return done;
}

ssize_t read_at(int fd, void* buffer, std::size_t bytes, off_t offset) {
  const iovec all{buffer, bytes};
  if (ferry::client::could_move(buffer, bytes) && ferry::client::is_direct_file(fd)) {
    return read_directly(&all, 1, [&](const iovec* parts, int) {
      return with_memory([&] { return libc_pread.get()(fd, parts->iov_base, bytes, offset); },
                         [&] { return bring_for_kernel(buffer, bytes, true); });
    });
  }
  const auto io = [&](std::size_t done) {
    return libc_pread.get()(fd, static_cast<char*>(buffer) + done, bytes - done, offset + static_cast<off_t>(done));
  };
  const ssize_t done = with_memory([&] { return io(0); }, [&] { return bring_for_kernel(buffer, bytes, true); });
  return go_on(fd, buffer, bytes, done, true, io);
}

ssize_t write_at(int fd, const void* buffer, std::size_t bytes, off_t offset) {
  const auto io = [&](std::size_t done) {
    return libc_pwrite.get()(fd, static_cast<const char*>(buffer) + done, bytes - done,
                             offset + static_cast<off_t>(done));
  };
  const ssize_t done = with_memory([&] { return io(0); }, [&] { return bring_for_kernel(buffer, bytes, false); });
  return go_on(fd, buffer, bytes, done, false, io);
}

/// readv and its like. The array of parts may itself be managed memory; the kernel says what is wrong with it.
template <typename Io>
ssize_t read_parts(int fd, const iovec* parts, int count, Io&& io) {
  bool some = false;
  if (count > 0 && count <= IOV_MAX && ferry::client::is_direct_file(fd)) {
    for (int i = 0; i < count; ++i) some = some || ferry::client::could_move(parts[i].iov_base, parts[i].iov_len);
  }
  const auto attempt = [&](const iovec* into, int number) {
    return with_memory([&] { return io(into, number); }, [&] { return bring_all(parts, count, true); });
  };
  return some ? read_directly(parts, static_cast<std::size_t>(count), attempt) : attempt(parts, count);
}

}  // namespace

namespace ferry::client {

void find_libc_io() {
  static_cast<void>(libc_read.get());
  static_cast<void>(libc_write.get());
  static_cast<void>(libc_pread.get());
  static_cast<void>(libc_pwrite.get());
  static_cast<void>(libc_readv.get());
  static_cast<void>(libc_writev.get());
  static_cast<void>(libc_preadv.get());
  static_cast<void>(libc_pwritev.get());
  static_cast<void>(libc_preadv2.get());
  static_cast<void>(libc_pwritev2.get());
  static_cast<void>(libc_send.get());
  static_cast<void>(libc_sendto.get());
  static_cast<void>(libc_sendmsg.get());
  static_cast<void>(libc_recv.get());
  static_cast<void>(libc_recvfrom.get());
  static_cast<void>(libc_recvmsg.get());
  static_cast<void>(libc_getrandom.get());
  static_cast<void>(libc_fread.get());
  static_cast<void>(libc_fwrite.get());
  // Where malloc is preloaded its copies of these functions come before: they find theirs when they are called.
  const int saved_errno = errno;
  msghdr nothing{};
  static_cast<void>(::read(-1, nullptr, 0));
  static_cast<void>(::write(-1, nullptr, 0));
  static_cast<void>(::pread(-1, nullptr, 0, 0));
  static_cast<void>(::pwrite(-1, nullptr, 0, 0));
  static_cast<void>(::send(-1, nullptr, 0, 0));
  static_cast<void>(::recv(-1, nullptr, 0, 0));
  static_cast<void>(::sendmsg(-1, &nothing, 0));
  static_cast<void>(::recvmsg(-1, &nothing, 0));
  errno = saved_errno;
}

}  // namespace ferry::client

FERRY_INTERPOSED ssize_t read(int fd, void* buffer, std::size_t bytes) {
  const iovec all{buffer, bytes};
  if (ferry::client::could_move(buffer, bytes) && ferry::client::is_direct_file(fd)) {
    return read_directly(&all, 1, [&](const iovec* parts, int) {
      return with_memory([&] { return libc_read.get()(fd, parts->iov_base, bytes); },
                         [&] { return bring_for_kernel(buffer, bytes, true); });
    });
  }
  const auto io = [&](std::size_t done) {
    return libc_read.get()(fd, static_cast<char*>(buffer) + done, bytes - done);
  };
  const ssize_t done = with_memory([&] { return io(0); }, [&] { return bring_for_kernel(buffer, bytes, true); });
  return go_on(fd, buffer, bytes, done, true, io);
}

FERRY_INTERPOSED ssize_t write(int fd, const void* buffer, std::size_t bytes) {
  const auto io = [&](std::size_t done) {
    return libc_write.get()(fd, static_cast<const char*>(buffer) + done, bytes - done);
  };
  const ssize_t done = with_memory([&] { return io(0); }, [&] { return bring_for_kernel(buffer, bytes, false); });
  return go_on(fd, buffer, bytes, done, false, io);
}

FERRY_INTERPOSED ssize_t pread(int fd, void* buffer, std::size_t bytes, off_t offset) {
  return read_at(fd, buffer, bytes, offset);
}
FERRY_INTERPOSED ssize_t pread64(int fd, void* buffer, std::size_t bytes, off64_t offset) {
  return read_at(fd, buffer, bytes, offset);
}
FERRY_INTERPOSED ssize_t pwrite(int fd, const void* buffer, std::size_t bytes, off_t offset) {
  return write_at(fd, buffer, bytes, offset);
}
FERRY_INTERPOSED ssize_t pwrite64(int fd, const void* buffer, std::size_t bytes, off64_t offset) {
  return write_at(fd, buffer, bytes, offset);
}

FERRY_INTERPOSED ssize_t readv(int fd, const iovec* parts, int count) {
  return read_parts(fd, parts, count,
                    [fd](const iovec* into, int number) { return libc_readv.get()(fd, into, number); });
}
FERRY_INTERPOSED ssize_t writev(int fd, const iovec* parts, int count) {
  return with_memory([&] { return libc_writev.get()(fd, parts, count); },
                     [&] { return bring_all(parts, count, false); });
}
FERRY_INTERPOSED ssize_t preadv(int fd, const iovec* parts, int count, off_t offset) {
  return read_parts(fd, parts, count,
                    [=](const iovec* into, int number) { return libc_preadv.get()(fd, into, number, offset); });
}
FERRY_INTERPOSED ssize_t preadv64(int fd, const iovec* parts, int count, off64_t offset) {
  return read_parts(fd, parts, count,
                    [=](const iovec* into, int number) { return libc_preadv.get()(fd, into, number, offset); });
}
FERRY_INTERPOSED ssize_t pwritev(int fd, const iovec* parts, int count, off_t offset) {
  return with_memory([&] { return libc_pwritev.get()(fd, parts, count, offset); },
                     [&] { return bring_all(parts, count, false); });
}
FERRY_INTERPOSED ssize_t pwritev64(int fd, const iovec* parts, int count, off64_t offset) {
  return with_memory([&] { return libc_pwritev.get()(fd, parts, count, offset); },
                     [&] { return bring_all(parts, count, false); });
}
FERRY_INTERPOSED ssize_t preadv2(int fd, const iovec* parts, int count, off_t offset, int flags) {
  return read_parts(fd, parts, count,
                    [=](const iovec* into, int number) { return libc_preadv2.get()(fd, into, number, offset, flags); });
}
FERRY_INTERPOSED ssize_t pwritev2(int fd, const iovec* parts, int count, off_t offset, int flags) {
  return with_memory([&] { return libc_pwritev2.get()(fd, parts, count, offset, flags); },
                     [&] { return bring_all(parts, count, false); });
}

FERRY_INTERPOSED ssize_t send(int fd, const void* buffer, std::size_t bytes, int flags) {
  return with_memory([&] { return libc_send.get()(fd, buffer, bytes, flags); },
                     [&] { return bring_for_kernel(buffer, bytes, false); });
}
FERRY_INTERPOSED ssize_t sendto(int fd, const void* buffer, std::size_t bytes, int flags, const sockaddr* to,
                                socklen_t to_bytes) {
  return with_memory([&] { return libc_sendto.get()(fd, buffer, bytes, flags, to, to_bytes); },
                     [&] {
                       const bool some = bring_for_kernel(to, to_bytes, false);
                       return bring_for_kernel(buffer, bytes, false) || some;
                     });
}
FERRY_INTERPOSED ssize_t sendmsg(int fd, const msghdr* message, int flags) {
  return with_memory([&] { return libc_sendmsg.get()(fd, message, flags); },
                     [&] {
                       const bool some = bring_for_kernel(message, sizeof *message, false);
                       return bring_message(message, false) || some;
                     });
}
FERRY_INTERPOSED ssize_t recv(int fd, void* buffer, std::size_t bytes, int flags) {
  if (loses_on_fault(fd, buffer)) static_cast<void>(bring_for_kernel(buffer, bytes, true));
  return with_memory([&] { return libc_recv.get()(fd, buffer, bytes, flags); },
                     [&] { return bring_for_kernel(buffer, bytes, true); });
}
FERRY_INTERPOSED ssize_t recvfrom(int fd, void* buffer, std::size_t bytes, int flags, sockaddr* from,
                                  socklen_t* from_bytes) {
  if (loses_on_fault(fd, buffer)) static_cast<void>(bring_for_kernel(buffer, bytes, true));
  return with_memory([&] { return libc_recvfrom.get()(fd, buffer, bytes, flags, from, from_bytes); },
                     [&] {
                       const bool some = from_bytes != nullptr && bring_for_kernel(from, *from_bytes, true);
                       return bring_for_kernel(buffer, bytes, true) || some;
                     });
}
FERRY_INTERPOSED ssize_t recvmsg(int fd, msghdr* message, int flags) {
  if (message != nullptr && message->msg_iovlen != 0 && loses_on_fault(fd, message->msg_iov[0].iov_base)) {
    static_cast<void>(bring_message(message, true));
  }
  return with_memory([&] { return libc_recvmsg.get()(fd, message, flags); },
                     [&] {
                       const bool some = bring_for_kernel(message, sizeof *message, true);
                       return bring_message(message, true) || some;
                     });
}
FERRY_INTERPOSED ssize_t getrandom(void* buffer, std::size_t bytes, unsigned flags) {
  return with_memory([&] { return libc_getrandom.get()(buffer, bytes, flags); },
                     [&] { return bring_for_kernel(buffer, bytes, true); });
}

// stdio reads and writes large blocks right in the caller's memory, by calls inside of libc that nobody else sees.
FERRY_INTERPOSED std::size_t fread(void* buffer, std::size_t size, std::size_t count, FILE* file) {
  if (size * count >= direct_min) static_cast<void>(bring_for_kernel(buffer, size * count, true));
  return libc_fread.get()(buffer, size, count, file);
}
FERRY_INTERPOSED std::size_t fwrite(const void* buffer, std::size_t size, std::size_t count, FILE* file) {
  if (size * count >= direct_min) static_cast<void>(bring_for_kernel(buffer, size * count, false));
  return libc_fwrite.get()(buffer, size, count, file);
}
