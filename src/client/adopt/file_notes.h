// Which mappings of files the program's devices may have mapped too, and the order between the program's changes of its
// mappings and the serving of devices: neither is ever half done while the other looks. Any thread; no malloc.
//
// Changes are many and rarely of such memory: two additions to a counter each. A change of such memory, and serving, wait
// until no change is under way, and keep others out meanwhile.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace ferry::client {

struct Session;

/// A mapping of a file in this process, or a part of one, as it was when a device got it.
struct FileNote {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint64_t offset = 0;  ///< in the file, of `begin`
  std::uint64_t inode = 0;
  std::uint32_t major = 0;
  std::uint32_t minor = 0;
  bool writable = false;
  bool shared = false;

  /// Both are parts of one mapping.
  [[nodiscard]] bool same_mapping(const FileNote& other) const {
    return inode == other.inode && major == other.major && minor == other.minor && writable == other.writable &&
           shared == other.shared && offset - begin == other.offset - other.begin;
  }
};

/// From its beginning to its end the mappings of the program are changed by nobody else, as far as that can be seen
/// (change/interpose_memory.cpp). REQUIRES: the session is open.
class ServingFiles {
 public:
  ServingFiles();
  ~ServingFiles();
  ServingFiles(const ServingFiles&) = delete;
  ServingFiles& operator=(const ServingFiles&) = delete;

  /// Before a device is told: where something else was noted, devices let go of that first. ERRORS: no_memory (there is no
  /// room for more), manager_lost.
  Status note(Session& session, const FileNote& note);
};

/// A device was given a file since the process began.
[[nodiscard]] bool has_served_files();

/// Devices let go of files that are mapped in the span: they ask again when they touch it. Any thread.
Status drop_files(Session& session, std::uint64_t begin, std::uint64_t end);

/// Around a change of [address, address + bytes) of this process's mappings: no device reaches a file there from its
/// construction on, nor gets one before its end. `inside`: libferry's own call, which is left alone. Preserves errno.
class __attribute__((visibility("default"))) FileChange {
 public:
  FileChange(const void* address, std::size_t bytes, bool inside);
  ~FileChange();
  FileChange(const FileChange&) = delete;
  FileChange& operator=(const FileChange&) = delete;

 private:
  enum class Held : std::uint8_t { nothing, counted, alone };
  Held held_ = Held::nothing;
};

/// The kernel has just given out new memory there. What devices still have of a file that was mapped there before, and was
/// unmapped unseen, is taken from them. `inside` as above. Preserves errno.
__attribute__((visibility("default"))) void files_mapped_anew(const void* address, std::size_t bytes, bool inside);

}  // namespace ferry::client
