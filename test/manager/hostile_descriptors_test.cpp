// Descriptors that a peer sends so that whoever closes them waits, or that would have the manager work for it.
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "../linux/lingerer.h"
#include "ferryd_harness.h"

namespace ferry::manager::test {
namespace {

using linux::test::Lingerer;
using wire::MessageType;

class HostileDescriptors : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(good_.hello());
    ASSERT_TRUE(bad_.hello());
  }
  /// Within the patience, which is far less than what the sockets linger for.
  void honest_is_served(const char* when) {
    ASSERT_TRUE(ferryd_.alive()) << when;
    ASSERT_EQ(good_.ask(MessageType::alloc, 1024, 16), Code::ok) << when;
    ASSERT_EQ(good_.ask(MessageType::free, 1024, 16), Code::ok) << when;
  }
  void stop() {
    ferryd_.signal(SIGSTOP);
    int stopped = 0;
    ASSERT_EQ(::waitpid(ferryd_.pid(), &stopped, WUNTRACED), ferryd_.pid());
  }
  /// The manager alone has the socket when it hears of it: its close is the last.
  template <typename T>
  void send_last(Speaker& by, MessageType type, const T& body, Lingerer& socket) {
    stop();
    by.send(type, body, {socket.closing.get()});
    socket.closing.reset();
    ferryd_.signal(SIGCONT);
  }
  Ferryd ferryd_{{"--vram", "8M"}};
  Speaker good_{ferryd_};
  Speaker bad_{ferryd_};
};

wire::Span span() {
  wire::Span s{};
  s.count_pages = 1;
  s.device = wire::to_system;
  return s;
}

TEST_F(HostileDescriptors, ThatNobodyAskedFor) {
  std::vector<Lingerer> sockets(2);
  for (Lingerer& s : sockets) {
    send_last(bad_, MessageType::svm_reset, span(), s);
    ASSERT_TRUE(bad_.got(MessageType::svm_answer));
    honest_is_served("beside a descriptor that nobody asked for");
  }
}

TEST_F(HostileDescriptors, OfTheWrongKind) {
  std::vector<Lingerer> sockets(4);
  send_last(bad_, MessageType::adopt_faults, wire::AdoptFaults{}, sockets[0]);
  EXPECT_EQ(bad_.done(), Code::bad_message);
  send_last(bad_, MessageType::fork_begin, wire::ForkBegin{1, 0}, sockets[1]);
  EXPECT_EQ(bad_.done(), Code::bad_message);
  send_last(bad_, MessageType::attach_device, wire::AttachDevice{0, 0}, sockets[2]);
  EXPECT_EQ(bad_.done(), Code::bad_message);
  Speaker one(ferryd_);
  wire::Hello hello{};
  hello.window_base = window_base;
  hello.window_bytes = window_bytes;
  send_last(one, MessageType::hello, hello, sockets[3]);
  EXPECT_TRUE(one.got(MessageType::refused));
  EXPECT_TRUE(one.closed());
  honest_is_served("beside descriptors of the wrong kind");
}

/// More than a message may have.
TEST_F(HostileDescriptors, TooMany) {
  Lingerer socket;
  wire::MessageHead head{};
  head.magic = wire::control_magic;
  head.version = wire::wire_version;
  head.type = static_cast<std::uint32_t>(MessageType::svm_reset);
  constexpr std::size_t count = 253;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(count * sizeof(int))> control{};
  iovec part{&head, sizeof head};
  msghdr out{};
  out.msg_iov = &part;
  out.msg_iovlen = 1;
  out.msg_control = control.data();
  out.msg_controllen = control.size();
  cmsghdr* const rights = CMSG_FIRSTHDR(&out);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(count * sizeof(int));
  const std::vector<int> fds(count, socket.closing.get());
  std::memcpy(CMSG_DATA(rights), fds.data(), count * sizeof(int));
  stop();
  ASSERT_GT(::sendmsg(bad_.fd(), &out, MSG_NOSIGNAL), 0);
  socket.closing.reset();
  ferryd_.signal(SIGCONT);
  EXPECT_TRUE(bad_.got(MessageType::refused));
  EXPECT_TRUE(bad_.closed());
  honest_is_served("beside too many descriptors");
}

TEST_F(HostileDescriptors, InTheQueuesOfConnectionsThatAreClosed) {
  Lingerer at_connection;
  Lingerer at_child;
  auto pair = std::move(linux::make_socket_pair().value());
  Speaker child(std::move(pair.second));
  stop();
  bad_.send(MessageType::fork_begin, wire::ForkBegin{1, 0}, {pair.first.get()});
  pair.first.reset();
  child.send(MessageType::svm_set, span());  // nonsense: the fork is ended with what follows unread
  child.send(MessageType::svm_set, span(), {at_child.closing.get()});
  at_child.closing.reset();
  ferryd_.signal(SIGCONT);
  EXPECT_TRUE(child.closed());
  honest_is_served("beside a child whose queue holds one");

  Speaker one(ferryd_);
  ASSERT_TRUE(one.hello());
  stop();
  one.send_raw("nonsense", 8);
  one.send(MessageType::svm_reset, span(), {at_connection.closing.get()});
  at_connection.closing.reset();
  ferryd_.signal(SIGCONT);
  EXPECT_TRUE(one.closed());
  honest_is_served("beside a connection whose queue holds one");
}

/// Each message of a change holds up its sender until the manager reads it, and costs the manager that.
TEST_F(HostileDescriptors, UserfaultfdsThatTellOfMoreThanTheyMay) {
  const auto open = [](std::uint64_t features, bool chosen) {
    linux::Fd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = features;
    EXPECT_TRUE(!chosen || ::ioctl(fd.get(), UFFDIO_API, &api) == 0) << std::strerror(errno);
    return fd;
  };
  const std::uint64_t unmap = UFFD_FEATURE_EVENT_UNMAP;
  for (const std::uint64_t features : {std::uint64_t{UFFD_FEATURE_EVENT_REMAP},
                                       std::uint64_t{UFFD_FEATURE_EVENT_REMOVE}, unmap | UFFD_FEATURE_EVENT_REMAP}) {
    bad_.send(MessageType::adopt_faults, wire::AdoptFaults{}, {open(features, true).get()});
    EXPECT_EQ(bad_.done(), Code::bad_message) << features;
  }
  bad_.send(MessageType::adopt_faults, wire::AdoptFaults{}, {open(0, false).get()});
  EXPECT_EQ(bad_.done(), Code::bad_message) << "its features could still be chosen";
  bad_.send(MessageType::adopt_faults, wire::AdoptFaults{}, {open(unmap, true).get()});
  EXPECT_EQ(bad_.done(), Code::ok);

  Speaker one(ferryd_);
  wire::Hello hello{};
  hello.window_base = window_base;
  hello.window_bytes = window_bytes;
  one.send(MessageType::hello, hello, {open(unmap, true).get()});
  ASSERT_TRUE(one.got(MessageType::refused));
  wire::Refused why{};
  ASSERT_TRUE(one.in().body(why));
  EXPECT_NE(std::strstr(why.text, "more than touches"), nullptr) << why.text;
  honest_is_served("in the end");
}

}  // namespace
}  // namespace ferry::manager::test
