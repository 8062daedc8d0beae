// Replaces mappings of the program while its threads go on, and while any of them may unmap what lies beside the memory that
// is meant: a malloc's neighbours, another thread's stack. Each function changes what it finds mapped when it has stopped
// the threads (stopped.h), whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "linux/userfaultfd.h"

namespace ferry::client {

/// A swap covers no more.
inline constexpr std::uint64_t swap_bytes_max = std::uint64_t{4} << 20;

struct Swap {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  int prot = 0;   ///< of mmap: what the span has, and keeps
  int file = -1;  ///< the system file
  std::uint64_t offset = 0;
};

/// The span, private anonymous memory in one mapping, becomes a shared mapping of the file with the same contents;
/// `watcher` is told when any of it is unmapped, from the first moment. Pages that never existed stay holes of the file,
/// which must have nothing there. `striped`: see stripe().
/// ERRORS, and nothing has changed: timed_out (the threads could not be stopped), bad_range (the span is not one such mapping
/// any more), in_use (another userfaultfd serves it), no_memory, no_mappings, unsupported.
Status swap_to_shared(const Swap& swap, const linux::Userfaultfd& watcher, bool striped);

/// Those parts of the span that are mapped from the file become private anonymous memory with the same contents. What is not
/// the file's (any more) is left alone. `watcher` lets go of them.
/// ERRORS, as far as it came: timed_out, no_memory, no_mappings, unsupported.
Status swap_to_private(const Swap& swap, const linux::Userfaultfd& watcher);

/// C libraries grow and move large blocks with mremap (realloc), and ask nobody: the block's new place would show pages of
/// the file that belong to other addresses. A span of more than one mapping is refused to them, and they copy it. So no
/// span as large as the smallest block that they map lies in one mapping: neighbours with unlike advice stay apart.
/// False, with errno: the process has no more mappings.
[[nodiscard]] bool stripe(std::uint64_t begin, std::uint64_t end);

}  // namespace ferry::client
