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
#include "linux/memory_file.h"

namespace ferry::client {
namespace {

// Of Linux 5.19.
constexpr std::uint64_t feature_protect_files = std::uint64_t{1} << 12;

linux::Fd open_userfault(std::uint64_t features, int& error) {
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
  api.features = features;
  if (::ioctl(fd.get(), UFFDIO_API, &api) != 0) {
    error = errno;
    return {};
  }
  return fd;
}

/// A page of the program's, whatever is in it: under AddressSanitizer that may be its marks between two variables.
#ifdef __SANITIZE_ADDRESS__
__attribute__((no_sanitize_address)) void copy_page(std::byte* to, const std::byte* from) {
  const auto* words = reinterpret_cast<const volatile std::uint64_t*>(from);
  for (std::size_t i = 0; i < page_bytes / sizeof *words; ++i) reinterpret_cast<std::uint64_t*>(to)[i] = words[i];
}
#else
void copy_page(std::byte* to, const std::byte* from) { std::memcpy(to, from, page_bytes); }
#endif

/// Holes stay holes of `to`.
bool read_file(int file, std::uint64_t offset, std::byte* to, std::size_t bytes) {
  const std::uint64_t end = offset + bytes;
  for (std::uint64_t at = linux::next_data(file, offset, end); at < end; at = linux::next_data(file, at, end)) {
    const std::uint64_t stop = linux::next_hole(file, at, end);
    while (at < stop) {
      // By number: AddressSanitizer's own checks whether the program might write there.
      const long n = ::syscall(SYS_pread64, file, to + (at - offset), stop - at, static_cast<off_t>(at));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      at += static_cast<std::uint64_t>(n);
    }
  }
  return true;
}

}  // namespace

// Looking at a page that does not exist would make this thread wait for itself: they are told apart by the page map.
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
      copy_page(target + page * page_bytes, span + page * page_bytes);
    }
  }
  return {};
}

Status convert_to_shared(void* span, std::size_t bytes, int file, std::uint64_t file_offset, int prot) {
  int error = 0;
  const linux::Fd userfault = open_userfault(UFFD_FEATURE_PAGEFAULT_FLAG_WP, error);
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
    if (result.ok() &&
        ::mmap(span, bytes, prot, MAP_SHARED | MAP_FIXED, file, static_cast<off_t>(file_offset)) == MAP_FAILED) {
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

Status convert_to_private(void* span, std::size_t bytes, int prot, int file, std::uint64_t file_offset,
                          void* stage_at) {
  int error = 0;
  const linux::Fd userfault = open_userfault(feature_protect_files | UFFD_FEATURE_PAGEFAULT_FLAG_WP, error);
  if (!userfault) return Status(Code::unsupported, error);
  auto* stage =
      static_cast<std::byte*>(::mmap(stage_at, bytes, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | (stage_at != nullptr ? MAP_FIXED : 0), -1, 0));
  if (stage == MAP_FAILED) return Status(Code::no_memory, errno);
  const uffdio_range range{reinterpret_cast<std::uint64_t>(span), bytes};
  uffdio_register all{};
  all.range = range;
  all.mode = UFFDIO_REGISTER_MODE_WP;  // covers pages that have no entry, too, where a file is behind them
  uffdio_writeprotect protect{};
  protect.range = range;
  protect.mode = UFFDIO_WRITEPROTECT_MODE_WP;
  Status result;
  if (::ioctl(userfault.get(), UFFDIO_REGISTER, &all) != 0) result = Status(Code::unsupported, errno);
  while (result.ok() && ::ioctl(userfault.get(), UFFDIO_WRITEPROTECT, &protect) != 0) {
    if (errno != EAGAIN && errno != EINTR) result = Status(Code::unsupported, errno);
  }
  if (result.ok() && !read_file(file, file_offset, stage, bytes)) result = Status(Code::no_memory, errno);
  if (result.ok() && prot != (PROT_READ | PROT_WRITE) && ::mprotect(stage, bytes, prot) != 0) {
    result = Status(Code::no_memory, errno);
  }
  // One step: nobody ever finds nothing there. Nor a hole at the caller's stage, which another thread could fill.
  const int how = MREMAP_MAYMOVE | MREMAP_FIXED | (stage_at != nullptr ? MREMAP_DONTUNMAP : 0);
  if (result.ok() && ::mremap(stage, bytes, bytes, how, span) == MAP_FAILED) {
    result = Status(errno == ENOMEM ? Code::no_mappings : Code::no_memory, errno);
  }
  if (!result.ok()) {
    uffdio_range back = range;
    ::ioctl(userfault.get(), UFFDIO_UNREGISTER, &back);
    if (stage_at == nullptr) ::munmap(stage, bytes);
  }
  uffdio_range wake = range;
  ::ioctl(userfault.get(), UFFDIO_WAKE, &wake);
  return result;
}

}  // namespace ferry::client
