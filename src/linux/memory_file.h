// Sealed memory files (memfd) and mappings of them, and what is done to their pages: populate, make huge, punch, ask
// for holes. The caller serialises; nothing here keeps state of its own but the descriptors and mappings it owns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/status.h"
#include "linux/fd.h"

namespace ferry::linux {

/// Makes a zero-filled file of exactly `bytes` that nobody can resize any more. Its pages cost nothing until touched.
/// ERRORS: no_memory, io_error.
Result<Fd> make_memory_file(const char* name, std::uint64_t bytes);

/// Size of a file. ERRORS: io_error.
Result<std::uint64_t> file_bytes(int fd);

/// True if `fd` is a memfd that is sealed against resizing: mapping it cannot raise SIGBUS later.
[[nodiscard]] bool is_sealed(int fd);

/// A mapping that unmaps itself.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& o) noexcept : data_(std::exchange(o.data_, nullptr)), bytes_(std::exchange(o.bytes_, 0)) {}
  Mapping& operator=(Mapping&& o) noexcept {
    if (this != &o) {
      reset();
      data_ = std::exchange(o.data_, nullptr);
      bytes_ = std::exchange(o.bytes_, 0);
    }
    return *this;
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { reset(); }
  void reset();

  /// Shared, read-write, page aligned; huge pages are possible when offset is a multiple of 2 MiB (the address is then
  /// aligned likewise). ERRORS: no_memory, no_mappings, io_error.
  static Result<Mapping> map(int fd, std::uint64_t offset, std::size_t bytes);

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Gives the span memory and entries in this process's page table; pages that exist keep their contents. No signal on
/// lack of memory. ERRORS: no_memory, io_error.
Status populate(void* address, std::size_t bytes, bool write = true);

/// Puts each aligned 2 MiB of the span on one huge page, contents kept, holes filled with zeros. Works where shmem is
/// "never" huge too. Best effort: false if some part is not huge now.
bool make_huge(void* address, std::size_t bytes);

/// Frees the pages of the span in the file; they read as zeros, in every process, from now on. ERRORS: io_error.
Status punch_hole(int fd, std::uint64_t offset, std::uint64_t bytes);

/// The first offset in [from, end) where the file has data, or `end`. On any error `from`: treat it as data.
[[nodiscard]] std::uint64_t next_data(int fd, std::uint64_t from, std::uint64_t end);
/// The first offset in [from, end) that is a hole, or `end`. Takes time in proportion to the data that follows `from`
/// in the file, however far `end` is: ask all_resident() first.
[[nodiscard]] std::uint64_t next_hole(int fd, std::uint64_t from, std::uint64_t end);

/// True if every page of a mapped span has memory now. False may also mean that some are swapped out.
/// REQUIRES: the span is page aligned.
[[nodiscard]] bool all_resident(const void* address, std::size_t bytes);

}  // namespace ferry::linux
