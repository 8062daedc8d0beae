#include "client/adopt/open_mapped.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstring>

#include "base/types.h"

namespace ferry::client {
namespace {

/// What the kernel's list says of a file is not always what stat says (Btrfs, overlays). So the list is asked about this
/// one, too.
bool is_listed_alike(int fd, const device::MappingInfo& mapping) {
  void* const at = ::mmap(nullptr, page_bytes, PROT_NONE, MAP_PRIVATE, fd, 0);
  if (at == MAP_FAILED) return false;
  device::MappingInfo listed;
  const bool found = device::find_mapping(reinterpret_cast<std::uint64_t>(at), listed);
  ::munmap(at, page_bytes);
  return found && listed.inode == mapping.inode && listed.major == mapping.major && listed.minor == mapping.minor;
}

/// A device that is no memory has its say when it is opened or mapped: left alone.
bool is_file(int fd, struct stat& status) { return ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode); }

bool same_numbers(const struct stat& status, const device::MappingInfo& mapping) {
  return status.st_ino == mapping.inode && major(status.st_dev) == mapping.major &&
         minor(status.st_dev) == mapping.minor;
}

bool suffices(int fd, bool write) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || (flags & O_PATH) != 0) return false;
  const int mode = flags & O_ACCMODE;
  return mode == O_RDWR || (!write && mode == O_RDONLY);
}

struct Entry {
  std::uint64_t inode;
  std::int64_t offset;
  unsigned short bytes;
  unsigned char type;
  char name[];
};

int number_of(const char* name) {
  int value = 0;
  for (; *name >= '0' && *name <= '9'; ++name) value = value * 10 + (*name - '0');
  return *name == '\0' ? value : -1;
}

linux::Fd copy_of_open(const device::MappingInfo& mapping, bool write) {
  const linux::Fd directory(::open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) return {};
  alignas(8) char buffer[4096];
  for (;;) {
    const long got = ::syscall(SYS_getdents64, directory.get(), buffer, sizeof buffer);
    if (got <= 0) return {};
    for (long at = 0; at < got;) {
      const auto* entry = reinterpret_cast<const Entry*>(buffer + at);
      const int fd = number_of(buffer + at + offsetof(Entry, name));
      at += entry->bytes;
      struct stat status {};
      if (fd < 0 || fd == directory.get() || !is_file(fd, status) || status.st_ino != mapping.inode) continue;
      if (!suffices(fd, write)) continue;
      // Another thread may close it, and have another file under its number: what was copied is looked at.
      linux::Fd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
      if (!copy || !is_file(copy.get(), status) || !suffices(copy.get(), write)) continue;
      if (same_numbers(status, mapping) || is_listed_alike(copy.get(), mapping)) return copy;
    }
  }
}

}  // namespace

linux::Fd open_mapped(const device::MappingInfo& mapping, bool write) {
  const int flags = (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  struct stat status {};
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/map_files/%llx-%llx", static_cast<unsigned long long>(mapping.begin),
                static_cast<unsigned long long>(mapping.end));
  linux::Fd file(::open(path, flags));
  if (file && is_file(file.get(), status)) return file;
  // A name that was too long for the list leads elsewhere, as does one of a file that was removed: both are found out.
  if (mapping.path[0] == '/' && std::strncmp(mapping.path, "/dev/zero", 9) != 0) {
    file.reset(::open(mapping.path, flags));
    if (file && is_file(file.get(), status) &&
        (same_numbers(status, mapping) || is_listed_alike(file.get(), mapping))) {
      return file;
    }
  }
  return copy_of_open(mapping, write);
}

}  // namespace ferry::client
