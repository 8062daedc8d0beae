// System calls that keep hold of memory, or come to it from elsewhere: direct I/O, io_uring, pipes, futexes, signal stacks,
// other processes.
// Longer than 600 lines because they share files read past the page cache, rings and kernels that pull at the pages.
#include <fcntl.h>
#include <liburing.h>
#include <linux/futex.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ferry/svm.hpp>
#include <string>
#include <thread>
#include <vector>

#include "change.h"

extern char** environ;

namespace ferry::test {
namespace {

constexpr std::size_t count = 256;

/// What the session found: faults inside of system calls are served, or they end in EFAULT.
bool find_full_service() {
  const char* kind = std::getenv("FERRY_USERFAULTFD");
  if (kind != nullptr && std::strcmp(kind, "user") == 0) return false;
  const long fd = ::syscall(SYS_userfaultfd, O_CLOEXEC);
  if (fd >= 0) {
    ::close(static_cast<int>(fd));
    return true;
  }
  const int device = ::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device >= 0) ::close(device);
  return device >= 0;
}
bool full_service() {
  const int before = errno;
  static const bool found = find_full_service();
  errno = before;
  return found;
}

/// In VRAM, and written there.
void to_vram(const Pages& pages) {
  ferry::parallel_for(pages.count(), [b = pages.at(0)](std::size_t p) {
    __atomic_fetch_add(reinterpret_cast<std::uint64_t*>(b + p * page), 0, __ATOMIC_RELAXED);
  });
}

/// Word p of the file's part `which`.
std::uint64_t word_of(unsigned which, std::size_t p) { return stamp(p) ^ (std::uint64_t{which} << 56); }

/// A file on a real file system that is read past the page cache: two parts of `count` pages.
class DirectFile {
 public:
  DirectFile() {
    char path[] = "/var/tmp/ferry-direct-XXXXXX";
    const int made = ::mkstemp(path);
    if (made < 0) return;
    std::vector<std::uint64_t> words(page / 8);
    for (unsigned which = 0; which < 2; ++which) {
      for (std::size_t p = 0; p < count; ++p) {
        words.assign(page / 8, word_of(which, p));
        EXPECT_EQ(::pwrite(made, words.data(), page, at(which, p)), static_cast<ssize_t>(page));
      }
    }
    ::fsync(made);
    ::close(made);
    fd_ = ::open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    ::unlink(path);
  }
  ~DirectFile() {
    if (fd_ >= 0) ::close(fd_);
  }
  DirectFile(const DirectFile&) = delete;
  DirectFile& operator=(const DirectFile&) = delete;
  static off_t at(unsigned which, std::size_t p) { return static_cast<off_t>((which * count + p) * page); }
  [[nodiscard]] int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

/// Kernels that write a word of each page again and again, so that pages go to VRAM whenever they may.
class Hungry {
 public:
  explicit Hungry(char* base) {
    flag_ = static_cast<std::uint64_t*>(ferry::alloc(page, ferry::placement::system));
    flag_[0] = 0;
    running_ = queue_.launch({.items = 2, .wave = 1}, [base, flag = flag_](ferry::item i) {
      while (__atomic_load_n(flag, __ATOMIC_ACQUIRE) == 0) {
        for (std::size_t p = i.global(); p < count; p += 2) {
          __atomic_fetch_add(reinterpret_cast<std::uint64_t*>(base + p * page + page / 2), 1, __ATOMIC_RELAXED);
        }
        __atomic_fetch_add(flag + 1, 1, __ATOMIC_RELEASE);
      }
    });
    while (__atomic_load_n(flag_ + 1, __ATOMIC_ACQUIRE) < 2) std::this_thread::yield();
  }
  ~Hungry() {
    __atomic_store_n(flag_, 1, __ATOMIC_RELEASE);
    running_.wait();
    ferry::free(flag_);
  }
  Hungry(const Hungry&) = delete;
  Hungry& operator=(const Hungry&) = delete;

 private:
  std::uint64_t* flag_;
  ferry::queue queue_;
  ferry::completion running_;
};

/// A page that was taken to VRAM while its bytes were on their way shows what it held before.
void expect_part(const Pages& pages, unsigned which, const char* what) {
  for (std::size_t p = 0; p < count; ++p) {
    for (const std::size_t word : {std::size_t{0}, page / 16 + 1, page / 8 - 1}) {
      ASSERT_EQ((&pages.word(p))[word], word_of(which, p)) << what << ", page " << p << ", word " << word;
    }
  }
}

TEST(DirectReads, ArriveWhereThePagesAreWhileDevicesPullAtThem) {
  const DirectFile file;
  if (file.fd() < 0) GTEST_SKIP() << "no O_DIRECT in /var/tmp";
  const Pages pages(count, Where::in_system);
  const Hungry device(pages.at(0));
  for (unsigned round = 0; round < 40 && !testing::Test::HasFatalFailure(); ++round) {
    const unsigned which = round % 2;
    ssize_t got = 0;
    const char* what = "";
    iovec parts[2] = {{pages.at(0), count / 2 * page}, {pages.at(count / 2), count / 2 * page}};
    switch (round / 2 % 4) {
      case 0:
        what = "pread";
        got = ::pread(file.fd(), pages.at(0), count * page, DirectFile::at(which, 0));
        break;
      case 1:
        what = "preadv";
        got = ::preadv(file.fd(), parts, 2, DirectFile::at(which, 0));
        break;
      case 2:
        what = "read";
        ASSERT_GE(::lseek(file.fd(), DirectFile::at(which, 0), SEEK_SET), 0);
        got = ::read(file.fd(), pages.at(0), count * page);
        break;
      default:
        what = "readv";
        ASSERT_GE(::lseek(file.fd(), DirectFile::at(which, 0), SEEK_SET), 0);
        got = ::readv(file.fd(), parts, 2);
        break;
    }
    ASSERT_EQ(got, static_cast<ssize_t>(count * page)) << what << ": " << std::strerror(errno);
    expect_part(pages, which, what);
  }
}

TEST(DirectReads, LeaveNothingPinned) {
  const DirectFile file;
  if (file.fd() < 0) GTEST_SKIP() << "no O_DIRECT in /var/tmp";
  const Pages pages(count, Where::vram_dirty);
  ASSERT_EQ(::pread(file.fd(), pages.at(0), count * page, 0), static_cast<ssize_t>(count * page));
  ferry_error e;
  EXPECT_NE(ferry_unpin(pages.at(0), page, &e), FERRY_OK);
  to_vram(pages);
  EXPECT_TRUE(::pread(-1, pages.at(0), page, 0) == -1 && errno == EBADF);
  EXPECT_TRUE(::pread(file.fd(), pages.at(0) + 1, page, 0) == -1 && errno == EINVAL) << "unaligned, as without Ferry";
  EXPECT_NE(ferry_unpin(pages.at(0), page, &e), FERRY_OK);
}

TEST(DirectReads, IntoAdoptedMemory) {
  const DirectFile file;
  if (file.fd() < 0) GTEST_SKIP() << "no O_DIRECT in /var/tmp";
  void* const p = ::mmap(nullptr, count * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(p, MAP_FAILED);
  std::memset(p, 1, count * page);
  ferry_error e;
  if (ferry_adopt(p, count * page, &e) != FERRY_OK) {
    ::munmap(p, count * page);
    GTEST_SKIP() << e.text;
  }
  {
    const Hungry device(static_cast<char*>(p));
    for (unsigned round = 0; round < 20; ++round) {
      ASSERT_EQ(::pread(file.fd(), p, count * page, DirectFile::at(round % 2, 0)), static_cast<ssize_t>(count * page))
          << std::strerror(errno);
      for (std::size_t i = 0; i < count; ++i) {
        ASSERT_EQ(static_cast<std::uint64_t*>(p)[i * page / 8], word_of(round % 2, i)) << "page " << i;
      }
    }
  }
  ::munmap(p, count * page);
}

/// A ring, or a test that is skipped where the kernel gives none.
class Uring : public testing::Test {
 protected:
  void SetUp() override {
    const int made = ::io_uring_queue_init(8, &ring_, 0);
    if (made < 0) GTEST_SKIP() << "no io_uring here: " << std::strerror(-made);
    up_ = true;
  }
  void TearDown() override {
    if (up_) ::io_uring_queue_exit(&ring_);
  }
  /// Submits what was prepared. Its result.
  int result() {
    if (::io_uring_submit(&ring_) != 1) return -EIO;
    io_uring_cqe* done = nullptr;
    if (const int waited = ::io_uring_wait_cqe(&ring_, &done); waited < 0) return waited;
    const int result = done->res;
    ::io_uring_cqe_seen(&ring_, done);
    return result;
  }
  io_uring ring_{};
  bool up_ = false;
};

TEST_F(Uring, RegisteredBuffersStayWhereTheyAreUntilTheyAreUnregistered) {
  const DirectFile file;
  if (file.fd() < 0) GTEST_SKIP() << "no O_DIRECT in /var/tmp";
  const Pages pages(count, Where::vram_dirty);
  const iovec buffer{pages.at(0), count * page};
  ASSERT_EQ(::io_uring_register_buffers(&ring_, &buffer, 1), 0);
  {
    const Hungry device(pages.at(0));
    for (unsigned round = 0; round < 10; ++round) {
      ::io_uring_prep_read_fixed(::io_uring_get_sqe(&ring_), file.fd(), pages.at(0), count * page,
                                 static_cast<std::uint64_t>(DirectFile::at(round % 2, 0)), 0);
      ASSERT_EQ(result(), static_cast<int>(count * page));
      expect_part(pages, round % 2, "read_fixed");
      if (HasFatalFailure()) return;
    }
    ferry_page_info info{};
    ASSERT_EQ(ferry_query(pages.at(0), &info, nullptr), FERRY_OK);
    EXPECT_EQ(info.vram_device, -1);
    EXPECT_EQ(info.device_mapped, 1U) << "the device reaches them in place";
  }
  ASSERT_EQ(::io_uring_unregister_buffers(&ring_), 0);
  to_vram(pages);
  EXPECT_NE(ferry_unpin(pages.at(0), page, nullptr), FERRY_OK);
  // And with the ring.
  ASSERT_EQ(::io_uring_register_buffers(&ring_, &buffer, 1), 0);
  ::io_uring_queue_exit(&ring_);
  up_ = false;
  EXPECT_NE(ferry_unpin(pages.at(0), page, nullptr), FERRY_OK);
}

/// The kernel writes to them with no mapping that anybody sees, at once after the fork.
TEST_F(Uring, WhatArrivesInRegisteredBuffersAfterAForkTheChildDoesNotSee) {
  const DirectFile file;
  if (file.fd() < 0) GTEST_SKIP() << "no O_DIRECT in /var/tmp";
  const Pages pages(count, Where::vram_dirty);
  const iovec buffer{pages.at(0), count * page};
  ASSERT_EQ(::io_uring_register_buffers(&ring_, &buffer, 1), 0);
  ::io_uring_prep_read_fixed(::io_uring_get_sqe(&ring_), file.fd(), pages.at(0), count * page,
                             static_cast<std::uint64_t>(DirectFile::at(0, 0)), 0);
  ASSERT_EQ(result(), static_cast<int>(count * page));
  int go[2];
  ASSERT_EQ(::pipe(go), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(go[1]);
    char byte = 0;
    if (::read(go[0], &byte, 1) != 1) ::_exit(2);
    for (std::size_t p = 0; p < count; ++p) {
      if (pages.word(p) != word_of(0, p)) ::_exit(1);
    }
    ::_exit(0);
  }
  ASSERT_GT(child, 0);
  ::close(go[0]);
  ::io_uring_prep_read_fixed(::io_uring_get_sqe(&ring_), file.fd(), pages.at(0), count * page,
                             static_cast<std::uint64_t>(DirectFile::at(1, 0)), 0);
  EXPECT_EQ(result(), static_cast<int>(count * page));
  EXPECT_EQ(::write(go[1], "", 1), 1);
  ::close(go[1]);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
      << "it sees what its parent read after the fork; " << status;
  expect_part(pages, 1, "the parent");
}

TEST_F(Uring, BuffersThatWereReplacedGoWithTheRest) {
  const Pages pages(8, Where::vram_dirty);
  const Pages other(8, Where::vram_dirty);
  const iovec buffer{pages.at(0), 8 * page};
  const iovec instead{other.at(0), 8 * page};
  __u64 tag = 0;
  if (const int got = ::io_uring_register_buffers_tags(&ring_, &buffer, &tag, 1); got < 0) {
    GTEST_SKIP() << "no tags here: " << std::strerror(-got);
  }
  ASSERT_EQ(::io_uring_register_buffers_update_tag(&ring_, 0, &instead, &tag, 1), 1);
  EXPECT_EQ(ferry_unpin(other.at(0), page, nullptr), FERRY_OK) << "it is pinned";
  EXPECT_EQ(ferry_pin(other.at(0), page, FERRY_TO_CPU, nullptr), FERRY_OK);
  ASSERT_EQ(::io_uring_unregister_buffers(&ring_), 0);
  for (const Pages* p : {&pages, &other}) EXPECT_NE(ferry_unpin(p->at(0), page, nullptr), FERRY_OK);
}

/// Buffers that single requests name: where faults inside of system calls are served they may be anywhere; else the
/// request ends with EFAULT unless they are pinned and have been touched.
TEST_F(Uring, SingleRequestsWorkOrSaySo) {
  const Pages pages(8, Where::vram_dirty);
  const int file = ::memfd_create("ferry-test", MFD_CLOEXEC);
  const auto write = [&] {
    ::io_uring_prep_write(::io_uring_get_sqe(&ring_), file, pages.at(0), 8 * page, 0);
    return result();
  };
  int got = write();
  if (!full_service()) {
    EXPECT_EQ(got, -EFAULT);
    const ferry::pin held(pages.at(0), 8 * page);
    for (std::size_t p = 0; p < 8; ++p) static_cast<void>(*static_cast<volatile char*>(pages.at(p)));
    got = write();
  }
  ASSERT_EQ(got, static_cast<int>(8 * page));
  std::uint64_t word = 0;
  ASSERT_EQ(::pread(file, &word, sizeof word, 3 * page), 8);
  EXPECT_EQ(word, stamp(3));
  ::close(file);
}

TEST(Pipes, PagesThatWereGivenToAPipeAreWhatTheyWereThen) {
  const Pages pages(8, Where::vram_dirty);
  if (!full_service()) {
    for (std::size_t p = 0; p < 8; ++p) static_cast<void>(*static_cast<volatile char*>(pages.at(p)));
  }
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const iovec part{pages.at(0), 8 * page};
  ASSERT_EQ(::vmsplice(ends[1], &part, 1, 0), static_cast<ssize_t>(8 * page)) << std::strerror(errno);
  to_vram(pages);  // away, and not changed
  const int file = ::memfd_create("ferry-test", MFD_CLOEXEC);
  std::size_t moved = 0;
  while (moved < 8 * page) {
    const ssize_t n = ::splice(ends[0], nullptr, file, nullptr, 8 * page - moved, 0);
    ASSERT_GT(n, 0) << std::strerror(errno);
    moved += static_cast<std::size_t>(n);
  }
  // And from a file by way of the pipe into pages that are in VRAM.
  ASSERT_EQ(::lseek(file, 0, SEEK_SET), 0);
  ASSERT_EQ(::splice(file, nullptr, ends[1], nullptr, 8 * page, 0), static_cast<ssize_t>(8 * page));
  const Pages into(8, Where::vram_dirty);
  ASSERT_EQ(::read(ends[0], into.at(0), 8 * page), static_cast<ssize_t>(8 * page)) << std::strerror(errno);
  for (std::size_t p = 0; p < 8; ++p) EXPECT_EQ(into.word(p), stamp(p)) << p;
  for (const int fd : {ends[0], ends[1], file}) ::close(fd);
}

/// A thread sleeps on a word that a device takes to VRAM meanwhile; another thread wakes it.
void sleep_and_wake(std::uint32_t* word, const Pages& pages, int private_flag) {
  std::atomic<int> woken{-2};
  __atomic_store_n(word, 1, __ATOMIC_RELEASE);
  std::thread sleeper([&] {
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == 1) {
      const long n = ::syscall(SYS_futex, word, FUTEX_WAIT | private_flag, 1, nullptr, nullptr, 0);
      if (n < 0 && errno != EAGAIN && errno != EINTR) {
        woken = errno;
        return;
      }
    }
    woken = 0;
  });
  to_vram(pages);
  ferry::parallel_for(1, [word](std::size_t) { __atomic_fetch_add(word, 1, __ATOMIC_RELEASE); });  // in VRAM
  while (woken == -2) {
    const long n = ::syscall(SYS_futex, word, FUTEX_WAKE | private_flag, 1, nullptr, nullptr, 0);
    if (n < 0) {
      EXPECT_TRUE(!full_service() && errno == EFAULT) << std::strerror(errno);
      static_cast<void>(__atomic_load_n(word, __ATOMIC_RELAXED));  // home, so that the next try finds it
    }
    std::this_thread::yield();
  }
  sleeper.join();
  if (full_service()) {
    EXPECT_EQ(woken, 0) << std::strerror(woken);
  } else {
    EXPECT_TRUE(woken == 0 || woken == EFAULT) << std::strerror(woken);
  }
}

TEST(Futex, ThreadsWaitOnAWordThatGoesToVram) {
  const Pages pages(8, Where::vram_dirty);
  for (unsigned round = 0; round < 20 && !testing::Test::HasFailure(); ++round) {
    sleep_and_wake(reinterpret_cast<std::uint32_t*>(pages.at(round % 8) + 64), pages, FUTEX_PRIVATE_FLAG);
    sleep_and_wake(reinterpret_cast<std::uint32_t*>(pages.at(round % 8) + 128), pages, 0);
  }
}

/// A word that processes could share elsewhere: managed memory is one process's own, as private memory is.
TEST(Futex, AForksChildWakesNobodyButItsOwn) {
  const Pages pages(8, Where::vram_dirty);
  auto* const word = reinterpret_cast<std::uint32_t*>(pages.at(2) + 64);
  *word = 1;
  std::atomic<bool> woken{false};
  std::thread sleeper([&] {
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == 1) ::syscall(SYS_futex, word, FUTEX_WAIT, 1, nullptr, nullptr, 0);
    woken = true;
  });
  const pid_t child = ::fork();
  if (child == 0) {
    if (__atomic_exchange_n(word, 2, __ATOMIC_ACQ_REL) != 1) ::_exit(1);
    ::_exit(::syscall(SYS_futex, word, FUTEX_WAKE, 64, nullptr, nullptr, 0) == 0 ? 0 : 2);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "it has woken somebody";
  EXPECT_EQ(__atomic_load_n(word, __ATOMIC_ACQUIRE), 1U) << "its write is its own";
  EXPECT_FALSE(woken);
  __atomic_store_n(word, 3, __ATOMIC_RELEASE);
  while (!woken) ::syscall(SYS_futex, word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
  sleeper.join();
}

TEST(Futex, PinnedWordsWorkWithEitherService) {
  const Pages pages(8, Where::vram_dirty);
  const ferry::pin held(pages.at(0), 8 * page);
  auto* const word = reinterpret_cast<std::uint32_t*>(pages.at(2) + 64);
  *word = 0;
  std::thread sleeper([word] {
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == 0) {
      EXPECT_TRUE(::syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0) == 0 || errno == EAGAIN);
    }
  });
  ferry::parallel_for(1, [word](std::size_t) { __atomic_fetch_add(word, 1, __ATOMIC_RELEASE); });
  std::thread waker([word] { ::syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0); });
  waker.join();
  // The sleeper may have come to sleep only after that.
  ::syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  sleeper.join();
}

// --- stacks of signals ------------------------------------------------------------------------------------------------

thread_local volatile sig_atomic_t handled = 0;
thread_local const char* volatile handled_at = nullptr;
void on_usr1(int) {
  char here[256];
  std::memset(here, 1, sizeof here);
  handled_at = here;
  handled = handled + 1;
}

/// Signals of each kind to a thread whose signal stack is managed, and in VRAM when they come.
void signals_on(const Pages& stack, unsigned rounds) {
  struct sigaction ours {};
  struct sigaction before {};
  ours.sa_handler = &on_usr1;
  ours.sa_flags = SA_ONSTACK;
  ASSERT_EQ(::sigaction(SIGUSR1, &ours, &before), 0);
  std::thread thread([&] {
    stack_t mine{};
    mine.ss_sp = stack.at(0);
    mine.ss_size = stack.count() * page;
    ASSERT_EQ(::sigaltstack(&mine, nullptr), 0);
    for (unsigned round = 0; round < rounds; ++round) {
      to_vram(stack);
      ASSERT_EQ(::raise(SIGUSR1), 0);
      ASSERT_EQ(handled, static_cast<int>(round) + 1);
      const char* const at = handled_at;
      EXPECT_TRUE(at >= stack.at(0) && at < stack.at(stack.count()));
    }
    mine = {};
    mine.ss_flags = SS_DISABLE;
    ASSERT_EQ(::sigaltstack(&mine, nullptr), 0);
  });
  thread.join();
  ::sigaction(SIGUSR1, &before, nullptr);
}

TEST(SignalStack, InVramWhenASignalComes) {
  if (!full_service())
    GTEST_SKIP() << "the kernel ends a process whose frame it cannot write: such a stack must be pinned";
  const Pages stack(32, Where::vram_dirty);
  signals_on(stack, 20);
}

TEST(SignalStack, PinnedItWorksWithEitherService) {
  const Pages stack(32, Where::in_system);
  const ferry::pin held(stack.at(0), 32 * page);
  for (std::size_t p = 0; p < 32; ++p) *static_cast<volatile char*>(stack.at(p)) = 1;
  signals_on(stack, 20);
}

/// A handler that is interrupted on a managed stack by the fault of that very stack's page.
TEST(SignalStack, AFaultWhileOnIt) {
  if (!full_service()) GTEST_SKIP() << "such a stack must be pinned";
  const Pages stack(32, Where::vram_dirty);
  const Pages data(8, Where::vram_dirty);
  struct sigaction ours {};
  struct sigaction before {};
  static const Pages* touched;
  static std::uint64_t seen;
  touched = &data;
  seen = 0;
  ours.sa_handler = [](int) {
    for (std::size_t p = 0; p < 8; ++p) seen += touched->word(p) == stamp(p) ? 1 : 0;
  };
  ours.sa_flags = SA_ONSTACK;
  ASSERT_EQ(::sigaction(SIGUSR1, &ours, &before), 0);
  std::thread([&] {
    stack_t mine{};
    mine.ss_sp = stack.at(0);
    mine.ss_size = 32 * page;
    ASSERT_EQ(::sigaltstack(&mine, nullptr), 0);
    for (unsigned round = 0; round < 10; ++round) {
      to_vram(stack);
      to_vram(data);
      ::raise(SIGUSR1);
    }
    mine.ss_flags = SS_DISABLE;
    ::sigaltstack(&mine, nullptr);
  }).join();
  EXPECT_EQ(seen, 80U);
  ::sigaction(SIGUSR1, &before, nullptr);
}

// --- structures that the kernel fills in -------------------------------------------------------------------------------

TEST(Structures, AreFilledInWhereverTheyAre) {
  const Pages pages(8, Where::vram_dirty);
  const auto attempt = [&](const char* what, const auto& call) {
    to_vram(pages);
    bool done = call();
    if (!done && !full_service()) {
      EXPECT_EQ(errno, EFAULT) << what;
      for (std::size_t p = 0; p < 8; ++p) *static_cast<volatile char*>(pages.at(p)) = 0;
      done = call();
    }
    EXPECT_TRUE(done) << what << ": " << std::strerror(errno);
  };
  attempt("getcwd", [&] { return ::getcwd(pages.at(0), page) != nullptr && pages.at(0)[0] == '/'; });
  attempt("stat", [&] {
    auto* const s = reinterpret_cast<struct stat*>(pages.at(1));
    return ::stat("/", s) == 0 && S_ISDIR(s->st_mode);
  });
  attempt("uname", [&] {
    auto* const u = reinterpret_cast<utsname*>(pages.at(2));
    return ::uname(u) == 0 && std::strcmp(u->sysname, "Linux") == 0;
  });
  attempt("pipe", [&] {
    auto* const ends = reinterpret_cast<int*>(pages.at(3));
    if (::pipe2(ends, O_CLOEXEC) != 0) return false;
    ::close(ends[0]);
    ::close(ends[1]);
    return true;
  });
  attempt("readlink", [&] { return ::readlink("/proc/self/exe", pages.at(4), page) > 0; });
}

// --- other processes ---------------------------------------------------------------------------------------------------

/// What e2e_peeker says of this process's word, started in one way or another.
std::string peek(const void* address, const char* how, std::uint64_t value = 0) {
  int ends[2];
  EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  std::string pid = std::to_string(::getpid());
  char at[32];
  std::snprintf(at, sizeof at, "%p", address);
  std::string word = std::to_string(value);
  std::string program = FERRY_PEEKER;
  std::string mode = how;
  char* arguments[] = {program.data(), pid.data(), at, mode.data(), word.data(), nullptr};
  pid_t child = -1;
  EXPECT_EQ(::posix_spawn(&child, program.c_str(), &actions, nullptr, arguments, environ), 0);
  posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  std::string said;
  char buffer[256];
  for (ssize_t n = 0; (n = ::read(ends[0], buffer, sizeof buffer)) != 0;) {
    if (n < 0 && errno != EINTR) break;
    if (n > 0) said.append(buffer, static_cast<std::size_t>(n));
  }
  ::close(ends[0]);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {}
  while (!said.empty() && said.back() == '\n') said.pop_back();
  return said;
}

class OtherProcess : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(By, OtherProcess, testing::Values("vm", "mem", "ptrace"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(OtherProcess, ReadsAndWritesWhatIsInVram) {
  const std::string by = GetParam();
  const std::string reads = by == "ptrace" ? "peek" : by + "_read";
  const std::string writes = by == "ptrace" ? "poke" : by + "_write";
  const Pages pages(8, Where::vram_dirty);
  // The kernel lets a debugger not wait for a page (K63), whatever the privileges.
  const bool waits = full_service() && by == "vm";
  std::string got = peek(&pages.word(3), reads.c_str());
  if (!waits) {
    EXPECT_EQ(got, std::strerror(by == "vm" ? EFAULT : EIO)) << "never what the page held before";
    static_cast<void>(*static_cast<volatile char*>(pages.at(3)));
    got = peek(&pages.word(3), reads.c_str());
  }
  EXPECT_EQ(got, std::to_string(stamp(3)));
  if (waits) {
    to_vram(pages);
  } else {
    *static_cast<volatile char*>(pages.at(4)) = 0;
  }
  EXPECT_EQ(peek(&pages.word(4), writes.c_str(), 4711), "4711");
  EXPECT_EQ(pages.word(4), 4711U);
  EXPECT_EQ(pages.device_word(4), 4711U);
}

}  // namespace
}  // namespace ferry::test
