// munmap, mmap, mremap, mprotect, madvise as this library exports them: for memory that is not managed, one comparison
// and then the system call. System calls that are made by number are not seen: docs/SVM.md says what that means.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstddef>

#include "client/adopt/file_notes.h"
#include "client/adopt/stopped.h"
#include "client/change/adopted.h"
#include "client/change/change.h"
#include "client/change/libc.h"
#include "client/change/rules.h"

using ferry::client::FileChange;
using ferry::client::files_mapped_anew;
using ferry::client::touches_adopted;
using ferry::client::touches_managed;
using ferry::client::wait_while_stopped;

FERRY_INTERPOSED int munmap(void* address, std::size_t bytes) noexcept {
  wait_while_stopped();
  if (touches_managed(address, bytes) && !FERRY_CALLED_FROM_INSIDE()) {
    return ferry::client::change_unmap(address, bytes);
  }
  if (touches_adopted(address, bytes) && !FERRY_CALLED_FROM_INSIDE()) {
    return ferry::client::adopted_unmap(address, bytes);
  }
  const FileChange files(address, bytes, FERRY_CALLED_FROM_INSIDE());
  return static_cast<int>(::syscall(SYS_munmap, address, bytes));
}

FERRY_INTERPOSED void* mmap(void* address, std::size_t bytes, int prot, int flags, int fd, off_t offset) noexcept {
  wait_while_stopped();
  if ((flags & MAP_FIXED) != 0 && touches_managed(address, bytes) && !FERRY_CALLED_FROM_INSIDE()) {
    return ferry::client::change_map_over(address, bytes, prot, flags, fd, offset);
  }
  if ((flags & MAP_FIXED) != 0 && touches_adopted(address, bytes) && !FERRY_CALLED_FROM_INSIDE()) {
    return ferry::client::adopted_map_over(address, bytes, prot, flags, fd, offset);
  }
  const bool inside = FERRY_CALLED_FROM_INSIDE();
  if ((flags & MAP_FIXED) != 0) {
    const FileChange files(address, bytes, inside);
    return reinterpret_cast<void*>(::syscall(SYS_mmap, address, bytes, prot, flags, fd, offset));
  }
  auto* const mapped = reinterpret_cast<void*>(::syscall(SYS_mmap, address, bytes, prot, flags, fd, offset));
  files_mapped_anew(mapped, bytes, inside);
  return mapped;
}

FERRY_INTERPOSED void* mmap64(void* address, std::size_t bytes, int prot, int flags, int fd, off64_t offset) noexcept {
  wait_while_stopped();
  if ((flags & MAP_FIXED) != 0 && touches_managed(address, bytes) && !FERRY_CALLED_FROM_INSIDE()) {
    return ferry::client::change_map_over(address, bytes, prot, flags, fd, offset);
  }
  if ((flags & MAP_FIXED) != 0 && touches_adopted(address, bytes) && !FERRY_CALLED_FROM_INSIDE()) {
    return ferry::client::adopted_map_over(address, bytes, prot, flags, fd, offset);
  }
  const bool inside = FERRY_CALLED_FROM_INSIDE();
  if ((flags & MAP_FIXED) != 0) {
    const FileChange files(address, bytes, inside);
    return reinterpret_cast<void*>(::syscall(SYS_mmap, address, bytes, prot, flags, fd, offset));
  }
  auto* const mapped = reinterpret_cast<void*>(::syscall(SYS_mmap, address, bytes, prot, flags, fd, offset));
  files_mapped_anew(mapped, bytes, inside);
  return mapped;
}

FERRY_INTERPOSED int mprotect(void* address, std::size_t bytes, int prot) noexcept {
  wait_while_stopped();
  if (touches_managed(address, bytes) && !FERRY_CALLED_FROM_INSIDE()) {
    return ferry::client::change_protect(address, bytes, prot);
  }
  if (touches_adopted(address, bytes) && !FERRY_CALLED_FROM_INSIDE()) {
    return ferry::client::adopted_protect(address, bytes, prot);
  }
  int result = 0;
  {
    const FileChange files(address, bytes, FERRY_CALLED_FROM_INSIDE());
    result = static_cast<int>(::syscall(SYS_mprotect, address, bytes, prot));
  }
  // Adopted since it was looked at, perhaps before the call: devices have to hear of it. Twice is as once.
  if (result == 0 && touches_adopted(address, bytes) && !FERRY_CALLED_FROM_INSIDE()) {
    return ferry::client::adopted_protect(address, bytes, prot);
  }
  return result;
}

FERRY_INTERPOSED int madvise(void* address, std::size_t bytes, int advice) noexcept {
  wait_while_stopped();
  if ((advice == MADV_DONTFORK || advice == MADV_WIPEONFORK) && !FERRY_CALLED_FROM_INSIDE()) {
    ferry::client::advises_for_forks();
  }
  if (touches_managed(address, bytes) && !FERRY_CALLED_FROM_INSIDE()) {
    return ferry::client::change_advise(address, bytes, advice);
  }
  if (touches_adopted(address, bytes) && !FERRY_CALLED_FROM_INSIDE()) {
    return ferry::client::adopted_advise(address, bytes, advice);
  }
  for (;;) {
    const std::uint32_t swaps = ferry::client::swaps_of_adopted();
    const int result = static_cast<int>(::syscall(SYS_madvise, address, bytes, advice));
    // As in mprotect: of adopted memory the kernel lets go of mappings, and the contents stay. It may have been adopted for
    // the call alone, and be as before by now.
    if (result != 0 || FERRY_CALLED_FROM_INSIDE()) return result;
    if (touches_adopted(address, bytes)) return ferry::client::adopted_advise(address, bytes, advice);
    if (ferry::client::swaps_of_adopted() == swaps) return result;
  }
}

FERRY_INTERPOSED int posix_madvise(void* address, std::size_t bytes, int advice) noexcept {
  // As libc: what POSIX calls DONTNEED may not lose contents, and does nothing.
  if (advice == POSIX_MADV_DONTNEED) return 0;
  const int before = errno;
  const bool inside = FERRY_CALLED_FROM_INSIDE();
  int done = 0;
  if (!inside && touches_managed(address, bytes)) {
    done = ferry::client::change_advise(address, bytes, advice);
  } else if (!inside && touches_adopted(address, bytes)) {
    done = ferry::client::adopted_advise(address, bytes, advice);
  } else {
    done = static_cast<int>(::syscall(SYS_madvise, address, bytes, advice));
  }
  const int result = done == 0 ? 0 : errno;
  errno = before;
  return result;
}

FERRY_INTERPOSED void* mremap(void* address, std::size_t old_bytes, std::size_t new_bytes, int flags, ...) noexcept {
  wait_while_stopped();
  // Nothing, of shared memory: all of it once more.
  const std::size_t looked_at = ferry::client::round_up(old_bytes) == 0 ? 1 : old_bytes;
  void* to = nullptr;
  if ((flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) != 0) {
    va_list more;
    va_start(more, flags);
    to = va_arg(more, void*);
    va_end(more);
  }
  const bool over = (flags & MREMAP_FIXED) != 0 && touches_managed(to, new_bytes);
  if ((over || touches_managed(address, old_bytes)) && !FERRY_CALLED_FROM_INSIDE()) {
    if (touches_managed(address, old_bytes)) {
      return ferry::client::change_remap(address, old_bytes, new_bytes, flags, to);
    }
    // Memory of its own comes to lie over managed memory: that goes first.
    if (ferry::client::change_unmap(to, new_bytes) != 0) return MAP_FAILED;
  }
  const auto adopted = [&] {
    return touches_adopted(address, looked_at) || ((flags & MREMAP_FIXED) != 0 && touches_adopted(to, new_bytes));
  };
  if (adopted() && !FERRY_CALLED_FROM_INSIDE()) {
    return ferry::client::adopted_remap(address, old_bytes, new_bytes, flags, to);
  }
  const bool inside = FERRY_CALLED_FROM_INSIDE();
  void* moved = MAP_FAILED;
  bool late = false;
  {
    // Moved by the kernel, adopted memory would show there what belongs to other addresses; or is refused, as several mappings.
    const ferry::client::NotAdopted as_it_is(address, inside ? 0 : looked_at);
    late = !inside && adopted();
    const FileChange files(address, old_bytes, inside);
    const FileChange files_there(to, (flags & MREMAP_FIXED) != 0 ? new_bytes : 0, inside);
    if (!late) moved = reinterpret_cast<void*>(::syscall(SYS_mremap, address, old_bytes, new_bytes, flags, to));
  }
  // Several mappings, maybe of what was adopted and given back: for the program they are one.
  const bool pieces = moved == MAP_FAILED && errno == EFAULT && (flags & MREMAP_FIXED) == 0 && !inside;
  if (late || (pieces && ferry::client::swaps_of_adopted() != 0)) {
    return ferry::client::adopted_remap(address, old_bytes, new_bytes, flags, to);
  }
  if ((flags & MREMAP_FIXED) == 0) files_mapped_anew(moved, new_bytes, inside);
  return moved;
}
