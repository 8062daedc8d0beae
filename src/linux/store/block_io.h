// Reads and writes of one file, many at a time: io_uring where it is allowed, else pread and pwrite one after the
// other. One object for each thread. Buffers, offsets and sizes are whole pages (the file may be O_DIRECT).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/status.h"

namespace ferry::linux {

/// For tests: an errno to fail a read or write with, or 0. Called before each one is begun, on its thread.
using IoFault = std::function<int(bool write, std::uint64_t offset, std::size_t bytes)>;

enum class IoKind : std::uint8_t {
  automatic,  ///< io_uring if the machine lets us
  threads,    ///< never io_uring
};

/// Why io_uring cannot be used by this process; 0: it can.
[[nodiscard]] int probe_uring();

class BlockIo {
 public:
  static constexpr unsigned depth = 64;

  BlockIo(int fd, IoKind kind, const IoFault* fault);
  ~BlockIo();
  BlockIo(const BlockIo&) = delete;
  BlockIo& operator=(const BlockIo&) = delete;

  /// Pins the buffer with the kernel, so that reads and writes within it skip that step; refused silently where the
  /// limit of locked memory says so. Once, before the first read or write.
  void register_buffer(std::byte* buffer, std::size_t bytes);

  /// Begins; the buffer stays as it is until wait() has returned. Of up to `depth` since the last wait(), each has a
  /// number of its own.
  unsigned write(const std::byte* from, std::size_t bytes, std::uint64_t offset);
  unsigned read(std::byte* to, std::size_t bytes, std::uint64_t offset);
  /// Lets the kernel have what was begun; the others do it too, when they wait.
  void go();
  /// Until this one has ended. False: it or another has failed, wait() says how.
  bool wait_for(unsigned number);
  /// Ends everything that was begun. The first failure of any: no_space, io_error.
  Status wait();

  [[nodiscard]] bool uses_uring() const { return ring_ != nullptr; }
  [[nodiscard]] bool uses_registered_buffer() const;

 private:
  struct Ring;
  struct Request;
  unsigned begin(bool write, std::byte* buffer, std::size_t bytes, std::uint64_t offset);
  void here(bool write, std::byte* buffer, std::size_t bytes, std::uint64_t offset);
  void submit(Request& request);
  void reap(bool all);
  void note(int error);

  int fd_;
  const IoFault* fault_;
  std::unique_ptr<Ring> ring_;
  Status status_;
};

}  // namespace ferry::linux
