// What the tests of kernel facts share: a child process that touches memory on request, and helpers to look at it.
#pragma once

#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <functional>

#include "base/types.h"
#include "linux/futex.h"
#include "linux/memory_file.h"
#include "linux/socket.h"
#include "linux/userfaultfd.h"

namespace ferry::linux::test {

inline constexpr int patience_ms = 20'000;

inline std::uint64_t as_address(const void* p) { return reinterpret_cast<std::uint64_t>(p); }

/// Waits for one fault message.
inline bool next_fault(const Userfaultfd& u, uffd_msg& message, int timeout_ms = patience_ms) {
  pollfd p{u.fd(), POLLIN, 0};
  if (::poll(&p, 1, timeout_ms) != 1) return false;
  return u.read({&message, 1}) == 1 && message.event == UFFD_EVENT_PAGEFAULT;
}

/// A forked process that runs `body` and exits with its result; killed and reaped at the latest when this goes.
class Child {
 public:
  explicit Child(const std::function<int()>& body) {
    pid_ = ::fork();
    if (pid_ == 0) ::_exit(body());
  }
  ~Child() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  [[nodiscard]] pid_t pid() const { return pid_; }
  /// Exit status, or 128 + signal.
  int join() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_ = 0;
};

/// Words in memory that parent and child share.
struct Board {
  std::atomic<std::uint32_t> step{0};
  std::atomic<std::uint32_t> answer{0};
  std::atomic<std::uint64_t> value{0};

  void set(std::atomic<std::uint32_t>& word, std::uint32_t v) {
    word.store(v);
    futex_wake(word, 64);
  }
  bool wait(std::atomic<std::uint32_t>& word, std::uint32_t v) {
    const std::uint64_t end = monotonic_ns() + std::uint64_t{patience_ms} * 1'000'000;
    for (std::uint32_t seen = word.load(); seen != v; seen = word.load()) {
      if (monotonic_ns() > end) return false;
      futex_wait(word, seen, 100'000'000);
    }
    return true;
  }
};

inline Board& make_board() {
  void* p = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return *new (p) Board();
}
inline void drop_board(Board& board) { ::munmap(&board, 4096); }

/// Calls fn() and says which signal it raised first (0: none).
int signal_of(const std::function<void()>& fn);

/// Number of lines of /proc/self/maps that touch [address, address + bytes).
inline unsigned mappings_in(std::uint64_t address, std::uint64_t bytes) {
  std::FILE* f = std::fopen("/proc/self/maps", "re");
  unsigned n = 0;
  unsigned long long from = 0;
  unsigned long long to = 0;
  char line[512];
  while (f != nullptr && std::fgets(line, sizeof line, f) != nullptr) {
    if (std::sscanf(line, "%llx-%llx", &from, &to) == 2 && from < address + bytes && to > address) ++n;
  }
  if (f != nullptr) std::fclose(f);
  return n;
}

/// Bytes of [address, ...) that /proc/self/smaps says are mapped by huge entries, for the mapping that starts there.
inline std::uint64_t huge_mapped_at(std::uint64_t address) {
  std::FILE* f = std::fopen("/proc/self/smaps", "re");
  char line[512];
  bool inside = false;
  std::uint64_t kib = 0;
  while (f != nullptr && std::fgets(line, sizeof line, f) != nullptr) {
    unsigned long long from = 0;
    unsigned long long to = 0;
    unsigned long long n = 0;
    if (std::sscanf(line, "%llx-%llx ", &from, &to) == 2) inside = from <= address && address < to;
    if (inside && std::sscanf(line, "ShmemPmdMapped: %llu kB", &n) == 1) kib = n;
  }
  if (f != nullptr) std::fclose(f);
  return kib * 1024;
}

}  // namespace ferry::linux::test
