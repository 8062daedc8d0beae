// Turns private anonymous memory, which other threads use meanwhile, into a shared mapping of a file at the same
// address, with no byte lost: writers wait while it is copied.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace ferry::client {

/// `span`: private anonymous memory of `bytes`, page aligned, all of it mapped. The file's pages there must be holes
/// (they read as zeros); pages that the span never had stay holes.
/// Where faults inside system calls cannot be held up (no privilege for a full userfaultfd), a system call of another
/// thread that writes into the span at this very moment may fail with EFAULT.
/// On error the span is as it was. ERRORS: unsupported, no_memory, no_mappings.
/// `prot` of mmap: what the span has, and keeps.
Status convert_to_shared(void* span, std::size_t bytes, int file, std::uint64_t file_offset, int prot);

/// The way back: `span`, mapped from `file` at `file_offset`, becomes private anonymous memory with the same contents. The
/// file's pages stay as they are. No userfaultfd may watch the span, and all of its contents must be in the file.
/// On error the span is as it was. ERRORS: unsupported, no_memory, no_mappings.
/// `stage`: `bytes` of address space that are the caller's, for the copy while it is made; null: the kernel finds some.
/// They are nobody's afterwards.
Status convert_to_private(void* span, std::size_t bytes, int prot, int file, std::uint64_t file_offset,
                          void* stage = nullptr);

/// Copies the pages of private memory that exist; `pagemap`: /proc/self/pagemap. Nobody may write to the span meanwhile.
/// ERRORS: unsupported.
Status copy_present(const std::byte* span, std::size_t bytes, std::byte* target, int pagemap);

}  // namespace ferry::client
