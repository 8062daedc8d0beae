// System calls of the application on buffers that lie in VRAM.
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "change.h"

namespace ferry::test {
namespace {

constexpr std::size_t count = 600;

/// A machine that does not serve faults inside system calls, or a test that asks for one.
bool user_mode_only() {
  const char* kind = std::getenv("FERRY_USERFAULTFD");
  if (kind != nullptr && std::strcmp(kind, "user") == 0) return true;
  const long fd = ::syscall(SYS_userfaultfd, O_CLOEXEC);
  if (fd >= 0) {
    ::close(static_cast<int>(fd));
    return false;
  }
  const int device = ::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device < 0) return true;
  ::close(device);
  return false;
}

class File {
 public:
  explicit File(std::size_t pages) : fd_(::memfd_create("ferry-test", MFD_CLOEXEC)) {
    std::vector<std::uint64_t> words(page / 8);
    for (std::size_t p = 0; p < pages; ++p) {
      words[0] = stamp(p);
      EXPECT_EQ(::pwrite(fd_, words.data(), page, static_cast<off_t>(p * page)), static_cast<ssize_t>(page));
    }
  }
  ~File() { ::close(fd_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  [[nodiscard]] int fd() const { return fd_; }

 private:
  int fd_;
};

class Io : public testing::TestWithParam<Where> {};
INSTANTIATE_TEST_SUITE_P(On, Io,
                         testing::Values(Where::in_system, Where::vram_clean, Where::vram_dirty, Where::in_place),
                         [](const auto& info) { return name_of(info.param); });

TEST_P(Io, AFileIsReadIntoAndWrittenFromIt) {
  File file(count);
  Pages pages(count, GetParam());
  for (std::size_t p = 0; p < count; ++p) ASSERT_NE(stamp(p), 0U);
  // Written as it is, wherever it is.
  const int out = ::memfd_create("ferry-out", MFD_CLOEXEC);
  ASSERT_EQ(::write(out, pages.at(0), count * page), static_cast<ssize_t>(count * page));
  std::uint64_t word = 0;
  for (std::size_t p = 0; p < count; ++p) {
    ASSERT_EQ(::pread(out, &word, sizeof word, static_cast<off_t>(p * page)), 8);
    ASSERT_EQ(word, stamp(p)) << p;
  }
  ::close(out);
  // And read over what the device has.
  ferry::parallel_for(count, [b = pages.at(0)](std::size_t p) { *reinterpret_cast<std::uint64_t*>(b + p * page) = 7; });
  ASSERT_EQ(::lseek(file.fd(), 0, SEEK_SET), 0);
  ASSERT_EQ(::read(file.fd(), pages.at(0), count * page), static_cast<ssize_t>(count * page));
  for (std::size_t p = 0; p < count; ++p) ASSERT_EQ(pages.word(p), stamp(p)) << p;
  EXPECT_EQ(pages.device_word(count - 1), stamp(count - 1));
  ferry::parallel_for(count, [b = pages.at(0)](std::size_t p) { *reinterpret_cast<std::uint64_t*>(b + p * page) = 7; });
  ASSERT_EQ(::pread(file.fd(), pages.at(10), 50 * page, static_cast<off_t>(page * 10)),
            static_cast<ssize_t>(50 * page));
  EXPECT_EQ(pages.word(10), stamp(10));
  EXPECT_EQ(pages.word(9), 7U);
}

TEST_P(Io, PartsOfIt) {
  File file(count);
  Pages pages(count, GetParam());
  iovec parts[3] = {{pages.at(5), page}, {pages.at(300), 2 * page}, {pages.at(550), page}};
  ASSERT_EQ(::preadv(file.fd(), parts, 3, 0), static_cast<ssize_t>(4 * page));
  EXPECT_EQ(pages.word(5), stamp(0));
  EXPECT_EQ(pages.word(301), stamp(2));
  EXPECT_EQ(pages.word(550), stamp(3));
  ferry::parallel_for(count, [b = pages.at(0)](std::size_t p) { *reinterpret_cast<std::uint64_t*>(b + p * page) = p; });
  ASSERT_EQ(::pwritev(file.fd(), parts, 3, 0), static_cast<ssize_t>(4 * page));
  std::uint64_t word = 0;
  ASSERT_EQ(::pread(file.fd(), &word, 8, static_cast<off_t>(page * 3)), 8);
  EXPECT_EQ(word, 550U);
}

TEST_P(Io, Sockets) {
  Pages from(64, GetParam());
  Pages to(64, GetParam());
  for (const int type : {SOCK_STREAM, SOCK_DGRAM}) {
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends), 0);
    for (std::size_t p = 0; p < 64; p += 2) {
      ASSERT_EQ(::send(ends[0], from.at(p), page, 0), static_cast<ssize_t>(page));
      ASSERT_EQ(::recv(ends[1], to.at(p), page, MSG_WAITALL), static_cast<ssize_t>(page)) << std::strerror(errno);
      ASSERT_EQ(to.word(p), stamp(p));
      iovec out{from.at(p + 1), page};
      iovec in{to.at(p + 1), page};
      msghdr message{};
      message.msg_iov = &out;
      message.msg_iovlen = 1;
      ASSERT_EQ(::sendmsg(ends[0], &message, 0), static_cast<ssize_t>(page));
      message.msg_iov = &in;
      ASSERT_EQ(::recvmsg(ends[1], &message, MSG_WAITALL), static_cast<ssize_t>(page)) << std::strerror(errno);
      ASSERT_EQ(to.word(p + 1), stamp(p + 1));
    }
    ferry::parallel_for(64, [b = to.at(0)](std::size_t p) { *reinterpret_cast<std::uint64_t*>(b + p * page) = 0; });
    ::close(ends[0]);
    ::close(ends[1]);
  }
}

TEST_P(Io, Stdio) {
  Pages pages(count, GetParam());
  std::FILE* file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  ASSERT_EQ(std::fwrite(pages.at(0), page, count, file), count);
  std::rewind(file);
  ferry::parallel_for(count, [b = pages.at(0)](std::size_t p) { *reinterpret_cast<std::uint64_t*>(b + p * page) = 0; });
  ASSERT_EQ(std::fread(pages.at(0), page, count, file), count);
  std::fclose(file);
  for (std::size_t p = 0; p < count; ++p) ASSERT_EQ(pages.word(p), stamp(p)) << p;
}

TEST_P(Io, DirectIo) {
  char path[] = "/var/tmp/ferry-direct-XXXXXX";
  const int made = ::mkstemp(path);
  ASSERT_GE(made, 0);
  ::close(made);
  const int fd = ::open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
  ::unlink(path);
  if (fd < 0) GTEST_SKIP() << "no O_DIRECT in /var/tmp";
  Pages pages(count, GetParam());
  ASSERT_EQ(::pwrite(fd, pages.at(0), 200 * page, 0), static_cast<ssize_t>(200 * page)) << std::strerror(errno);
  ferry::parallel_for(count, [b = pages.at(0)](std::size_t p) { *reinterpret_cast<std::uint64_t*>(b + p * page) = 0; });
  ASSERT_EQ(::pread(fd, pages.at(0), 200 * page, 0), static_cast<ssize_t>(200 * page)) << std::strerror(errno);
  ::close(fd);
  for (std::size_t p = 0; p < count; ++p) ASSERT_EQ(pages.word(p), p < 200 ? stamp(p) : 0) << p;
}

TEST_P(Io, RandomBytes) {
  Pages pages(8, GetParam());
  ASSERT_EQ(::getrandom(pages.at(0), 8 * page, 0), static_cast<ssize_t>(8 * page));
  EXPECT_NE(pages.word(3), stamp(3));
}

/// Calls that nobody stands before: with full service they work; without, they say so and work once the pages are home.
TEST_P(Io, WhatIsNotInterposedWorksOrSaysSo) {
  Pages pages(count, GetParam());
  const bool limited = user_mode_only();
  const auto attempt = [&](const char* what, const auto& call) {
    ferry::parallel_for(count, [b = pages.at(0)](std::size_t p) { ++*reinterpret_cast<std::uint64_t*>(b + p * page); });
    long got = call();
    if (limited && got < 0) {
      EXPECT_EQ(errno, EFAULT) << what;
      ferry::prefetch(pages.at(0), count * page, ferry::to_cpu);
      for (std::size_t p = 0; p < count; ++p) static_cast<void>(*static_cast<volatile char*>(pages.at(p)));
      got = call();
    }
    EXPECT_GE(got, 0) << what << ": " << std::strerror(errno);
  };
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  char drain[page];
  attempt("vmsplice", [&] {
    const iovec part{pages.at(3), page};
    const long n = ::vmsplice(ends[1], &part, 1, 0);
    if (n > 0) {
      EXPECT_EQ(::read(ends[0], drain, sizeof drain), n);
    }
    return n;
  });
  attempt("process_vm_readv of itself", [&] {
    iovec local{drain, 8};
    iovec remote{pages.at(4), 8};
    return static_cast<long>(::process_vm_readv(::getpid(), &local, 1, &remote, 1, 0));
  });
  attempt("futex", [&] {
    // Woken at once, as the word does not have the value.
    const long n = ::syscall(SYS_futex, pages.at(5), FUTEX_WAIT, 1, nullptr, nullptr, 0);
    return n < 0 && errno == EAGAIN ? 0 : n;
  });
  attempt("clock_gettime by number", [&] { return ::syscall(SYS_clock_gettime, CLOCK_MONOTONIC, pages.at(6)); });
  std::strcpy(pages.at(7) + 64, "/proc/self/status");
  attempt("open of a name that lies there", [&] {
    const int fd = ::open(pages.at(7) + 64, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) ::close(fd);
    return static_cast<long>(fd);
  });
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(IoErrors, AnErrorOfTheCallerStays) {
  File file(2);
  Pages pages(8, Where::vram_dirty);
  ASSERT_EQ(::mprotect(pages.at(2), page, PROT_READ), 0);
  ASSERT_EQ(::mprotect(pages.at(4), page, PROT_NONE), 0);
  EXPECT_TRUE(::pread(file.fd(), pages.at(2), page, 0) == -1 && errno == EFAULT) << "read-only";
  EXPECT_TRUE(::pwrite(file.fd(), pages.at(4), page, 0) == -1 && errno == EFAULT) << "no access";
  EXPECT_EQ(::pwrite(file.fd(), pages.at(2), page, 0), static_cast<ssize_t>(page));
  EXPECT_TRUE(::read(-1, pages.at(0), 8) == -1 && errno == EBADF);
  EXPECT_EQ(pages.word(2), stamp(2));
}

}  // namespace
}  // namespace ferry::test
