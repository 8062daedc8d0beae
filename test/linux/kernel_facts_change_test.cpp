// Facts about changes of an address space under a userfaultfd. The numbers are those of docs/KERNEL.md.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <thread>

#include "kernel_harness.h"

namespace ferry::linux::test {
namespace {

class ChangeFacts : public ::testing::Test {
 protected:
  void SetUp() override {
    file_ = std::move(make_memory_file("ferry-test", block_bytes).value());
    memory_ = std::move(Mapping::map(file_.get(), 0, block_bytes).value());
    std::memset(memory_.data(), 1, block_bytes);
  }

  Fd file_;
  Mapping memory_;
};

TEST_F(ChangeFacts, K48_EventsOfUnmapAndRemoveHoldUpEveryCallUntilTheyAreRead) {
  // Without privileges.
  Fd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
  ASSERT_TRUE(fd);
  uffdio_api api{};
  api.api = UFFD_API;
  api.features =
      UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MISSING_SHMEM;
  ASSERT_EQ(::ioctl(fd.get(), UFFDIO_API, &api), 0);
  uffdio_register r{};
  r.range = {as_address(memory_.data()), block_bytes};
  r.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
  ASSERT_EQ(::ioctl(fd.get(), UFFDIO_REGISTER, &r), 0);
  for (const bool unmap : {false, true}) {
    std::atomic<bool> returned{false};
    std::thread caller([&] {
      // What the application's agent does to take pages away raises the same event as the program's own call.
      if (unmap) {
        ::munmap(memory_.data() + 64 * page_bytes, page_bytes);
      } else {
        ::madvise(memory_.data(), page_bytes, MADV_DONTNEED);
      }
      returned = true;
    });
    pollfd poll{fd.get(), POLLIN, 0};
    ASSERT_EQ(::poll(&poll, 1, patience_ms), 1);
    // The call cannot return before the read: nobody else takes the event.
    EXPECT_FALSE(returned);
    uffd_msg message{};
    ASSERT_EQ(::read(fd.get(), &message, sizeof message), static_cast<ssize_t>(sizeof message));
    EXPECT_EQ(message.event, unmap ? UFFD_EVENT_UNMAP : UFFD_EVENT_REMOVE);
    caller.join();
    EXPECT_TRUE(returned);
  }
}

TEST_F(ChangeFacts, K49_InUserModeOnlyASystemCallGetsEfaultOrStopsShort) {
  auto opened = Userfaultfd::open({.sigbus = false, .prefer_full_service = false});
  ASSERT_TRUE(opened.ok());
  const Userfaultfd u = std::move(opened).value();
  ASSERT_EQ(u.register_span(as_address(memory_.data()), block_bytes, track_missing | track_minor), Fault::ok);
  ASSERT_EQ(::madvise(memory_.data() + 2 * page_bytes, page_bytes, MADV_DONTNEED), 0);
  const Fd out(::memfd_create("ferry-test-out", MFD_CLOEXEC));
  EXPECT_EQ(::pwrite(out.get(), memory_.data(), 4 * page_bytes, 0), static_cast<ssize_t>(2 * page_bytes))
      << "as far as it is mapped";
  EXPECT_TRUE(::pwrite(out.get(), memory_.data() + 2 * page_bytes, page_bytes, 0) == -1 && errno == EFAULT);
  EXPECT_TRUE(::pread(out.get(), memory_.data() + 2 * page_bytes, page_bytes, 0) == -1 && errno == EFAULT);
  uffd_msg message{};
  EXPECT_EQ(u.read({&message, 1}), 0) << "nobody is asked for the page";
}

TEST_F(ChangeFacts, K64_AnUnmapIsToldByEveryCallFromBeforeTheAddressIsFreeUntilItIsRead) {
  auto opened = Userfaultfd::open({.prefer_full_service = false, .tell_unmaps = true});
  ASSERT_TRUE(opened.ok());
  const Userfaultfd u = std::move(opened).value();
  ASSERT_EQ(u.register_span(as_address(memory_.data()), block_bytes, track_missing | track_minor), Fault::ok);
  EXPECT_FALSE(u.mappings_change());
  void* const gone = memory_.data() + 64 * page_bytes;
  std::thread caller([&] { ::munmap(gone, page_bytes); });
  // As soon as anybody can have the address, it is said that it was unmapped.
  void* taken = MAP_FAILED;
  while (taken == MAP_FAILED) {
    taken = ::mmap(gone, page_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  }
  EXPECT_TRUE(u.mappings_change());
  pollfd poll{u.fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&poll, 1, patience_ms), 1);
  EXPECT_TRUE(u.mappings_change()) << "until it is read";
  uffd_msg message{};
  ASSERT_EQ(u.read({&message, 1}), 1);
  EXPECT_EQ(message.event, UFFD_EVENT_UNMAP);
  caller.join();
  EXPECT_FALSE(u.mappings_change());
}

TEST_F(ChangeFacts, K65_MemoryIsMovedAwayInOneStepAndWhoTouchesWhatIsLeftWaits) {
  auto opened = Userfaultfd::open({.prefer_full_service = false});
  ASSERT_TRUE(opened.ok());
  const Userfaultfd u = std::move(opened).value();
  auto* at =
      static_cast<char*>(::mmap(nullptr, 4 * page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(at, MAP_FAILED);
  std::memset(at, 7, 4 * page_bytes);
  ASSERT_EQ(u.register_span(as_address(at), 4 * page_bytes, track_missing), Fault::ok);
  const auto move = [](void* from) {
    return reinterpret_cast<char*>(
        ::syscall(SYS_mremap, from, 4 * page_bytes, 4 * page_bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, nullptr));
  };
  char* const moved = move(at);
  ASSERT_NE(moved, MAP_FAILED);
  EXPECT_EQ(moved[3 * page_bytes], 7);
  std::thread toucher([&] { EXPECT_EQ(at[0], 9); });
  pollfd poll{u.fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&poll, 1, patience_ms), 1);
  char page[page_bytes];
  std::memset(page, 9, sizeof page);
  std::uint64_t done_bytes = 0;
  EXPECT_EQ(u.fill(as_address(at), page, page_bytes, done_bytes), Fault::ok);
  toucher.join();
  EXPECT_EQ(::munmap(at, 4 * page_bytes), 0);
  // What is not one mapping is not moved at all.
  ASSERT_EQ(::munmap(moved + page_bytes, page_bytes), 0);
  EXPECT_EQ(move(moved), MAP_FAILED);
  EXPECT_EQ(moved[0], 7);
  EXPECT_EQ(::munmap(moved, 4 * page_bytes), 0);
}

TEST_F(ChangeFacts, K63_DebuggersGetAnErrorForAMissingPageWhereProcessVmReadvWaits) {
  auto opened = Userfaultfd::open({.sigbus = false});
  ASSERT_TRUE(opened.ok());
  const Userfaultfd u = std::move(opened).value();
  if (!u.full_service()) GTEST_SKIP() << "no privilege for a full userfaultfd: both get an error";
  ASSERT_EQ(u.register_span(as_address(memory_.data()), block_bytes, track_missing | track_minor), Fault::ok);
  ASSERT_EQ(::madvise(memory_.data() + 2 * page_bytes, page_bytes, MADV_DONTNEED), 0);
  const Fd mem(::open("/proc/self/mem", O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(mem);
  char byte = 0;
  const auto at = static_cast<off_t>(as_address(memory_.data() + 2 * page_bytes));
  EXPECT_TRUE(::pread(mem.get(), &byte, 1, at) == -1 && errno == EIO);
  uffd_msg message{};
  EXPECT_EQ(u.read({&message, 1}), 0) << "nobody is asked for the page";
  std::thread reader([&] {
    iovec local{&byte, 1};
    iovec remote{memory_.data() + 2 * page_bytes, 1};
    EXPECT_EQ(::process_vm_readv(::getpid(), &local, 1, &remote, 1, 0), 1);
  });
  pollfd poll{u.fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&poll, 1, patience_ms), 1);
  ASSERT_EQ(u.read({&message, 1}), 1);
  std::uint64_t done = 0;
  EXPECT_EQ(u.map_present(as_address(memory_.data() + 2 * page_bytes), page_bytes, true, done), Fault::ok);
  reader.join();
  EXPECT_EQ(byte, 1);
  EXPECT_EQ(::pread(mem.get(), &byte, 1, at), 1);
}

}  // namespace
}  // namespace ferry::linux::test
