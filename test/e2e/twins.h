// Two spans of addresses that are treated alike: one whose memory devices may have, by the C library's calls, and one that
// they never see, by number. Whatever a program can tell of the first it must tell of the second: values, errno, bytes,
// rights, signals.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace ferry::test {

/// Of a call: addresses inside the span are counted from its begin.
struct Outcome {
  enum class Kind { value, inside, elsewhere };
  Kind kind = Kind::value;
  std::int64_t value = 0;
  int error = 0;
  bool operator==(const Outcome&) const = default;
};
std::string text_of(const Outcome& outcome);

/// A page as a program finds it.
struct Seen {
  int signal = 0;  ///< of a read
  int code = 0;    ///< of that signal
  std::uint64_t sum = 0;
  bool operator==(const Seen&) const = default;
};

/// Of /proc/self/maps.
struct Rights {
  bool mapped = false;
  bool read = false;
  bool write = false;
  bool exec = false;
  bool shared = false;
  bool file = false;  ///< of a file of the test's
  int mapping = 0;    ///< of the kernel's, from 1
};

class Twins {
 public:
  static constexpr int pages = 80;
  static constexpr int margin = 64;      ///< behind the span, where it may grow
  static constexpr int file_pages = 24;  ///< at first
  Twins();
  ~Twins();
  Twins(const Twins&) = delete;
  Twins& operator=(const Twins&) = delete;

  /// What differed, all of it; empty: nothing.
  [[nodiscard]] const std::string& differences() const { return differences_; }
  [[nodiscard]] const std::string& log() const { return log_; }

  // Addresses are bytes from the begin of the span; which may be negative, or beyond its end.
  bool map(std::int64_t at, std::size_t bytes, int prot, int flags, int file, std::int64_t offset);
  bool unmap(std::int64_t at, std::size_t bytes);
  bool protect(std::int64_t at, std::size_t bytes, int prot);
  bool advise(std::int64_t at, std::size_t bytes, int advice, bool posix = false);
  bool remap(std::int64_t at, std::size_t old_bytes, std::size_t new_bytes, int flags, std::int64_t to);
  bool in_core(std::int64_t at, std::size_t bytes);
  bool sync(std::int64_t at, std::size_t bytes, int flags);
  /// Locks, lets a device at it, unlocks.
  bool lock(std::int64_t at, std::size_t bytes, bool device);
  bool truncate(int file, std::int64_t bytes);
  /// read (or write) of a file at an offset, by pread (pwrite) or preadv (pwritev) in two parts, or through a pipe.
  enum class Way { whole, parts, pipe };
  bool transfer(bool into_memory, Way way, int file, std::int64_t offset, std::int64_t at, std::size_t bytes);
  bool store(std::int64_t at, std::uint64_t value);

  /// A kernel adds to a word of each page of the span that threads may write (or reads those that they may read).
  bool device(int first, int count, bool write, std::uint64_t value);
  /// A kernel touches one page, and fails where a thread would.
  bool device_as_thread(int number, bool write);
  void adopt(int first, int count);
  void release(int first, int count);
  void to_device(int first, int count);
  bool fork_compare();

  /// Bytes of these pages, rights of all, both files.
  bool compare(int first, int count);
  bool compare_all() { return compare(-2, pages + margin); }

 private:
  struct Side {
    char* base = nullptr;
    std::array<int, 2> files{-1, -1};
    bool plain = false;
  };
  [[nodiscard]] char* at(const Side& side, std::int64_t offset) const { return side.base + offset; }
  [[nodiscard]] Outcome address(const Side& side, const void* result) const;
  template <typename Fn>
  bool both(const std::string& what, Fn&& call);
  void differ(const std::string& what);
  void note(const std::string& what);
  [[nodiscard]] Seen look(const Side& side, int number) const;
  [[nodiscard]] std::vector<Rights> rights(const Side& side) const;
  [[nodiscard]] const Rights& right(const std::vector<Rights>& all, int number) const { return all[number + 2]; }
  void forget_files();
  [[nodiscard]] bool several_mappings(std::int64_t at, std::size_t bytes) const;
  bool compare_elsewhere(void* const (&where)[2], std::size_t bytes);

  Side sides_[2];
  std::string log_;
  std::string differences_;
};

}  // namespace ferry::test
