// Whatever comes in over a socket, ferryd goes on serving everybody else.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "base/random.h"
#include "ferryd_harness.h"

namespace ferry::manager::test {
namespace {

using wire::MessageType;

class Garbage : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(good_.hello());
    ASSERT_EQ(good_.ask(MessageType::alloc, 0, 512), Code::ok);
  }
  void TearDown() override {
    EXPECT_TRUE(ferryd_.alive());
    EXPECT_EQ(good_.ask(MessageType::alloc, 1024, 512), Code::ok) << "the honest application suffers";
    EXPECT_TRUE(ferryd_.serves());
  }
  Ferryd ferryd_{{"--vram", "8M"}};
  Speaker good_{ferryd_};
  Speaker bad_{ferryd_};
};

TEST_F(Garbage, NoMessage) {
  bad_.send_raw("hello, world", 12);
  EXPECT_TRUE(bad_.closed());
}

TEST_F(Garbage, NothingAtAll) {
  bad_.send_raw("", 0);
  EXPECT_TRUE(bad_.closed());
}

TEST_F(Garbage, TooLong) {
  const std::vector<char> big(wire::message_bytes_max + 1);
  bad_.send_raw(big.data(), big.size());
  EXPECT_TRUE(bad_.closed());
}

TEST_F(Garbage, OtherVersionIsToldSo) {
  wire::MessageHead head{};
  head.magic = wire::control_magic;
  head.version = wire::wire_version + 1;
  head.type = static_cast<std::uint32_t>(MessageType::hello);
  bad_.send_raw(&head, sizeof head);
  ASSERT_TRUE(bad_.got(MessageType::refused));
  wire::Refused refused{};
  ASSERT_TRUE(bad_.in().body(refused));
  EXPECT_EQ(refused.code, static_cast<std::uint32_t>(Code::bad_version));
  EXPECT_EQ(refused.version, wire::wire_version);
  EXPECT_TRUE(bad_.closed());
}

TEST_F(Garbage, RequestsBeforeHello) {
  bad_.send(MessageType::alloc, wire::Span{});
  ASSERT_TRUE(bad_.got(MessageType::refused));
  EXPECT_TRUE(bad_.closed());
}

TEST_F(Garbage, HelloTwice) {
  ASSERT_TRUE(bad_.hello());
  wire::Hello hello{};
  bad_.send(MessageType::hello, hello);
  EXPECT_EQ(bad_.done(), Code::bad_message);
  EXPECT_EQ(bad_.ask(MessageType::alloc, 0, 1), Code::ok);
}

struct BadHello {
  const char* what;
  std::uint64_t base;
  std::uint64_t bytes;
};
class BadWindow : public Garbage, public ::testing::WithParamInterface<BadHello> {};
TEST_P(BadWindow, IsRefused) {
  auto u = std::move(linux::Userfaultfd::open({}).value());
  wire::Hello hello{};
  hello.window_base = GetParam().base;
  hello.window_bytes = GetParam().bytes;
  bad_.send(MessageType::hello, hello, {u.fd()});
  ASSERT_TRUE(bad_.got(MessageType::refused));
  EXPECT_TRUE(bad_.closed());
}
INSTANTIATE_TEST_SUITE_P(All, BadWindow,
                         ::testing::Values(BadHello{"unaligned base", window_base + 4096, window_bytes},
                                           BadHello{"unaligned size", window_base, window_bytes + 4096},
                                           BadHello{"empty", window_base, 0}, BadHello{"at zero", 0, window_bytes},
                                           BadHello{"past the end", 0x7fff'ffe0'0000, window_bytes},
                                           BadHello{"wraps", ~std::uint64_t{0} << 21, std::uint64_t{1} << 40},
                                           BadHello{"too big", window_base, std::uint64_t{1} << 47}),
                         [](const auto& info) {
                           std::string name = info.param.what;
                           for (char& c : name) c = c == ' ' ? '_' : c;
                           return name;
                         });

TEST_F(Garbage, HelloWithoutItsDescriptor) {
  wire::Hello hello{};
  hello.window_base = window_base;
  hello.window_bytes = window_bytes;
  bad_.send(MessageType::hello, hello);
  ASSERT_TRUE(bad_.got(MessageType::refused));
}

TEST_F(Garbage, HelloWithAPipe) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  wire::Hello hello{};
  hello.window_base = window_base;
  hello.window_bytes = window_bytes;
  bad_.send(MessageType::hello, hello, {ends[0]});
  ASSERT_TRUE(bad_.got(MessageType::refused));
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_F(Garbage, BodiesOfOtherSizes) {
  ASSERT_TRUE(bad_.hello());
  for (std::uint32_t type = 0; type < 24; ++type) {
    if (type == static_cast<std::uint32_t>(MessageType::shutdown) ||
        type == static_cast<std::uint32_t>(MessageType::stats)) {
      continue;
    }
    Speaker one(ferryd_);
    ASSERT_TRUE(one.hello());
    const std::uint64_t odd[5] = {};
    one.send(static_cast<MessageType>(type), odd);
    EXPECT_EQ(one.done(), Code::bad_message) << "type " << type;
  }
}

TEST_F(Garbage, RandomMessages) {
  // From a well-formed head on, so that most get past the first check. Never `shutdown`.
  Random random(20240917);
  for (int connection = 0; connection < 40; ++connection) {
    Speaker one(ferryd_);
    if (connection % 2 == 0) {
      ASSERT_TRUE(one.hello());
    }
    for (int i = 0; i < 60; ++i) {
      std::vector<std::byte> bytes(sizeof(wire::MessageHead) + random.below(300));
      for (auto& b : bytes) b = static_cast<std::byte>(random.chance(700) ? 0 : random.next());
      wire::MessageHead head{};
      head.magic = wire::control_magic;
      head.version = wire::wire_version;
      head.type = static_cast<std::uint32_t>(random.below(20));
      if (head.type == static_cast<std::uint32_t>(MessageType::shutdown)) continue;
      head.request = random.next();
      std::memcpy(bytes.data(), &head, sizeof head);
      if (random.chance(600)) bytes.resize(sizeof head + (random.chance(500) ? sizeof(wire::Span) : 8));
      one.send_raw(bytes.data(), bytes.size());
      while (one.receive(0) == linux::Receive::message) {}
    }
  }
}

TEST_F(Garbage, PeerThatNeverReadsIsDropped) {
  ASSERT_TRUE(bad_.hello());
  wire::MessageHead head{};
  head.magic = wire::control_magic;
  head.version = wire::wire_version;
  head.type = static_cast<std::uint32_t>(MessageType::stats);
  bool closed = false;
  for (int i = 0; i < 100'000 && !closed; ++i) {
    const ssize_t n = ::send(bad_.fd(), &head, sizeof head, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EPIPE) closed = true;
    if (n < 0 && errno == EAGAIN) {
      pollfd p{bad_.fd(), POLLOUT, 0};
      ::poll(&p, 1, 1000);
      closed = (p.revents & (POLLHUP | POLLERR)) != 0;
    }
  }
  EXPECT_TRUE(closed) << "its answers pile up";
}

}  // namespace
}  // namespace ferry::manager::test
