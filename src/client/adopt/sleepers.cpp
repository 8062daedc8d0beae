#include "client/adopt/sleepers.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "linux/futex.h"

namespace ferry::client {
namespace {

constexpr std::uint64_t patience_ns = 1'000'000'000;
constexpr std::uint32_t private_flag = 128;  // FUTEX_PRIVATE_FLAG: listed under the address, whatever backs it

constinit std::atomic<std::uint32_t> taken{0};

void on_signal(int) { taken.fetch_add(1, std::memory_order_relaxed); }

struct Entry {
  std::uint64_t inode;
  std::int64_t offset;
  unsigned short bytes;
  unsigned char type;
  char name[];
};

std::uint64_t number(const char*& at, unsigned base) {
  std::uint64_t value = 0;
  for (;; ++at) {
    const char c = *at;
    const unsigned digit = c >= '0' && c <= '9'   ? static_cast<unsigned>(c - '0')
                           : c >= 'a' && c <= 'f' ? static_cast<unsigned>(c - 'a' + 10)
                                                  : 16U;
    if (digit >= base) return value;
    value = value * base + digit;
  }
}

std::size_t read_text(int tid, const char* what, char* text, std::size_t size) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/task/%d/%s", tid, what);
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  const ssize_t got = ::read(fd, text, size - 1);
  ::close(fd);
  const std::size_t length = got > 0 ? static_cast<std::size_t>(got) : 0;
  text[length] = '\0';
  return length;
}

/// "202 0xaddress 0xop ...": the system call that the thread is in.
bool sleeps_in(int tid, std::uint64_t begin, std::uint64_t end) {
  char text[256];
  if (read_text(tid, "syscall", text, sizeof text) == 0) return false;
  const char* at = text;
  if (*at < '0' || *at > '9' || number(at, 10) != SYS_futex || std::strncmp(at, " 0x", 3) != 0) return false;
  at += 3;
  const std::uint64_t address = number(at, 16);
  if (std::strncmp(at, " 0x", 3) != 0) return false;
  at += 3;
  const std::uint64_t operation = number(at, 16);
  return address >= begin && address < end && (operation & private_flag) == 0;
}

/// A real-time signal without a handler that the thread lets through; 0: none.
int usable_signal(int tid) {
  char text[4096];
  if (read_text(tid, "status", text, sizeof text) == 0) return 0;
  const char* at = std::strstr(text, "SigBlk:\t");
  if (at == nullptr) return 0;
  at += 8;
  const std::uint64_t blocked = number(at, 16);
  for (int signal = SIGRTMAX; signal >= SIGRTMIN; --signal) {
    struct sigaction now {};
    if ((blocked >> (signal - 1) & 1) != 0 || ::sigaction(signal, nullptr, &now) != 0) continue;
    if ((now.sa_flags & SA_SIGINFO) == 0 && now.sa_handler == SIG_DFL) return signal;
  }
  return 0;
}

void restart(int tid) {
  const int signal = usable_signal(tid);
  if (signal == 0) return;
  struct sigaction ours {};
  struct sigaction before {};
  ours.sa_handler = on_signal;
  ours.sa_flags = SA_RESTART;
  if (::sigaction(signal, &ours, &before) != 0) return;
  const std::uint32_t seen = taken.load(std::memory_order_relaxed);
  if (::syscall(SYS_tgkill, ::getpid(), tid, signal) == 0) {
    const std::uint64_t deadline = linux::monotonic_ns() + patience_ns;
    while (taken.load(std::memory_order_relaxed) == seen && linux::monotonic_ns() < deadline) ::sched_yield();
    // One that comes later than that must not end the process.
    if (taken.load(std::memory_order_relaxed) == seen) return;
  }
  ::sigaction(signal, &before, nullptr);
}

}  // namespace

void restart_sleepers(std::uint64_t begin, std::uint64_t end) {
  const int directory = ::open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return;
  const auto self = static_cast<int>(::syscall(SYS_gettid));
  alignas(8) char buffer[4096];
  for (;;) {
    const long got = ::syscall(SYS_getdents64, directory, buffer, sizeof buffer);
    if (got <= 0) break;
    for (long at = 0; at < got;) {
      const auto* entry = reinterpret_cast<const Entry*>(buffer + at);
      at += entry->bytes;
      const char* name = buffer + (reinterpret_cast<const char*>(entry) - buffer) + offsetof(Entry, name);
      const auto tid = static_cast<int>(number(name, 10));
      if (tid != 0 && tid != self && sleeps_in(tid, begin, end)) restart(tid);
    }
  }
  ::close(directory);
}

}  // namespace ferry::client
