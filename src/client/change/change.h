// The application changes its own mappings of managed memory. What libc's functions of the same names do to other
// memory is done here to managed memory, with the manager told in the order that leaves nobody a wrong state to see.
// Calls return as libc's do: -1 or MAP_FAILED with errno. Any thread but the session's own.
//
// | call     | order                                                                                             |
// |----------|---------------------------------------------------------------------------------------------------|
// | munmap   | out of reach of threads (they get SIGSEGV), then the manager lets go of memory and devices         |
// | mmap     | (fixed) the manager lets go, then the new mapping takes the place in one step, then the manager    |
// |          | forgets what threads wrote between the two                                                         |
// | mprotect | devices first, then threads                                                                        |
// | madvise  | the manager alone: contents are zeros, wherever they were, when it returns                          |
//
// Memory outside the window that was adopted (client/adopt) is changed by the functions of adopted.h.
#pragma once

#include <cstddef>
#include <cstdint>

/// Visible, as libferry_malloc.so stands before libc's functions too: a preloaded library's own libraries come after libc.
#define FERRY_CHANGE_EXPORT __attribute__((visibility("default")))

namespace ferry::client {

/// An address range is, at least in part, memory of this process that the manager has. False at once for nearly all.
[[nodiscard]] FERRY_CHANGE_EXPORT bool touches_managed(const void* address, std::size_t bytes);

/// The address is one of libferry's own code.
[[nodiscard]] FERRY_CHANGE_EXPORT bool is_own_code(const void* at);

/// REQUIRES of all: touches_managed(address, bytes). Parts outside of managed memory are handed to the kernel.
FERRY_CHANGE_EXPORT int change_unmap(void* address, std::size_t bytes);
FERRY_CHANGE_EXPORT void* change_map_over(void* address, std::size_t bytes, int prot, int flags, int fd,
                                          std::int64_t offset);
FERRY_CHANGE_EXPORT int change_protect(void* address, std::size_t bytes, int prot);
FERRY_CHANGE_EXPORT int change_advise(void* address, std::size_t bytes, int advice);
FERRY_CHANGE_EXPORT void* change_remap(void* address, std::size_t old_bytes, std::size_t new_bytes, int flags,
                                       void* to);

/// Managed memory at the address may be out of the kernel's reach.
[[nodiscard]] FERRY_CHANGE_EXPORT bool kernel_needs_help(const void* address);
/// A system call failed with EFAULT, and [address, address + bytes) was given to it. True: some of it was managed memory
/// out of the kernel's reach, and is in reach now: worth another try. False: the error stands. Where the userfaultfd
/// serves system calls too (`ferry doctor`) it always is the caller's own.
FERRY_CHANGE_EXPORT bool bring_for_kernel(const void* address, std::size_t bytes, bool kernel_writes);

}  // namespace ferry::client
