// The threads of this process as the kernel lists them, and what each of them is doing. No malloc, no locks.
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

namespace ferry::client {

/// What /proc says of a thread (the file `syscall`).
struct ThreadActivity {
  enum class State {
    gone,
    running,
    asleep,
    unknown,  ///< /proc does not say: no descriptor is left, or it may not be read
  };
  State state = State::unknown;
  /// Of one that is asleep: the system call, or a negative number where it sleeps outside of any (in a page fault).
  long call = -1;
  std::uint64_t arguments[6] = {};
};

[[nodiscard]] ThreadActivity activity_of(int tid);

/// Signals that the thread blocks, bit n - 1 for signal n; all of them where that cannot be told.
[[nodiscard]] std::uint64_t blocked_signals(int tid);

/// Reads a number in `base` and stops `at` what is none of it.
[[nodiscard]] std::uint64_t read_number(const char*& at, unsigned base);

/// The session's own threads: they hold nothing that others change, and block all signals. Called by each as it starts.
void note_session_thread();
[[nodiscard]] bool is_session_thread(int tid);

struct DirectoryEntry {
  std::uint64_t inode;
  std::int64_t offset;
  unsigned short bytes;
  unsigned char type;
  char name[];
};

enum class Listing {
  whole,
  changed,  ///< threads have come or gone meanwhile: some may have been left out
  none,     ///< the kernel does not list them
};

/// fn(tid) for every thread.
template <typename Fn>
Listing for_each_thread(Fn&& fn) {
  const int directory = ::open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return Listing::none;
  alignas(8) char buffer[4096];
  long got = 0;
  std::uint64_t count = 0;
  while ((got = ::syscall(SYS_getdents64, directory, buffer, sizeof buffer)) > 0) {
    for (long at = 0; at < got;) {
      const char* here = buffer + at;
      const auto* entry = reinterpret_cast<const DirectoryEntry*>(here);
      at += entry->bytes;
      const char* name = here + offsetof(DirectoryEntry, name);
      if (const auto tid = static_cast<int>(read_number(name, 10)); tid != 0) {
        ++count;
        fn(tid);
      }
    }
  }
  // The list goes on by position where the thread that it had come to has ended: one that moved up by that is passed over.
  struct stat now {};
  const bool known = ::fstat(directory, &now) == 0 && got == 0;
  ::close(directory);
  // A directory has a link for each that it holds.
  return !known ? Listing::none : now.st_nlink == count + 2 ? Listing::whole : Listing::changed;
}

}  // namespace ferry::client
