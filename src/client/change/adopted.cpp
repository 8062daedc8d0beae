#include "client/change/adopted.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "client/adopt/adopter.h"
#include "client/adopt/file_notes.h"
#include "client/adopt/known.h"
#include "client/adopt/places.h"
#include "client/change/rules.h"
#include "client/process_state.h"
#include "client/session.h"
#include "core/svm/types.h"

namespace ferry::client {
namespace {

/// While it lives nothing is adopted or given back in the span, but by give_back(), and no device gets a file there. No signal comes, whose handler could
/// want the same span.
class Held {
 public:
  Held(std::uint64_t begin, std::uint64_t end) {
    sigset_t all;
    sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, &before_);
    number_ = hold_span(begin, end);
    [[maybe_unused]] const Status dropped = drop_files(*session_if_open(), begin, end);
  }
  ~Held() { let_go(); }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  [[nodiscard]] Status give_back(const Part& part) const { return give_back_held(number_, part.first, part.end); }
  void let_go() {
    if (!held_) return;
    held_ = false;
    let_span_go(number_);
    const int error = errno;
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    errno = error;
  }

 private:
  unsigned number_ = 0;
  bool held_ = true;
  sigset_t before_{};
};

int fail_with(int error) {
  errno = error;
  return -1;
}

void* remap_failed(int error) {
  errno = error;
  return MAP_FAILED;
}

[[nodiscard]] bool find_adopted(std::uint64_t begin, std::uint64_t end, Place& found) {
  const Session& s = *session_if_open();
  return begin < end && next_adopted(begin, s.window_base, s.window_base + s.window_bytes, found) && found.begin < end;
}

/// Calls fn(part) for each part of [begin, end) that is not adopted.
template <typename Fn>
void for_others(std::uint64_t begin, std::uint64_t end, Fn&& fn) {
  Place next;
  while (begin < end) {
    const bool found = find_adopted(begin, end, next);
    const Part part{begin, found ? next.begin : end};
    if (!part.empty()) fn(part);
    begin = found ? next.end : end;
  }
}

/// What is not adopted is none of the manager's business.
Status tell_adopted(core::Change change, const Part& part, unsigned prot = 0) {
  const Status told = tell_change(*session_if_open(), change, part, prot);
  return told.code == Code::not_allocated ? Status() : told;
}

/// The mappings are gone. The manager is told before anything else can be adopted there, and waited for after that.
void forget(Held& held, const Part& part) {
  Session& s = *session_if_open();
  wire::Span gone{};
  gone.first_page = s.window().page_of_address(part.first);
  gone.count_pages = part.bytes() / page_bytes;
  gone.device = wire::to_system;
  gone.flags = wire::span_no_wait;
  [[maybe_unused]] Status told = s.requests.tell(wire::MessageType::adopt_begin, gone);
  forget_adopted(part.first, part.end);
  held.let_go();
  gone.flags = wire::span_wait_only;
  told = s.requests.tell(wire::MessageType::adopt_begin, gone);
}

/// The same of what is not adopted of `part` any more: the kernel may have refused the call, or left some of it as it was.
void forget_what_went(Held& held, const Part& part) {
  Session& s = *session_if_open();
  bool some = false;
  for_others(part.first, part.end, [&](const Part& gone) {
    some = true;
    wire::Span span{};
    span.first_page = s.window().page_of_address(gone.first);
    span.count_pages = gone.bytes() / page_bytes;
    span.device = wire::to_system;
    span.flags = wire::span_no_wait;
    [[maybe_unused]] const Status told = s.requests.tell(wire::MessageType::adopt_begin, span);
    forget_adopted(gone.first, gone.end);
  });
  held.let_go();
  if (!some) return;
  wire::Span all{};
  all.first_page = s.window().page_of_address(part.first);
  all.count_pages = part.bytes() / page_bytes;
  all.device = wire::to_system;
  all.flags = wire::span_wait_only;
  [[maybe_unused]] const Status waited = s.requests.tell(wire::MessageType::adopt_begin, all);
}

}  // namespace

bool touches_adopted(const void* address, std::size_t bytes) {
  return has_adopted() && may_be_adopted(reinterpret_cast<std::uint64_t>(address), bytes) &&
         session_if_open() != nullptr && process_kind.load(std::memory_order_relaxed) == ProcessKind::application;
}

std::uint32_t swaps_of_adopted() { return adoption_swaps(); }

NotAdopted::NotAdopted(const void* address, std::size_t bytes) {
  const Part part = part_of(address, bytes);
  holds_ = has_adopted() && !part.empty() && session_if_open() != nullptr &&
           process_kind.load(std::memory_order_relaxed) == ProcessKind::application;
  if (!holds_) return;
  // As of Held.
  sigset_t all;
  sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, &before_);
  held_ = hold_span(part.first, part.end);
}

NotAdopted::~NotAdopted() {
  if (!holds_) return;
  let_span_go(held_);
  ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

void advises_for_forks() { note_fork_advice(); }

int adopted_unmap(void* address, std::size_t bytes) {
  const Part part = part_of(address, bytes);
  if (!well_formed(part.first, bytes)) return fail_with(EINVAL);
  Held held(part.first, part.end);
  if (raw_munmap(part.first, part.bytes()) != 0) return -1;
  forget(held, part);
  return 0;
}

void* adopted_map_over(void* address, std::size_t bytes, int prot, int flags, int fd, std::int64_t offset) {
  const Part part = part_of(address, bytes);
  if (!well_formed(part.first, bytes) || (flags & MAP_FIXED_NOREPLACE) == MAP_FIXED_NOREPLACE) {
    return raw_mmap(part.first, bytes, prot, flags, fd, offset);
  }
  Held held(part.first, part.end);
  void* const mapped = raw_mmap(part.first, bytes, prot, flags, fd, offset);
  const int error = errno;
  // Refused arguments have changed nothing; who is refused later has lost what was there.
  if (mapped != MAP_FAILED) {
    forget(held, part);
  } else {
    forget_what_went(held, part);
  }
  errno = error;
  return mapped;
}

int adopted_protect(void* address, std::size_t bytes, int prot) {
  const Part part = part_of(address, bytes);
  if (!well_formed(part.first, bytes) || (prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC | prot_semaphores)) != 0) {
    return raw_mprotect(part.first, bytes, prot);
  }
  const Held held(part.first, part.end);
  Place some;
  if (!find_adopted(part.first, part.end, some)) return raw_mprotect(part.first, bytes, prot);
  const Status told = tell_adopted(core::Change::protect, part, device_prot(prot));
  if (!told.ok()) return fail_with(errno_of(told));
  if (raw_mprotect(part.first, bytes, prot) == 0) return 0;
  // A hole: the kernel has changed what comes before it, and devices may do what threads may.
  const int error = errno;
  for (Place place; find_adopted(some.begin, part.end, place); some.begin = place.end) {
    const Part changed{std::max(place.begin, part.first), std::min(place.end, part.end)};
    [[maybe_unused]] const Status again = tell_adopted(core::Change::protect, changed, device_prot(place.prot));
  }
  return fail_with(error);
}

namespace {

/// As the kernel does: rising, past holes, which are an error in the end, and up to any other error. The span is held.
int advise_in_order(const Part& part, AdviceRule rule, int advice) {
  int error = 0;
  Part adopted{part.first, part.first};
  const auto tell = [&]() -> Status {
    if (adopted.empty() || rule == AdviceRule::hint) return {};
    if (advice == MADV_REMOVE) return Status(Code::bad_range, EINVAL);  // of private memory, as this is for the program
    return tell_adopted(rule == AdviceRule::free ? core::Change::lazy_free : core::Change::discard, adopted);
  };
  for (std::uint64_t at = part.first; at < part.end;) {
    Place next;
    const bool found = find_adopted(at, part.end, next);
    const Part other{at, found ? std::max(next.begin, at) : part.end};
    if (!other.empty()) {
      if (const Status told = tell(); !told.ok()) return fail_with(errno_of(told));
      if (raw_madvise(other.first, other.bytes(), advice) != 0) {
        if (errno != ENOMEM) return -1;
        error = ENOMEM;
      }
      adopted = {other.end, other.end};
    }
    if (!found) break;
    adopted.end = at = std::min(next.end, part.end);  // stripes are as one
  }
  if (const Status told = tell(); !told.ok()) return fail_with(errno_of(told));
  return error == 0 ? 0 : fail_with(error);
}

}  // namespace

int adopted_advise(void* address, std::size_t bytes, int advice) {
  const Part part = part_of(address, bytes);
  const AdviceRule rule = rule_of_advice(advice);
  if (part.first % page_bytes != 0) return fail_with(EINVAL);
  if (rule == AdviceRule::kernel || bytes == 0) return raw_madvise(part.first, bytes, advice);
  if (!well_formed(part.first, bytes)) return fail_with(EINVAL);
  const Held held(part.first, part.end);
  Place some;
  if (!find_adopted(part.first, part.end, some)) return raw_madvise(part.first, bytes, advice);
  if (rule == AdviceRule::fork) {
    // The kernel keeps it with a private mapping, and adoption keeps it from then on.
    note_fork_advice();
    const Status given = held.give_back(part);
    return given.ok() ? raw_madvise(part.first, bytes, advice) : fail_with(errno_of(given));
  }
  return advise_in_order(part, rule, advice);
}

// --- mremap ----------------------------------------------------------------------------------------------------------

namespace {

/// All of it is mapped, and the kernel has it as more than one mapping.
bool has_pieces(const Part& old) {
  const std::uint64_t first_end = place_of(old.first).end;
  for (std::uint64_t at = old.first; at < old.end;) {
    const Place place = place_of(at);
    if (!place.adopted && place.refusal == wire::Refusal::unmapped) return false;
    at = place.end;
  }
  return first_end < old.end;
}

/// One mapping after the other: what was given back in pieces the kernel has as several, and it moves one at a time.
/// Returns the errno; then everything is where it was.
int move_pieces(const Part& old, std::uint64_t target, bool keep, int& last_prot) {
  const int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (keep ? MREMAP_DONTUNMAP : 0);
  std::uint64_t at = old.first;
  int error = 0;
  while (at < old.end && error == 0) {
    const Place place = place_of(at);
    if (!place.adopted && place.refusal == wire::Refusal::unmapped) {
      error = EFAULT;
      break;
    }
    const std::uint64_t end = std::min(place.end, old.end);
    last_prot = place.prot;
    if (raw_mremap(at, end - at, end - at, flags, target + (at - old.first)) == MAP_FAILED) {
      error = errno;
    } else {
      at = end;
    }
  }
  if (error == 0) return 0;
  for (std::uint64_t back = old.first; back < at;) {
    const Place place = place_of(target + (back - old.first));
    const std::uint64_t end = std::min(place.end - target + old.first, at);
    raw_mremap(place.begin, end - back, end - back, MREMAP_MAYMOVE | MREMAP_FIXED, back);
    back = end;
  }
  return error;
}

/// Private memory of several mappings.
void* remap_pieces(const Part& old, std::uint64_t wanted, int flags, std::uint64_t to) {
  const bool fixed = (flags & MREMAP_FIXED) != 0;
  const bool keep = (flags & MREMAP_DONTUNMAP) != 0;
  if (!fixed && !keep && wanted <= old.bytes()) {
    if (wanted < old.bytes() && raw_munmap(old.first + wanted, old.bytes() - wanted) != 0) return MAP_FAILED;
    return reinterpret_cast<void*>(old.first);
  }
  const Place last = place_of(old.end - 1);
  constexpr int own = MAP_PRIVATE | MAP_ANONYMOUS;
  if (!fixed && !keep &&
      raw_mmap(old.end, wanted - old.bytes(), last.prot, own | MAP_FIXED_NOREPLACE, -1, 0) ==
          reinterpret_cast<void*>(old.end)) {
    return reinterpret_cast<void*>(old.first);
  }
  if ((flags & MREMAP_MAYMOVE) == 0) return remap_failed(ENOMEM);
  Part moved = old;
  moved.end = std::min(old.end, old.first + wanted);
  void* const target = raw_mmap(to, wanted, PROT_NONE, own | MAP_NORESERVE | (fixed ? MAP_FIXED : 0), -1, 0);
  if (target == MAP_FAILED) return MAP_FAILED;
  const auto at = reinterpret_cast<std::uint64_t>(target);
  int prot = PROT_READ | PROT_WRITE;
  int error = move_pieces(moved, at, keep, prot);
  if (error == 0 && wanted > moved.bytes() &&
      raw_mmap(at + moved.bytes(), wanted - moved.bytes(), prot, own | MAP_FIXED, -1, 0) == MAP_FAILED) {
    error = errno;
    int unused = 0;
    if (!keep) [[maybe_unused]]
      const int back = move_pieces({at, at + moved.bytes()}, old.first, false, unused);
  }
  if (error != 0) {
    raw_munmap(at, wanted);
    return remap_failed(error);
  }
  if (!keep && old.end > moved.end) raw_munmap(moved.end, old.end - moved.end);
  note_adopted(at, at + wanted);  // several mappings as well
  return target;
}

}  // namespace

void* adopted_remap(void* address, std::size_t old_bytes, std::size_t new_bytes, int flags, void* to) {
  const Part old = part_of(address, old_bytes);
  const bool fixed = (flags & MREMAP_FIXED) != 0;
  const auto target = reinterpret_cast<std::uint64_t>(to);
  const Part over = fixed ? part_of(to, new_bytes) : Part{};
  // A second mapping of shared memory, which this is for the kernel alone.
  if (round_up(old_bytes) == 0 && place_of(old.first & ~(page_bytes - 1)).adopted) return remap_failed(EINVAL);
  if (!well_formed(old.first, old_bytes) || new_bytes == 0 || round_up(new_bytes) < new_bytes ||
      (fixed && (!well_formed(target, new_bytes) || (old.first < over.end && over.first < old.end)))) {
    return raw_mremap(old.first, old_bytes, new_bytes, flags, target);  // says what is wrong
  }
  // One after the other: what is moved there lies in neither meanwhile for a device that wants to adopt it.
  Held held(std::min(old.first, fixed ? over.first : old.first), std::max(old.end, fixed ? over.end : old.end));
  const Status given = held.give_back(old);
  if (!given.ok()) return remap_failed(errno_of(given));
  constexpr int known = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
  const bool moves = (flags & MREMAP_MAYMOVE) != 0;
  const bool sound = (flags & ~known) == 0 && (moves || (flags & ~MREMAP_MAYMOVE) == 0) &&
                     ((flags & MREMAP_DONTUNMAP) == 0 || round_up(old_bytes) == round_up(new_bytes));
  // Not tried first: the kernel unmaps the target before it refuses several mappings, and others may map there then.
  void* moved = sound && has_pieces(old) ? remap_pieces(old, round_up(new_bytes), flags, target)
                                         : raw_mremap(old.first, old_bytes, new_bytes, flags, target);
  // What the kernel found there counts, where it has not touched anything.
  if (moved == MAP_FAILED && errno == EFAULT && sound && !fixed && has_pieces(old)) {
    moved = remap_pieces(old, round_up(new_bytes), flags, target);
  }
  const int error = errno;
  if (fixed && touches_adopted(to, new_bytes)) forget_what_went(held, over);
  errno = error;
  return moved;
}

}  // namespace ferry::client
