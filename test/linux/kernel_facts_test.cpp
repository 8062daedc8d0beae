// Facts about memory files and mappings that the manager relies on. The numbers are those of docs/KERNEL.md.
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "kernel_harness.h"

namespace ferry::linux::test {
namespace {
sigjmp_buf jump;
void on_signal(int number) { siglongjmp(jump, number); }
}  // namespace

int signal_of(const std::function<void()>& fn) {
  struct sigaction action {};
  action.sa_handler = on_signal;
  struct sigaction old_bus {};
  struct sigaction old_segv {};
  ::sigaction(SIGBUS, &action, &old_bus);
  ::sigaction(SIGSEGV, &action, &old_segv);
  const int number = sigsetjmp(jump, 1);
  if (number == 0) fn();
  ::sigaction(SIGBUS, &old_bus, nullptr);
  ::sigaction(SIGSEGV, &old_segv, nullptr);
  return number;
}

namespace {

Mapping map_file(int fd, std::uint64_t offset, std::size_t bytes) {
  auto m = Mapping::map(fd, offset, bytes);
  EXPECT_TRUE(m.ok());
  return std::move(m).value();
}
Fd make_file(std::uint64_t bytes) {
  auto f = make_memory_file("ferry-test", bytes);
  EXPECT_TRUE(f.ok());
  return std::move(f).value();
}

TEST(KernelFacts, K01_SealedFileKeepsItsSize) {
  const Fd file = make_file(block_bytes);
  EXPECT_TRUE(is_sealed(file.get()));
  EXPECT_EQ(::ftruncate(file.get(), 4096), -1);
  EXPECT_EQ(::ftruncate(file.get(), 4 * block_bytes), -1);
  EXPECT_EQ(::fcntl(file.get(), F_ADD_SEALS, F_SEAL_WRITE), -1);
  EXPECT_EQ(file_bytes(file.get()).value(), block_bytes);
}

TEST(KernelFacts, K02_SparseFileOfTheWindowsSizeCostsNothing) {
  const Fd file = make_file(default_window_bytes);
  struct stat st {};
  ASSERT_EQ(::fstat(file.get(), &st), 0);
  EXPECT_EQ(st.st_blocks, 0);
  const Mapping high = map_file(file.get(), default_window_bytes - block_bytes, block_bytes);
  high.data()[0] = std::byte{7};
  ASSERT_EQ(::fstat(file.get(), &st), 0);
  EXPECT_EQ(st.st_blocks, 8);
}

TEST(KernelFacts, K03_HolesAreFoundWithoutFillingThem) {
  const Fd file = make_file(block_bytes);
  const Mapping m = map_file(file.get(), 0, block_bytes);
  EXPECT_EQ(next_data(file.get(), 0, block_bytes), block_bytes);
  m.data()[10 * page_bytes] = std::byte{1};
  EXPECT_EQ(next_data(file.get(), 0, block_bytes), 10 * page_bytes);
  EXPECT_EQ(next_hole(file.get(), 10 * page_bytes, block_bytes), 11 * page_bytes);
  EXPECT_EQ(next_data(file.get(), 11 * page_bytes, block_bytes), block_bytes);
}

TEST(KernelFacts, K04_PunchedHoleReadsZeroInEveryProcess) {
  const Fd file = make_file(block_bytes);
  const Mapping m = map_file(file.get(), 0, block_bytes);
  std::memset(m.data(), 0x55, block_bytes);
  Board& board = make_board();
  Child child([&] {
    if (m.data()[0] != std::byte{0x55}) return 1;
    board.set(board.answer, 1);
    if (!board.wait(board.step, 1)) return 2;
    return m.data()[0] == std::byte{0} && m.data()[page_bytes] == std::byte{0x55} ? 0 : 3;
  });
  ASSERT_TRUE(board.wait(board.answer, 1));
  ASSERT_TRUE(punch_hole(file.get(), 0, page_bytes).ok());
  board.set(board.step, 1);
  EXPECT_EQ(child.join(), 0);
  drop_board(board);
}

TEST(KernelFacts, K05_CollapseMakesAFileBlockHugeAndKeepsItsBytes) {
  const Fd file = make_file(2 * block_bytes);
  const Mapping m = map_file(file.get(), 0, 2 * block_bytes);
  for (std::size_t i = 0; i < block_bytes; i += page_bytes) m.data()[i] = static_cast<std::byte>(i / page_bytes);
  if (!make_huge(m.data(), block_bytes)) GTEST_SKIP() << "MADV_COLLAPSE of shared memory is not to be had here";
  for (std::size_t i = 0; i < block_bytes; i += page_bytes) {
    ASSERT_EQ(m.data()[i], static_cast<std::byte>(i / page_bytes));
  }
  ASSERT_TRUE(populate(m.data(), block_bytes).ok());
  EXPECT_EQ(huge_mapped_at(as_address(m.data())), block_bytes);
}

TEST(KernelFacts, K06_CollapseFillsHolesOnceThereIsOnePage) {
  const Fd file = make_file(block_bytes);
  const Mapping m = map_file(file.get(), 0, block_bytes);
  EXPECT_FALSE(make_huge(m.data(), block_bytes)) << "nothing there: refused";
  m.data()[0] = std::byte{0};
  if (!make_huge(m.data(), block_bytes)) GTEST_SKIP() << "MADV_COLLAPSE of shared memory is not to be had here";
  EXPECT_EQ(next_hole(file.get(), 0, block_bytes), block_bytes);
  EXPECT_EQ(m.data()[12345], std::byte{0});
}

TEST(KernelFacts, K07_MappingOverAHugePageOfAFileIsHugeAtOnce) {
  const Fd file = make_file(block_bytes);
  const Mapping m = map_file(file.get(), 0, block_bytes);
  m.data()[0] = std::byte{1};
  if (!make_huge(m.data(), block_bytes)) GTEST_SKIP() << "MADV_COLLAPSE of shared memory is not to be had here";
  const Mapping place = map_file(make_file(block_bytes).get(), 0, block_bytes);
  void* over =
      ::mmap(place.data(), block_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, file.get(), 0);
  ASSERT_EQ(over, place.data());
  EXPECT_EQ(huge_mapped_at(as_address(over)), block_bytes);
}

TEST(KernelFacts, K08_NeighboursOfOneFileMergeIntoOneMapping) {
  const Fd file = make_file(4 * block_bytes);
  const Mapping place = map_file(make_file(4 * block_bytes).get(), 0, 4 * block_bytes);
  for (unsigned i : {2U, 0U, 1U, 3U}) {
    ASSERT_NE(::mmap(place.data() + i * block_bytes, block_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                     file.get(), static_cast<off_t>(i * block_bytes)),
              MAP_FAILED);
  }
  EXPECT_EQ(mappings_in(as_address(place.data()), 4 * block_bytes), 1U);
  // And reserved neighbours (PROT_NONE, anonymous) do too, so revoking gives mappings back.
  for (unsigned i : {2U, 0U, 1U, 3U}) {
    ASSERT_NE(::mmap(place.data() + i * block_bytes, block_bytes, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0),
              MAP_FAILED);
  }
  EXPECT_EQ(mappings_in(as_address(place.data()), 4 * block_bytes), 1U);
}

TEST(KernelFacts, K09_ZapKeepsThePagesInTheFile) {
  const Fd file = make_file(block_bytes);
  const Mapping m = map_file(file.get(), 0, block_bytes);
  std::memset(m.data(), 0x77, block_bytes);
  ASSERT_EQ(::madvise(m.data(), block_bytes, MADV_DONTNEED), 0);
  EXPECT_EQ(next_hole(file.get(), 0, block_bytes), block_bytes);
  EXPECT_EQ(m.data()[4 * page_bytes + 1], std::byte{0x77});
}

TEST(KernelFacts, K10_ManySpansOfOnesOwnAreZappedByOneCall) {
  const Fd file = make_file(block_bytes);
  const Mapping m = map_file(file.get(), 0, block_bytes);
  std::memset(m.data(), 0x77, block_bytes);
  const Fd self(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
  ASSERT_TRUE(self);
  iovec spans[2] = {{m.data(), page_bytes}, {m.data() + 2 * page_bytes, page_bytes}};
  const long n = ::syscall(SYS_process_madvise, self.get(), spans, 2, MADV_DONTNEED, 0);
  if (n < 0) GTEST_SKIP() << "process_madvise(MADV_DONTNEED) of oneself needs Linux 6.13: " << std::strerror(errno);
  EXPECT_EQ(n, static_cast<long>(2 * page_bytes));
  unsigned char resident[3];
  const Userfaultfd u = std::move(Userfaultfd::open({}).value());
  ASSERT_EQ(::mincore(m.data(), 3 * page_bytes, resident), 0);  // still in the file
  EXPECT_EQ(resident[0] & 1, 1);
  EXPECT_EQ(m.data()[0], std::byte{0x77});
}

TEST(KernelFacts, K11_AnotherProcesssPagesCannotBeZappedThisWay) {
  const Fd file = make_file(block_bytes);
  const Mapping m = map_file(file.get(), 0, block_bytes);
  std::memset(m.data(), 0x77, block_bytes);
  Board& board = make_board();
  Child child([&] { return board.wait(board.step, 1) ? 0 : 1; });
  const Fd other(static_cast<int>(::syscall(SYS_pidfd_open, child.pid(), 0)));
  ASSERT_TRUE(other);
  iovec span{m.data(), page_bytes};
  EXPECT_EQ(::syscall(SYS_process_madvise, other.get(), &span, 1, MADV_DONTNEED, 0), -1)
      << "good news: the agent thread of applications and devices could go";
  board.set(board.step, 1);
  EXPECT_EQ(child.join(), 0);
  drop_board(board);
}

}  // namespace
}  // namespace ferry::linux::test
