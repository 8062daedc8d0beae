// Preloaded into a manager: files without a name (the store's) begin to fail after a while.
//
//   FERRY_TEST_DISK="WHAT ERROR AFTER"     read|write|both, a number of errno, calls that are well before
#include <dlfcn.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

struct Plan {
  bool reads = false;
  bool writes = false;
  int error = 0;
  long after = 0;
};

const Plan& plan() {
  static const Plan made = [] {
    Plan p;
    char what[16] = "";
    const char* text = std::getenv("FERRY_TEST_DISK");
    if (text == nullptr || std::sscanf(text, "%15s %d %ld", what, &p.error, &p.after) != 3) return Plan();
    p.reads = std::strcmp(what, "write") != 0;
    p.writes = std::strcmp(what, "read") != 0;
    return p;
  }();
  return made;
}

bool on_disk_without_a_name(int fd) {
  char path[64];
  char target[256];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  const ssize_t n = readlink(path, target, sizeof target - 1);
  if (n <= 0) return false;
  target[n] = '\0';
  return std::strncmp(target, "/memfd:", 7) != 0 && std::strstr(target, " (deleted)") != nullptr;
}

bool fails(int fd, bool write) {
  static std::atomic<long> calls{0};
  const Plan& p = plan();
  if (!(write ? p.writes : p.reads) || !on_disk_without_a_name(fd)) return false;
  if (calls.fetch_add(1) < p.after) return false;
  errno = p.error;
  return true;
}

template <typename Call>
Call next(const char* name) {
  return reinterpret_cast<Call>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

ssize_t pread(int fd, void* buffer, size_t bytes, off_t offset) {
  static const auto real = next<ssize_t (*)(int, void*, size_t, off_t)>("pread");
  return fails(fd, false) ? -1 : real(fd, buffer, bytes, offset);
}

ssize_t pwrite(int fd, const void* buffer, size_t bytes, off_t offset) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t, off_t)>("pwrite");
  return fails(fd, true) ? -1 : real(fd, buffer, bytes, offset);
}

}  // extern "C"
