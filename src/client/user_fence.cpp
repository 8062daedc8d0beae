#include "client/user_fence.h"

#include <time.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>

#include "client/adopt/stopped.h"
#include "client/error.h"
#include "client/process_state.h"
#include "device/user_fence.h"
#include "linux/futex.h"

namespace ferry::client {
namespace {

// A signal from a device wakes the sleeper only where both see the word in system memory; else it is found by looking.
constexpr std::uint64_t sleep_min_ns = 20'000;
constexpr std::uint64_t sleep_max_ns = 1'000'000;

bool is_device() { return process_kind.load(std::memory_order_relaxed) == ProcessKind::device; }

/// The half of the word that changes with every small step.
std::atomic<std::uint32_t>& low_half(const std::uint64_t* word) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
  return *reinterpret_cast<std::atomic<std::uint32_t>*>(const_cast<std::uint64_t*>(word));
}

bool is_word(const std::uint64_t* word) {
  return word != nullptr && reinterpret_cast<std::uintptr_t>(word) % sizeof *word == 0;
}

/// False: timed out.
bool wait_on_cpu(const std::uint64_t* word, std::uint64_t value, std::uint64_t timeout_ns) {
  const auto reached = [&] { return __atomic_load_n(word, __ATOMIC_ACQUIRE) >= value; };
  if (reached()) return true;
  const std::uint64_t begin_ns = linux::monotonic_ns();
  linux::AdaptiveSpin spin(2'000, 50'000);
  if (spin.until(reached)) return true;
  for (std::uint64_t pause_ns = sleep_min_ns;; pause_ns = std::min(2 * pause_ns, sleep_max_ns)) {
    const std::uint64_t seen = __atomic_load_n(word, __ATOMIC_ACQUIRE);
    if (seen >= value) return true;
    const std::uint64_t waited_ns = linux::monotonic_ns() - begin_ns;
    if (waited_ns >= timeout_ns) return false;
    const std::uint64_t sleep_ns = std::max<std::uint64_t>(std::min(pause_ns, timeout_ns - waited_ns), 1);
    const int error = wait_on(low_half(word), static_cast<std::uint32_t>(seen), sleep_ns);
    // The page is away, and the kernel may not have it brought: the next look does.
    if (error == EFAULT) {
      const timespec pause{0, static_cast<long>(sleep_ns)};
      nanosleep(&pause, nullptr);
      wait_while_stopped();
    }
  }
}

}  // namespace

ferry_code wait_until(const std::uint64_t* word, std::uint64_t value, std::uint64_t timeout_ns, ferry_error* error) {
  if (!is_word(word)) {
    return fail(error, Code::bad_range, 0, "wait_until: a user fence is 8 bytes, aligned to 8");
  }
  device::WordWait how = device::WordWait::reached;
  if (is_device()) {
    how = device::wait_word(word, value, timeout_ns);
  } else if (!wait_on_cpu(word, value, timeout_ns)) {
    how = device::WordWait::timed_out;
  }
  if (how == device::WordWait::timed_out) {
    return fail(error, Code::timed_out, 0, "wait_until: the word did not come to %llu in time",
                static_cast<unsigned long long>(value));
  }
  if (how == device::WordWait::not_allowed) {
    return fail(error, Code::not_permitted, 0,
                "wait_until: a graphics job may not wait for a user fence, as others wait for its own");
  }
  if (error != nullptr) *error = {};
  return FERRY_OK;
}

ferry_code signal(std::uint64_t* word, std::uint64_t value, ferry_error* error) {
  if (!is_word(word)) return fail(error, Code::bad_range, 0, "signal: a user fence is 8 bytes, aligned to 8");
  std::uint64_t now = __atomic_load_n(word, __ATOMIC_RELAXED);
  while (now < value && !__atomic_compare_exchange_n(word, &now, value, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {}
  if (now < value) linux::futex_wake(low_half(word), INT_MAX);
  if (error != nullptr) *error = {};
  return FERRY_OK;
}

}  // namespace ferry::client
