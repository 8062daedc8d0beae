// Rules of locks, each broken in a process of its own that has to end with the sentence.
#include <gtest/gtest.h>

#include <csignal>
#include <thread>
#include <utility>

#include "linux/lock.h"

namespace ferry::linux {
namespace {

static_assert(FERRY_TRACK_LOCKS == 1);

constinit LockClass queue_class("queue", LockRank::queue);
constinit LockClass output_class("output", LockRank::output);
constinit LockClass apple_class("apple", LockRank::unranked);
constinit LockClass pear_class("pear", LockRank::unranked);
constinit LockClass plum_class("plum", LockRank::unranked);
constinit Mutex queue(queue_class);
constinit Mutex other_queue(queue_class);
constinit Mutex output(output_class);
constinit Mutex apple(apple_class);
constinit Mutex pear(pear_class);
constinit Mutex plum(plum_class);

void take(Mutex& first, Mutex& second) {
  const LockGuard outer(first);
  const LockGuard inner(second);
}

struct LockTracking : testing::Test {
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};
using LockTrackingDeathTest = LockTracking;

TEST_F(LockTracking, RisingRanksInAnyThread) {
  take(queue, output);
  std::thread([] { take(queue, output); }).join();
  UniqueLock lock(queue);
  lock.unlock();
  lock.lock();
  UniqueLock moved = std::move(lock);
  EXPECT_TRUE(moved.owns_lock());
  EXPECT_FALSE(lock.owns_lock());
}

TEST_F(LockTracking, GivingBackInAnyOrder) {
  UniqueLock first(queue);
  UniqueLock second(output);
  first.unlock();
  second.unlock();
  take(queue, output);
}

TEST_F(LockTrackingDeathTest, FallingRank) {
  EXPECT_DEATH(
      take(output, queue),
      "locks out of order\n  'queue' \\(rank 30\\) is taken at .*lock_test.cpp:[0-9]+\n  while 'output' \\(rank "
      "80\\), taken at .*lock_test.cpp:[0-9]+, is held");
}

TEST_F(LockTrackingDeathTest, TwoOfOneRank) { EXPECT_DEATH(take(queue, other_queue), "locks out of order"); }

TEST_F(LockTrackingDeathTest, OneTwice) {
  EXPECT_DEATH(take(apple, apple), "'apple' is taken at .* by the thread that holds it since .*lock_test.cpp");
}

TEST_F(LockTrackingDeathTest, ACircleOfTwoThatNeverMet) {
  EXPECT_DEATH(
      {
        take(apple, pear);
        std::thread([] { take(pear, apple); }).join();
      },
      "locks can deadlock\n  'apple' is taken at .*lock_test.cpp:[0-9]+ while 'pear', taken at .*lock_test.cpp:[0-9]+, "
      "is "
      "held\n  but 'pear' was taken at .*lock_test.cpp:[0-9]+ while 'apple', taken at .*lock_test.cpp:[0-9]+, was "
      "held");
}

TEST_F(LockTrackingDeathTest, ACircleOfThree) {
  EXPECT_DEATH(
      {
        take(apple, pear);
        take(pear, plum);
        take(plum, apple);
      },
      "'apple' is taken at .* while 'plum', .*is held\n  but 'pear' was taken .* while 'apple'.*\n  but 'plum' was "
      "taken "
      ".* while 'pear'");
}

TEST_F(LockTrackingDeathTest, TwoOfAClassWithoutRank) {
  EXPECT_DEATH(
      {
        Mutex other(apple_class);
        take(apple, other);
      },
      "locks can deadlock\n  'apple' is taken at");
}

TEST_F(LockTracking, TryingBreaksNoOrder) {
  const LockGuard outer(output);
  ASSERT_TRUE(queue.try_lock());
  queue.unlock();
}

TEST_F(LockTrackingDeathTest, WhatWasTriedIsHeldAllTheSame) {
  EXPECT_DEATH(
      {
        static_cast<void>(output.try_lock());
        queue.lock();
      },
      "locks out of order");
}

TEST_F(LockTrackingDeathTest, GivingBackWhatIsNotHeld) {
  EXPECT_DEATH(apple.unlock(), "'apple' is given back by a thread that does not hold it");
}

TEST_F(LockTrackingDeathTest, NoLocks) {
  EXPECT_DEATH(
      {
        const NoLocks none("it serves those who hold locks");
        const LockGuard lock(apple);
      },
      "'apple' is taken at .*lock_test.cpp:[0-9]+, where no lock may be taken: it serves those who hold locks");
  EXPECT_DEATH(
      {
        const NoLocks none("trying is no better");
        static_cast<void>(apple.try_lock());
      },
      "trying is no better");
}

TEST_F(LockTrackingDeathTest, NoLocksInASignalHandler) {
  EXPECT_DEATH(
      {
        std::signal(SIGUSR1, [](int) {
          const NoLocks none("a fault handler");
          const LockGuard lock(apple);
        });
        std::raise(SIGUSR1);
      },
      "no lock may be taken: a fault handler");
}

// Who waits for a condition holds nothing while it waits, and what it held before it holds again.
TEST_F(LockTracking, Conditions) {
  Condition changed;
  bool done = false;
  std::thread waiter([&] {
    UniqueLock lock(output);
    changed.wait(lock, [&] { return done; });
    EXPECT_TRUE(lock.owns_lock());
  });
  {
    const LockGuard lock(output);
    done = true;
  }
  changed.notify_all();
  waiter.join();
  take(queue, output);
}

TEST_F(LockTracking, NoLocksEndsAndNests) {
  {
    const NoLocks outer("outer");
    const NoLocks inner("inner");
  }
  const LockGuard lock(apple);
}

}  // namespace
}  // namespace ferry::linux
