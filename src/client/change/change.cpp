#include "client/change/change.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "client/change/adopted.h"
#include "client/change/fork_advice.h"
#include "client/change/fork_protection.h"
#include "client/change/kept.h"
#include "client/change/mappings.h"
#include "client/change/rules.h"
#include "client/heap/process_heap.h"
#include "client/process_state.h"
#include "client/session.h"
#include "client/svm/leave.h"
#include "core/svm/types.h"
#include "device/explain.h"

// Where this library begins in memory, and where its code ends; the linker's.
extern "C" {
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char etext[] __attribute__((visibility("hidden")));
}

namespace ferry::client {
namespace {

std::uint64_t number(const void* address) { return reinterpret_cast<std::uint64_t>(address); }

/// A span cut at the window's ends.
struct Cut {
  Part below;
  Part inside;
  Part above;
};

Cut cut(const Session& s, std::uint64_t at, std::size_t bytes) {
  const std::uint64_t end = at + round_up(bytes);
  const std::uint64_t window_end = s.window_base + s.window_bytes;
  return {{at, std::min(end, s.window_base)},
          {std::max(at, s.window_base), std::min(end, window_end)},
          {std::max(at, window_end), end}};
}

constexpr std::string_view hole_path = "/memfd:ferry-hole";

/// Of an empty file, by whose name it is known, and where nobody ever finds memory, whatever rights he gets himself.
bool hide(const Part& part) {
  const int file = static_cast<int>(::syscall(SYS_memfd_create, "ferry-hole", MFD_CLOEXEC));
  if (file >= 0) {
    const void* const hidden = raw_mmap(part.first, part.bytes(), PROT_NONE, MAP_SHARED | MAP_FIXED, file, 0);
    ::close(file);
    if (hidden != MAP_FAILED) return true;
  }
  return raw_mmap(part.first, part.bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
                  0) != MAP_FAILED;
}

/// Where the first part of it begins that was unmapped; its end: none was.
std::uint64_t first_hole(const Part& part) {
  for (std::uint64_t at = part.first; at < part.end;) {
    device::MappingInfo m;
    if (!device::next_mapping(at, m) || m.begin > at || std::string_view(m.path).starts_with(hole_path)) return at;
    at = m.end;
  }
  return part.end;
}

/// Out of everybody's reach, and the addresses stay the heap's until the allocation is freed.
Status unmap_inside(Session& s, const Part& part) {
  if (!hide(part)) return Status(Code::no_mappings, errno);
  const Status told = unmap_or_keep(s, part);
  // Once more: a command of the manager that was on its way may have mapped it again.
  if (!hide(part)) return Status(Code::no_mappings, errno);
  forget_fork_advice(part);
  // Nothing was there: as with munmap.
  return told.code == Code::not_allocated ? Status() : told;
}

int fail_with(int error) {
  errno = error;
  return -1;
}

void* pointer(std::uint64_t address) { return reinterpret_cast<void*>(address); }

int unmap_outside(const Part& part) {
  return touches_adopted(pointer(part.first), part.bytes()) ? adopted_unmap(pointer(part.first), part.bytes())
                                                            : raw_munmap(part.first, part.bytes());
}
int protect_outside(const Part& part, int prot) {
  return touches_adopted(pointer(part.first), part.bytes()) ? adopted_protect(pointer(part.first), part.bytes(), prot)
                                                            : raw_mprotect(part.first, part.bytes(), prot);
}
int advise_outside(const Part& part, int advice) {
  return touches_adopted(pointer(part.first), part.bytes()) ? adopted_advise(pointer(part.first), part.bytes(), advice)
                                                            : raw_madvise(part.first, part.bytes(), advice);
}

}  // namespace

bool touches_managed(const void* address, std::size_t bytes) {
  const Session* s = session_if_open();
  if (s == nullptr) return false;
  const std::uint64_t at = number(address);
  if (at >= s->window_base + s->window_bytes || at + bytes <= s->window_base) return false;
  return process_kind.load(std::memory_order_relaxed) == ProcessKind::application;
}

bool is_own_code(const void* at) {
  const std::uint64_t first = number(__ehdr_start);
  return number(at) - first < number(etext) - first;
}

int change_unmap(void* address, std::size_t bytes) {
  Session& s = *session_if_open();
  const std::uint64_t at = number(address);
  if (!well_formed(at, bytes)) return fail_with(EINVAL);
  const Cut parts = cut(s, at, bytes);
  for (const Part& outside : {parts.below, parts.above}) {
    if (!outside.empty() && unmap_outside(outside) != 0) return -1;
  }
  const Status done = unmap_inside(s, parts.inside);
  return done.ok() ? 0 : fail_with(errno_of(done));
}

void* change_map_over(void* address, std::size_t bytes, int prot, int flags, int fd, std::int64_t offset) {
  Session& s = *session_if_open();
  const std::uint64_t at = number(address);
  if (!well_formed(at, bytes) || (flags & MAP_FIXED_NOREPLACE) == MAP_FIXED_NOREPLACE) {
    return raw_mmap(at, bytes, prot, flags, fd, offset);
  }
  const Part inside = cut(s, at, bytes).inside;
  const Status told = tell_change(s, core::Change::unmap, inside);
  if (!told.ok() && told.code != Code::not_allocated) {
    errno = errno_of(told);
    return MAP_FAILED;
  }
  void* const mapped = raw_mmap(at, bytes, prot, flags, fd, offset);
  const int error = errno;
  if (mapped == MAP_FAILED) hide(inside);  // the kernel, too, has unmapped what was there by then
  wire::Span over{};
  over.first_page = s.page_of(reinterpret_cast<void*>(inside.first));
  over.count_pages = inside.bytes() / page_bytes;
  over.device = wire::to_system;
  [[maybe_unused]] const Status forgotten = s.requests.tell(wire::MessageType::changed, over);
  errno = error;
  return mapped;
}

int change_protect(void* address, std::size_t bytes, int prot) {
  Session& s = *session_if_open();
  const std::uint64_t at = number(address);
  if (!well_formed(at, bytes) || (prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC | prot_semaphores)) != 0) {
    return raw_mprotect(at, bytes, prot);
  }
  const Cut parts = cut(s, at, bytes);
  note_protection();
  if (!parts.below.empty() && protect_outside(parts.below, prot) != 0) return -1;
  // As the kernel does: up to the hole, and an error.
  const Part sound{parts.inside.first, first_hole(parts.inside)};
  if (sound.empty()) return fail_with(ENOMEM);
  const Status told = tell_change(s, core::Change::protect, sound, device_prot(prot));
  if (!told.ok()) return fail_with(errno_of(told));
  if (raw_mprotect(sound.first, sound.bytes(), prot) != 0) return -1;
  if (sound.end != parts.inside.end) return fail_with(ENOMEM);
  return parts.above.empty() ? 0 : protect_outside(parts.above, prot);
}

int change_advise(void* address, std::size_t bytes, int advice) {
  Session& s = *session_if_open();
  const std::uint64_t at = number(address);
  const AdviceRule rule = rule_of_advice(advice);
  if (rule == AdviceRule::kernel || rule == AdviceRule::hint) return raw_madvise(at, bytes, advice);
  if (at % page_bytes != 0) return fail_with(EINVAL);
  if (bytes == 0) return 0;
  if (!well_formed(at, bytes)) return fail_with(EINVAL);
  const Cut parts = cut(s, at, bytes);
  for (const Part& outside : {parts.below, parts.above}) {
    if (!outside.empty() && advise_outside(outside, advice) != 0) return -1;
  }
  if (rule == AdviceRule::fork) {
    // The kernel would give a child the parent's own pages, or nothing of what it is to have.
    if (advice == MADV_DONTFORK || advice == MADV_WIPEONFORK) {
      note_said(s.page_of(pointer(parts.inside.first)), parts.inside.bytes() / page_bytes);
    }
    const ForkAdvice wanted = advice == MADV_DONTFORK     ? ForkAdvice::absent
                              : advice == MADV_WIPEONFORK ? ForkAdvice::wiped
                                                          : ForkAdvice::none;
    return set_fork_advice(parts.inside, wanted).ok() ? 0 : fail_with(ENOMEM);
  }
  const Status told =
      tell_change(s, rule == AdviceRule::free ? core::Change::lazy_free : core::Change::discard, parts.inside);
  return told.ok() ? 0 : fail_with(errno_of(told));
}

// --- mremap ----------------------------------------------------------------------------------------------------------

namespace {

void* remap_failed(int error) {
  errno = error;
  return MAP_FAILED;
}

/// Where the pages go: of the heap, so that ferry_free takes it; or where the caller says.
void* take_target(Session& s, void* to, std::size_t bytes, bool fixed) {
  if (!fixed) {
    void* target = process_heap().allocate(bytes, page_bytes);
    return target == nullptr ? MAP_FAILED : target;
  }
  const std::uint64_t at = number(to);
  if (!well_formed(at, bytes)) return remap_failed(EINVAL);
  if (touches_managed(to, bytes)) {
    const Part inside = cut(s, at, bytes).inside;
    if (inside.bytes() != round_up(bytes)) return remap_failed(EINVAL);
    const Status gone = unmap_inside(s, inside);
    if (!gone.ok()) return remap_failed(errno_of(gone));
    if (raw_mmap(at, inside.bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, s.system_file.get(),
                 static_cast<std::int64_t>(s.page_of(to) * page_bytes)) == MAP_FAILED) {
      return MAP_FAILED;
    }
    raw_madvise(at, inside.bytes(), MADV_DONTFORK);
    wire::Span span{};
    span.first_page = s.page_of(to);
    span.count_pages = inside.bytes() / page_bytes;
    span.device = wire::to_system;
    const Status managed = s.requests.tell(wire::MessageType::alloc, span);
    if (managed.ok()) return to;
    hide(inside);
    return remap_failed(errno_of(managed));
  }
  return raw_mmap(at, round_up(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

/// What threads may do with all of it. False: one part may do other things than the next, or nothing is there.
bool one_protection(const Part& part, int& prot) {
  for (std::uint64_t at = part.first; at < part.end;) {
    OwnMapping here;
    if (!find_own_mapping(at, here)) return false;
    const int now = (here.readable ? PROT_READ : 0) | (here.writable ? PROT_WRITE : 0);
    if (at != part.first && now != prot) return false;
    prot = now;
    at = here.end;
  }
  return true;
}

/// Out of reach of everybody, `part` gives what it has to the target. Where the manager cannot let pages keep their place,
/// or a part of them cannot go, they are copied here. False: nothing was moved; errno.
bool move_pages(Session& s, const Part& part, void* target) {
  bool some_went = false;
  if (touches_managed(target, part.bytes())) {
    const Status moved = tell_move(s, part, number(target));
    if (moved.ok()) return true;
    some_went = moved.code == Code::no_memory || moved.code == Code::io_error;
  }
  const Status told = tell_change(s, core::Change::protect, part, core::span_read);
  if (!told.ok() || raw_mprotect(part.first, part.bytes(), PROT_READ) != 0) {
    errno = told.ok() ? errno : errno_of(told);
    return false;
  }
  if (!some_went) {
    std::memcpy(target, pointer(part.first), part.bytes());
    return true;
  }
  // What went reads as zeros here, and what did not reads as zeros there.
  static constexpr char zeros[page_bytes] = {};
  for (std::size_t at = 0; at < part.bytes(); at += page_bytes) {
    const void* const from = pointer(part.first + at);
    if (std::memcmp(from, zeros, page_bytes) != 0) std::memcpy(static_cast<char*>(target) + at, from, page_bytes);
  }
  return true;
}

}  // namespace

void* change_remap(void* address, std::size_t old_bytes, std::size_t new_bytes, int flags, void* to) {
  Session& s = *session_if_open();
  const std::uint64_t at = number(address);
  constexpr int known = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
  const bool fixed = (flags & MREMAP_FIXED) != 0;
  const bool keep = (flags & MREMAP_DONTUNMAP) != 0;
  if ((flags & ~known) != 0 || !well_formed(at, old_bytes) || new_bytes == 0 ||
      ((fixed || keep) && (flags & MREMAP_MAYMOVE) == 0) || (keep && round_up(old_bytes) != round_up(new_bytes))) {
    return remap_failed(EINVAL);
  }
  const std::uint64_t had = round_up(old_bytes);
  const std::uint64_t wanted = round_up(new_bytes);
  const Part old = cut(s, at, had).inside;
  if (old.bytes() != had) return remap_failed(EFAULT);  // more than one mapping
  if (fixed && number(to) < at + had && at < number(to) + wanted) return remap_failed(EINVAL);
  if (!fixed && !keep && wanted <= had) {
    if (wanted == had) return address;
    const Status gone = unmap_inside(s, {at + wanted, at + had});
    return gone.ok() ? address : remap_failed(errno_of(gone));
  }
  // What lies behind an allocation is another's, or may become so.
  if ((flags & MREMAP_MAYMOVE) == 0) return remap_failed(ENOMEM);

  int prot = 0;
  if (!one_protection(old, prot)) return remap_failed(EFAULT);
  const std::size_t moved = std::min(had, wanted);
  // What is pinned is at its place for somebody who does not ask the page table, and writes there.
  if (const Status may_go = tell_move(s, {at, at + moved}, at); !may_go.ok()) return remap_failed(errno_of(may_go));
  // Nobody touches the pages from here on: a thread that tries gets SIGSEGV, as when they have gone.
  note_protection();
  Status told = tell_change(s, core::Change::protect, old, 0);
  if (!told.ok()) return remap_failed(told.code == Code::not_allocated ? EFAULT : errno_of(told));
  void* target = MAP_FAILED;
  if (raw_mprotect(old.first, old.bytes(), PROT_NONE) == 0) target = take_target(s, to, wanted, fixed);
  const Part leaving{old.first, old.first + moved};
  if (target != MAP_FAILED && !move_pages(s, leaving, target)) {
    const int error = errno == 0 ? ENOMEM : errno;
    if (!fixed) process_heap().free(target);
    target = MAP_FAILED;
    errno = error;
  }
  if (target == MAP_FAILED) {
    const int error = errno == 0 ? ENOMEM : errno;
    [[maybe_unused]] const Status again = tell_change(s, core::Change::protect, old, device_prot(prot));
    raw_mprotect(old.first, old.bytes(), prot);
    return remap_failed(error);
  }
  if (!fixed && wanted > moved) {  // the heap's memory may have been something else's
    const std::uint64_t behind = number(target) + moved;
    [[maybe_unused]] const Status empty = tell_change(s, core::Change::discard, {behind, number(target) + wanted});
  }
  if (move_fork_advice({old.first, old.first + moved}, number(target)).ok() && touches_managed(target, wanted)) {
    note_said(s.page_of(target), wanted / page_bytes);
  }
  if (keep) {
    told = tell_change(s, core::Change::discard, old);
    if (told.ok()) told = tell_change(s, core::Change::protect, old, device_prot(prot));
    raw_mprotect(old.first, old.bytes(), prot);
  } else {
    told = unmap_inside(s, old);
  }
  if (told.ok() && prot != (PROT_READ | PROT_WRITE)) {
    const int done = touches_managed(target, wanted) ? change_protect(target, wanted, prot)
                                                     : raw_mprotect(number(target), wanted, prot);
    if (done != 0) return MAP_FAILED;
  }
  return told.ok() ? target : remap_failed(errno_of(told));
}

// --- system calls on managed memory ----------------------------------------------------------------------------------

bool kernel_needs_help(const void* address) {
  return touches_managed(address, 1) && !session_if_open()->userfault.full_service();
}

bool bring_for_kernel(const void* address, std::size_t bytes, bool kernel_writes) {
  if (bytes == 0 || !touches_managed(address, bytes) || session_if_open()->userfault.full_service()) return false;
  const std::uint64_t end = number(address) + bytes;
  bool some = false;
  for (std::uint64_t at = number(address) & ~(page_bytes - 1); at < end;) {
    OwnMapping here;
    // Where threads may not touch, the kernel was right.
    if (!find_own_mapping(at, here) || !here.readable || (kernel_writes && !here.writable)) return some;
    const std::uint64_t stop = std::min(end, here.end);
    for (; at < stop; at += page_bytes) {
      // As the kernel would: a write that changes nothing, or a read. This thread waits until the page is there.
      auto* word = reinterpret_cast<unsigned char*>(at);
      if (kernel_writes) {
        __atomic_fetch_or(word, 0, __ATOMIC_RELAXED);
      } else {
        static_cast<void>(__atomic_load_n(word, __ATOMIC_RELAXED));
      }
    }
    some = true;
  }
  return some;
}

}  // namespace ferry::client
