#include "client/convert_file.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/check.h"
#include "base/types.h"
#include "client/agent.h"
#include "linux/fd.h"

// Of kernels that are newer than the C library's headers.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace ferry::client {
namespace {

constinit int room = -1;  ///< a userfaultfd in which threads wait for what replaces the span; open for good

/// Memory that is moved stays watched only where its move is told, and the move waits until somebody has read of it.
void* read_moves(void*) {
  ::prctl(PR_SET_NAME, "ferry-mover");
  for (;;) {
    pollfd p{room, POLLIN, 0};
    ::poll(&p, 1, -1);
    uffd_msg message{};
    // Faults are told here, too; they end when the span is let go of.
    while (::read(room, &message, sizeof message) > 0) {}
  }
}

Status open_room() {
  if (room >= 0) return {};
  constexpr int flags = O_CLOEXEC | O_NONBLOCK;
  linux::Fd fd(static_cast<int>(::syscall(SYS_userfaultfd, flags)));
  if (!fd) {
    const linux::Fd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
    if (device) fd.reset(::ioctl(device.get(), USERFAULTFD_IOC_NEW, flags));
  }
  if (!fd) fd.reset(static_cast<int>(::syscall(SYS_userfaultfd, flags | UFFD_USER_MODE_ONLY)));
  if (!fd) return Status(Code::unsupported, errno);
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
  if (::ioctl(fd.get(), UFFDIO_API, &api) != 0) return Status(Code::unsupported, errno);
  room = fd.release();
  const Status started = start_session_thread(read_moves);
  if (started.ok()) return {};
  ::close(room);
  room = -1;
  return started;
}

/// All pages are the program's own, and none the file's.
bool all_copied(std::uint64_t begin, std::size_t bytes) {
  constexpr std::uint64_t there = std::uint64_t{3} << 62;
  constexpr std::uint64_t of_file = std::uint64_t{1} << 61;
  const linux::Fd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  std::array<std::uint64_t, file_piece_bytes / page_bytes> entries;
  const std::size_t count = bytes / page_bytes;
  if (!pagemap || count > entries.size() ||
      ::pread(pagemap.get(), entries.data(), count * sizeof entries[0],
              static_cast<off_t>(begin / page_bytes * sizeof entries[0])) !=
          static_cast<ssize_t>(count * sizeof entries[0])) {
    return false;
  }
  return std::all_of(entries.begin(), entries.begin() + static_cast<std::ptrdiff_t>(count),
                     [](std::uint64_t e) { return (e & there) != 0 && (e & of_file) == 0; });
}

/// References to the very pages of the span: what is read from it is what they hold then, wherever they are mapped, or not.
class HeldPages {
 public:
  Status hold(std::uint64_t begin, std::size_t bytes) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return Status(Code::no_memory, errno);
    out_.reset(ends[0]);
    linux::Fd in(ends[1]);
    if (::fcntl(in.get(), F_SETPIPE_SZ, static_cast<int>(bytes)) < static_cast<int>(bytes)) {
      return Status(Code::no_memory, errno);
    }
    for (std::size_t at = 0; at < bytes;) {
      const iovec part{reinterpret_cast<void*>(begin + at), bytes - at};
      const ssize_t n = ::vmsplice(in.get(), &part, 1, 0);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return Status(Code::no_memory, errno);
      at += static_cast<std::size_t>(n);
    }
    return {};
  }
  [[nodiscard]] bool read(std::byte* to, std::size_t bytes) const {
    for (std::size_t at = 0; at < bytes;) {
      const ssize_t n = ::read(out_.get(), to + at, bytes - at);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      at += static_cast<std::size_t>(n);
    }
    return true;
  }

 private:
  linux::Fd out_;
};

Status of_mapping(int error) { return {error == ENOMEM ? Code::no_mappings : Code::no_memory, error}; }

/// `view`: the file, with memory for all of it.
Status convert(void* span, std::size_t bytes, int file, std::uint64_t file_offset, int prot, std::byte* view) {
  HeldPages held;
  const auto begin = reinterpret_cast<std::uint64_t>(span);
  if (const Status s = held.hold(begin, bytes); !s.ok()) return s;
  // A page that the program discarded before it was held is not the one that it writes to now.
  if (!all_copied(begin, bytes)) return Status(Code::in_use, EAGAIN);
  void* const target = ::mmap(nullptr, bytes, prot, MAP_SHARED, file, static_cast<off_t>(file_offset));
  if (target == MAP_FAILED) return of_mapping(errno);
  ::madvise(target, bytes, MADV_DONTFORK);
  uffdio_register all{};
  all.range = {reinterpret_cast<std::uint64_t>(target), bytes};
  all.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
  Status result;
  if (::ioctl(room, UFFDIO_REGISTER, &all) != 0) {
    result = Status(Code::unsupported, errno);
  } else if (::mremap(target, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, span) == MAP_FAILED) {
    // In one step: up to it writes go to the pages that are held, and after it whoever touches the span waits.
    result = of_mapping(errno);
  }
  if (!result.ok()) {
    ::munmap(target, bytes);
    return result;
  }
  FERRY_CHECK(held.read(view, bytes));
  uffdio_range range{begin, bytes};
  while (::ioctl(room, UFFDIO_UNREGISTER, &range) != 0 && (errno == EAGAIN || errno == EINTR)) {}
  ::ioctl(room, UFFDIO_WAKE, &range);
  return {};
}

}  // namespace

Status copy_file_pages(std::uint64_t begin, std::uint64_t& end) {
  if (::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_WRITE) == 0) return {};
  if (errno == EINVAL) return Status(Code::unsupported, errno);
  for (std::uint64_t at = begin; at < end; at += page_bytes) {
    if (::madvise(reinterpret_cast<void*>(at), page_bytes, MADV_POPULATE_WRITE) == 0) continue;
    if (errno != EFAULT) return Status(Code::no_memory, errno);
    end = at;
  }
  return {};
}

Status convert_file_to_shared(void* span, std::size_t bytes, int file, std::uint64_t file_offset, int prot) {
  if (bytes == 0 || bytes > file_piece_bytes) return Status(Code::unsupported, EINVAL);
  if (const Status s = open_room(); !s.ok()) return s;
  void* const view = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, static_cast<off_t>(file_offset));
  if (view == MAP_FAILED) return of_mapping(errno);
  // All memory that is needed, before there is no way back.
  Status result = ::madvise(view, bytes, MADV_POPULATE_WRITE) == 0 ? Status() : Status(Code::no_memory, errno);
  if (result.ok()) result = convert(span, bytes, file, file_offset, prot, static_cast<std::byte*>(view));
  ::munmap(view, bytes);
  return result;
}

}  // namespace ferry::client
