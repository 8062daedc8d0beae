#include "linux/memory_file.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/types.h"

// Of Linux 5.14 and 6.1; C libraries are older than kernels.
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace ferry::linux {
namespace {
Status memory_status(int error) {
  return {error == ENOMEM || error == ENOSPC || error == EAGAIN ? Code::no_memory : Code::io_error, error};
}
constexpr int size_seals = F_SEAL_SHRINK | F_SEAL_GROW;
}  // namespace

Result<Fd> make_memory_file(const char* name, std::uint64_t bytes) {
  Fd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return memory_status(errno);
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return memory_status(errno);
  if (::fcntl(fd.get(), F_ADD_SEALS, size_seals | F_SEAL_SEAL) != 0) return memory_status(errno);
  return fd;
}

Result<std::uint64_t> file_bytes(int fd) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) return Status(Code::io_error, errno);
  return static_cast<std::uint64_t>(st.st_size);
}

bool is_sealed(int fd) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  return seals >= 0 && (seals & size_seals) == size_seals;
}

void Mapping::reset() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
  data_ = nullptr;
  bytes_ = 0;
}

Result<Mapping> Mapping::map(int fd, std::uint64_t offset, std::size_t bytes) {
  const bool huge_possible = offset % block_bytes == 0 && bytes >= block_bytes;
  const std::size_t slack = huge_possible ? block_bytes : 0;
  // Reserves with room to align, maps over it, gives the rest back.
  void* const reserved = ::mmap(nullptr, bytes + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return memory_status(errno);
  auto base = reinterpret_cast<std::uintptr_t>(reserved);
  const std::uintptr_t start = slack == 0 ? base : (base + slack - 1) / slack * slack;
  void* const data = ::mmap(reinterpret_cast<void*>(start), bytes, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, static_cast<off_t>(offset));
  if (data == MAP_FAILED) {
    const int error = errno;
    ::munmap(reserved, bytes + slack);
    return error == EACCES || error == EPERM ? Status(Code::io_error, error) : memory_status(error);
  }
  if (start > base) ::munmap(reserved, start - base);
  const std::uintptr_t mapped_end = start + (bytes + page_bytes - 1) / page_bytes * page_bytes;
  const std::uintptr_t reserved_end = base + (bytes + slack + page_bytes - 1) / page_bytes * page_bytes;
  if (mapped_end < reserved_end) ::munmap(reinterpret_cast<void*>(mapped_end), reserved_end - mapped_end);
  // A core file would walk all of it, and hold what belongs to others.
  ::madvise(data, bytes, MADV_DONTDUMP);
  Mapping mapping;
  mapping.data_ = static_cast<std::byte*>(data);
  mapping.bytes_ = bytes;
  return mapping;
}

Status populate(void* address, std::size_t bytes, bool write) {
  while (::madvise(address, bytes, write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) != 0) {
    if (errno != EINTR) return memory_status(errno == EFAULT ? ENOMEM : errno);
  }
  return {};
}

bool make_huge(void* address, std::size_t bytes) {
  // EAGAIN: some page was locked or pinned just then, or the daemon that does the same was faster.
  for (int tries = 0; tries < 4; ++tries) {
    if (::madvise(address, bytes, MADV_COLLAPSE) == 0) return true;
    if (errno != EAGAIN && errno != EINTR) return false;
  }
  return false;
}

Status punch_hole(int fd, std::uint64_t offset, std::uint64_t bytes) {
  while (::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                     static_cast<off_t>(bytes)) != 0) {
    if (errno != EINTR) return {Code::io_error, errno};
  }
  return {};
}

std::uint64_t next_data(int fd, std::uint64_t from, std::uint64_t end) {
  const off_t at = ::lseek(fd, static_cast<off_t>(from), SEEK_DATA);
  if (at < 0) return errno == ENXIO ? end : from;
  return std::clamp(static_cast<std::uint64_t>(at), from, end);
}

std::uint64_t next_hole(int fd, std::uint64_t from, std::uint64_t end) {
  const off_t at = ::lseek(fd, static_cast<off_t>(from), SEEK_HOLE);
  if (at < 0) return end;
  return std::clamp(static_cast<std::uint64_t>(at), from, end);
}

bool all_resident(const void* address, std::size_t bytes) {
  std::array<unsigned char, block_pages> resident;
  auto* at = static_cast<std::byte*>(const_cast<void*>(address));
  while (bytes != 0) {
    const std::size_t part = std::min<std::size_t>(bytes, block_bytes);
    const std::size_t pages = part / page_bytes;
    if (::mincore(at, part, resident.data()) != 0) return false;
    for (std::size_t i = 0; i < pages; ++i) {
      if ((resident[i] & 1U) == 0) return false;
    }
    at += part;
    bytes -= part;
  }
  return true;
}

}  // namespace ferry::linux
