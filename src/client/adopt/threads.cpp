#include "client/adopt/threads.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>

namespace ferry::client {
namespace {

constinit std::array<std::atomic<int>, 64> session_threads{};

/// 0: the errno says why.
std::size_t read_text(int tid, const char* what, char* text, std::size_t size) {
  char path[64] = "/proc/self/task/";
  char* to = path + std::strlen(path);
  char digits[16];
  char* from = digits + sizeof digits;
  for (unsigned n = static_cast<unsigned>(tid); n != 0; n /= 10) *--from = static_cast<char>('0' + n % 10);
  while (from != digits + sizeof digits) *to++ = *from++;
  *to++ = '/';
  std::strcpy(to, what);  // "syscall" or "status"
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  ssize_t got = 0;
  do got = ::read(fd, text, size - 1);
  while (got < 0 && errno == EINTR);
  const int error = got < 0 ? errno : ESRCH;
  ::close(fd);
  errno = error;
  const std::size_t length = got > 0 ? static_cast<std::size_t>(got) : 0;
  text[length] = '\0';
  return length;
}

}  // namespace

std::uint64_t read_number(const char*& at, unsigned base) {
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

/// "running", or "202 0xargument 0x... ", or "-1 0xstack 0xcode".
ThreadActivity activity_of(int tid) {
  ThreadActivity result;
  char text[256];
  if (read_text(tid, "syscall", text, sizeof text) == 0) {
    if (errno == ENOENT || errno == ESRCH) result.state = ThreadActivity::State::gone;
    return result;
  }
  result.state = ThreadActivity::State::running;
  const char* at = text;
  const bool negative = *at == '-';
  if (negative) ++at;
  if (*at < '0' || *at > '9') return result;
  result.state = ThreadActivity::State::asleep;
  const auto number = static_cast<long>(read_number(at, 10));
  result.call = negative ? -number : number;
  for (std::uint64_t& argument : result.arguments) {
    if (std::strncmp(at, " 0x", 3) != 0) break;
    at += 3;
    argument = read_number(at, 16);
  }
  return result;
}

std::uint64_t blocked_signals(int tid) {
  char text[4096];
  if (read_text(tid, "status", text, sizeof text) == 0) return ~std::uint64_t{0};
  const char* at = std::strstr(text, "SigBlk:\t");
  if (at == nullptr) return ~std::uint64_t{0};
  at += 8;
  return read_number(at, 16);
}

void note_session_thread() {
  const auto self = static_cast<int>(::syscall(SYS_gettid));
  for (auto& t : session_threads) {
    int none = 0;
    if (t.compare_exchange_strong(none, self, std::memory_order_acq_rel)) return;
  }
}

bool is_session_thread(int tid) {
  for (const auto& t : session_threads) {
    if (t.load(std::memory_order_acquire) == tid) return true;
  }
  return false;
}

}  // namespace ferry::client
