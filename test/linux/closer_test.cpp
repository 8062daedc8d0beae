#include "linux/closer.h"

#include <poll.h>

#include "lingerer.h"
#include "linux/socket.h"

namespace ferry::linux::test {
namespace {

constexpr int patience_ms = 60'000;

bool rung(const Bell& bell) {
  pollfd p{bell.fd(), POLLIN, 0};
  return ::poll(&p, 1, patience_ms) == 1;
}

/// The other end of what is being closed hears of it.
bool hangs_up(int fd) {
  pollfd p{fd, 0, 0};
  return ::poll(&p, 1, patience_ms) == 1 && (p.revents & POLLHUP) != 0;
}

TEST(Closing, OthersAreClosedBesideOnesThatTakeForEver) {
  const Bell bell = std::move(Bell::make().value());
  Lingerer sockets[3];
  {
    Closer closer(bell);
    for (Lingerer& s : sockets) closer.close(std::move(s.closing));
    for (int i = 0; i < 200; ++i) {
      auto pair = std::move(make_socket_pair().value());
      closer.close(std::move(pair.first));
      ASSERT_TRUE(hangs_up(pair.second.get())) << i;
    }
    EXPECT_TRUE(rung(bell));
  }
  // The closer has gone without waiting for them.
  for (Lingerer& s : sockets) s.reader.reset();
}

TEST(Closing, ASocketIsOverAtOnceAndWhatItsPeerWasToldCanStillBeRead) {
  const Bell bell = std::move(Bell::make().value());
  Closer closer(bell);
  auto pair = std::move(make_socket_pair().value());
  ASSERT_TRUE(send_text(pair.first.get(), wire::MessageType::reply_text, 1, "last words").ok());
  ASSERT_TRUE(send_text(pair.second.get(), wire::MessageType::reply_text, 1, "unread").ok());
  closer.close_socket(std::move(pair.first));
  EXPECT_FALSE(send_text(pair.second.get(), wire::MessageType::reply_text, 1, "too late").ok());
  auto in = std::make_unique<Incoming>();
  ASSERT_EQ(receive_message(pair.second.get(), *in, patience_ms), Receive::message);
  EXPECT_EQ(in->text(), "last words");
  EXPECT_EQ(receive_message(pair.second.get(), *in, patience_ms), Receive::closed);
}

TEST(Closing, ThatLeavesMessagesUnreadKeepsNobodyFromTheLastWords) {
  auto pair = std::move(make_socket_pair().value());
  ASSERT_TRUE(send_text(pair.first.get(), wire::MessageType::reply_text, 1, "last words").ok());
  ASSERT_TRUE(send_text(pair.second.get(), wire::MessageType::reply_text, 1, "unread").ok());
  pair.first.reset();
  auto in = std::make_unique<Incoming>();
  ASSERT_EQ(receive_message(pair.second.get(), *in, patience_ms), Receive::message);
  EXPECT_EQ(in->text(), "last words");
  EXPECT_EQ(receive_message(pair.second.get(), *in, patience_ms), Receive::closed);
}

}  // namespace
}  // namespace ferry::linux::test
