// Sleeping on a word of shared memory, and how long to poll before that. Header only.
// Futexes here are the shared kind: their words lie in memfds that several processes map at different addresses.
#pragma once

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>

#include "wire/cpu_relax.h"

namespace ferry::linux {

[[nodiscard]] inline std::uint64_t monotonic_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(now.tv_nsec);
}

/// Sleeps while word == expected. Returns 0 when woken, else EAGAIN (the word differs), ETIMEDOUT or EINTR.
/// timeout_ns 0: no timeout. Leaves errno as it was: signal handlers may call this. `mark`: the call's last argument, which
/// the kernel does not look at here and shows to who asks what the thread does.
inline int futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t expected, std::uint64_t timeout_ns = 0,
                      std::uint32_t mark = 0) {
  timespec timeout{};
  timeout.tv_sec = static_cast<time_t>(timeout_ns / 1'000'000'000U);
  timeout.tv_nsec = static_cast<long>(timeout_ns % 1'000'000'000U);
  const int saved = errno;
  const long rc = syscall(SYS_futex, &word, FUTEX_WAIT, expected, timeout_ns == 0 ? nullptr : &timeout, nullptr, mark);
  const int error = rc == 0 ? 0 : errno;
  errno = saved;
  return error;
}

/// Sleeps while both words are as expected; returns as futex_wait does. On a kernel without futex_waitv (before 5.16,
/// or hidden by a sandbox) it sleeps on the first word for at most 1 ms. until_ns: by monotonic_ns; 0: no timeout.
inline int futex_wait_either(std::atomic<std::uint32_t>& first, std::uint32_t first_expected,
                             std::atomic<std::uint32_t>& second, std::uint32_t second_expected,
                             std::uint64_t until_ns = 0) {
  static_assert(sizeof(::futex_waitv) == 24);
  ::futex_waitv waiters[2]{};
  waiters[0].val = first_expected;
  waiters[0].uaddr = reinterpret_cast<std::uint64_t>(&first);
  waiters[0].flags = FUTEX_32;
  waiters[1].val = second_expected;
  waiters[1].uaddr = reinterpret_cast<std::uint64_t>(&second);
  waiters[1].flags = FUTEX_32;
  timespec until{};
  until.tv_sec = static_cast<time_t>(until_ns / 1'000'000'000U);
  until.tv_nsec = static_cast<long>(until_ns % 1'000'000'000U);
  const int saved = errno;
  const long rc = syscall(SYS_futex_waitv, waiters, 2, 0, until_ns == 0 ? nullptr : &until, CLOCK_MONOTONIC);
  const int error = rc >= 0 ? 0 : errno;
  errno = saved;
  if (error == ENOSYS || error == EPERM) return futex_wait(first, first_expected, 1'000'000);
  return error;
}

/// Wakes up to `count` sleepers. Leaves errno as it was.
inline void futex_wake(std::atomic<std::uint32_t>& word, int count) {
  const int saved = errno;
  syscall(SYS_futex, &word, FUTEX_WAKE, count, nullptr, nullptr, 0);
  errno = saved;
}

/// Polls before sleeping, as long as polling has paid off lately: each wait that ends while polling doubles the
/// time that the next one may take, each that does not halves it. A sleep that turns out to have been short (most of it
/// the waking) brings back the longest time: else who sleeps once in a flow of short waits would sleep in all. Where another thread wants the CPU (a yield that
/// comes back late), it stops at once: the one who waits must not keep from running the one it waits for.
/// One object a waiting thread.
class AdaptiveSpin {
 public:
  /// Bounds of one wait's polling.
  AdaptiveSpin(std::uint64_t min_ns, std::uint64_t max_ns) : min_ns_(min_ns), max_ns_(max_ns), budget_ns_(max_ns) {}

  /// True: ready() came true. False: the caller should sleep.
  template <typename Ready>
  [[nodiscard]] bool until(Ready&& ready) {
    // Answers that are under way come within this; nothing is accounted for them.
    for (unsigned i = 0; i < quick_turns; ++i) {
      if (ready()) return true;
      cpu_relax();
    }
    const std::uint64_t begin = monotonic_ns();
    if (slept_since_ns_ != 0 && begin - slept_since_ns_ < 2 * max_ns_) budget_ns_ = max_ns_;
    slept_since_ns_ = 0;
    std::uint64_t yielded = begin;
    bool contended = false;
    for (std::uint64_t now = begin; now - begin < budget_ns_; now = monotonic_ns()) {
      for (unsigned i = 0; i < turns_per_look; ++i) {
        if (ready()) {
          if (now - begin >= budget_ns_ / 4) budget_ns_ = budget_ns_ * 2 < max_ns_ ? budget_ns_ * 2 : max_ns_;
          return true;
        }
        cpu_relax();
      }
      if (now - yielded >= yield_every_ns) {
        sched_yield();
        yielded = monotonic_ns();
        if (yielded - now > contended_ns) {
          if (ready()) return true;
          contended = true;
          break;
        }
      }
    }
    budget_ns_ = budget_ns_ / 2 > min_ns_ ? budget_ns_ / 2 : min_ns_;
    if (ready()) return true;
    if (!contended) slept_since_ns_ = begin;
    return false;
  }

  /// What was waited for keeps coming: poll for the longest time again.
  void restart() { budget_ns_ = max_ns_; }

 private:
  static constexpr unsigned quick_turns = 64;
  static constexpr unsigned turns_per_look = 16;
  static constexpr std::uint64_t yield_every_ns = 20'000;
  static constexpr std::uint64_t contended_ns = 50'000;

  std::uint64_t min_ns_;
  std::uint64_t max_ns_;
  std::uint64_t budget_ns_;
  std::uint64_t slept_since_ns_ = 0;  ///< when the wait began that the last call gave up; 0: it did not
};

}  // namespace ferry::linux
