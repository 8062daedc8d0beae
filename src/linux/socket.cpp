#include "linux/socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <tuple>

namespace ferry::linux {
namespace {

std::int64_t now_ms() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return std::int64_t{t.tv_sec} * 1000 + t.tv_nsec / 1'000'000;
}

// True when `events` (or an error) is there; false when the time has passed.
bool wait_for(int fd, short events, int timeout_ms) {
  const std::int64_t end = timeout_ms < 0 ? 0 : now_ms() + timeout_ms;
  for (;;) {
    int left = timeout_ms;
    if (timeout_ms > 0) left = static_cast<int>(std::max<std::int64_t>(0, end - now_ms()));
    pollfd p{fd, events, 0};
    const int n = ::poll(&p, 1, left);
    if (n > 0) return true;
    if (n == 0) return false;
    if (errno != EINTR) return true;  // let the transfer itself report it
  }
}

struct alignas(cmsghdr) ControlBuffer {
  char bytes[CMSG_SPACE(sizeof(int) * std::tuple_size_v<decltype(Incoming::fds)>) + CMSG_SPACE(sizeof(ucred)) +
             CMSG_SPACE(sizeof(int))];
};

// Of Linux 6.5.
constexpr int pass_pidfd = 76;   // SO_PASSPIDFD
constexpr int sender_pidfd = 4;  // SCM_PIDFD

}  // namespace

Receive receive_message(int socket, Incoming& in, int timeout_ms) {
  for (unsigned i = 0; i < in.fd_count; ++i) in.fds[i].reset();
  in.fd_count = 0;
  in.size = 0;
  in.sender_pid = 0;
  in.sender_uid = 0;
  in.sender.reset();

  ControlBuffer control;
  iovec iov{in.buffer.data(), in.buffer.size()};
  msghdr msg{};
  ssize_t n = 0;
  bool reset = false;
  for (;;) {
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.bytes;
    msg.msg_controllen = sizeof control.bytes;
    n = ::recvmsg(socket, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n >= 0) break;
    if (errno == EINTR) continue;
    // The peer has closed and left messages of this end unread. It is said once, before what the peer sent.
    if (errno == ECONNRESET && !reset) {
      reset = true;
      continue;
    }
    if (errno != EAGAIN && errno != EWOULDBLOCK) return Receive::closed;
    if (timeout_ms == 0 || !wait_for(socket, POLLIN, timeout_ms)) return Receive::nothing;
  }

  // Descriptors first: whatever is wrong with the rest, they are ours to close.
  for (cmsghdr* c = CMSG_FIRSTHDR(&msg); c != nullptr; c = CMSG_NXTHDR(&msg, c)) {
    if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS) {
      ucred who{};
      std::memcpy(&who, CMSG_DATA(c), sizeof who);
      in.sender_pid = who.pid;
      in.sender_uid = who.uid;
    }
    if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == sender_pidfd) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
      if (fd >= 0) in.sender.reset(fd);  // else why there is none: its process has ended
    }
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
      if (in.fd_count < in.fds.size()) {
        in.fds[in.fd_count++] = Fd(fd);
      } else {
        ::close(fd);
      }
    }
  }
  if (n == 0) return Receive::closed;
  in.size = static_cast<std::size_t>(n);
  if ((msg.msg_flags & MSG_TRUNC) != 0 || in.size < sizeof in.head) return Receive::bad;
  std::memcpy(&in.head, in.buffer.data(), sizeof in.head);
  if (in.head.magic != wire::control_magic) return Receive::bad;
  if (in.head.version != wire::wire_version) return Receive::version;
  const bool no_room = (msg.msg_flags & MSG_CTRUNC) != 0 || in.fd_count > wire::message_fds_max;
  return no_room ? Receive::no_room : Receive::message;
}

Status send_bytes(int socket, wire::MessageType type, std::uint64_t request, std::span<const std::byte> body,
                  std::span<const int> fds, std::string_view tail, int timeout_ms) {
  if (sizeof(wire::MessageHead) + body.size() + tail.size() > wire::message_bytes_max ||
      fds.size() > wire::message_fds_max) {
    return Code::bad_message;
  }
  wire::MessageHead head{};
  head.magic = wire::control_magic;
  head.version = wire::wire_version;
  head.type = static_cast<std::uint32_t>(type);
  head.request = request;

  iovec iov[3] = {{&head, sizeof head},
                  {const_cast<std::byte*>(body.data()), body.size()},
                  {const_cast<char*>(tail.data()), tail.size()}};
  msghdr msg{};
  msg.msg_iov = iov;
  msg.msg_iovlen = 3;
  ControlBuffer control;
  if (!fds.empty()) {
    std::memset(control.bytes, 0, sizeof control.bytes);
    msg.msg_control = control.bytes;
    msg.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(c), fds.data(), fds.size_bytes());
  }
  for (;;) {
    if (::sendmsg(socket, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return {};
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) return Status(Code::io_error, errno);
    if (timeout_ms == 0 || !wait_for(socket, POLLOUT, timeout_ms)) return Code::timed_out;
  }
}

Result<std::pair<Fd, Fd>> make_socket_pair() {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return Status(Code::io_error, errno);
  std::pair<Fd, Fd> ends{Fd{pair[0]}, Fd{pair[1]}};
  const int on = 1;
  for (const int fd : pair) {
    if (::setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) != 0) return Status(Code::io_error, errno);
  }
  return ends;
}

Result<Fd> connect_socket(const char* path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (std::strlen(path) >= sizeof address.sun_path) return Status(Code::io_error, ENAMETOOLONG);
  std::strcpy(address.sun_path, path);
  Fd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd) return Status(Code::io_error, errno);
  while (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    if (errno != EINTR) return Status(Code::io_error, errno);
  }
  return fd;
}

bool is_message_socket(int fd) {
  const auto option = [fd](int name) {
    int value = -1;
    socklen_t size = sizeof value;
    return ::getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
  };
  return option(SO_DOMAIN) == AF_UNIX && option(SO_TYPE) == SOCK_SEQPACKET && option(SO_ACCEPTCONN) == 0;
}

bool ask_for_sender(int socket) {
  const int on = 1;
  return ::setsockopt(socket, SOL_SOCKET, pass_pidfd, &on, sizeof on) == 0;
}

Result<PeerCredentials> peer_credentials(int socket) {
  ucred who{};
  socklen_t size = sizeof who;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &size) != 0) return Status(Code::io_error, errno);
  return PeerCredentials{who.pid, who.uid, who.gid};
}

}  // namespace ferry::linux
