#include "client/change/mappings.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace ferry::client {
namespace {

bool parse_hex(const char*& at, const char* end, std::uint64_t& value) {
  const char* const first = at;
  value = 0;
  for (; at < end; ++at) {
    const char c = *at;
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (digit < 0) break;
    value = value << 4 | static_cast<std::uint64_t>(digit);
  }
  return at != first;
}

/// "begin-end rwxp ..."
bool parse(const char* line, const char* end, OwnMapping& m) {
  if (!parse_hex(line, end, m.begin) || line == end || *line++ != '-') return false;
  if (!parse_hex(line, end, m.end) || end - line < 5) return false;
  m.readable = line[1] == 'r';
  m.writable = line[2] == 'w';
  m.executable = line[3] == 'x';
  constexpr char hole[] = "/memfd:ferry-hole";  // what was unmapped, and is the heap's still
  m.shared = line[4] == 's' && ::memmem(line, static_cast<std::size_t>(end - line), hole, sizeof hole - 1) == nullptr;
  return true;
}

/// Calls fn(mapping) until it says false, rising. False: the kernel did not say all.
template <typename Fn>
bool read_maps(Fn&& fn) {
  // By number: libc's functions come to whoever asks here.
  const int fd = static_cast<int>(::syscall(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC));
  if (fd < 0) return false;
  char buffer[4096];
  std::size_t held = 0;
  bool more = true;
  bool well = true;
  while (more) {
    const long got = ::syscall(SYS_read, fd, buffer + held, sizeof buffer - held);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      well = got == 0;
      break;
    }
    held += static_cast<std::size_t>(got);
    std::size_t start = 0;
    for (std::size_t i = 0; i < held && more; ++i) {
      if (buffer[i] != '\n') continue;
      OwnMapping m;
      if (parse(buffer + start, buffer + i, m)) more = fn(m);
      start = i + 1;
    }
    held -= start;
    std::memmove(buffer, buffer + start, held);
    if (held == sizeof buffer) held = 0;  // no line is that long
  }
  ::syscall(SYS_close, fd);
  return well;
}

}  // namespace

bool find_own_mapping(std::uint64_t address, OwnMapping& found) {
  bool hit = false;
  read_maps([&](const OwnMapping& m) {
    hit = m.begin <= address && address < m.end;
    if (hit) found = m;
    return !hit && m.begin <= address;
  });
  return hit;
}

bool visit_own_mappings(std::uint64_t first, std::uint64_t end, void (*fn)(void*, const OwnMapping&), void* context) {
  return read_maps([&](const OwnMapping& m) {
    if (m.begin >= end) return false;
    if (m.end > first) fn(context, m);
    return true;
  });
}

}  // namespace ferry::client
