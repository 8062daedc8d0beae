// Longer than 600 lines because each program is a few lines, and all share how they look at their memory.
// Programs that fork while their memory lies in several places, each a check of its own. Exit status 0: all as expected.
//
//   e2e_forker NAME [COUNT]
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ferry/ferry.hpp>
#include <ferry/svm.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace {

#define EXPECT(condition)                                                                               \
  do {                                                                                                  \
    if (!(condition)) {                                                                                 \
      std::fprintf(stderr, "%s:%d (pid %d): not so: %s\n", __FILE__, __LINE__, ::getpid(), #condition); \
      std::_Exit(1);                                                                                    \
    }                                                                                                   \
  } while (false)

using Word = std::uint64_t;
constexpr std::size_t page_words = 512;
unsigned long count = 0;

constexpr Word mix(Word i) { return (i + 1) * 0x9e3779b97f4a7c15; }

/// Managed pages; word i of version v is mix(i) + v. The second half was last written by the device, in its memory.
struct Halves {
  Word* words;
  std::size_t size;

  explicit Halves(std::size_t bytes) : words(static_cast<Word*>(ferry::alloc(bytes))), size(bytes / sizeof(Word)) {
    for (std::size_t i = 0; i < size; ++i) words[i] = mix(i);
    next();
  }
  Halves(const Halves&) = delete;
  Halves& operator=(const Halves&) = delete;
  ~Halves() { ferry::free(words); }
  /// Version v + 1 in both halves, the second in VRAM.
  void next() {
    for (std::size_t i = 0; i < size / 2; ++i) words[i] += 1;
    ferry::prefetch(words + size / 2, size / 2 * sizeof(Word), ferry::to_device(0));
    ferry::parallel_for(size / 2, [p = words + size / 2](std::size_t i) { p[i] += 1; });
  }
  [[nodiscard]] bool is(Word version) const {
    for (std::size_t i = 0; i < size; ++i) {
      if (words[i] == mix(i) + version) continue;
      std::fprintf(stderr, "pid %d: word %zu of %zu is %lx, not %lx of version %lx (it is of %lx)\n", ::getpid(), i,
                   size, words[i], mix(i) + version, version, words[i] - mix(i));
      return false;
    }
    return true;
  }
  void write(Word version) {
    for (std::size_t i = 0; i < size; ++i) words[i] = mix(i) + version;
  }
};

/// Bytes from one process to the other; a read also ends when the other side is gone.
struct Pipe {
  int ends[2];
  Pipe() { EXPECT(::pipe2(ends, O_CLOEXEC) == 0); }
  void tell() const { EXPECT(::write(ends[1], "x", 1) == 1); }
  [[nodiscard]] bool hear() const {
    char byte = 0;
    ::close(ends[1]);
    return ::read(ends[0], &byte, 1) == 1;
  }
};

int status_of(pid_t child) {
  int status = 0;
  EXPECT(::waitpid(child, &status, 0) == child);
  return status;
}
void expect_well(pid_t child) {
  const int status = status_of(child);
  if (status != 0) std::fprintf(stderr, "child %d ended with %x\n", child, static_cast<unsigned>(status));
  EXPECT(status == 0);
}

/// Both write all pages, half of them in VRAM; each sees its own.
int halves() {
  Halves h(std::size_t{24} << 20);
  Word version = 1;
  for (int round = 0; round < 4; ++round) {
    EXPECT(h.is(version));
    h.next();
    ++version;
    const pid_t child = ::fork();
    EXPECT(child >= 0);
    if (child == 0) {
      if (round % 2 == 0) EXPECT(h.is(version));
      h.write(1000 + version);
      EXPECT(h.is(1000 + version));
      std::_Exit(0);
    }
    // The device first, while the child writes.
    h.next();
    ++version;
    EXPECT(h.is(version));
    h.write(++version);
    expect_well(child);
    EXPECT(h.is(version));
  }
  return 0;
}

/// What the child sees is of the fork, though the parent has written everything before the child looks.
int parent_writes_first() {
  Halves h(std::size_t{16} << 20);
  const Pipe written;
  const pid_t child = ::fork();
  if (child == 0) {
    EXPECT(written.hear());
    EXPECT(h.is(1));
    std::_Exit(0);
  }
  h.next();
  h.next();
  EXPECT(h.is(3));
  h.write(50);
  written.tell();
  expect_well(child);
  EXPECT(h.is(50));
  return 0;
}

/// What was freed, and allocated anew, in the parent is still the child's.
int parent_frees() {
  auto h = std::make_unique<Halves>(std::size_t{16} << 20);
  const Pipe freed;
  const pid_t child = ::fork();
  if (child == 0) {
    EXPECT(freed.hear());
    EXPECT(h->is(1));
    h.release();
    std::_Exit(0);
  }
  h.reset();
  Halves again(std::size_t{16} << 20);
  again.write(7);
  freed.tell();
  expect_well(child);
  EXPECT(again.is(7));
  return 0;
}

/// A child forks before and after it has its pages; all four processes see their own.
int grandchildren() {
  Halves h(std::size_t{8} << 20);
  const Pipe parent_wrote;
  const pid_t child = ::fork();
  if (child == 0) {
    const pid_t early = ::fork();  // nothing of the memory is here yet
    if (early == 0) {
      EXPECT(parent_wrote.hear());
      EXPECT(h.is(1));
      h.write(300);
      const pid_t third = ::fork();
      if (third == 0) {
        EXPECT(h.is(300));
        std::_Exit(0);
      }
      expect_well(third);
      std::_Exit(0);
    }
    for (std::size_t i = 0; i < h.size; i += 3 * page_words) h.words[i] = 17;
    const pid_t late = ::fork();  // some of it is
    if (late == 0) {
      for (std::size_t i = 0; i < h.size; ++i) EXPECT(h.words[i] == (i % (3 * page_words) == 0 ? 17 : mix(i) + 1));
      h.write(400);
      EXPECT(h.is(400));
      std::_Exit(0);
    }
    expect_well(late);
    for (std::size_t i = 0; i < h.size; ++i) EXPECT(h.words[i] == (i % (3 * page_words) == 0 ? 17 : mix(i) + 1));
    expect_well(early);
    std::_Exit(0);
  }
  h.next();
  h.write(5);
  parent_wrote.tell();
  expect_well(child);
  EXPECT(h.is(5));
  return 0;
}

/// The parent ends at once, by exit; the child's memory is whole. Says "child PID" for the test to wait for.
int parent_exits_first() {
  Halves h(std::size_t{16} << 20);
  const Pipe parent_lives;
  const pid_t child = ::fork();
  if (child == 0) {
    EXPECT(!parent_lives.hear());
    // A process that has nothing but its memory: its own descriptors go too.
    if (count == 1) ::close_range(3, ~0U, 0);
    // The time itself is what is looked at: who ends with the program does so by then.
    if (count > 1) ::poll(nullptr, 0, static_cast<int>(count) * 1000);
    const pid_t own = ::fork();
    if (own == 0) {
      EXPECT(h.is(1));
      std::_Exit(0);
    }
    expect_well(own);
    EXPECT(h.is(1));
    h.write(2);
    EXPECT(h.is(2));
    std::puts("intact");
    std::fflush(stdout);
    std::_Exit(0);
  }
  h.words[0] = 99;
  std::exit(0);
}

/// Children are killed while they take their pages.
int killed() {
  Halves h(std::size_t{8} << 20);
  Word version = 1;
  for (int round = 0; round < 10; ++round) {
    const Pipe begun;
    const pid_t child = ::fork();
    if (child == 0) {
      begun.tell();
      for (std::size_t i = 0;; i = (i + 7 * page_words) % h.size) h.words[i] += 1;
    }
    EXPECT(begun.hear());
    h.next();
    ++version;
    EXPECT(::kill(child, SIGKILL) == 0);
    EXPECT(WIFSIGNALED(status_of(child)));
    EXPECT(h.is(version));
  }
  return 0;
}

/// Faults inside system calls are served: only then are threads that write stopped at one moment (docs/API.md).
bool stops_writers() {
  const auto fd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC));
  if (fd >= 0) ::close(fd);
  return fd >= 0 || ::access("/dev/userfaultfd", R_OK | W_OK) == 0;
}

/// Threads write and kernels run while the program forks, again and again. A child sees of each thread all that it did up
/// to some moment, and nothing that it did later. `starved`: so also where a lock of the C library, which fork waits for,
/// is held by a thread that nobody lets run.
int busy(bool starved) {
  constexpr int threads = 3;
  // Thread t writes front first, then its private back; and private first before managed second.
  struct alignas(4096) Pair {
    std::atomic<Word> front;
    char pad[4096 - sizeof(Word)];
    std::atomic<Word> second;
  };
  auto* managed = static_cast<Pair*>(ferry::alloc_aligned(sizeof(Pair) * threads, 4096));
  static std::atomic<Word> back[threads];
  static std::atomic<Word> first[threads];
  for (int t = 0; t < threads; ++t) new (&managed[t]) Pair{};
  Halves h(std::size_t{8} << 20);
  Word* ticks = static_cast<Word*>(ferry::alloc(64 * page_words * sizeof(Word)));
  std::memset(ticks, 0, 64 * page_words * sizeof(Word));
  std::atomic<bool> stop{false};
  std::vector<std::thread> writers;
  for (int t = 0; t < threads; ++t) {
    writers.emplace_back([&, t] {
      std::map<Word, std::string> churn;  // malloc's locks are taken, too
      for (Word n = 1; !stop.load(std::memory_order_relaxed); ++n) {
        managed[t].front.store(n, std::memory_order_release);
        back[t].store(n, std::memory_order_release);
        first[t].store(n, std::memory_order_release);
        managed[t].second.store(n, std::memory_order_release);
        churn[n % 50] = std::string(n % 300, 'x');
      }
    });
  }
  if (starved) {
    writers.emplace_back([&] {
      EXPECT(::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)), 19) == 0);
      while (!stop.load()) std::vector<std::string>(100, std::string(2000, 'x'));
    });
  }
  std::thread launcher([&] {
    ferry::queue q;
    while (!stop.load()) {
      auto done = q.parallel_for(64, [ticks](std::size_t i) {
        for (int k = 0; k < 50; ++k) ticks[i * page_words] += 1;
      });
      done.wait();
    }
  });
  for (unsigned long round = 0; round < (count == 0 ? 40 : count); ++round) {
    const pid_t child = ::fork();
    EXPECT(child >= 0);
    if (child == 0) {
      for (int t = 0; t < threads; ++t) {
        if (!stops_writers()) break;
        EXPECT(managed[t].front.load() >= back[t].load());
        EXPECT(back[t].load() + 1 >= managed[t].front.load());
        EXPECT(first[t].load() >= managed[t].second.load());
        EXPECT(managed[t].second.load() + 1 >= first[t].load());
      }
      for (std::size_t i = 0; i < 64; ++i) EXPECT(ticks[i * page_words] <= 1'000'000'000);
      EXPECT(h.is(1));
      std::vector<std::string> own(1000, "the child allocates");
      std::_Exit(own.back().size() == 19 ? 0 : 1);
    }
    expect_well(child);
  }
  stop.store(true);
  for (auto& w : writers) w.join();
  launcher.join();
  for (std::size_t i = 0; i < 64; ++i) EXPECT(ticks[i * page_words] == ticks[0] && ticks[0] % 50 == 0);
  EXPECT(h.is(1));
  return 0;
}

std::size_t descriptors(pid_t pid) {
  std::size_t n = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd")) {
    static_cast<void>(entry);
    ++n;
  }
  return n;
}
std::size_t mappings(pid_t pid) {
  std::ifstream maps("/proc/" + std::to_string(pid) + "/maps");
  std::size_t n = 0;
  for (std::string line; std::getline(maps, line);) ++n;
  return n;
}

/// Many forks in a row leave nothing in the program nor in its manager.
int many() {
  Halves h(std::size_t{4} << 20);
  const auto manager = static_cast<pid_t>(ferry::machine().manager_pid);
  std::size_t before[4] = {};
  for (unsigned long round = 0; round < 110; ++round) {
    if (round == 10) {
      before[0] = descriptors(::getpid()), before[1] = mappings(::getpid());
      before[2] = descriptors(manager), before[3] = mappings(manager);
    }
    const pid_t child = ::fork();
    EXPECT(child >= 0);
    if (child == 0) {
      if (round % 3 == 0) ::execlp("true", "true", nullptr);
      if (round % 3 == 1) EXPECT(h.is(1));
      std::_Exit(0);
    }
    expect_well(child);
  }
  EXPECT(h.is(1));
  // The manager hears of an end a little later.
  for (int i = 0; i < 2000 && descriptors(manager) > before[2]; ++i) ::poll(nullptr, 0, 5);
  EXPECT(descriptors(::getpid()) == before[0]);
  EXPECT(mappings(::getpid()) <= before[1] + 8);
  EXPECT(descriptors(manager) <= before[2]);
  EXPECT(mappings(manager) <= before[3] + 8);
  return 0;
}

/// The child gives memory up, and moves it, before it has it; and the C library's streams lie in managed memory.
int child_changes() {
  Halves h(std::size_t{8} << 20);
  std::FILE* file = std::fopen("/dev/null", "w");
  std::fputs("buffered", file);
  std::thread([] {}).join();
  const pid_t child = ::fork();
  if (child == 0) {
    std::fputs("more", file);
    char* base = reinterpret_cast<char*>(h.words);
    const std::size_t bytes = std::size_t{1} << 20;
    char* const first = base + (4096 - reinterpret_cast<std::uintptr_t>(base) % 4096) % 4096;
    const std::size_t skip = static_cast<std::size_t>(first - base) / sizeof(Word);
    EXPECT(::madvise(first, bytes, MADV_DONTNEED) == 0);
    for (std::size_t i = 0; i < bytes / sizeof(Word); ++i) EXPECT(h.words[skip + i] == 0);
    // Moved elsewhere, the second MiB and one that lies in VRAM.
    for (const std::size_t at : {bytes, 6 * bytes}) {
      const void* moved = ::mremap(first + at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                                   ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      EXPECT(moved != MAP_FAILED);
      const Word* words = static_cast<const Word*>(moved);
      const std::size_t first_word = skip + at / sizeof(Word);
      for (std::size_t i = 0; i < bytes / sizeof(Word); ++i) EXPECT(words[i] == mix(first_word + i) + 1);
    }
    // A system call reads what is not here yet.
    const Pipe pipe;
    EXPECT(::write(pipe.ends[1], first + 3 * bytes, 4096) == 4096);
    Word got[page_words];
    EXPECT(::read(pipe.ends[0], got, 4096) == 4096);
    EXPECT(got[0] == mix(skip + 3 * bytes / sizeof(Word)) + 1);
    std::_Exit(0);
  }
  expect_well(child);
  EXPECT(h.is(1));
  std::fclose(file);
  return 0;
}

/// Pages of which system memory and the device have a copy each: parent, device and child read and write their own.
int read_mostly() {
  constexpr std::size_t pages = 96;
  auto* words = static_cast<Word*>(ferry::alloc_aligned(pages * 4096, 4096));
  auto* sum = static_cast<Word*>(ferry::alloc(sizeof(Word), ferry::placement::system));
  for (std::size_t i = 0; i < pages * page_words; ++i) words[i] = mix(i);
  ferry::attributes().set(ferry::svm_flag::read_mostly).apply(words, pages * 4096);
  const auto device_sums = [&] {
    ferry::parallel_for(1, [words, sum](std::size_t) {
      Word all = 0;
      for (std::size_t i = 0; i < pages * page_words; i += page_words) all += words[i];
      *sum = all;
    });
    return *sum;
  };
  const auto is = [&](Word plus) {
    for (std::size_t i = 0; i < pages * page_words; ++i) {
      if (words[i] != mix(i) + (i % page_words == 0 ? plus : 0)) return false;
    }
    return true;
  };
  Word all = 0;
  for (std::size_t i = 0; i < pages * page_words; i += page_words) all += mix(i);
  for (Word round = 0; round < 4; ++round) {
    EXPECT(device_sums() == all + round * pages);
    EXPECT(is(round));
    // Under a budget one of the two may have left again.
    if (std::getenv("FERRY_SYSTEM") == nullptr) EXPECT((ferry::copies_of(words) ^ FERRY_COPY_SYSTEM) == 1U);
    const Pipe written;
    const pid_t child = ::fork();
    EXPECT(child >= 0);
    if (child == 0) {
      if (round % 2 == 0) EXPECT(written.hear());
      EXPECT(is(round));
      for (std::size_t i = 0; i < pages * page_words; i += page_words) words[i] += 500;
      EXPECT(is(round + 500));
      std::_Exit(0);
    }
    // The copies are whole after the fork, and end with the first write, from either side.
    if (round != 3) EXPECT(device_sums() == all + round * pages);
    if (round % 2 == 0) {
      for (std::size_t i = 0; i < pages * page_words; i += page_words) words[i] += 1;
    } else {
      ferry::parallel_for(pages, [words](std::size_t i) { words[i * page_words] += 1; });
    }
    written.tell();
    expect_well(child);
    EXPECT(device_sums() == all + (round + 1) * pages);
    EXPECT(is(round + 1));
  }
  ferry::free(words);
  ferry::free(sum);
  return 0;
}

/// Where this process may not write, or not read, the child finds the same; and what lies there is whole.
bool is_refused(char* at, bool write) {
  const pid_t toucher = ::fork();
  EXPECT(toucher >= 0);
  if (toucher == 0) {
    std::signal(SIGSEGV, SIG_DFL);
    if (write) {
      *static_cast<volatile char*>(at) = 1;
    } else {
      static_cast<void>(*static_cast<volatile char*>(at));
    }
    std::_Exit(0);
  }
  const int status = status_of(toucher);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
}

/// A child that changes protections before it has its memory has many mappings, and all of its memory.
int child_protects() {
  Halves h(std::size_t{8} << 20);
  const pid_t child = ::fork();
  EXPECT(child >= 0);
  if (child == 0) {
    // Nothing was touched yet: what is missing comes to many small mappings.
    char* const aligned =
        reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(h.words) + 4095) & ~std::uintptr_t{4095});
    for (std::size_t at = 0; at + 8192 < h.size * sizeof(Word); at += 7 * 4096) {
      EXPECT(::mprotect(aligned + at, 4096, PROT_READ) == 0);
    }
    for (std::size_t i = 0; i < h.size; ++i) EXPECT(h.words[i] == mix(i) + 1);
    std::_Exit(0);
  }
  expect_well(child);
  return 0;
}

/// What mprotect forbade before the fork is forbidden in the child, and in its own children; it may be allowed there again.
int protections() {
  Halves h(std::size_t{8} << 20);
  char* const base = reinterpret_cast<char*>(h.words);
  char* const aligned = base + (4096 - reinterpret_cast<std::uintptr_t>(base) % 4096) % 4096;
  constexpr std::size_t bytes = 64 * 4096;
  struct Kind {
    std::size_t at;
    int prot;
  };
  // In system memory, and in VRAM.
  const Kind kinds[] = {{0, PROT_READ},
                        {bytes, PROT_NONE},
                        {std::size_t{6} << 20, PROT_READ},
                        {(std::size_t{6} << 20) + bytes, PROT_NONE}};
  for (const Kind& kind : kinds) EXPECT(::mprotect(aligned + kind.at, bytes, kind.prot) == 0);
  // Absent stays absent, whatever may be done with it here.
  char* const absent = aligned + (std::size_t{2} << 20);
  EXPECT(::mprotect(absent, 4096, PROT_READ) == 0);
  EXPECT(::madvise(absent, 4096, MADV_DONTFORK) == 0);
  for (int generation = 0; generation < 2; ++generation) {
    const pid_t child = ::fork();
    EXPECT(child >= 0);
    if (child == 0) {
      EXPECT(is_refused(absent, false));
      for (const Kind& kind : kinds) {
        EXPECT(is_refused(aligned + kind.at, true));
        EXPECT(is_refused(aligned + kind.at + bytes - 1, true));
        EXPECT(is_refused(aligned + kind.at + 5 * 4096, false) == (kind.prot == PROT_NONE));
        EXPECT(!is_refused(aligned + kind.at + 2 * bytes, true));
      }
      if (generation == 1) {
        for (const Kind& kind : kinds) EXPECT(::mprotect(aligned + kind.at, bytes, PROT_READ | PROT_WRITE) == 0);
        for (std::size_t i = 0; i < h.size; ++i) {
          if (reinterpret_cast<char*>(&h.words[i]) + 8 > absent &&
              reinterpret_cast<char*>(&h.words[i]) < absent + 4096) {
            continue;
          }
          EXPECT(h.words[i] == mix(i) + 1);
          h.words[i] = i;
        }
      }
      std::_Exit(0);
    }
    expect_well(child);
  }
  for (const Kind& kind : kinds) EXPECT(::mprotect(aligned + kind.at, bytes, PROT_READ | PROT_WRITE) == 0);
  EXPECT(::mprotect(absent, 4096, PROT_READ | PROT_WRITE) == 0);
  EXPECT(h.is(1));
  return 0;
}

/// Threads of the child give memory up and touch what is missing at the same time.
int child_threads() {
  Halves h(std::size_t{8} << 20);
  constexpr std::size_t given_up_pages = 16;
  for (unsigned long round = 0; round < (count == 0 ? 8 : count); ++round) {
    const pid_t child = ::fork();
    EXPECT(child >= 0);
    if (child == 0) {
      char* const base = reinterpret_cast<char*>(h.words);
      char* const first = base + (4096 - reinterpret_cast<std::uintptr_t>(base) % 4096) % 4096;
      const std::size_t skip = static_cast<std::size_t>(first - base) / sizeof(Word);
      std::atomic<bool> stop{false};
      std::vector<std::thread> givers;
      for (int t = 0; t < 2; ++t) {
        givers.emplace_back([&, t] {
          char* const own = first + std::size_t{t == 0 ? 0U : given_up_pages / 2} * 4096;
          while (!stop.load(std::memory_order_relaxed)) {
            EXPECT(::madvise(own, given_up_pages / 2 * 4096, MADV_DONTNEED) == 0);
            EXPECT(*reinterpret_cast<const volatile Word*>(own) == 0);
          }
        });
      }
      // Backwards: a page at a time comes in sight, so that each is a touch of its own.
      for (std::size_t i = h.size - page_words; i > skip + given_up_pages * page_words; i -= page_words) {
        EXPECT(h.words[i] == mix(i) + 1);
      }
      stop.store(true);
      for (auto& g : givers) g.join();
      std::_Exit(0);
    }
    expect_well(child);
  }
  return 0;
}

/// The store cannot read back what only it has: a child that touches such a page ends, and sees nothing else there.
int lost() {
  const std::size_t size = (std::size_t{16} << 20) / sizeof(Word);
  auto* words = static_cast<Word*>(ferry::alloc(size * sizeof(Word)));
  for (std::size_t i = 0; i < size; ++i) words[i] = mix(i);
  const pid_t child = ::fork();
  EXPECT(child >= 0);
  if (child == 0) {
    const rlimit no_core{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    for (std::size_t i = 0; i < size; i += page_words) EXPECT(words[i] == mix(i));
    std::_Exit(0);
  }
  const int status = status_of(child);
  std::puts(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS ? "the child got SIGBUS" : "WRONG end of the child");
  return 0;
}

/// The child waits for its manager's end.
int waits() {
  Halves h(std::size_t{8} << 20);
  const pid_t child = ::fork();
  if (child == 0) {
    std::puts("waiting");
    std::fflush(stdout);
    for (;;) ::pause();
  }
  return status_of(child);
}

/// vfork and posix_spawn share the memory, whatever it is. Fork and exec, with how long it takes.
int exec_cost() {
  const std::size_t mib = count == 0 ? 64 : count;
  const std::size_t bytes = mib << 20;
  auto* words = static_cast<Word*>(ferry::alloc(bytes));
  for (std::size_t i = 0; i < bytes / sizeof(Word); i += page_words) words[i] = i;
  double best = 1e9;
  double again = 1e9;
  const auto now = [] {
    timespec t{};
    ::clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) / 1e6;
  };
  for (int i = 0; i < 10; ++i) {
    const double start = now();
    const pid_t child = ::fork();
    if (child == 0) {
      ::execlp("true", "true", nullptr);
      std::_Exit(1);
    }
    const double forked = now();
    expect_well(child);
    const double ended = now();
    for (std::size_t k = 0; k < bytes / sizeof(Word); k += page_words) EXPECT(words[k] == k);
    const double touched = now();
    best = std::min(best, forked - start);
    again = std::min(again, touched - ended);
  }
  std::printf("%zu MiB: fork %.2f ms, touching all pages after it %.2f ms\n", mib, best, again);
  return 0;
}

const std::map<std::string, int (*)()> programs = {
    {"halves", halves},
    {"parent_writes_first", parent_writes_first},
    {"parent_frees", parent_frees},
    {"grandchildren", grandchildren},
    {"parent_exits_first", parent_exits_first},
    {"killed", killed},
    {"busy", [] { return busy(false); }},
    {"starved", [] { return busy(true); }},
    {"many", many},
    {"child_changes", child_changes},
    {"child_threads", child_threads},
    {"child_protects", child_protects},
    {"protections", protections},
    {"read_mostly", read_mostly},
    {"lost", lost},
    {"waits", waits},
    {"exec_cost", exec_cost},
};

}  // namespace

int main(int argc, char** argv) {
  const auto found = argc > 1 ? programs.find(argv[1]) : programs.end();
  if (found == programs.end()) {
    for (const auto& [name, body] : programs) std::fprintf(stderr, "%s\n", name.c_str());
    return 2;
  }
  if (argc > 2) count = std::strtoul(argv[2], nullptr, 10);
  return found->second();
}
