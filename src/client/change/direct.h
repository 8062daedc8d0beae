// Memory that a device of the machine writes by itself, past every page table: what files opened with O_DIRECT are read
// into, and the registered buffers of an io_uring. Such pages may not move meanwhile, or what arrives is lost.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>

#include "client/change/change.h"

namespace ferry::client {

/// Pins the managed pages of some buffers in system memory for as long as it lives. Pages of no allocation, and memory
/// that is not managed, are left out. Any thread but the session's own.
class FERRY_CHANGE_EXPORT DirectPins {
 public:
  DirectPins() = default;
  DirectPins(DirectPins&& other) noexcept;
  DirectPins& operator=(DirectPins&& other) noexcept;
  DirectPins(const DirectPins&) = delete;
  DirectPins& operator=(const DirectPins&) = delete;
  ~DirectPins() {
    if (spans_ != nullptr) release();
  }

  /// False: some of it cannot be pinned (the limit; what is pinned elsewhere), and nothing of it is.
  [[nodiscard]] bool add(const iovec* parts, std::size_t count);
  void release();
  /// Those of another, too, from here on.
  void take(DirectPins&& more);
  [[nodiscard]] bool empty() const { return count_ == 0; }

 private:
  struct Span {
    std::uint64_t first_page;
    std::uint64_t count_pages;
  };
  bool pin(Span span);
  [[nodiscard]] bool make_room();
  Span* spans_ = nullptr;
  std::size_t count_ = 0;
  std::size_t room_ = 0;
};

/// The buffer is memory of this process that could move.
[[nodiscard]] FERRY_CHANGE_EXPORT bool could_move(const void* address, std::size_t bytes);
/// The file is read past the page cache. False without a system call where nothing of this process could move.
[[nodiscard]] FERRY_CHANGE_EXPORT bool is_direct_file(int fd);

/// One read of an O_DIRECT file into memory that could not be pinned: by way of memory that does not move.
class FERRY_CHANGE_EXPORT Bounce {
 public:
  /// Room for all parts; invalid, with errno, where there is none.
  Bounce(const iovec* parts, std::size_t count);
  ~Bounce();
  Bounce(const Bounce&) = delete;
  Bounce& operator=(const Bounce&) = delete;
  explicit operator bool() const { return base_ != nullptr; }
  [[nodiscard]] void* base() const { return base_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  /// The first `bytes` of it, given to the parts. False: they cannot be written, as with a system call's EFAULT.
  [[nodiscard]] bool give(std::size_t bytes) const;

 private:
  const iovec* parts_;
  std::size_t count_;
  std::size_t bytes_ = 0;
  void* base_ = nullptr;
};

}  // namespace ferry::client
