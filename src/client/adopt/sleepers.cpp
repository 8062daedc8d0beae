#include "client/adopt/sleepers.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

#include "client/adopt/interrupted.h"
#include "client/adopt/threads.h"
#include "linux/futex.h"

namespace ferry::client {
namespace {

constexpr std::uint64_t patience_ns = 1'000'000'000;

constinit std::atomic<std::uint32_t> taken{0};

void on_signal(int signal, siginfo_t*, void* context) {
  make_call_again(signal, *static_cast<ucontext_t*>(context));
  taken.fetch_add(1, std::memory_order_relaxed);
}

/// A real-time signal without a handler that the thread lets through; 0: none.
int usable_signal(int tid) {
  const std::uint64_t blocked = blocked_signals(tid);
  for (int signal = SIGRTMAX; signal >= SIGRTMIN; --signal) {
    struct sigaction now {};
    if ((blocked >> (signal - 1) & 1) != 0 || ::sigaction(signal, nullptr, &now) != 0) continue;
    if ((now.sa_flags & SA_SIGINFO) == 0 && now.sa_handler == SIG_DFL) return signal;
  }
  return 0;
}

void restart(int tid) {
  const int signal = usable_signal(tid);
  if (signal == 0) return;
  struct sigaction ours {};
  struct sigaction before {};
  ours.sa_sigaction = on_signal;
  ours.sa_flags = SA_SIGINFO | SA_RESTART;
  ::sigfillset(&ours.sa_mask);
  if (::sigaction(signal, &ours, &before) != 0) return;
  const std::uint32_t seen = taken.load(std::memory_order_relaxed);
  if (::syscall(SYS_tgkill, ::getpid(), tid, signal) == 0) {
    const std::uint64_t deadline = linux::monotonic_ns() + patience_ns;
    while (taken.load(std::memory_order_relaxed) == seen && linux::monotonic_ns() < deadline) ::sched_yield();
    // One that comes later than that must not end the process.
    if (taken.load(std::memory_order_relaxed) == seen) return;
  }
  ::sigaction(signal, &before, nullptr);
}

}  // namespace

bool sleeps_on_shared_word(const ThreadActivity& a, std::uint64_t begin, std::uint64_t end) {
  constexpr std::uint64_t private_flag = 128;  // FUTEX_PRIVATE_FLAG: listed under the address, whatever backs it
  return a.state == ThreadActivity::State::asleep && a.call == SYS_futex && a.arguments[0] >= begin &&
         a.arguments[0] < end && (a.arguments[1] & private_flag) == 0;
}

void restart_sleepers(std::uint64_t begin, std::uint64_t end) {
  const auto self = static_cast<int>(::syscall(SYS_gettid));
  for_each_thread([&](int tid) {
    if (tid != self && sleeps_on_shared_word(activity_of(tid), begin, end)) restart(tid);
  });
}

}  // namespace ferry::client
