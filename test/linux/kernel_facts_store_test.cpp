// Facts about files, io_uring and memory pressure that the store and the manager rely on. The numbers are those of
// docs/KERNEL.md.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "kernel_harness.h"
#include "linux/pressure.h"
#include "linux/store/block_io.h"

namespace ferry::linux::test {
namespace {

std::uint64_t memory_of(int fd) {
  struct stat st {};
  EXPECT_EQ(::fstat(fd, &st), 0);
  return static_cast<std::uint64_t>(st.st_blocks) * 512;
}

std::string scratch() {
  const char* from_environment = std::getenv("TMPDIR");
  return from_environment != nullptr ? from_environment : "/var/tmp";
}

TEST(StoreFacts, K50_BlocksOfAMemfdAreTheMemoryThatItHas) {
  const Fd file = std::move(make_memory_file("ferry-test", 4 * block_bytes).value());
  const Mapping map = std::move(Mapping::map(file.get(), 0, 4 * block_bytes).value());
  EXPECT_EQ(memory_of(file.get()), 0U);
  ASSERT_TRUE(populate(map.data(), 3 * page_bytes).ok());
  EXPECT_EQ(memory_of(file.get()), 3 * page_bytes);
  ASSERT_TRUE(punch_hole(file.get(), page_bytes, page_bytes).ok());
  EXPECT_EQ(memory_of(file.get()), 2 * page_bytes);
}

TEST(StoreFacts, K51_PunchingPartOfAHugePageFreesThatPart) {
  const Fd file = std::move(make_memory_file("ferry-test", 4 * block_bytes).value());
  const Mapping map = std::move(Mapping::map(file.get(), 0, 4 * block_bytes).value());
  ASSERT_TRUE(populate(map.data(), block_bytes).ok());
  if (!make_huge(map.data(), block_bytes)) GTEST_SKIP() << "no huge page to be had";
  map.data()[0] = std::byte{1};
  map.data()[64 * page_bytes] = std::byte{2};
  ASSERT_EQ(memory_of(file.get()), block_bytes);
  ASSERT_TRUE(punch_hole(file.get(), 0, 16 * page_bytes).ok());
  EXPECT_EQ(memory_of(file.get()), block_bytes - 16 * page_bytes);
  EXPECT_EQ(map.data()[0], std::byte{0});
  EXPECT_EQ(map.data()[64 * page_bytes], std::byte{2});
}

TEST(StoreFacts, K52_AFileWithoutANameStaysWithoutOne) {
  const Fd file(::open(scratch().c_str(), O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0600));
  if (!file) GTEST_SKIP() << scratch() << " has no files without a name: " << std::strerror(errno);
  const std::string target = scratch() + "/ferry-linked-" + std::to_string(::getpid());
  const std::string self = "/proc/self/fd/" + std::to_string(file.get());
  EXPECT_EQ(::linkat(AT_FDCWD, self.c_str(), AT_FDCWD, target.c_str(), AT_SYMLINK_FOLLOW), -1);
  ::unlink(target.c_str());
}

TEST(StoreFacts, K53_IoUringReadsAndWritesWithARegisteredBuffer) {
  if (const int error = probe_uring(); error != 0) GTEST_SKIP() << "io_uring: " << std::strerror(error);
  const Fd file(::open(scratch().c_str(), O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0600));
  ASSERT_TRUE(file);
  void* const at = ::mmap(nullptr, 2 * page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(at, MAP_FAILED);
  auto* const buffer = static_cast<std::byte*>(at);
  BlockIo io(file.get(), IoKind::automatic, nullptr);
  ASSERT_TRUE(io.uses_uring());
  io.register_buffer(buffer, 2 * page_bytes);
  std::memset(buffer, 7, page_bytes);
  io.write(buffer, page_bytes, 5 * page_bytes);
  ASSERT_TRUE(io.wait().ok());
  io.read(buffer + page_bytes, page_bytes, 5 * page_bytes);
  ASSERT_TRUE(io.wait().ok());
  EXPECT_EQ(buffer[page_bytes + 100], std::byte{7});
  // A read behind the end is short, and an error here.
  io.read(buffer, page_bytes, 100 * page_bytes);
  EXPECT_EQ(io.wait().code, Code::io_error);
  ::munmap(at, 2 * page_bytes);
}

TEST(StoreFacts, K54_AStallTriggerCanBeSetWithoutPrivileges) {
  const Pressure p = Pressure::open();
  if (p.stall_fd() < 0) GTEST_SKIP() << p.stall_text();
  // Set, and polled without a word from it: a stall that comes just now is no failure.
  pollfd ready{p.stall_fd(), POLLPRI, 0};
  EXPECT_GE(::poll(&ready, 1, 0), 0);
  EXPECT_EQ(ready.revents & (POLLERR | POLLNVAL), 0);
}

TEST(StoreFacts, K55_CountersOfACgroupAreQuietOnceTheyWereRead) {
  const Pressure p = Pressure::open();
  if (!p.has_cgroup() || p.events_fd() < 0) GTEST_SKIP() << p.cgroup_text();
  EXPECT_NE(p.read().current_bytes, CgroupMemory::none);
  pollfd ready{p.events_fd(), POLLPRI, 0};
  EXPECT_GE(::poll(&ready, 1, 0), 0);
  EXPECT_EQ(ready.revents & POLLNVAL, 0);
}

}  // namespace
}  // namespace ferry::linux::test
