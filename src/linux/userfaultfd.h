// A userfaultfd: opening one for one's own process, adopting one that a peer sent, and every ioctl through one table of
// what its errno means. Any thread; calls on one object may run side by side.
//
// | errno          | from                        | means                                                    | Fault      |
// |----------------|-----------------------------|----------------------------------------------------------|------------|
// | EEXIST         | CONTINUE, COPY              | somebody mapped the page first: wake whoever waits       | exists     |
// | EFAULT         | CONTINUE                    | the file has no page there: populate, then again         | hole       |
// | EAGAIN         | any                         | mappings change or an event is queued: drain, then again | again      |
// | ENOENT, EINVAL | any                         | not mapped, or not registered (any more)                 | range_gone |
// | EBUSY          | REGISTER                    | another userfaultfd has the range                        | range_gone |
// | ESRCH          | any                         | the process has ended                                    | process_gone |
// | ENOMEM, ENOSPC | any                         | no page table or page to be had                          | no_memory  |
// Anything else is other: logged by the caller and treated as range_gone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/status.h"
#include "linux/fd.h"

struct uffd_msg;

namespace ferry::linux {

enum class Fault { ok, exists, hole, again, range_gone, process_gone, no_memory, other };
[[nodiscard]] Fault classify_userfault(int error);
[[nodiscard]] const char* to_string(Fault fault);

/// Registration modes, as bits.
inline constexpr unsigned track_missing = 1;
inline constexpr unsigned track_writes = 2;  ///< only where Options::protect was granted
inline constexpr unsigned track_minor = 4;

/// What a page is mapped for.
enum class MapRights { read_write, read };

/// True if this kernel maps pages of a file so that writes to them raise messages (Linux 6.4): without, a page can be
/// protected only when it is mapped for writing, so that a write may come before the protection. Asked of the kernel
/// once. Any thread.
[[nodiscard]] bool can_map_for_reading();

/// True if this kernel can make a page raise SIGBUS for whoever touches it (UFFDIO_POISON, Linux 6.6). Asked of the
/// kernel once. Any thread.
[[nodiscard]] bool can_poison();

class Userfaultfd {
 public:
  struct Options {
    bool sigbus = false;  ///< faults raise SIGBUS in the thread that made them, and no message
    /// Ask for /dev/userfaultfd or the system call without UFFD_USER_MODE_ONLY first: faults in system calls are then
    /// served too. Where that is not allowed, user mode only.
    bool prefer_full_service = true;
    /// Pages of files can be write-protected from outside (Linux 5.19), where the kernel can.
    bool protect = false;
    /// Messages tell which thread touched the page.
    bool thread_ids = false;
    /// Messages tell of memory that is moved, unmapped or given up; the thread that does it waits until they are read.
    bool changes = false;
    /// Unmapping registered memory raises a message, and waits until it was read.
    bool tell_unmaps = false;
  };

  Userfaultfd() = default;
  /// For faults of the calling process, MINOR and MISSING on shared memory. Non-blocking, close-on-exec.
  /// ERRORS: unsupported (a feature is missing, with errno), not_permitted.
  static Result<Userfaultfd> open(const Options& options);
  /// Messages that one of a peer may raise beside those of touches; each holds up who does it until it was read, and costs
  /// the reader its time.
  enum class Tells : std::uint8_t { touches, unmaps, changes };
  /// Takes one that another process opened, as Options of the same name say, or with fewer messages. `fd` is left alone
  /// where it is refused.
  /// ERRORS: bad_message (it is something else, would raise other messages, or has not been opened to its end: what it
  /// raises could still be chosen), unsupported (this process cannot see what it raises: no /proc, or no descriptors left).
  static Result<Userfaultfd> adopt(Fd&& fd, Tells tells);

  [[nodiscard]] int fd() const { return fd_.get(); }
  explicit operator bool() const { return fd_.valid(); }
  /// Faults inside system calls are served too. Known only to who opened it.
  [[nodiscard]] bool full_service() const { return full_service_; }
  void close() { fd_.reset(); }

  /// `modes`: track_* bits. Gaps in the span are passed over; something unfit in it fails the whole.
  Fault register_span(std::uint64_t address, std::uint64_t bytes, unsigned modes) const;
  Fault unregister_span(std::uint64_t address, std::uint64_t bytes) const;
  /// Maps pages that the file has, read-write. `done_bytes`: how far it came before the result; the page there is the
  /// one that the result is about. Wakes those that wait for pages it mapped unless `wake` is false.
  /// `rights` read: without leave to write, which raises a message (see protect); REQUIRES: registered with
  /// track_writes, and can_map_for_reading().
  Fault map_present(std::uint64_t address, std::uint64_t bytes, bool wake, std::uint64_t& done_bytes,
                    MapRights rights = MapRights::read_write) const;
  /// Fills missing pages of private memory with a copy of `from`, or (null) zeros, and wakes who waits for them.
  /// `done_bytes` as above.
  Fault fill(std::uint64_t address, const void* from, std::uint64_t bytes, std::uint64_t& done_bytes) const;
  /// Touching a page of the span raises SIGBUS from now on (BUS_MCEERR_AR), as if the memory had failed; threads that
  /// wait for one get it too. Linux 6.6; before that: other.
  Fault poison(std::uint64_t address, std::uint64_t bytes) const;
  /// No thread writes to the span any more when it returns; one that tries to raises a message, and waits. Reads of
  /// what is mapped go on. REQUIRES: registered with track_writes.
  Fault protect(std::uint64_t address, std::uint64_t bytes) const;
  /// Takes protect() back, and what map_present() kept from writing, mapped or not; who waits for a page of the span
  /// retries. REQUIRES: registered with track_writes.
  Fault allow_writes(std::uint64_t address, std::uint64_t bytes) const;
  /// Threads that wait for a page of the span retry.
  Fault wake(std::uint64_t address, std::uint64_t bytes) const;

  /// Something registered is being unmapped or moved, or has been, and nobody has read of it yet. REQUIRES: opened with
  /// `changes` or `tell_unmaps`.
  [[nodiscard]] bool mappings_change() const;

  /// Takes waiting messages without ever blocking, whatever the peer does to the descriptor's flags. 0: none.
  /// -1: not to be read any more.
  int read(std::span<uffd_msg> messages) const;

 private:
  Fd fd_;
  bool full_service_ = false;
};

}  // namespace ferry::linux
