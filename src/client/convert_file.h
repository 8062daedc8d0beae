// As convert.h, for private mappings of files, which no userfaultfd protects from being written. The adopter's thread only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace ferry::client {

/// More is not converted at once: a pipe holds the pages, and an ordinary user's holds no more.
inline constexpr std::uint64_t file_piece_bytes = std::uint64_t{1} << 20;

/// Every page of [begin, end), which the program may write, becomes its own copy. `end` becomes where the file ends, where
/// that is before. ERRORS: no_memory, unsupported.
Status copy_file_pages(std::uint64_t begin, std::uint64_t& end);

/// REQUIRES: copy_file_pages() of the span, of at most file_piece_bytes. The span becomes a shared mapping of `file` with the
/// contents that it had in the last moment before: no thread's write is lost, and none waits but while they are copied.
/// ERRORS, and nothing has changed: in_use (the program has discarded pages meanwhile), no_memory, no_mappings, unsupported.
Status convert_file_to_shared(void* span, std::size_t bytes, int file, std::uint64_t file_offset, int prot);

}  // namespace ferry::client
