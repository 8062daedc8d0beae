#include "client/adopt/stopped.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <limits>

#include "client/adopt/interrupted.h"
#include "client/adopt/sleepers.h"
#include "client/adopt/threads.h"
#include "linux/futex.h"

namespace ferry::client {
namespace {

/// For all of them to come. A crowded machine takes its time; a thread that waits for a page inside a call that changes
/// mappings may wait for who stops it.
constexpr std::uint64_t patience_ns = 250'000'000;
/// Then it is looked whether a thread lets the signal through at all. None does in the handler, of the round before.
constexpr std::uint64_t suspicion_ns = 20'000'000;
constexpr std::uint64_t look_again_ns = 200'000;
constexpr unsigned threads_max = 1024;

// Handlers of a round sleep while `round` is theirs: odd numbers are rounds in which threads are held. A signal that nobody
// of the round was sent (one of before that comes late, another process's) returns at once.
constinit std::atomic<std::uint32_t> round{0};
constinit std::atomic<std::uint32_t> arrivals{0};
constinit std::atomic<std::uint32_t> in_handler{0};
constinit std::uint32_t arrivals_before = 0;  ///< this round
constinit std::array<std::atomic<std::uint32_t>, threads_max> arrived{};
constinit std::array<std::atomic<int>, threads_max> signalled{};
constinit std::atomic<unsigned> signalled_count{0};
constinit int stop_signal = 0;
/// Not a lock like others: its holders wait for nobody who could want it, and signal handlers need none.
constinit std::atomic<std::uint32_t> busy{0};
/// The process whose threads are stopped: a fork's child may have been given the round of its parent.
constinit std::atomic<int> stopping_process{0};
/// What a wait at the door shows of itself (wait_on).
constexpr std::uint32_t own_wait = 0x4665'7279;

void take_turn() {
  std::uint32_t none = 0;
  while (!busy.compare_exchange_weak(none, 1, std::memory_order_acquire)) {
    linux::futex_wait(busy, 1);
    none = 0;
  }
}

void end_turn() {
  busy.store(0, std::memory_order_release);
  linux::futex_wake(busy, 1);
}

/// threads_max: none.
unsigned slot_of(int tid) {
  const unsigned count = signalled_count.load(std::memory_order_acquire);
  for (unsigned i = 0; i < count; ++i) {
    if (signalled[i].load(std::memory_order_relaxed) == tid) return i;
  }
  return threads_max;
}

void on_stop(int signal, siginfo_t*, void* context) {
  const int saved = errno;
  in_handler.fetch_add(1, std::memory_order_relaxed);
  const std::uint32_t now = round.load(std::memory_order_acquire);
  const unsigned slot = now % 2 != 0 ? slot_of(static_cast<int>(::syscall(SYS_gettid))) : threads_max;
  if (slot != threads_max) {
    arrived[slot].store(now, std::memory_order_release);
    arrivals.fetch_add(1, std::memory_order_release);
    linux::futex_wake(arrivals, 1);
    while (round.load(std::memory_order_acquire) == now) linux::futex_wait(round, now);
  }
  make_call_again(signal, *static_cast<ucontext_t*>(context));
  in_handler.fetch_sub(1, std::memory_order_relaxed);
  errno = saved;
}

bool is_ours(int signal) {
  struct sigaction now {};
  return ::sigaction(signal, nullptr, &now) == 0 && (now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == on_stop;
}

/// One that the program does not use, and ours from then on. First those that do nothing to a process without a handler:
/// one that is on its way when the thread calls exec meets a program that has none.
bool take_signal() {
  if (stop_signal != 0 && is_ours(stop_signal)) return true;
  const auto take = [](int signal) {
    struct sigaction now {};
    if (::sigaction(signal, nullptr, &now) != 0) return false;
    if ((now.sa_flags & SA_SIGINFO) != 0 || now.sa_handler != SIG_DFL) return false;
    struct sigaction ours {};
    ours.sa_sigaction = on_stop;
    ours.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK;
    ::sigfillset(&ours.sa_mask);  // its own handlers are the program's code, too
    if (::sigaction(signal, &ours, nullptr) != 0) return false;
    stop_signal = signal;
    return true;
  };
  if (take(SIGURG) || take(SIGWINCH)) return true;
  for (int signal = SIGRTMAX; signal >= SIGRTMIN; --signal) {
    if (take(signal)) return true;
  }
  return false;
}

bool changes_mappings(long call) {
  switch (call) {
    case SYS_mmap:
    case SYS_munmap:
    case SYS_mremap:
    case SYS_mprotect:
    case SYS_madvise:
    case SYS_brk:
    case SYS_shmat:
    case SYS_shmdt:
    case SYS_remap_file_pages:
    case SYS_process_madvise: return true;
    default: return false;
  }
}

/// No thread is in the handler but those of this round.
bool nobody_leaves() {
  return in_handler.load(std::memory_order_relaxed) == arrivals.load(std::memory_order_relaxed) - arrivals_before;
}

enum class Look { still, moving, impossible };

/// Asleep on a futex word, and nothing lets it run the program's code meanwhile.
bool stays_on_word(const ThreadActivity& a) {
  constexpr std::uint64_t private_flag = 128;  // FUTEX_PRIVATE_FLAG: of this process
  if (a.call != SYS_futex) return false;
  // Others have a number there, or an address that this is none of, or nothing.
  if (a.arguments[5] == own_wait && a.arguments[1] == 0) return true;
  // A signal would end the call before its time.
  const bool timed = a.arguments[3] != 0;
  return timed || (a.arguments[1] & private_flag) != 0;
}

Look look_at(int tid, std::uint64_t begin, std::uint64_t end, bool suspicious) {
  const unsigned slot = slot_of(tid);
  const bool sent = slot != threads_max;
  const std::uint32_t now = round.load(std::memory_order_relaxed);
  if (sent && arrived[slot].load(std::memory_order_acquire) == now) return Look::still;
  const ThreadActivity a = activity_of(tid);
  if (a.state == ThreadActivity::State::gone) return Look::still;
  if (a.state == ThreadActivity::State::unknown) return Look::impossible;
  const bool asleep = a.state == ThreadActivity::State::asleep;
  const bool on_word = sleeps_on_shared_word(a, begin, end);
  const bool leave = asleep && !on_word && (stays_on_word(a) || ends_by_signal(a.call, a.arguments[0]));
  if (sent) {
    const auto blocks = [&] { return (blocked_signals(tid) >> (stop_signal - 1) & 1) != 0; };
    // A signal that waits for it is taken before it runs any code of the program again. One that blocks it may be woken from
    // a call by others only, but goes on by itself from a page fault.
    if (asleep && !on_word && !changes_mappings(a.call) && (a.call >= 0 || !blocks())) return Look::still;
    return suspicious && nobody_leaves() && blocks() ? Look::impossible : Look::moving;
  }
  if (leave) return Look::still;
  const unsigned next = signalled_count.load(std::memory_order_relaxed);
  if (next == threads_max) return Look::impossible;
  signalled[next].store(tid, std::memory_order_relaxed);
  signalled_count.store(next + 1, std::memory_order_release);
  if (::syscall(SYS_tgkill, ::getpid(), tid, stop_signal) == 0) return Look::moving;
  return errno == ESRCH ? Look::still : Look::impossible;
}

void let_go() {
  round.fetch_add(1, std::memory_order_release);
  linux::futex_wake(round, std::numeric_limits<int>::max());
}

}  // namespace

void wait_while_stopped() {
  std::uint32_t now = round.load(std::memory_order_seq_cst);
  if (now % 2 == 0) [[likely]]
    return;
  if (stopping_process.load(std::memory_order_relaxed) != static_cast<int>(::syscall(SYS_getpid)) ||
      is_session_thread(static_cast<int>(::syscall(SYS_gettid)))) {
    return;
  }
  for (; now % 2 != 0; now = round.load(std::memory_order_seq_cst)) linux::futex_wait(round, now, 0, own_wait);
}

int wait_on(std::atomic<std::uint32_t>& word, std::uint32_t expected, std::uint64_t timeout_ns) {
  const int result = linux::futex_wait(word, expected, timeout_ns, own_wait);
  wait_while_stopped();
  return result;
}

StoppedThreads::StoppedThreads(std::uint64_t begin, std::uint64_t end) {
  take_turn();
  if (!take_signal()) {
    end_turn();
    return;
  }
  const auto self = static_cast<int>(::syscall(SYS_gettid));
  arrivals_before = arrivals.load(std::memory_order_relaxed);
  signalled_count.store(0, std::memory_order_relaxed);
  stopping_process.store(::getpid(), std::memory_order_relaxed);
  // Before any thread is looked at: who was asleep then finds it (wait_while_stopped).
  round.fetch_add(1, std::memory_order_seq_cst);
  const std::uint64_t began_ns = linux::monotonic_ns();
  for (;;) {
    const std::uint32_t seen = arrivals.load(std::memory_order_acquire);
    // Until a pass meets no thread that moves, and none came to rest during it: those it met first cannot have been woken
    // since, nor have others been started, as there was nobody to do it.
    const std::uint64_t waited_ns = linux::monotonic_ns() - began_ns;
    bool moving = false;
    bool impossible = false;
    const Listing listed = for_each_thread([&](int tid) {
      if (tid == self || is_session_thread(tid)) return;
      const Look look = look_at(tid, begin, end, waited_ns > suspicion_ns);
      moving |= look == Look::moving;
      impossible |= look == Look::impossible;
    });
    moving |= listed == Listing::changed;
    if (listed == Listing::none || impossible || (moving && waited_ns > patience_ns)) {
      let_go();
      end_turn();
      return;
    }
    if (!moving && arrivals.load(std::memory_order_acquire) == seen) break;
    if (moving) linux::futex_wait(arrivals, seen, look_again_ns);
  }
  all_ = true;
}

StoppedThreads::~StoppedThreads() {
  if (!all_) return;
  let_go();
  end_turn();
}

}  // namespace ferry::client
