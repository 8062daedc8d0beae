#include "linux/process.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace ferry::linux {

Result<Process> Process::open(pid_t pid) {
  if (pid <= 0) return Code::client_gone;
  Process p;
  p.fd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!p.fd_) return Status(errno == ESRCH ? Code::client_gone : Code::unsupported, errno);
  p.pid_ = pid;
  return p;
}

Process Process::adopt(Fd pidfd, pid_t pid) {
  Process p;
  p.fd_ = std::move(pidfd);
  p.pid_ = pid;
  return p;
}

bool Process::ended() const {
  pollfd p{fd_.get(), POLLIN, 0};
  return ::poll(&p, 1, 0) > 0;
}

namespace {

// Of Linux 6.11 (PROCMAP_QUERY).
struct MappingQuery {
  std::uint64_t size;
  std::uint64_t flags;
  std::uint64_t address;
  std::uint64_t begin;
  std::uint64_t end;
  std::uint64_t vma_flags;
  std::uint64_t page_size;
  std::uint64_t offset;
  std::uint64_t inode;
  std::uint32_t dev_major;
  std::uint32_t dev_minor;
  std::uint32_t name_bytes;
  std::uint32_t build_id_bytes;
  std::uint64_t name_address;
  std::uint64_t build_id_address;
};
static_assert(sizeof(MappingQuery) == 104);
constexpr std::uint64_t query_covering_or_next = 0x10;
constexpr unsigned long ioctl_query_mapping = _IOWR('f', 17, MappingQuery);

/// A small file of /proc, cut where `text` ends.
template <std::size_t size>
bool read_text(const char* path, char (&text)[size]) {
  const Fd file(::open(path, O_RDONLY | O_CLOEXEC));
  const ssize_t n = file ? ::read(file.get(), text, size - 1) : -1;
  text[n > 0 ? n : 0] = '\0';
  return n > 0;
}

/// Of a stat file of /proc; 0: it cannot be read.
char state_in(const char* path) {
  char text[512];
  if (!read_text(path, text)) return 0;
  // The name, which may hold anything, ends at the last parenthesis.
  const char* after = std::strrchr(text, ')');
  return after != nullptr && std::strlen(after) > 2 ? after[2] : '\0';
}

}  // namespace

bool Process::stopped() const {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/stat", pid_);
  const char state = state_in(path);
  return (state == 'T' || state == 't') && !ended();
}

std::vector<Process::Thread> Process::threads() const {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/task", pid_);
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(path), &::closedir);
  std::vector<Thread> out;
  if (folder == nullptr) return out;
  while (const dirent* entry = ::readdir(folder.get())) {
    const int number = std::atoi(entry->d_name);
    if (number <= 0) continue;
    std::snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid_, number);
    Thread thread{number, state_in(path), 0};
    std::snprintf(path, sizeof path, "/proc/%d/task/%d/schedstat", pid_, number);
    char text[128];
    if (thread.state == 0 || !read_text(path, text)) continue;  // it has ended
    thread.ran_ns = std::strtoull(text, nullptr, 10);
    out.push_back(thread);
  }
  if (ended()) out.clear();
  return out;
}

Result<std::vector<Process::MappedSpan>> Process::mappings(std::uint64_t begin, std::uint64_t end) const {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/maps", pid_);
  const Fd file(::open(path, O_RDONLY | O_CLOEXEC));
  if (!file) return Status(Code::unsupported, errno);
  std::vector<MappedSpan> out;
  for (std::uint64_t at = begin; at < end;) {
    MappingQuery query{};
    query.size = sizeof query;
    query.flags = query_covering_or_next;
    query.address = at;
    if (::ioctl(file.get(), ioctl_query_mapping, &query) != 0) {
      if (errno == ENOENT) break;  // none from there on
      return Status(Code::unsupported, errno);
    }
    if (query.begin >= end || query.end <= at) break;
    out.push_back({query.begin, query.end});
    at = query.end;
  }
  if (ended()) out.clear();  // the number may have been another's
  return out;
}

void Process::kill() const {
  if (fd_) ::syscall(SYS_pidfd_send_signal, fd_.get(), SIGKILL, nullptr, 0);
}

void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
}

}  // namespace ferry::linux
