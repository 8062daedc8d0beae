// Thin owners of descriptors, mappings and child processes for the floors. Only Linux, nothing of Ferry: a floor that
// shared code with what it judges would hide that code's cost.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include <sys/types.h>

namespace ferry::bench::floors {

inline constexpr std::size_t page_bytes = 4096;
inline constexpr std::size_t block_bytes = 2UL << 20U;

/// Throws std::system_error for errno with `what`.
[[noreturn]] void throw_errno(const std::string& what);

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd();
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_ = -1;
};

class Mapping {
 public:
  Mapping() = default;
  /// Shared mapping of the whole of `fd`, or of anonymous memory for -1. Throws on failure.
  Mapping(int fd, std::size_t bytes);
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Mapping();
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// A memory file with every page allocated, so that no sample pays for a first touch.
[[nodiscard]] Fd warm_memfd(const char* name, std::size_t bytes);

/// A userfaultfd of the calling process for shared-memory minor and missing faults, with `extra_features`, registered
/// over `mapping`. User-mode-only, so it needs no privilege.
[[nodiscard]] Fd register_userfaultfd(const Mapping& mapping, std::uint64_t extra_features);

/// A forked process that runs `body` and exits; it is killed and reaped by the destructor and dies with its parent.
/// Make it while the calling process has one thread: the child uses malloc and threads.
class Child {
 public:
  explicit Child(const std::function<void()>& body);
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child();
  /// Throws if the child has ended.
  void check_alive();

 private:
  pid_t pid_ = -1;
};

/// Two ends of a socket; messages keep their bounds.
[[nodiscard]] std::pair<Fd, Fd> socket_pair();
void send_fd(int socket, int fd);
[[nodiscard]] Fd receive_fd(int socket);

/// Resolves one minor fault at `page` in the process that owns `userfaultfd`. Aborts on an error no floor expects.
void continue_page(int userfaultfd, std::uint64_t page, bool wake);

inline void cpu_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

/// A spin that gives the CPU up now and then: a machine with fewer CPUs than spinners still ends the sample.
class Spin {
 public:
  void pause();

 private:
  unsigned turns_ = 0;
};

}  // namespace ferry::bench::floors
