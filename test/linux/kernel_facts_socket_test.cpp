// Facts about sockets that tokens rely on (docs/design/0014-buffers.md). The numbers are those of docs/KERNEL.md.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <cstdint>
#include <cstring>

#include "linux/fd.h"

namespace ferry::linux::test {
namespace {

constexpr int patience_ms = 20'000;

struct Pair {
  Fd manager;
  Fd token;
};

Pair make_pair() {
  int fds[2] = {-1, -1};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
  return {Fd(fds[0]), Fd(fds[1])};
}

std::uint64_t cookie(int fd) {
  std::uint64_t value = 0;
  socklen_t size = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &value, &size) == 0 ? value : 0;
}

void send_fd(int socket, int fd) {
  char byte = 0;
  iovec iov{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  msg.msg_control = control;
  msg.msg_controllen = sizeof control;
  cmsghdr* c = CMSG_FIRSTHDR(&msg);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(sizeof fd);
  std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
  EXPECT_EQ(::sendmsg(socket, &msg, 0), 1);
}

Fd receive_fd(int socket) {
  char byte = 0;
  iovec iov{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  msg.msg_control = control;
  msg.msg_controllen = sizeof control;
  EXPECT_EQ(::recvmsg(socket, &msg, MSG_CMSG_CLOEXEC), 1);
  int fd = -1;
  if (const cmsghdr* c = CMSG_FIRSTHDR(&msg)) std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
  return Fd(fd);
}

/// Told to one who asked for nothing?
bool hangs_up(int fd, int timeout_ms) {
  const Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event event{};
  EXPECT_EQ(::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event), 0);
  return ::epoll_wait(epoll.get(), &event, 1, timeout_ms) == 1 && (event.events & EPOLLHUP) != 0;
}

TEST(SocketFacts, K60_ASocketsNumberIsItsOwnWhoeverAsksAndNeverComesBack) {
  std::uint64_t last = 0;
  for (int i = 0; i < 1000; ++i) {
    const Pair pair = make_pair();
    const std::uint64_t number = cookie(pair.token.get());
    EXPECT_NE(number, 0U);
    EXPECT_NE(number, cookie(pair.manager.get()));
    EXPECT_NE(number, last) << "though the socket before has gone, and its inode may be used again";
    last = number;
    const Pair way = make_pair();
    send_fd(way.manager.get(), pair.token.get());
    EXPECT_EQ(cookie(receive_fd(way.token.get()).get()), number);
  }
}

TEST(SocketFacts, K61_AnEndHangsUpWithTheLastDescriptorOfTheOther) {
  Pair pair = make_pair();
  Pair way = make_pair();
  Fd copy(::dup(pair.token.get()));
  send_fd(way.manager.get(), pair.token.get());
  pair.token.reset();
  EXPECT_FALSE(hangs_up(pair.manager.get(), 0));
  copy.reset();
  EXPECT_FALSE(hangs_up(pair.manager.get(), 0)) << "one is in flight";
  Fd received = receive_fd(way.token.get());
  EXPECT_FALSE(hangs_up(pair.manager.get(), 0));
  received.reset();
  EXPECT_TRUE(hangs_up(pair.manager.get(), patience_ms));
}

TEST(SocketFacts, K62_AnEndThatWasWrittenAndShutDownStaysReadable) {
  const Pair pair = make_pair();
  pollfd p{pair.token.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&p, 1, 0), 0);
  EXPECT_EQ(::send(pair.manager.get(), "how", 3, MSG_DONTWAIT), 3);
  EXPECT_EQ(::shutdown(pair.manager.get(), SHUT_WR), 0);
  EXPECT_FALSE(hangs_up(pair.manager.get(), 0)) << "shut down is not let go";
  char text[8];
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(::recv(pair.token.get(), text, sizeof text, MSG_PEEK | MSG_DONTWAIT), 3);
    EXPECT_EQ(::poll(&p, 1, 0), 1);
  }
  EXPECT_EQ(::recv(pair.token.get(), text, sizeof text, MSG_DONTWAIT), 3);
  EXPECT_EQ(::poll(&p, 1, 0), 1) << "even when somebody has read what was there for all";
  EXPECT_EQ(::recv(pair.token.get(), text, sizeof text, MSG_DONTWAIT), 0);
}

}  // namespace
}  // namespace ferry::linux::test
