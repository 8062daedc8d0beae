#include "device/memory.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/types.h"
#include "device/explain.h"

namespace ferry::device {
namespace {

/// Own memory lies in [own_begin, own_end). Far from where the kernel puts an application's mappings (high) and from
/// the default window.
constexpr std::uint64_t own_begin = 0x1000'0000'0000;
/// Below it are null pointers and members of what they point to.
constexpr std::uint64_t lowest_adopted = 0x10000;
constexpr std::uint64_t own_limit = 0x1100'0000'0000;
std::atomic<std::uint64_t> own_end{own_begin};

void* pointer(std::uint64_t address) { return reinterpret_cast<void*>(address); }

void* map_own_at_hint(std::size_t bytes, int flags, int fd) {
  const std::uint64_t whole = (bytes + page_bytes - 1) & ~(page_bytes - 1);
  // A page between neighbours, so that they stay apart.
  const std::uint64_t at = own_end.fetch_add(whole + page_bytes, std::memory_order_relaxed);
  void* p = MAP_FAILED;
  if (at + whole <= own_limit) {
    p = mmap(pointer(at), whole, PROT_READ | PROT_WRITE, flags | MAP_FIXED_NOREPLACE, fd, 0);
  }
  if (p == MAP_FAILED) p = mmap(nullptr, whole, PROT_READ | PROT_WRITE, flags, fd, 0);
  return p == MAP_FAILED ? nullptr : p;
}

}  // namespace

int DeviceMemory::open(std::uint64_t window_base, std::uint64_t window_bytes, int system_fd, int vram_fd,
                       const char** failed) {
  window_ = {window_base, window_bytes};
  system_fd_ = system_fd;
  vram_fd_ = vram_fd;
  *failed = "userfaultfd with SIGBUS, MINOR and MISSING on shared memory (`ferry doctor` says more)";
  linux::Userfaultfd::Options options;
  options.sigbus = true;
  options.prefer_full_service = false;  // a system call of a kernel cannot park: it gets EFAULT in any case
  Result<linux::Userfaultfd> opened = linux::Userfaultfd::open(options);
  if (!opened.ok()) return opened.status().sys_errno != 0 ? opened.status().sys_errno : ENOSYS;
  userfaultfd_ = std::move(opened).value();
  self_ = linux::Fd(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
  *failed = "mapping and registering the window";
  if (const int error = arm(window_base, window_bytes); error != 0) return error;
  // A core file of a crashed device would otherwise walk the whole window.
  madvise(pointer(window_base), window_bytes, MADV_DONTDUMP);
  *failed = nullptr;
  return 0;
}

void DeviceMemory::set_buffer_file(std::uint32_t number, linux::Fd fd) {
  if (number < buffer_files_.size()) buffer_files_[number] = std::move(fd);
}

void DeviceMemory::set_peer_file(std::uint32_t device, linux::Fd fd) {
  // Never closed: a compute unit may be about to map it.
  if (device < peer_files_.size() && !has_peer_file(device)) {
    peer_files_[device].store(fd.release(), std::memory_order_release);
  }
}

int DeviceMemory::file_of(const wire::DownRecord& command) const {
  switch (static_cast<wire::File>(command.file)) {
    case wire::File::system: return system_fd_;
    case wire::File::vram: return vram_fd_;
    case wire::File::buffer: return has_buffer_file(command.buffer) ? buffer_files_[command.buffer].get() : -1;
    case wire::File::peer:
      return has_peer_file(command.buffer) ? peer_files_[command.buffer].load(std::memory_order_acquire) : -1;
  }
  return -1;
}

bool DeviceMemory::valid(std::uint64_t address, std::uint64_t length_bytes) const {
  if (address % page_bytes != 0 || length_bytes % page_bytes != 0) return false;
  const Page first = window_.page_of_address(address);
  if (!window_.numbers(first, length_bytes / page_bytes)) return false;
  return contains(address) || (may_adopt(address) && may_adopt(address + length_bytes - 1));
}

bool DeviceMemory::may_adopt(std::uint64_t address) {
  return address >= lowest_adopted && address < user_address_end && !is_own(address);
}

int DeviceMemory::admit(std::uint64_t address, std::uint64_t length_bytes) const {
  if (!valid(address, length_bytes) || contains(address)) return EINVAL;
  const std::uint64_t end = address + length_bytes;
  bool taken = false;
  const bool seen = visit_mappings([&](const MappingInfo& m) {
    if (m.begin >= end) return false;
    if (m.end <= address) return true;
    // What cannot be touched is room that was left for the application, or what it had and the device gave up; what the
    // manager mapped before is its own.
    const bool reachable = m.readable || m.writable || m.executable;
    const bool managed =
        std::strncmp(m.path, "/memfd:ferry-system", 19) == 0 || std::strncmp(m.path, "/memfd:ferry-vram", 17) == 0;
    taken = reachable && !managed;
    return !taken;
  });
  if (!seen) return EIO;
  if (taken) return EEXIST;
  return arm(address, length_bytes);
}

int DeviceMemory::map(const wire::DownRecord& command) const {
  if (!valid(command.address, command.length_bytes)) return EINVAL;
  const int fd = file_of(command);
  if (fd < 0) return EBADF;
  const bool system = command.file == static_cast<std::uint8_t>(wire::File::system);
  const bool buffer = command.file == static_cast<std::uint8_t>(wire::File::buffer);
  const int prot = PROT_READ | ((command.rights & wire::map_write) != 0 ? PROT_WRITE : 0) |
                   ((command.rights & wire::map_exec) != 0 ? PROT_EXEC : 0);
  // A whole block is one entry where its folio is huge. Smaller extents of VRAM are about to be touched and their
  // pages exist: entries made here cost a third of native faults. Smaller extents of the system file may have holes,
  // which must not be filled for nothing, nor those of a buffer.
  const int populate =
      !buffer && (command.length_bytes == block_bytes || (!system && command.length_bytes < block_bytes));
  const int flags = MAP_SHARED | MAP_FIXED | MAP_NORESERVE | (populate ? MAP_POPULATE : 0);
  void* p =
      mmap(pointer(command.address), command.length_bytes, prot, flags, fd, static_cast<off_t>(command.file_offset));
  return p == MAP_FAILED ? errno : 0;
}

int DeviceMemory::revoke(std::uint64_t address, std::uint64_t length_bytes) const {
  if (!valid(address, length_bytes)) return EINVAL;
  // Anonymous and not the file: neighbours that are revoked merge to one mapping whatever they showed before.
  void* p =
      mmap(pointer(address), length_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? errno : 0;
}

int DeviceMemory::zap(std::uint64_t address, std::uint64_t length_bytes) const {
  if (!valid(address, length_bytes)) return EINVAL;
  return madvise(pointer(address), length_bytes, MADV_DONTNEED) == 0 ? 0 : errno;
}

std::size_t DeviceMemory::zap_many(std::span<const iovec> extents) const {
  if (!self_.valid()) return 0;
  const long done = syscall(SYS_process_madvise, self_.get(), extents.data(), extents.size(), MADV_DONTNEED, 0);
  std::size_t count = 0;
  for (auto bytes = static_cast<std::size_t>(done > 0 ? done : 0);
       count < extents.size() && bytes >= extents[count].iov_len; ++count) {
    bytes -= extents[count].iov_len;
  }
  return count;
}

int DeviceMemory::rearm(std::uint64_t address, std::uint64_t length_bytes) const {
  if (!valid(address, length_bytes)) return EINVAL;
  return arm(address, length_bytes);
}

int DeviceMemory::arm(std::uint64_t address, std::uint64_t length_bytes) const {
  // Between the two calls the extent would be filled by native faults, in place of the manager's choice. The first is
  // therefore without access.
  void* p = mmap(pointer(address), length_bytes, PROT_NONE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, system_fd_,
                 static_cast<off_t>(window_.page_of_address(address) * page_bytes));
  if (p == MAP_FAILED) return errno;
  const linux::Fault registered =
      userfaultfd_.register_span(address, length_bytes, linux::track_missing | linux::track_minor);
  if (registered != linux::Fault::ok) return registered == linux::Fault::no_memory ? ENOMEM : EIO;
  if (mprotect(p, length_bytes, PROT_READ | PROT_WRITE) != 0) return errno;
  return 0;
}

void* map_own(std::size_t bytes) { return map_own_at_hint(bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1); }
void* map_own_file(int fd, std::size_t bytes) { return map_own_at_hint(bytes, MAP_SHARED, fd); }
std::uint64_t own_memory_begin() { return own_begin; }
std::uint64_t own_memory_end() { return own_end.load(std::memory_order_relaxed); }
bool is_own(std::uint64_t address) { return address >= own_begin && address < own_end.load(std::memory_order_relaxed); }

}  // namespace ferry::device
