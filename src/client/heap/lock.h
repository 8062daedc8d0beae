// A futex mutex of four bytes that needs no construction, allocates nothing and can be taken over by a fork's child.
// (std::mutex would do all but the last.)
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>

#include "wire/cpu_relax.h"

namespace ferry::client {

class HeapLock {
 public:
  constexpr HeapLock() = default;
  HeapLock(const HeapLock&) = delete;
  HeapLock& operator=(const HeapLock&) = delete;

  void lock() noexcept {
    std::uint32_t expected = unlocked;
    if (__builtin_expect(!word_.compare_exchange_strong(expected, locked, std::memory_order_acquire), 0)) {
      lock_slow();
    }
  }

  void unlock() noexcept {
    if (__builtin_expect(word_.exchange(unlocked, std::memory_order_release) == contended, 0)) {
      ::syscall(SYS_futex, &word_, wake_private, 1, nullptr, nullptr, 0);
    }
  }

 private:
  // FUTEX_WAIT and FUTEX_WAKE with FUTEX_PRIVATE_FLAG. The kernel's header has the name of one in src/linux.
  static constexpr int wait_private = 128;
  static constexpr int wake_private = 129;
  static constexpr std::uint32_t unlocked = 0;
  static constexpr std::uint32_t locked = 1;
  static constexpr std::uint32_t contended = 2;  ///< locked, and somebody may sleep
  static constexpr int spins = 100;              ///< about one critical section of a central list

  __attribute__((noinline)) void lock_slow() noexcept {
    for (int i = 0; i < spins; ++i) {
      std::uint32_t expected = unlocked;
      if (word_.load(std::memory_order_relaxed) == unlocked &&
          word_.compare_exchange_weak(expected, locked, std::memory_order_acquire)) {
        return;
      }
      cpu_relax();
    }
    const int saved_errno = errno;  // free() may not change it
    while (word_.exchange(contended, std::memory_order_acquire) != unlocked) {
      ::syscall(SYS_futex, &word_, wait_private, contended, nullptr, nullptr, 0);
    }
    errno = saved_errno;
  }

  std::atomic<std::uint32_t> word_{unlocked};
};

class HeapLockGuard {
 public:
  explicit HeapLockGuard(HeapLock& lock) noexcept : lock_(lock) { lock_.lock(); }
  ~HeapLockGuard() { lock_.unlock(); }
  HeapLockGuard(const HeapLockGuard&) = delete;
  HeapLockGuard& operator=(const HeapLockGuard&) = delete;

 private:
  HeapLock& lock_;
};

}  // namespace ferry::client
