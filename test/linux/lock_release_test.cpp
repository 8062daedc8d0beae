// The mutex of a build without tracking: std::mutex, whatever is done with it.
#include <gtest/gtest.h>

#include <future>
#include <mutex>
#include <utility>

#include "linux/lock.h"

namespace ferry::linux {
namespace {

constinit LockClass low("low", LockRank::session);
constinit LockClass high("high", LockRank::leaf);
constinit Mutex first(low);
constinit Mutex second(high);

TEST(LockRelease, IsAStdMutex) {
  static_assert(sizeof(Mutex) == sizeof(std::mutex));
  const LockGuard outer(second);
  const LockGuard inner(first);  // out of order, and nobody looks
  EXPECT_FALSE(std::async([] { return first.try_lock(); }).get());
}

TEST(LockRelease, UniqueLocksMove) {
  UniqueLock lock(first);
  UniqueLock other;
  EXPECT_FALSE(other.owns_lock());
  other = std::move(lock);
  EXPECT_TRUE(other.owns_lock());
  other.unlock();
  EXPECT_FALSE(other.owns_lock());
  EXPECT_TRUE(first.try_lock());
  first.unlock();
  other.lock();
  EXPECT_TRUE(other.owns_lock());
}

TEST(LockRelease, NoLocksSaysNothing) {
  const NoLocks none("a reason");
  const LockGuard lock(first);
}

}  // namespace
}  // namespace ferry::linux
