#include "twins.h"

#include <fcntl.h>
#include <ferry/svm.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include "change.h"

namespace ferry::test {
namespace {

constexpr auto page_i = static_cast<std::int64_t>(page);
constexpr std::size_t block = std::size_t{2} << 20;
/// Far below where the kernel puts mappings of its own choice: what is unmapped in a span stays so.
constexpr std::uintptr_t far = std::uintptr_t{0x3000'0000'0000};

std::string hex(std::int64_t bytes) {
  char text[40];
  if (bytes > -(std::int64_t{1} << 40) && bytes < (std::int64_t{1} << 40)) {
    std::snprintf(text, sizeof text, bytes % page_i == 0 ? "%" PRId64 "p" : "%" PRId64 "p+%" PRId64, bytes / page_i,
                  bytes % page_i);
  } else {
    std::snprintf(text, sizeof text, "%#" PRIx64, static_cast<std::uint64_t>(bytes));
  }
  return text;
}
std::string hex(std::size_t bytes) { return hex(static_cast<std::int64_t>(bytes)); }

/// Both files begin alike, and no two pages of one.
int make_file() {
  char name[] = "/tmp/ferry_twins_XXXXXX";
  const int fd = ::mkstemp(name);
  if (fd < 0) return -1;
  ::unlink(name);
  std::vector<std::uint64_t> words(page / sizeof(std::uint64_t));
  for (int p = 0; p < Twins::file_pages; ++p) {
    for (std::size_t w = 0; w < words.size(); ++w) words[w] = stamp(static_cast<std::size_t>(p) * 1000 + w);
    if (::syscall(SYS_pwrite64, fd, words.data(), page, p * page_i) != page_i) return -1;
  }
  return fd;
}

struct Fault {
  sigjmp_buf back;
  volatile sig_atomic_t armed = 0;
  volatile int code = 0;
};
thread_local Fault fault;

void on_fault(int signal, siginfo_t* info, void*) {
  if (fault.armed == 0) {
    ::signal(signal, SIG_DFL);
    return;
  }
  fault.armed = 0;
  fault.code = info->si_code;
  siglongjmp(fault.back, signal);
}

/// The signal that `body` raises, and its code.
template <typename Body>
int signal_from(int& code, Body&& body) {
  const int got = sigsetjmp(fault.back, 1);
  if (got == 0) {
    fault.armed = 1;
    body();
    fault.armed = 0;
    code = 0;
    return 0;
  }
  code = fault.code;
  return got;
}

struct sigaction saved[2];

}  // namespace

std::string text_of(const Outcome& o) {
  std::string text = o.kind == Outcome::Kind::elsewhere ? "elsewhere"
                     : o.kind == Outcome::Kind::inside  ? "at " + hex(o.value)
                                                        : std::to_string(o.value);
  if (o.error != 0) text += std::string(" ") + ::strerrorname_np(o.error);
  return text;
}

Twins::Twins() {
  struct sigaction ours {};
  ours.sa_sigaction = on_fault;
  ours.sa_flags = SA_SIGINFO | SA_NODEFER;
  ::sigaction(SIGSEGV, &ours, &saved[0]);
  ::sigaction(SIGBUS, &ours, &saved[1]);
  for (int i = 0; i < 2; ++i) {
    Side& side = sides_[i];
    side.plain = i == 1;
    // Across the border of two blocks, and of stripes.
    side.base = reinterpret_cast<char*>(far + static_cast<std::uintptr_t>(i) * 64 * block + block - 20 * page);
    void* const got = ::mmap(side.base, pages * page, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (got != side.base) differ("set-up: no place for the span");
    for (int& file : side.files) {
      file = make_file();
      if (file < 0) differ("set-up: no file");
    }
    for (int p = 0; p < pages && got == side.base; ++p) {
      auto* words = reinterpret_cast<std::uint64_t*>(at(side, p * page_i));
      for (std::size_t w = 0; w < page / 8; w += 37) words[w] = stamp(static_cast<std::size_t>(p) * 600 + w);
    }
  }
}

Twins::~Twins() {
  for (const Side& side : sides_) {
    ::munmap(side.base - 2 * page, (2 + pages + margin) * page);
    for (const int file : side.files) ::close(file);
  }
  ::sigaction(SIGSEGV, &saved[0], nullptr);
  ::sigaction(SIGBUS, &saved[1], nullptr);
}

void Twins::note(const std::string& what) { log_ += what + "\n"; }

void Twins::differ(const std::string& what) {
  differences_ += what + "\n";
  note("  DIFFERS: " + what);
}

Outcome Twins::address(const Side& side, const void* result) const {
  if (result == MAP_FAILED) return {Outcome::Kind::value, -1, errno};
  const std::int64_t from = static_cast<const char*>(result) - side.base;
  if (from >= -2 * page_i && from < (pages + margin) * page_i) return {Outcome::Kind::inside, from, 0};
  return {Outcome::Kind::elsewhere, 0, 0};
}

template <typename Fn>
bool Twins::both(const std::string& what, Fn&& call) {
  Outcome got[2];
  for (int i = 0; i < 2; ++i) {
    errno = 0;
    got[i] = call(sides_[i]);
  }
  note(what + " -> " + text_of(got[1]));
  if (!(got[0] == got[1])) differ(what + ": " + text_of(got[0]) + ", and not " + text_of(got[1]));
  return got[0] == got[1];
}

namespace {
Outcome value(long result) { return {Outcome::Kind::value, result, result < 0 ? errno : 0}; }
std::string in(std::int64_t at, std::size_t bytes) { return "(" + hex(at) + ", " + hex(bytes); }
}  // namespace

bool Twins::map(std::int64_t where, std::size_t bytes, int prot, int flags, int file, std::int64_t offset) {
  void* got[2];
  const bool same = both("mmap" + in(where, bytes) + ", prot " + std::to_string(prot) + ", flags " +
                             hex(std::int64_t{flags}) + ", file " + std::to_string(file) + ", " + hex(offset) + ")",
                         [&](const Side& side) {
                           void* const to = at(side, where);
                           const int fd = file < 0 ? file : side.files[static_cast<std::size_t>(file)];
                           void* const result =
                               side.plain
                                   ? reinterpret_cast<void*>(::syscall(SYS_mmap, to, bytes, prot, flags, fd, offset))
                                   : ::mmap(to, bytes, prot, flags, fd, offset);
                           got[side.plain] = result;
                           return address(side, result);
                         });
  return compare_elsewhere(got, bytes) && same;
}

bool Twins::unmap(std::int64_t where, std::size_t bytes) {
  return both("munmap" + in(where, bytes) + ")", [&](const Side& side) {
    return value(side.plain ? ::syscall(SYS_munmap, at(side, where), bytes) : ::munmap(at(side, where), bytes));
  });
}

bool Twins::protect(std::int64_t where, std::size_t bytes, int prot) {
  return both("mprotect" + in(where, bytes) + ", " + std::to_string(prot) + ")", [&](const Side& side) {
    return value(side.plain ? ::syscall(SYS_mprotect, at(side, where), bytes, prot)
                            : ::mprotect(at(side, where), bytes, prot));
  });
}

bool Twins::advise(std::int64_t where, std::size_t bytes, int advice, bool posix) {
  return both((posix ? "posix_madvise" : "madvise") + in(where, bytes) + ", " + std::to_string(advice) + ")",
              [&](const Side& side) {
                if (posix && side.plain && advice == POSIX_MADV_DONTNEED) return value(0);
                if (posix && !side.plain) return value(::posix_madvise(at(side, where), bytes, advice));
                const long result = side.plain ? ::syscall(SYS_madvise, at(side, where), bytes, advice)
                                               : ::madvise(at(side, where), bytes, advice);
                return posix ? value(result == 0 ? 0 : errno) : value(result);
              });
}

bool Twins::several_mappings(std::int64_t where, std::size_t bytes) const {
  const std::vector<Rights> has = rights(sides_[1]);
  const auto most = static_cast<std::size_t>(pages + margin) * page;
  std::set<int> seen;
  for (std::int64_t from = 0; from < static_cast<std::int64_t>(std::min(bytes, most)); from += page_i) {
    const std::int64_t number = (where + from) / page_i;
    if (number < -2 || number >= pages + margin) continue;
    if (const Rights& r = right(has, static_cast<int>(number)); r.mapped) seen.insert(r.mapping);
  }
  return seen.size() > 1;
}

bool Twins::remap(std::int64_t where, std::size_t old_bytes, std::size_t new_bytes, int flags, std::int64_t to) {
  // What the kernel has as several mappings it may have as others where some are adopted: docs/SVM.md.
  const bool resized = (flags & MREMAP_DONTUNMAP) != 0 || new_bytes > old_bytes || (flags & MREMAP_FIXED) != 0;
  if (resized && several_mappings(where, old_bytes)) return true;
  void* got[2];
  const bool same = both("mremap" + in(where, old_bytes) + ", " + hex(new_bytes) + ", flags " + std::to_string(flags) +
                             ", " + hex(to) + ")",
                         [&](const Side& side) {
                           // A hint counts with some flags, and must be nobody's then.
                           void* const target = (flags & MREMAP_FIXED) != 0 ? at(side, to) : nullptr;
                           void* const result =
                               side.plain ? reinterpret_cast<void*>(::syscall(SYS_mremap, at(side, where), old_bytes,
                                                                              new_bytes, flags, target))
                                          : ::mremap(at(side, where), old_bytes, new_bytes, flags, target);
                           got[side.plain] = result;
                           return address(side, result);
                         });
  return compare_elsewhere(got, new_bytes) && same;
}

/// What the kernel put where it liked is looked at, and goes.
bool Twins::compare_elsewhere(void* const (&where)[2], std::size_t bytes) {
  bool out[2];
  for (int i = 0; i < 2; ++i) out[i] = address(sides_[i], where[i]).kind == Outcome::Kind::elsewhere;
  const std::size_t whole = (bytes + page - 1) / page * page;
  bool same = true;
  if (out[0] && out[1]) {
    for (std::size_t p = 0; p < whole / page && same; ++p) {
      Side there[2] = {sides_[0], sides_[1]};
      for (int i = 0; i < 2; ++i) there[i].base = static_cast<char*>(where[i]);
      const Seen a = look(there[0], static_cast<int>(p));
      const Seen b = look(there[1], static_cast<int>(p));
      if (a == b) continue;
      same = false;
      differ("what was put elsewhere, page " + std::to_string(p) + ": signal " + std::to_string(a.signal) + " sum " +
             hex(static_cast<std::int64_t>(a.sum)) + ", and not " + std::to_string(b.signal) + ", " +
             hex(static_cast<std::int64_t>(b.sum)));
    }
  }
  if (out[0]) ::munmap(where[0], whole);
  if (out[1]) ::syscall(SYS_munmap, where[1], whole);
  return same;
}

bool Twins::in_core(std::int64_t where, std::size_t bytes) {
  // Which pages are in memory is another matter: docs/SVM.md.
  return both("mincore" + in(where, bytes) + ")", [&](const Side& side) {
    std::vector<unsigned char> in_memory(pages + margin + 8);
    return value(::syscall(SYS_mincore, at(side, where), bytes, in_memory.data()));
  });
}

bool Twins::sync(std::int64_t where, std::size_t bytes, int flags) {
  return both("msync" + in(where, bytes) + ", " + std::to_string(flags) + ")",
              [&](const Side& side) { return value(::syscall(SYS_msync, at(side, where), bytes, flags)); });
}

bool Twins::lock(std::int64_t where, std::size_t bytes, bool let_device) {
  bool same =
      both("mlock" + in(where, bytes) + ")", [&](const Side& side) { return value(::mlock(at(side, where), bytes)); });
  if (let_device) {
    const std::int64_t first = std::clamp<std::int64_t>(where / page_i, 0, pages - 8);
    same = device(static_cast<int>(first), 8, true, 5) && same;
  }
  same = both("munlock" + in(where, bytes) + ")",
              [&](const Side& side) { return value(::munlock(at(side, where), bytes)); }) &&
         same;
  // A part of a span that could not be locked as a whole.
  for (const Side& side : sides_) {
    for (int p = 0; p < pages + margin; ++p) ::munlock(at(side, p * page_i), page);
  }
  return same;
}

bool Twins::truncate(int file, std::int64_t bytes) {
  forget_files();
  return both("ftruncate(" + std::to_string(file) + ", " + hex(bytes) + ")",
              [&](const Side& side) { return value(::ftruncate(side.files[static_cast<std::size_t>(file)], bytes)); });
}

bool Twins::transfer(bool into_memory, Way way, int file, std::int64_t offset, std::int64_t where, std::size_t bytes) {
  static const char* const ways[] = {"", "v", " by a pipe"};
  return both(std::string(into_memory ? "read" : "write") + ways[static_cast<int>(way)] + in(where, bytes) + ", file " +
                  std::to_string(file) + ", " + hex(offset) + ")",
              [&](const Side& side) {
                char* const to = at(side, where);
                const int fd = side.files[static_cast<std::size_t>(file)];
                const std::size_t half = bytes / 3;
                const iovec parts[2] = {{to, half}, {to + half, bytes - half}};
                switch (way) {
                  case Way::whole:
                    if (side.plain) {
                      return value(::syscall(into_memory ? SYS_pread64 : SYS_pwrite64, fd, to, bytes, offset));
                    }
                    return value(into_memory ? ::pread(fd, to, bytes, offset) : ::pwrite(fd, to, bytes, offset));
                  case Way::parts:
                    if (side.plain) {
                      return value(::syscall(into_memory ? SYS_preadv : SYS_pwritev, fd, parts, 2, offset, 0));
                    }
                    return value(into_memory ? ::preadv(fd, parts, 2, offset) : ::pwritev(fd, parts, 2, offset));
                  case Way::pipe: break;
                }
                int ends[2];
                if (::pipe2(ends, O_NONBLOCK) != 0) return value(-1);
                Outcome result;
                char buffer[6000];
                if (into_memory) {
                  std::memset(buffer, static_cast<int>(offset / page_i + 7), sizeof buffer);
                  static_cast<void>(!::syscall(SYS_write, ends[1], buffer, sizeof buffer));
                  result = value(side.plain ? ::syscall(SYS_read, ends[0], to, bytes) : ::read(ends[0], to, bytes));
                  result.value = result.value * 100000 + ::syscall(SYS_read, ends[0], buffer, sizeof buffer);
                } else {
                  result = value(side.plain ? ::syscall(SYS_write, ends[1], to, bytes) : ::write(ends[1], to, bytes));
                  const long came = ::syscall(SYS_read, ends[0], buffer, sizeof buffer);
                  for (long i = 0; i < came; ++i)
                    result.value = result.value * 31 + static_cast<unsigned char>(buffer[i]);
                }
                ::close(ends[0]);
                ::close(ends[1]);
                return result;
              });
}

bool Twins::store(std::int64_t where, std::uint64_t word) {
  return both("store(" + hex(where) + ")", [&](const Side& side) {
    int code = 0;
    const int signal = signal_from(code, [&] { std::memcpy(at(side, where), &word, 1); });
    return Outcome{Outcome::Kind::value, signal * 100 + code, 0};
  });
}

// --- devices ---------------------------------------------------------------------------------------------------------

namespace {

/// Of the twin that no device sees: what a thread may do there, and does.
int thread_touches(char* word, bool write) {
  int code = 0;
  return signal_from(code, [&] {
    if (write) {
      __atomic_fetch_add(reinterpret_cast<std::uint64_t*>(word), 0, __ATOMIC_RELAXED);
    } else {
      static_cast<void>(__atomic_load_n(reinterpret_cast<std::uint64_t*>(word), __ATOMIC_RELAXED));
    }
  });
}

}  // namespace

bool Twins::device(int first, int count, bool write, std::uint64_t add) {
  const std::vector<Rights> has = rights(sides_[1]);
  std::vector<int> may;
  for (int p = std::max(first, 0); p < first + count && p < pages + margin; ++p) {
    const Rights& r = right(has, p);
    // What devices are refused: docs/SVM.md.
    const bool refused = (r.shared && !r.file && ::geteuid() != 0) || (r.file && !r.shared && !r.write);
    if (!r.read || (write && !r.write) || refused) continue;
    if (thread_touches(at(sides_[1], p * page_i), write) == 0) may.push_back(p);
  }
  note("device " + std::string(write ? "write" : "read") + "(" + std::to_string(first) + ", " + std::to_string(count) +
       "): " + std::to_string(may.size()) + " pages");
  if (may.empty()) return true;
  auto* const list = static_cast<std::uint64_t*>(ferry::alloc((2 * may.size() + 1) * 8, ferry::placement::system));
  std::copy(may.begin(), may.end(), list);
  std::uint64_t* const sums = list + may.size();
  char* const base = sides_[0].base;
  bool same = true;
  try {
    // One after the other, as below: two pages may be one of a file.
    ferry::parallel_for(1, [=, count_of = may.size()](std::size_t) {
      for (std::size_t i = 0; i < count_of; ++i) {
        auto* const words = reinterpret_cast<std::uint64_t*>(base + list[i] * page);
        sums[i] = words[0] + words[300];
        if (!write) continue;
        words[0] += add;
        words[300] += add + i;
      }
    });
    for (std::size_t i = 0; i < may.size(); ++i) {
      auto* const words = reinterpret_cast<std::uint64_t*>(at(sides_[1], may[i] * page_i));
      if (sums[i] != words[0] + words[300]) {
        differ("device read of page " + std::to_string(may[i]));
        same = false;
      }
      if (write) {
        words[0] += add;
        words[300] += add + i;
      }
    }
  } catch (const ferry::error& e) {
    differ(std::string("device: ") + e.what());
    same = false;
  }
  ferry::free(list);
  forget_files();
  return same;
}

bool Twins::device_as_thread(int number, bool write) {
  const std::vector<Rights> has = rights(sides_[1]);
  const Rights& r = right(has, number);
  if ((r.shared && !r.file) || (r.file && !r.shared)) return true;
  const bool may = thread_touches(at(sides_[1], number * page_i), write) == 0;
  std::string text;
  int failed = 0;
  try {
    ferry::parallel_for(1, [p = at(sides_[0], number * page_i), write](std::size_t) {
      if (write) {
        __atomic_fetch_add(reinterpret_cast<std::uint64_t*>(p), 0, __ATOMIC_RELAXED);
      } else {
        static_cast<void>(*reinterpret_cast<volatile std::uint64_t*>(p));
      }
    });
  } catch (const ferry::error& e) {
    failed = 1;
    text = e.what();
  }
  note("device as thread, " + std::string(write ? "write " : "read ") + std::to_string(number) + " -> " +
       std::to_string(failed));
  if ((failed == 0) == may) return true;
  differ("a kernel's touch of page " + std::to_string(number) +
         (may ? " fails: " + text : " works where a thread's does not"));
  return false;
}

void Twins::adopt(int first, int count) {
  ferry_error e{};
  note("adopt(" + std::to_string(first) + ", " + std::to_string(count) + ") -> " +
       std::to_string(ferry_adopt(at(sides_[0], first * page_i), static_cast<std::size_t>(count) * page, &e)));
  forget_files();
}
void Twins::release(int first, int count) {
  ferry_error e{};
  note("release(" + std::to_string(first) + ", " + std::to_string(count) + ") -> " +
       std::to_string(ferry_release(at(sides_[0], first * page_i), static_cast<std::size_t>(count) * page, &e)));
}
void Twins::to_device(int first, int count) {
  ferry_error e{};
  note("prefetch(" + std::to_string(first) + ", " + std::to_string(count) + ") -> " +
       std::to_string(ferry_prefetch(at(sides_[0], first * page_i), static_cast<std::size_t>(count) * page, 0, &e)));
}

/// A private mapping of a file is the file's no more once it is adopted: docs/SVM.md. Nor is its twin's.
void Twins::forget_files() {
  const std::vector<Rights> has[2] = {rights(sides_[0]), rights(sides_[1])};
  std::array<char, page> bytes;
  for (int p = -2; p < pages + margin; ++p) {
    const Rights& plain = right(has[1], p);
    if (!plain.file || plain.shared || right(has[0], p).file) continue;
    char* const where = at(sides_[1], p * page_i);
    ::syscall(SYS_mprotect, where, page, PROT_READ);
    int code = 0;
    if (signal_from(code, [&] { std::memcpy(bytes.data(), where, page); }) != 0) bytes.fill(0);
    ::syscall(SYS_mmap, where, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    std::memcpy(where, bytes.data(), page);
    const int prot = (plain.read ? PROT_READ : 0) | (plain.write ? PROT_WRITE : 0) | (plain.exec ? PROT_EXEC : 0);
    ::syscall(SYS_mprotect, where, page, prot);
  }
}

// --- comparison ------------------------------------------------------------------------------------------------------

Seen Twins::look(const Side& side, int number) const {
  Seen seen;
  const char* const from = at(side, number * page_i);
  seen.signal = signal_from(seen.code, [&] {
    const auto* words = reinterpret_cast<const volatile std::uint64_t*>(from);
    std::uint64_t sum = 0;
    for (std::size_t w = 0; w < page / 8; ++w) sum = sum * 31 + words[w];
    seen.sum = sum;
  });
  return seen;
}

std::vector<Rights> Twins::rights(const Side& side) const {
  std::vector<Rights> all(static_cast<std::size_t>(pages + margin + 2));
  std::FILE* const maps = std::fopen("/proc/self/maps", "re");
  if (maps == nullptr) return all;
  char line[512];
  int mapping = 0;
  const auto base = reinterpret_cast<std::uintptr_t>(side.base) - 2 * page;
  while (std::fgets(line, sizeof line, maps) != nullptr) {
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
    char flags[5] = {};
    if (std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s", &begin, &end, flags) != 3) continue;
    ++mapping;
    if (end <= base || begin >= base + all.size() * page) continue;
    const bool of_file = std::strstr(line, "/tmp/ferry_twins_") != nullptr;
    const std::uintptr_t stop = std::min(end, base + all.size() * page);
    for (std::uintptr_t p = std::max(begin, base); p < stop; p += page) {
      all[(p - base) / page] = {true,    flags[0] == 'r', flags[1] == 'w', flags[2] == 'x', flags[3] == 's',
                                of_file, mapping};
    }
  }
  std::fclose(maps);
  return all;
}

bool Twins::compare(int first, int count) {
  bool same = true;
  const std::vector<Rights> has[2] = {rights(sides_[0]), rights(sides_[1])};
  const auto text = [](const Rights& r) {
    return r.mapped ? std::string(r.read ? "r" : "-") + (r.write ? "w" : "-") + (r.exec ? "x" : "-")
                    : std::string("no");
  };
  for (int p = -2; p < pages + margin && same; ++p) {
    const std::string a = text(right(has[0], p));
    const std::string b = text(right(has[1], p));
    if (a == b) continue;
    same = false;
    differ("rights of page " + std::to_string(p) + ": " + a + ", and not " + b);
  }
  for (int p = first; p < first + count && same; ++p) {
    const Seen a = look(sides_[0], p);
    const Seen b = look(sides_[1], p);
    if (a == b) continue;
    same = false;
    differ("page " + std::to_string(p) + ": signal " + std::to_string(a.signal) + " (" + std::to_string(a.code) +
           ") sum " + std::to_string(a.sum) + ", and not " + std::to_string(b.signal) + " (" + std::to_string(b.code) +
           ") " + std::to_string(b.sum));
  }
  for (std::size_t f = 0; f < 2 && same; ++f) {
    std::array<char, 2 * page> bytes[2];
    for (std::int64_t from = 0; same; from += static_cast<std::int64_t>(bytes[0].size())) {
      long got[2];
      for (int i = 0; i < 2; ++i) {
        got[i] = ::syscall(SYS_pread64, sides_[i].files[f], bytes[i].data(), bytes[i].size(), from);
      }
      if (got[0] != got[1] ||
          (got[0] > 0 && std::memcmp(bytes[0].data(), bytes[1].data(), static_cast<std::size_t>(got[0])) != 0)) {
        differ("file " + std::to_string(f) + " from " + hex(from));
        same = false;
      }
      if (got[0] <= 0) break;
    }
  }
  return same;
}

bool Twins::fork_compare() {
  note("fork");
  std::fflush(nullptr);
  int ends[2];
  if (::pipe(ends) != 0) return true;
  const pid_t child = ::fork();
  if (child == 0) {
    const std::size_t before = differences_.size();
    const bool same = compare_all();
    const std::string what = differences_.substr(before);
    static_cast<void>(!::syscall(SYS_write, ends[1], what.data(), what.size()));
    ::_exit(same ? 0 : 1);
  }
  ::close(ends[1]);
  std::string said;
  char buffer[512];
  for (long got = 0; (got = ::syscall(SYS_read, ends[0], buffer, sizeof buffer)) > 0;) {
    said.append(buffer, static_cast<std::size_t>(got));
  }
  ::close(ends[0]);
  int status = 0;
  while (child > 0 && ::waitpid(child, &status, 0) < 0 && errno == EINTR) {}
  if (child > 0 && status == 0) return true;
  differ("a fork's child: status " + std::to_string(status) + ": " + said);
  return false;
}

}  // namespace ferry::test
