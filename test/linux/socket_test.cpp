#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <memory>
#include <string>

#include "linux/socket.h"

namespace ferry::linux {
namespace {

using wire::MessageType;

class Sockets : public ::testing::Test {
 protected:
  Sockets() : in_(std::make_unique<Incoming>()) {
    auto pair = std::move(make_socket_pair().value());
    a_ = std::move(pair.first);
    b_ = std::move(pair.second);
  }
  void raw(const void* data, std::size_t bytes) {
    ASSERT_EQ(::send(a_.get(), data, bytes, 0), static_cast<ssize_t>(bytes));
  }
  Receive receive(int timeout_ms = 10'000) { return receive_message(b_.get(), *in_, timeout_ms); }

  Fd a_;
  Fd b_;
  std::unique_ptr<Incoming> in_;
};

TEST_F(Sockets, BodyTailAndDescriptorsArrive) {
  const wire::Done done{7, 9};
  const int fds[2] = {0, a_.get()};
  ASSERT_TRUE(send_message(a_.get(), MessageType::done, 77, done, fds).ok());
  ASSERT_EQ(receive(), Receive::message);
  EXPECT_EQ(in_->type(), MessageType::done);
  EXPECT_EQ(in_->head.request, 77U);
  wire::Done got{};
  ASSERT_TRUE(in_->body(got));
  EXPECT_EQ(got.code, 7U);
  EXPECT_EQ(got.sys_errno, 9);
  wire::Span other{};
  EXPECT_FALSE(in_->body(other)) << "another size is not this body";
  ASSERT_EQ(in_->fd_count, 2U);
  EXPECT_NE(::fcntl(in_->fds[1].get(), F_GETFD) & FD_CLOEXEC, 0);

  ASSERT_TRUE(send_text(a_.get(), MessageType::reply_text, 1, "hello").ok());
  const int kept = in_->fds[0].get();
  ASSERT_EQ(receive(), Receive::message);
  EXPECT_EQ(in_->text(), "hello");
  EXPECT_EQ(::fcntl(kept, F_GETFD), -1) << "descriptors that nobody took are closed";
}

TEST_F(Sockets, NothingClosedAndSender) {
  EXPECT_EQ(receive(0), Receive::nothing);
  ASSERT_TRUE(send_text(a_.get(), MessageType::stats, 1).ok());
  ASSERT_EQ(receive(), Receive::message);
  EXPECT_EQ(peer_credentials(b_.get()).value().pid, ::getpid());
  EXPECT_EQ(in_->sender_pid, ::getpid());
  EXPECT_EQ(in_->sender_uid, ::getuid());
  a_.reset();
  EXPECT_EQ(receive(), Receive::closed);
  EXPECT_EQ(send_text(b_.get(), MessageType::stats, 1).sys_errno, EPIPE);
}

TEST_F(Sockets, GarbageIsBadAndLeaksNoDescriptor) {
  raw("x", 1);
  EXPECT_EQ(receive(), Receive::bad);
  wire::MessageHead head{};
  raw(&head, sizeof head);
  EXPECT_EQ(receive(), Receive::bad);
  head.magic = wire::control_magic;
  head.version = wire::wire_version + 1;
  raw(&head, sizeof head);
  EXPECT_EQ(receive(), Receive::version);
  const std::string big(wire::message_bytes_max + 100, 'x');
  raw(big.data(), big.size());
  EXPECT_EQ(receive(), Receive::bad);
}

TEST_F(Sockets, TooManyDescriptorsAreToldAndClosed) {
  const int before = ::dup(0);
  ::close(before);
  wire::MessageHead head{};
  head.magic = wire::control_magic;
  head.version = wire::wire_version;
  constexpr unsigned count = wire::message_fds_max + 15;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * count)] = {};
  iovec iov{&head, sizeof head};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  msg.msg_control = control;
  msg.msg_controllen = sizeof control;
  cmsghdr* c = CMSG_FIRSTHDR(&msg);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(sizeof(int) * count);
  for (unsigned i = 0; i < count; ++i) reinterpret_cast<int*>(CMSG_DATA(c))[i] = 0;
  ASSERT_GT(::sendmsg(a_.get(), &msg, 0), 0);
  EXPECT_EQ(receive(), Receive::no_room);
  in_ = std::make_unique<Incoming>();
  const int after = ::dup(0);
  ::close(after);
  EXPECT_EQ(before, after) << "descriptors leaked";
}

TEST_F(Sockets, FullPeerTimesOut) {
  const std::string text(60'000, 'y');
  Status s;
  for (int i = 0; i < 1000 && s.ok(); ++i) s = send_text(a_.get(), MessageType::reply_text, 1, text, 0);
  EXPECT_EQ(s.code, Code::timed_out);
}

TEST(SocketPaths, NobodyThere) {
  EXPECT_EQ(connect_socket("/nonexistent/ferry").status().sys_errno, ENOENT);
  EXPECT_EQ(connect_socket(std::string(300, 'x').c_str()).status().sys_errno, ENAMETOOLONG);
}

}  // namespace
}  // namespace ferry::linux
