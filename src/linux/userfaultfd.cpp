#include "linux/userfaultfd.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>

#include "base/types.h"
#include "linux/memory_file.h"

namespace ferry::linux {
namespace {

constexpr std::uint64_t needed_features = UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MISSING_SHMEM;

// Of Linux 5.19.
constexpr std::uint64_t feature_protect_files = std::uint64_t{1} << 12;

// Of Linux 6.4.
constexpr std::uint64_t continue_protected = std::uint64_t{1} << 1;

// Of Linux 6.6.
struct PoisonRange {
  uffdio_range range;
  std::uint64_t mode;
  std::int64_t updated;
};
constexpr std::uint64_t feature_poison = 1 << 14;
constexpr unsigned long ioctl_poison = _IOWR(UFFDIO, 0x08, PoisonRange);

constexpr std::uint64_t change_features =
    UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;
/// A fork's has its reader open a descriptor for each.
constexpr std::uint64_t event_features = change_features | UFFD_FEATURE_EVENT_FORK;

constexpr std::uint64_t events_of(Userfaultfd::Tells tells) {
  switch (tells) {
    case Userfaultfd::Tells::touches: return 0;
    case Userfaultfd::Tells::unmaps: return UFFD_FEATURE_EVENT_UNMAP;
    case Userfaultfd::Tells::changes: return change_features;
  }
  return 0;
}

/// What its owner asked for when it was made; nothing where this kernel does not tell.
std::optional<std::uint64_t> features_of(int fd) {
  char path[64];
  char text[512];
  std::snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
  const Fd file(::open(path, O_RDONLY | O_CLOEXEC));
  const ssize_t n = file ? ::read(file.get(), text, sizeof text - 1) : -1;
  if (n <= 0) return std::nullopt;
  text[n] = '\0';
  const char* api = std::strstr(text, "API:");
  unsigned long long version = 0;
  unsigned features = 0;
  if (api == nullptr || std::sscanf(api, "API: %llx:%x", &version, &features) != 2) return std::nullopt;
  return features;
}

Fd open_raw(bool full, bool& is_full) {
  constexpr int flags = O_CLOEXEC | O_NONBLOCK;
  is_full = false;
  if (full) {
    Fd fd(static_cast<int>(::syscall(SYS_userfaultfd, flags)));
    if (!fd) {
      const Fd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
      if (device) fd.reset(::ioctl(device.get(), USERFAULTFD_IOC_NEW, flags));
    }
    if (fd) {
      is_full = true;
      return fd;
    }
  }
  return Fd(static_cast<int>(::syscall(SYS_userfaultfd, flags | UFFD_USER_MODE_ONLY)));
}

}  // namespace

bool can_map_for_reading() {
  static const bool can = [] {
    auto u = Userfaultfd::open({.sigbus = false, .prefer_full_service = false, .protect = true});
    auto file = make_memory_file("ferry-probe", page_bytes);
    if (!u.ok() || !file.ok()) return false;
    auto map = Mapping::map(file.value().get(), 0, page_bytes);
    if (!map.ok()) return false;
    map.value().data()[0] = std::byte{1};
    const auto address = reinterpret_cast<std::uint64_t>(map.value().data());
    ::madvise(map.value().data(), page_bytes, MADV_DONTNEED);
    std::uint64_t done = 0;
    return u.value().register_span(address, page_bytes, track_missing | track_minor | track_writes) == Fault::ok &&
           u.value().map_present(address, page_bytes, false, done, MapRights::read) == Fault::ok;
  }();
  return can;
}

bool can_poison() {
  static const bool can = [] {
    bool full = false;
    const Fd fd = open_raw(false, full);
    uffdio_api api{};
    api.api = UFFD_API;
    return fd && ::ioctl(fd.get(), UFFDIO_API, &api) == 0 && (api.features & feature_poison) != 0;
  }();
  return can;
}

Fault classify_userfault(int error) {
  switch (error) {
    case 0: return Fault::ok;
    case EEXIST: return Fault::exists;
    case EFAULT: return Fault::hole;
    case EAGAIN: return Fault::again;
    case ENOENT:
    case EINVAL:
    case EBUSY: return Fault::range_gone;
    case ESRCH: return Fault::process_gone;
    case ENOMEM:
    case ENOSPC: return Fault::no_memory;
    default: return Fault::other;
  }
}

const char* to_string(Fault fault) {
  switch (fault) {
    case Fault::ok: return "ok";
    case Fault::exists: return "mapped already";
    case Fault::hole: return "no page";
    case Fault::again: return "again";
    case Fault::range_gone: return "range gone";
    case Fault::process_gone: return "process gone";
    case Fault::no_memory: return "no memory";
    case Fault::other: return "other error";
  }
  return "?";
}

Result<Userfaultfd> Userfaultfd::open(const Options& options) {
  Userfaultfd u;
  u.fd_ = open_raw(options.prefer_full_service, u.full_service_);
  if (!u.fd_) {
    const int error = errno;
    return Status(error == EPERM || error == EACCES ? Code::not_permitted : Code::unsupported, error);
  }
  uffdio_api api{};
  api.api = UFFD_API;
  const std::uint64_t features = needed_features | (options.sigbus ? std::uint64_t{UFFD_FEATURE_SIGBUS} : 0) |
                                 (options.thread_ids ? std::uint64_t{UFFD_FEATURE_THREAD_ID} : 0) |
                                 (options.changes ? change_features : 0) |
                                 (options.tell_unmaps ? std::uint64_t{UFFD_FEATURE_EVENT_UNMAP} : 0);
  api.features = features | (options.protect ? std::uint64_t{feature_protect_files} : 0);
  if (options.protect && ::ioctl(u.fd_.get(), UFFDIO_API, &api) == 0) return u;
  // A refused handshake leaves the descriptor as new.
  api.features = features;
  api.api = UFFD_API;
  if (::ioctl(u.fd_.get(), UFFDIO_API, &api) != 0) return Status(Code::unsupported, errno);
  return u;
}

Result<Userfaultfd> Userfaultfd::adopt(Fd&& fd, Tells tells) {
  char path[64];
  char target[64];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", fd.get());
  const ssize_t n = ::readlink(path, target, sizeof target - 1);
  if (n <= 0) return Status(fd ? Code::unsupported : Code::bad_message, errno);
  target[n] = '\0';
  if (std::strcmp(target, "anon_inode:[userfaultfd]") != 0) return Code::bad_message;
  // Refused by one whose features are chosen. One that takes it has none from now on, and is refused all the same: nothing
  // of Ferry's sends such.
  uffdio_api api{};
  api.api = UFFD_API;
  if (::ioctl(fd.get(), UFFDIO_API, &api) == 0) return Code::bad_message;
  const std::optional<std::uint64_t> features = features_of(fd.get());
  if (!features) return Status(Code::unsupported, errno);
  if ((*features & event_features & ~events_of(tells)) != 0) return Code::bad_message;
  Userfaultfd u;
  u.fd_ = std::move(fd);
  return u;
}

Fault Userfaultfd::register_span(std::uint64_t address, std::uint64_t bytes, unsigned modes) const {
  uffdio_register r{};
  r.range = {address, bytes};
  r.mode = modes;
  return ::ioctl(fd_.get(), UFFDIO_REGISTER, &r) == 0 ? Fault::ok : classify_userfault(errno);
}

Fault Userfaultfd::unregister_span(std::uint64_t address, std::uint64_t bytes) const {
  uffdio_range range{address, bytes};
  return ::ioctl(fd_.get(), UFFDIO_UNREGISTER, &range) == 0 ? Fault::ok : classify_userfault(errno);
}

Fault Userfaultfd::protect(std::uint64_t address, std::uint64_t bytes) const {
  uffdio_writeprotect w{};
  w.range = {address, bytes};
  w.mode = UFFDIO_WRITEPROTECT_MODE_WP;
  return ::ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &w) == 0 ? Fault::ok : classify_userfault(errno);
}

Fault Userfaultfd::allow_writes(std::uint64_t address, std::uint64_t bytes) const {
  uffdio_writeprotect w{};
  w.range = {address, bytes};
  return ::ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &w) == 0 ? Fault::ok : classify_userfault(errno);
}

bool Userfaultfd::mappings_change() const {
  // Asked of every call first; one of no bytes is refused for another reason otherwise.
  uffdio_writeprotect nothing{};
  return ::ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &nothing) != 0 && errno == EAGAIN;
}

Fault Userfaultfd::map_present(std::uint64_t address, std::uint64_t bytes, bool wake, std::uint64_t& done_bytes,
                               MapRights rights) const {
  done_bytes = 0;
  while (done_bytes < bytes) {
    uffdio_continue c{};
    c.range = {address + done_bytes, bytes - done_bytes};
    c.mode = (wake ? 0 : std::uint64_t{UFFDIO_CONTINUE_MODE_DONTWAKE}) |
             (rights == MapRights::read ? continue_protected : 0);
    if (::ioctl(fd_.get(), UFFDIO_CONTINUE, &c) == 0) {
      done_bytes = bytes;
      return Fault::ok;
    }
    const int error = errno;
    if (c.mapped > 0) {
      // The kernel stopped part of the way and says EAGAIN for it, whatever the reason: the next try tells.
      done_bytes += static_cast<std::uint64_t>(c.mapped);
      if (error == EAGAIN) continue;
    }
    return classify_userfault(error);
  }
  return Fault::ok;
}

Fault Userfaultfd::fill(std::uint64_t address, const void* from, std::uint64_t bytes, std::uint64_t& done_bytes) const {
  done_bytes = 0;
  while (done_bytes < bytes) {
    std::int64_t filled = 0;
    int error = 0;
    if (from != nullptr) {
      uffdio_copy c{};
      c.dst = address + done_bytes;
      c.src = reinterpret_cast<std::uint64_t>(from) + done_bytes;
      c.len = bytes - done_bytes;
      if (::ioctl(fd_.get(), UFFDIO_COPY, &c) != 0) error = errno;
      filled = c.copy;
    } else {
      uffdio_zeropage z{};
      z.range = {address + done_bytes, bytes - done_bytes};
      if (::ioctl(fd_.get(), UFFDIO_ZEROPAGE, &z) != 0) error = errno;
      filled = z.zeropage;
    }
    if (error == 0) {
      done_bytes = bytes;
      break;
    }
    if (filled > 0) {
      // As in map_present().
      done_bytes += static_cast<std::uint64_t>(filled);
      if (error == EAGAIN) continue;
    }
    return error == EFAULT ? Fault::other : classify_userfault(error);
  }
  return Fault::ok;
}

Fault Userfaultfd::poison(std::uint64_t address, std::uint64_t bytes) const {
  // Older kernels say EINVAL to it, as they do of a span that is not there.
  if (!can_poison()) return Fault::other;
  for (std::uint64_t done = 0; done < bytes;) {
    PoisonRange p{};
    p.range = {address + done, bytes - done};
    if (::ioctl(fd_.get(), ioctl_poison, &p) == 0) return Fault::ok;
    // Nothing done: mappings change, and some kernels leave the count as it was then.
    if (errno != EAGAIN || p.updated <= 0) return classify_userfault(errno);
    done += static_cast<std::uint64_t>(p.updated);
  }
  return Fault::ok;
}

Fault Userfaultfd::wake(std::uint64_t address, std::uint64_t bytes) const {
  uffdio_range range{address, bytes};
  return ::ioctl(fd_.get(), UFFDIO_WAKE, &range) == 0 ? Fault::ok : classify_userfault(errno);
}

int Userfaultfd::read(std::span<uffd_msg> messages) const {
  iovec iov{messages.data(), messages.size_bytes()};
  // The peer shares the file's flags and may clear O_NONBLOCK at any time; RWF_NOWAIT is ours alone. Kernels that
  // cannot (before 6.10) say EOPNOTSUPP; there the flag is set again right before the read.
  ssize_t n = ::preadv2(fd_.get(), &iov, 1, -1, RWF_NOWAIT);
  if (n < 0 && (errno == EOPNOTSUPP || errno == ESPIPE || errno == EINVAL)) {
    ::fcntl(fd_.get(), F_SETFL, O_NONBLOCK);
    n = ::read(fd_.get(), messages.data(), messages.size_bytes());
  }
  if (n >= 0) return static_cast<int>(static_cast<std::size_t>(n) / sizeof(uffd_msg));
  return errno == EAGAIN || errno == EINTR ? 0 : -1;
}

}  // namespace ferry::linux
