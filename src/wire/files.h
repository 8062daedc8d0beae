// Files that the application has mapped, reached by its devices where they are (docs/design/0022-files.md). The manager
// never gets such a file: the application sends it to the device, and the manager says when the device maps it, and when it
// lets go.
//
// | type        | from        | to      | body        | means                                                | answer       |
// |-------------|-------------|---------|-------------|------------------------------------------------------|--------------|
// | file_serve  | application | manager | FileServe   | the page of adopt_ask is part of a file that the devices | done: they are told to map |
// |             |             |         |             | have been sent; in place of adopt_answer             | it; or why not, and adopt_answer is awaited still |
// | file_drop   | application | manager | Span        | the mappings there are about to change, or have       | done, when no device reaches a file there |
// | served_file | application | device  | ServedFile  | with the descriptor, on a socket of its own, before file_serve | -   |
#pragma once

#include <cstdint>
#include <type_traits>

namespace ferry::wire {

struct FileServe {
  std::uint64_t address;     ///< of the question
  std::uint64_t first_page;  ///< what is mapped there from the file, in one piece
  std::uint64_t count_pages;
  std::uint64_t file_offset;  ///< of first_page
  std::uint32_t rights;       ///< map_write, or 0
  std::uint32_t serial;       ///< of the descriptor, as the devices were sent it
  std::uint32_t devices;      ///< bit d: device d was sent it
  std::uint32_t reserved0;
};
static_assert(std::is_trivially_copyable_v<FileServe> && sizeof(FileServe) == 48);

/// A device takes descriptors until it comes to the one that a command names, and forgets those before.
struct ServedFile {
  std::uint32_t serial;
  std::uint32_t reserved0;
};
static_assert(std::is_trivially_copyable_v<ServedFile> && sizeof(ServedFile) == 8);

}  // namespace ferry::wire
