// Facts about mapped files. The numbers are those of docs/KERNEL.md.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <thread>

#include "kernel_harness.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace ferry::linux::test {
namespace {

constexpr std::size_t pages = 16;
constexpr std::size_t bytes = pages * page_bytes;

/// A file without a name, of 1s.
Fd make_file() {
  std::string path = std::filesystem::temp_directory_path() / "ferry-facts-XXXXXX";
  Fd fd(::mkstemp(path.data()));
  ::unlink(path.c_str());
  const std::string ones(bytes, '\1');
  EXPECT_EQ(::pwrite(fd.get(), ones.data(), bytes, 0), static_cast<ssize_t>(bytes));
  return fd;
}

char* map(const Fd& fd, int flags) {
  void* const p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd.get(), 0);
  EXPECT_NE(p, MAP_FAILED);
  return static_cast<char*>(p);
}

TEST(FileFacts, K95_TruncationTakesPagesFromEveryProcessAndGrowthBringsZeros) {
  const Fd fd = make_file();
  auto* const p = static_cast<volatile char*>(map(fd, MAP_SHARED));
  EXPECT_EQ(p[bytes - 1], 1);
  Child other([&] {
    // In another process, which has touched it.
    if (p[bytes - 1] != 1 || ::ftruncate(fd.get(), page_bytes) != 0) return 1;
    return 0;
  });
  EXPECT_EQ(other.join(), 0);
  Child toucher([&] { return static_cast<int>(p[bytes - 1]); });
  EXPECT_EQ(toucher.join(), 128 + SIGBUS);
  EXPECT_EQ(p[page_bytes - 1], 1);
  ASSERT_EQ(::ftruncate(fd.get(), bytes), 0);
  EXPECT_EQ(p[bytes - 1], 0);
  ::munmap(const_cast<char*>(p), bytes);
}

TEST(FileFacts, K96_ThePageMapTellsEverybodyWhichPagesOfAPrivateMappingAreCopies) {
  const Fd fd = make_file();
  char* const p = map(fd, MAP_PRIVATE);
  EXPECT_EQ(static_cast<volatile char*>(p)[page_bytes], 1);
  p[2 * page_bytes] = 2;
  const Fd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  std::uint64_t entries[3] = {};
  ASSERT_EQ(::pread(pagemap.get(), entries, sizeof entries, static_cast<off_t>(as_address(p) / page_bytes * 8)),
            static_cast<ssize_t>(sizeof entries));
  EXPECT_EQ(entries[1] >> 61 & 5, 5U) << "there, of the file";
  EXPECT_EQ(entries[2] >> 61 & 5, 4U) << "there, and no page of the file";
  ::munmap(p, bytes);
}

TEST(FileFacts, K97_APipeHoldsThePagesOfAMappingWithAllThatIsWrittenToThemLater) {
  const Fd fd = make_file();
  char* const p = map(fd, MAP_PRIVATE);
  ASSERT_EQ(::madvise(p, bytes, MADV_POPULATE_WRITE), 0);
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
  const Fd out(ends[0]);
  const Fd in(ends[1]);
  ASSERT_GE(::fcntl(in.get(), F_SETPIPE_SZ, static_cast<int>(bytes)), static_cast<int>(bytes));
  const iovec part{p, bytes};
  ASSERT_EQ(::vmsplice(in.get(), &part, 1, 0), static_cast<ssize_t>(bytes));
  p[5] = 5;
  p[bytes - 1] = 6;
  // Something else is there now.
  ASSERT_EQ(::mmap(p, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), p);
  std::string got(bytes, '\0');
  ASSERT_EQ(::read(out.get(), got.data(), bytes), static_cast<ssize_t>(bytes));
  EXPECT_EQ(got[5], 5);
  EXPECT_EQ(got[bytes - 1], 6);
  EXPECT_EQ(got[page_bytes], 1);
  ::munmap(p, bytes);
}

TEST(FileFacts, K98_AWatchedMappingTakesThePlaceOfAnotherInOneStepAndIsWatchedThere) {
  Fd watcher(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
  ASSERT_TRUE(watcher);
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
  ASSERT_EQ(::ioctl(watcher.get(), UFFDIO_API, &api), 0);
  const Fd fd = make_file();
  char* const p = map(fd, MAP_PRIVATE);
  const Fd memory = std::move(make_memory_file("ferry-test", bytes).value());
  char* const target = map(memory, MAP_SHARED);
  char* const view = map(memory, MAP_SHARED);
  uffdio_register all{};
  all.range = {as_address(target), bytes};
  all.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
  ASSERT_EQ(::ioctl(watcher.get(), UFFDIO_REGISTER, &all), 0);
  uffd_msg message{};
  pollfd poll{watcher.get(), POLLIN, 0};
  // The move waits until it was read of.
  std::thread reader([&] {
    EXPECT_EQ(::poll(&poll, 1, patience_ms), 1);
    EXPECT_EQ(::read(watcher.get(), &message, sizeof message), 32);
  });
  EXPECT_EQ(::mremap(target, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, p), p);
  reader.join();
  EXPECT_EQ(message.event, UFFD_EVENT_REMAP);
  std::atomic<bool> touched{false};
  std::thread toucher([&] {
    EXPECT_EQ(static_cast<volatile char*>(p)[page_bytes], 9);
    touched = true;
  });
  ASSERT_EQ(::poll(&poll, 1, patience_ms), 1);
  ASSERT_EQ(::read(watcher.get(), &message, sizeof message), 32);
  EXPECT_EQ(message.event, UFFD_EVENT_PAGEFAULT);
  EXPECT_FALSE(touched);
  view[page_bytes] = 9;
  uffdio_range range{as_address(p), bytes};
  EXPECT_EQ(::ioctl(watcher.get(), UFFDIO_UNREGISTER, &range), 0);
  ::ioctl(watcher.get(), UFFDIO_WAKE, &range);
  toucher.join();
  ::munmap(p, bytes);
  ::munmap(view, bytes);
}

TEST(FileFacts, K99_TheFileOfAMappingCanBeOpenedWithPrivilegeWhateverItsName) {
  Fd fd = make_file();
  char* const p = map(fd, MAP_SHARED);
  fd.reset();
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", as_address(p), as_address(p + bytes));
  const Fd again(::open(path, O_RDWR | O_CLOEXEC));
  if (::geteuid() == 0) {
    ASSERT_TRUE(again) << "needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN";
    const char two = 2;
    ASSERT_EQ(::pwrite(again.get(), &two, 1, 7), 1);
    EXPECT_EQ(static_cast<volatile char*>(p)[7], 2);
  } else {
    EXPECT_FALSE(again);
    EXPECT_EQ(errno, EPERM);
  }
  ::munmap(p, bytes);
}

}  // namespace
}  // namespace ferry::linux::test
