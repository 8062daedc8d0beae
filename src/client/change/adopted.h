// What change.h does to managed memory of the window, done to memory outside of it that was adopted: docs/design/
// 0019-changes.md. The program goes on as if the memory were private, as it was. Calls return as libc's do. Any thread but
// the session's own. Parts of a span that are not adopted are the kernel's, as ever.
//
// | call     | adopted parts                                                                                        |
// |----------|------------------------------------------------------------------------------------------------------|
// | munmap   | threads first, then the manager frees them; it returns when no device reaches them                    |
// | mmap     | (fixed) the same, in one step for threads                                                             |
// | mprotect | devices first, then threads; they stay adopted                                                        |
// | madvise  | contents: the manager; what a child gets: they are given back first; hints about reading: not passed on |
// | mremap   | are given back first, and are then moved by the kernel                                                |
//
// Nothing is adopted or given back in the span meanwhile.
#pragma once

#include <signal.h>

#include <cstddef>
#include <cstdint>

#include "client/change/change.h"

namespace ferry::client {

/// Some of it may be adopted. False at once for nearly all.
[[nodiscard]] FERRY_CHANGE_EXPORT bool touches_adopted(const void* address, std::size_t bytes);

/// Adoptions and releases that have begun, of any memory.
[[nodiscard]] FERRY_CHANGE_EXPORT std::uint32_t swaps_of_adopted();

/// While it lives nothing of [address, +bytes) is adopted: for calls that the kernel makes on memory that is not, and which
/// it would make of adopted memory with another meaning. Nothing was ever adopted: nothing.
class FERRY_CHANGE_EXPORT NotAdopted {
 public:
  NotAdopted(const void* address, std::size_t bytes);
  ~NotAdopted();
  NotAdopted(const NotAdopted&) = delete;
  NotAdopted& operator=(const NotAdopted&) = delete;

 private:
  unsigned held_ = 0;
  bool holds_ = false;
  sigset_t before_{};
};

/// REQUIRES of all: touches_adopted() of the span, or of the target of mremap, which do not touch the window.
FERRY_CHANGE_EXPORT int adopted_unmap(void* address, std::size_t bytes);
FERRY_CHANGE_EXPORT void* adopted_map_over(void* address, std::size_t bytes, int prot, int flags, int fd,
                                           std::int64_t offset);
FERRY_CHANGE_EXPORT int adopted_protect(void* address, std::size_t bytes, int prot);
FERRY_CHANGE_EXPORT int adopted_advise(void* address, std::size_t bytes, int advice);
FERRY_CHANGE_EXPORT void* adopted_remap(void* address, std::size_t old_bytes, std::size_t new_bytes, int flags,
                                        void* to);

/// madvise about what a fork's child gets was called, of any memory: what is adopted later has to keep it.
FERRY_CHANGE_EXPORT void advises_for_forks();

}  // namespace ferry::client
