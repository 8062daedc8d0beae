// Facts about the program's own data, huge pages and read-only memory under a userfaultfd. The numbers are those of
// docs/KERNEL.md.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>

#include "kernel_harness.h"

namespace ferry::linux::test {
namespace {

class GlobalFacts : public ::testing::Test {
 protected:
  void SetUp() override {
    auto opened = Userfaultfd::open({.prefer_full_service = false, .protect = true});
    ASSERT_TRUE(opened.ok());
    userfault_ = std::move(opened).value();
  }

  [[nodiscard]] int register_for_writes(void* at, std::size_t bytes) const {
    uffdio_register r{};
    r.range = {as_address(at), bytes};
    r.mode = UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MISSING;
    return ::ioctl(userfault_.fd(), UFFDIO_REGISTER, &r) == 0 ? 0 : errno;
  }
  [[nodiscard]] int protect(void* at, std::size_t bytes) const {
    uffdio_writeprotect p{};
    p.range = {as_address(at), bytes};
    p.mode = UFFDIO_WRITEPROTECT_MODE_WP;
    return ::ioctl(userfault_.fd(), UFFDIO_WRITEPROTECT, &p) == 0 ? 0 : errno;
  }

  Userfaultfd userfault_;
};

/// A private mapping of this program's own file, as the loader maps initialised data.
void* map_own_file(std::size_t bytes) {
  const Fd file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  return ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.get(), 0);
}

TEST_F(GlobalFacts, K90_PrivatePagesOfAFileAreNotProtectedAgainstWrites) {
  constexpr std::size_t bytes = 4 * page_bytes;
  auto* at = static_cast<char*>(map_own_file(bytes));
  ASSERT_NE(at, MAP_FAILED);
  EXPECT_EQ(register_for_writes(at, bytes), EINVAL);
  std::memset(at, 1, bytes);
  EXPECT_EQ(register_for_writes(at, bytes), EINVAL)
      << "copied on write, they are anonymous, and still the file's mapping's";
  ::munmap(at, bytes);
}

TEST_F(GlobalFacts, K91_AnonymousPagesTakeTheirPlaceInOneStepAndAreProtected) {
  constexpr std::size_t bytes = 4 * page_bytes;
  auto* at = static_cast<char*>(map_own_file(bytes));
  ASSERT_NE(at, MAP_FAILED);
  at[page_bytes] = 'g';
  void* const copy = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(copy, MAP_FAILED);
  std::memcpy(copy, at, bytes);
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> reads{0};
  std::atomic<int> wrong{0};
  std::thread reader([&] {
    while (!stop) {
      wrong += static_cast<volatile char*>(at)[page_bytes] != 'g' || std::memcmp(at + 1, "ELF", 3) != 0 ? 1 : 0;
      ++reads;
    }
  });
  while (reads < 1000) {}
  ASSERT_EQ(::mremap(copy, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at), at);
  const std::uint64_t before = reads;
  while (reads < before + 1000) {}
  stop = true;
  reader.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(register_for_writes(at, bytes), 0);
  EXPECT_EQ(protect(at, bytes), 0);
  ::munmap(at, bytes);
}

TEST_F(GlobalFacts, K92_ADirectoryOfThreadsHasALinkForEachAndTwo) {
  struct stat alone {};
  ASSERT_EQ(::stat("/proc/self/task", &alone), 0);
  std::atomic<bool> stop{false};
  std::thread other([&] { stop.wait(false); });
  struct stat both {};
  ASSERT_EQ(::stat("/proc/self/task", &both), 0);
  stop = true;
  stop.notify_one();
  other.join();
  EXPECT_EQ(both.st_nlink, alone.st_nlink + 1);
  Child child([] {
    struct stat s {};
    return ::stat("/proc/self/task", &s) == 0 ? static_cast<int>(s.st_nlink) : 0;
  });
  EXPECT_EQ(child.join(), 3) << "one thread";
}

TEST_F(GlobalFacts, K93_MemoryThatMayOnlyBeReadCanBeWatched) {
  constexpr std::size_t bytes = 4 * page_bytes;
  void* const at = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(at, MAP_FAILED);
  EXPECT_EQ(register_for_writes(at, bytes), 0);
  EXPECT_EQ(protect(at, bytes), 0);
  ::munmap(at, bytes);
}

TEST_F(GlobalFacts, K94_HugePagesAreProtectedAndReplacedWholeOnly) {
  auto* at = static_cast<char*>(::mmap(nullptr, 2 * block_bytes, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT), -1, 0));
  if (at == MAP_FAILED) GTEST_SKIP() << "no huge pages are set aside here (vm.nr_hugepages)";
  std::memset(at, 7, block_bytes);
  EXPECT_EQ(register_for_writes(at, page_bytes), EINVAL);
  EXPECT_EQ(register_for_writes(at, 2 * block_bytes), 0);
  EXPECT_EQ(protect(at, 2 * block_bytes), 0);
  const Fd file = std::move(make_memory_file("ferry-test", 2 * block_bytes).value());
  constexpr int flags = MAP_SHARED | MAP_FIXED;
  EXPECT_EQ(::mmap(at, page_bytes, PROT_READ | PROT_WRITE, flags, file.get(), 0), MAP_FAILED);
  EXPECT_EQ(errno, EINVAL);
  EXPECT_EQ(::mmap(at, block_bytes, PROT_READ | PROT_WRITE, flags, file.get(), 0), at);
  ::munmap(at, 2 * block_bytes);
}

}  // namespace
}  // namespace ferry::linux::test
