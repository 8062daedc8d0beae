#include "client/convert.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/types.h"
#include "linux/fd.h"

namespace ferry::client {
namespace {

linux::Fd open_anonymous_userfault(int& error) {
  constexpr int flags = O_CLOEXEC | O_NONBLOCK;
  linux::Fd fd(static_cast<int>(::syscall(SYS_userfaultfd, flags)));
  if (!fd) {
    const linux::Fd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
    if (device) fd.reset(::ioctl(device.get(), USERFAULTFD_IOC_NEW, flags));
  }
  if (!fd) fd.reset(static_cast<int>(::syscall(SYS_userfaultfd, flags | UFFD_USER_MODE_ONLY)));
  if (!fd) {
    error = errno;
    return {};
  }
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP;
  if (::ioctl(fd.get(), UFFDIO_API, &api) != 0) {
    error = errno;
    return {};
  }
  return fd;
}

/// Copies the pages that exist. Looking at one that does not would make this thread wait for itself: they are told
/// apart by the page map.
Status copy_present(const std::byte* span, std::size_t bytes, std::byte* target, int pagemap) {
  constexpr std::uint64_t present_or_swapped = std::uint64_t{3} << 62;
  std::array<std::uint64_t, 512> entries;
  const std::size_t pages = bytes / page_bytes;
  for (std::size_t page = 0; page < pages;) {
    const std::size_t want = std::min(entries.size(), pages - page);
    const auto at =
        static_cast<off_t>((reinterpret_cast<std::uintptr_t>(span) / page_bytes + page) * sizeof entries[0]);
    const ssize_t got = ::pread(pagemap, entries.data(), want * sizeof entries[0], at);
    if (got < 0 && errno == EINTR) continue;
    if (got < static_cast<ssize_t>(sizeof entries[0])) return Status(Code::unsupported, got < 0 ? errno : EIO);
    const std::size_t count = static_cast<std::size_t>(got) / sizeof entries[0];
    for (std::size_t i = 0; i < count; ++i, ++page) {
      if ((entries[i] & present_or_swapped) == 0) continue;
      std::memcpy(target + page * page_bytes, span + page * page_bytes, page_bytes);
    }
  }
  return {};
}

}  // namespace

Status convert_to_shared(void* span, std::size_t bytes, int file, std::uint64_t file_offset) {
  int error = 0;
  const linux::Fd userfault = open_anonymous_userfault(error);
  if (!userfault) return Status(Code::unsupported, error);
  const linux::Fd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap) return Status(Code::unsupported, errno);
  void* target = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, static_cast<off_t>(file_offset));
  if (target == MAP_FAILED) return Status(Code::no_memory, errno);

  const uffdio_range range{reinterpret_cast<std::uint64_t>(span), bytes};
  uffdio_register all{};
  all.range = range;
  // MISSING too: a first write to a page that does not exist is not seen by write protection.
  all.mode = UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MISSING;
  Status result;
  if (::ioctl(userfault.get(), UFFDIO_REGISTER, &all) != 0) {
    result = Status(Code::unsupported, errno);
  } else {
    uffdio_writeprotect protect{};
    protect.range = range;
    protect.mode = UFFDIO_WRITEPROTECT_MODE_WP;
    while (::ioctl(userfault.get(), UFFDIO_WRITEPROTECT, &protect) != 0) {
      if (errno == EAGAIN || errno == EINTR) continue;
      result = Status(Code::unsupported, errno);
      break;
    }
    if (result.ok()) {
      result = copy_present(static_cast<const std::byte*>(span), bytes, static_cast<std::byte*>(target), pagemap.get());
    }
    if (result.ok() && ::mmap(span, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file,
                              static_cast<off_t>(file_offset)) == MAP_FAILED) {
      result = Status(errno == ENOMEM ? Code::no_mappings : Code::no_memory, errno);
    }
    if (result.ok()) {
      ::madvise(span, bytes, MADV_DONTFORK);
    } else {
      uffdio_range back = range;
      ::ioctl(userfault.get(), UFFDIO_UNREGISTER, &back);
    }
    // Who waited for the old mapping retries, on the new one if there is one.
    uffdio_range wake = range;
    ::ioctl(userfault.get(), UFFDIO_WAKE, &wake);
  }
  ::munmap(target, bytes);
  return result;
}

}  // namespace ferry::client
