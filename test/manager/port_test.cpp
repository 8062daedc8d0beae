// Both ends of a port, and whoever sleeps on one.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>

#include "base/random.h"
#include "linux/futex.h"
#include "wire/ring.h"

namespace ferry::wire {
namespace {

class Ports : public ::testing::Test {
 protected:
  std::unique_ptr<DeviceControl> control_ = std::make_unique<DeviceControl>();
  Port& port_ = control_->agent;
  ManagerPort manager_{port_};
};

TEST_F(Ports, ManagerBelievesNoTail) {
  unsigned taken = 0;
  const auto count = [&](const UpRecord&) { ++taken; };
  EXPECT_TRUE(manager_.poll(100, count));
  port_.up_tail.store(3);
  EXPECT_TRUE(manager_.poll(2, count));
  EXPECT_EQ(taken, 2U);
  port_.up_head.store(77);  // the manager keeps its own
  EXPECT_TRUE(manager_.poll(100, count));
  EXPECT_EQ(taken, 3U);
  port_.up_tail.store(3 + ring_entries + 1);
  EXPECT_FALSE(manager_.poll(100, count));
  port_.up_tail.store(2);
  EXPECT_FALSE(manager_.poll(100, count)) << "backwards";
  EXPECT_EQ(taken, 3U);
}

TEST_F(Ports, ManagerPostsNoMoreThanTheRingHolds) {
  const DownRecord record{};
  for (unsigned i = 0; i < ring_entries; ++i) ASSERT_TRUE(manager_.post(record));
  EXPECT_FALSE(manager_.post(record));
  port_.down_head.store(1000);  // cannot be
  EXPECT_FALSE(manager_.post(record));
  port_.down_head.store(1);
  EXPECT_TRUE(manager_.post(record));
}

TEST_F(Ports, WakeLeavesThePeersFlagToThePeer) {
  unsigned wakes = 0;
  const auto wake = [&](std::atomic<std::uint32_t>&) { ++wakes; };
  manager_.wake(wake);
  EXPECT_EQ(wakes, 0U);
  port_.peer_sleeping.store(1);
  manager_.wake(wake);
  manager_.wake(wake);
  EXPECT_EQ(wakes, 2U) << "a peer that is about to sleep anew may have missed the first";
}

TEST_F(Ports, KickOnceASleep) {
  PeerPort peer(port_, control_->head);
  unsigned kicks = 0;
  const auto kick = [&] { ++kicks; };
  EXPECT_TRUE(peer.post({}, kick));
  EXPECT_EQ(kicks, 0U);
  announce_manager_sleep(control_->head);
  EXPECT_TRUE(manager_.ready()) << "what came before it knew";
  EXPECT_TRUE(peer.post({}, kick));
  EXPECT_TRUE(peer.post({}, kick));
  EXPECT_EQ(kicks, 1U);
}

TEST_F(Ports, NoRecordIsLostToASleeper) {
  // The peer never polls, so that every record finds it asleep, about to sleep, or just awake.
  constexpr unsigned rounds = 30'000;
  std::thread peer([&] {
    PeerPort end(port_, control_->head);
    DownRecord record;
    for (unsigned got = 0; got < rounds;) {
      if (!end.try_take(record)) {
        end.sleep([](std::atomic<std::uint32_t>& word, std::uint32_t expected) {
          linux::futex_wait(word, expected, 20'000'000'000);
        });
        continue;
      }
      EXPECT_EQ(record.action, got);
      ++got;
    }
  });
  const auto wake = [](std::atomic<std::uint32_t>& word) { linux::futex_wake(word, 1); };
  Random random(3);
  const std::uint64_t begin = linux::monotonic_ns();
  for (unsigned sent = 0; sent < rounds;) {
    DownRecord record{};
    for (std::uint64_t batch = 1 + random.below(4); batch > 0 && sent < rounds; --batch) {
      record.action = sent;
      if (!manager_.post(record)) break;
      ++sent;
    }
    manager_.wake(wake);
    for (std::uint64_t pause = random.below(200); pause > 0; --pause) cpu_relax();
  }
  peer.join();
  EXPECT_LT(linux::monotonic_ns() - begin, 20'000'000'000U) << "a wake-up was lost and the wait's bound ended it";
}

}  // namespace
}  // namespace ferry::wire
