// The device's page tables: what its window is mapped to, and its userfaultfd. Changed by the agent and by compute
// units (each for the wave that faulted); the kernel orders them, and the manager never sends two of them commands for
// one page at a time. Never touches what it maps.
#pragma once

#include <sys/uio.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/types.h"
#include "linux/fd.h"
#include "linux/userfaultfd.h"
#include "wire/port.h"
#include "wire/slots.h"

namespace ferry::device {

class DeviceMemory {
 public:
  DeviceMemory() {
    for (auto& file : peer_files_) file.store(-1, std::memory_order_relaxed);
  }

  /// Maps the whole window from the system file, registers it, and keeps the descriptors. Errno, 0 if well; `failed`
  /// then names what failed.
  int open(std::uint64_t window_base, std::uint64_t window_bytes, int system_fd, int vram_fd, const char** failed);

  [[nodiscard]] bool contains(std::uint64_t address) const { return window_.contains(address); }
  [[nodiscard]] std::uint64_t base() const { return window_.base; }
  [[nodiscard]] std::uint64_t bytes() const { return window_.bytes; }
  /// The application may have memory there that the device can get. Safe in a signal handler.
  [[nodiscard]] static bool may_adopt(std::uint64_t address);
  [[nodiscard]] int userfaultfd() const { return userfaultfd_.fd(); }

  /// From now on File::buffer with this number is `fd`; -1: nothing. The descriptor is taken over. The agent only.
  void set_buffer_file(std::uint32_t number, linux::Fd fd);
  [[nodiscard]] bool has_buffer_file(std::uint32_t number) const {
    return number < buffer_files_.size() && buffer_files_[number].valid();
  }

  /// From now on File::peer of that device is `fd`, for good. The descriptor is taken over. The agent only.
  void set_peer_file(std::uint32_t device, linux::Fd fd);
  [[nodiscard]] bool has_peer_file(std::uint32_t device) const {
    return device < peer_files_.size() && peer_files_[device].load(std::memory_order_acquire) >= 0;
  }

  // Each returns an errno, 0 if well. Extents that are not page aligned, lie in the device's own memory, or only in part
  // in the window: EINVAL. Outside the window the manager names only extents that were admitted.

  /// map and resume_map: the extent shows the file that the record names. Drops the extent's registration.
  int map(const wire::DownRecord& command) const;
  /// Nothing of the extent can be reached any more when it returns; every touch raises SIGSEGV.
  int revoke(std::uint64_t address, std::uint64_t length_bytes) const;
  /// Pages given in an armed extent cannot be reached any more; it stays armed.
  int zap(std::uint64_t address, std::uint64_t length_bytes) const;
  /// The same for many extents with one shootdown, where the kernel can (6.16; 6.13 to be let at all). Every extent
  /// must be valid for zap. Returns how many of the first extents are done, without error; the caller zaps the others
  /// one by one. At most IOV_MAX (1024).
  std::size_t zap_many(std::span<const iovec> extents) const;
  [[nodiscard]] bool valid(std::uint64_t address, std::uint64_t length_bytes) const;
  /// Makes an extent outside the window as the window is at the start: nothing there yet, registered. EEXIST where the
  /// device has memory of its own: then nothing has changed. Not for signal handlers.
  int admit(std::uint64_t address, std::uint64_t length_bytes) const;
  /// Maps as much of the extent from the application's file as is free around the byte `command.units`, and says what that
  /// is. EEXIST where the device has memory of its own just there; EACCES and others: `fd` cannot be mapped like this. On an
  /// error nothing has changed. The descriptor stays the caller's. The agent only.
  int map_file(const wire::DownRecord& command, int fd, std::uint64_t& begin, std::uint64_t& bytes) const;
  /// The extent is empty, and registered again.
  int rearm(std::uint64_t address, std::uint64_t length_bytes) const;

 private:
  /// -1: there is no such file.
  [[nodiscard]] int file_of(const wire::DownRecord& command) const;
  [[nodiscard]] int arm(std::uint64_t address, std::uint64_t length_bytes) const;

  Window window_;
  int system_fd_ = -1;
  int vram_fd_ = -1;
  linux::Userfaultfd userfaultfd_;
  linux::Fd self_;  ///< pidfd of this process
  std::array<linux::Fd, wire::buffer_slots> buffer_files_;
  std::array<std::atomic<int>, max_devices> peer_files_;  ///< -1: not sent yet
};

/// Zeroed private memory for the device's own use, in a part of the address space where the application is unlikely to
/// have anything: a stray pointer of the application should find nothing there. nullptr if there is none.
[[nodiscard]] void* map_own(std::size_t bytes);
/// The same for a shared file.
[[nodiscard]] void* map_own_file(int fd, std::size_t bytes);
/// All of them lie in [own_memory_begin(), own_memory_end()), where there was room.
[[nodiscard]] std::uint64_t own_memory_begin();
[[nodiscard]] std::uint64_t own_memory_end();
/// True for addresses inside of what map_own and map_own_file gave.
[[nodiscard]] bool is_own(std::uint64_t address);

}  // namespace ferry::device
