#include "linux/lock.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>

namespace ferry::linux {
namespace {

constexpr unsigned classes_max = 64;
constexpr unsigned held_max = 16;

struct Place {
  const char* file;
  unsigned line;
};

struct Held {
  const void* mutex;
  const LockClass* cls;
  unsigned number;
  Place place;
};

/// Trivial, so that it is there before constructors and after destructors.
struct Thread {
  std::array<Held, held_max> held;
  unsigned count;
  unsigned inherited;  ///< of `held`, those from before a fork: nobody gives them back in this process
  const char* forbidden;
};

// initial-exec: other models allocate at the first touch, which can be in a signal handler.
[[gnu::tls_model("initial-exec")]] constinit thread_local Thread this_thread{};

/// Where a class was held, and where another was taken under it, for the first time.
struct Seen {
  std::atomic<const char*> held_file{nullptr};
  std::atomic<unsigned> held_line{0};
  std::atomic<const char*> taken_file{nullptr};
  std::atomic<unsigned> taken_line{0};
};

constinit std::atomic<unsigned> class_count{0};
constinit std::array<std::atomic<const LockClass*>, classes_max> classes{};
/// Bit l of word h: l was taken while h was held.
constinit std::array<std::atomic<std::uint64_t>, classes_max> taken_under{};
std::array<std::array<Seen, classes_max>, classes_max> seen;

/// One message, without stdio's locks and without allocation.
class Message {
 public:
  template <typename... Values>
  void add(const char* format, Values... values) {
    const int written = std::snprintf(text_.data() + size_, text_.size() - size_, format, values...);
    if (written > 0) size_ = std::min(text_.size() - 1, size_ + static_cast<std::size_t>(written));
  }
  [[noreturn]] void die() {
    for (std::size_t at = 0; at < size_;) {
      const ssize_t written = ::write(STDERR_FILENO, text_.data() + at, size_ - at);
      if (written <= 0) break;
      at += static_cast<std::size_t>(written);
    }
    std::abort();
  }

 private:
  std::array<char, 4096> text_{};
  std::size_t size_ = 0;
};

Place place_of(const std::source_location& where) { return {where.file_name(), where.line()}; }

/// Classes on a way from `from` to `to` along what was taken under what, both included; 0: there is none.
unsigned find_way(unsigned from, unsigned to, std::array<std::uint8_t, classes_max>& way) {
  std::array<std::uint8_t, classes_max> reached_from{};
  std::array<std::uint8_t, classes_max> queue{};
  std::uint64_t reached = std::uint64_t{1} << from;
  unsigned end = 0;
  queue[end++] = static_cast<std::uint8_t>(from);
  for (unsigned i = 0; i < end; ++i) {
    if (queue[i] == to) break;
    for (std::uint64_t next = taken_under[queue[i]].load() & ~reached; next != 0; next &= next - 1) {
      const auto cls = static_cast<unsigned>(std::countr_zero(next));
      reached |= std::uint64_t{1} << cls;
      reached_from[cls] = queue[i];
      queue[end++] = static_cast<std::uint8_t>(cls);
    }
  }
  if ((reached & (std::uint64_t{1} << to)) == 0) return 0;
  std::array<std::uint8_t, classes_max> back{};
  unsigned count = 0;
  for (unsigned cls = to;; cls = reached_from[cls]) {
    back[count++] = static_cast<std::uint8_t>(cls);
    if (cls == from) break;
  }
  for (unsigned i = 0; i < count; ++i) way[i] = back[count - 1 - i];
  return count;
}

#if FERRY_TRACK_LOCKS
// A fork's child goes on with what the forking thread held, and often never gives it back: the zygote and the devices
// are forked under a lock.
[[maybe_unused]] const int at_fork =
    ::pthread_atfork(nullptr, nullptr, [] { this_thread.inherited = this_thread.count; });
#endif

}  // namespace

void LockTracker::check_allowed(const LockClass& cls, const std::source_location& where) {
  if (this_thread.forbidden == nullptr) return;
  Message message;
  message.add("ferry: bug: lock '%s' is taken at %s:%u, where no lock may be taken: %s\n", cls.name(),
              where.file_name(), where.line(), this_thread.forbidden);
  message.die();
}

unsigned LockTracker::number_of(LockClass& cls) {
  if (const std::uint8_t number = cls.number_.load(std::memory_order_acquire); number != 0) return number - 1U;
  const unsigned number = class_count.fetch_add(1) + 1;
  if (number > classes_max) {
    Message message;
    message.add("ferry: bug: lock class '%s' is one more than the %u that can be tracked\n", cls.name(), classes_max);
    message.die();
  }
  classes[number - 1].store(&cls);
  // Of two threads that come first, one wins; the other's number stays unused.
  std::uint8_t none = 0;
  cls.number_.compare_exchange_strong(none, static_cast<std::uint8_t>(number), std::memory_order_acq_rel);
  return cls.number_.load(std::memory_order_acquire) - 1U;
}

void LockTracker::before_lock(const void* mutex, LockClass& cls, const std::source_location& where) {
  Thread& thread = this_thread;
  const Place here = place_of(where);
  check_allowed(cls, where);
  const unsigned taken = number_of(cls);
  for (unsigned i = thread.inherited; i < thread.count; ++i) {
    const Held& held = thread.held[i];
    if (held.mutex == mutex) {
      Message message;
      message.add("ferry: bug: lock '%s' is taken at %s:%u by the thread that holds it since %s:%u\n", cls.name(),
                  here.file, here.line, held.place.file, held.place.line);
      message.die();
    }
    if (cls.rank() != LockRank::unranked && held.cls->rank() >= cls.rank()) {
      Message message;
      message.add(
          "ferry: bug: locks out of order\n  '%s' (rank %u) is taken at %s:%u\n  while '%s' (rank %u), taken at %s:%u, "
          "is held: ranks have to rise\n",
          cls.name(), static_cast<unsigned>(cls.rank()), here.file, here.line, held.cls->name(),
          static_cast<unsigned>(held.cls->rank()), held.place.file, held.place.line);
      message.die();
    }
    const unsigned holding = held.number;
    const std::uint64_t mark = std::uint64_t{1} << taken;
    if ((taken_under[holding].load(std::memory_order_relaxed) & mark) != 0) continue;
    Seen& first = seen[holding][taken];
    first.held_line.store(held.place.line);
    first.held_file.store(held.place.file);
    first.taken_line.store(here.line);
    first.taken_file.store(here.file);
    // Before the search: of two threads that close a circle together, one at least sees the other's mark.
    taken_under[holding].fetch_or(mark);
    std::array<std::uint8_t, classes_max> way{};
    const unsigned count = find_way(taken, holding, way);
    if (count == 0) continue;
    Message message;
    message.add("ferry: bug: locks can deadlock\n  '%s' is taken at %s:%u while '%s', taken at %s:%u, is held\n",
                cls.name(), here.file, here.line, held.cls->name(), held.place.file, held.place.line);
    for (unsigned step = 0; step + 1 < count; ++step) {
      const Seen& before = seen[way[step]][way[step + 1]];
      message.add("  but '%s' was taken at %s:%u while '%s', taken at %s:%u, was held\n",
                  classes[way[step + 1]].load()->name(), before.taken_file.load(), before.taken_line.load(),
                  classes[way[step]].load()->name(), before.held_file.load(), before.held_line.load());
    }
    message.die();
  }
}

void LockTracker::locked(const void* mutex, LockClass& cls, const std::source_location& where) {
  check_allowed(cls, where);
  Thread& thread = this_thread;
  if (thread.count == held_max) {
    Message message;
    message.add("ferry: bug: a thread holds more than %u locks\n", held_max);
    message.die();
  }
  thread.held[thread.count] = {mutex, &cls, number_of(cls), place_of(where)};
  // A handler that comes in between sees the list without this lock, or with it whole.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  ++thread.count;
}

void LockTracker::unlocked(const void* mutex, const LockClass& cls) {
  Thread& thread = this_thread;
  for (unsigned i = thread.count; i-- > 0;) {
    if (thread.held[i].mutex != mutex) continue;
    for (unsigned j = i + 1; j < thread.count; ++j) thread.held[j - 1] = thread.held[j];
    --thread.count;
    thread.inherited = std::min(thread.inherited, thread.count);
    return;
  }
  Message message;
  message.add("ferry: bug: lock '%s' is given back by a thread that does not hold it\n", cls.name());
  message.die();
}

const char* LockTracker::forbid(const char* reason) {
  const char* before = this_thread.forbidden;
  this_thread.forbidden = reason;
  return before;
}

}  // namespace ferry::linux
