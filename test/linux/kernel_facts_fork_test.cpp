// Facts that forks rely on: private memory that another process fills. The numbers are those of docs/KERNEL.md.
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#include "kernel_harness.h"

namespace ferry::linux::test {
namespace {

constexpr std::size_t pages = 16;
constexpr int patience_ms = 60'000;

class ForkFacts : public ::testing::Test {
 protected:
  ForkFacts()
      : memory_(static_cast<char*>(
            ::mmap(nullptr, pages * page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {}
  ~ForkFacts() override { ::munmap(memory_, pages * page_bytes); }

  [[nodiscard]] std::uint64_t at(std::uint64_t page) const { return as_address(memory_) + page * page_bytes; }
  [[nodiscard]] volatile char& byte(std::uint64_t page) const { return memory_[page * page_bytes]; }

  /// In the child: watches the memory and hands the userfaultfd over.
  [[nodiscard]] bool watch(int socket) const {
    auto u = Userfaultfd::open({.prefer_full_service = false, .changes = true});
    if (!u.ok() || u.value().register_span(at(0), pages * page_bytes, track_missing) != Fault::ok) return false;
    const int fd = u.value().fd();
    return send_bytes(socket, wire::MessageType::fork_child, 1, {}, {&fd, 1}).ok();
  }
  /// Who serves it, in this process.
  static Userfaultfd take(int socket) {
    auto in = std::make_unique<Incoming>();
    EXPECT_EQ(receive_message(socket, *in, patience_ms), Receive::message);
    return std::move(Userfaultfd::adopt(std::move(in->fds[0]), Userfaultfd::Tells::changes).value());
  }
  static uffd_msg next(const Userfaultfd& u) {
    std::array<uffd_msg, 1> messages{};
    pollfd p{u.fd(), POLLIN, 0};
    while (u.read(messages) != 1) {
      if (::poll(&p, 1, patience_ms) != 1) {
        ADD_FAILURE() << "no message";
        break;
      }
    }
    return messages[0];
  }

  char* memory_;
  std::pair<Fd, Fd> sockets_ = std::move(make_socket_pair().value());
};

TEST_F(ForkFacts, K70_AnotherProcessFillsPrivateMemoryAndNoPageThatIsThere) {
  Child child([&] {
    if (!watch(sockets_.second.get())) return 1;
    return byte(2) == 'x' && byte(3) == 0 ? 0 : 2;
  });
  const Userfaultfd u = take(sockets_.first.get());
  EXPECT_EQ(next(u).event, UFFD_EVENT_PAGEFAULT);
  const std::string text(page_bytes, 'x');
  std::uint64_t done = 0;
  EXPECT_EQ(u.fill(at(2), text.data(), page_bytes, done), Fault::ok);
  EXPECT_EQ(done, page_bytes);
  EXPECT_EQ(next(u).arg.pagefault.address & ~(page_bytes - 1), at(3));
  EXPECT_EQ(u.fill(at(2), text.data(), page_bytes, done), Fault::exists);
  EXPECT_EQ(u.fill(at(3), nullptr, page_bytes, done), Fault::ok);
  EXPECT_EQ(child.join(), 0);
}

TEST_F(ForkFacts, K71_AForksChildIsNotWatched) {
  Child child([&] {
    if (!watch(sockets_.second.get())) return 1;
    const pid_t own = ::fork();
    if (own == 0) ::_exit(byte(5));
    int status = 0;
    return ::waitpid(own, &status, 0) == own && status == 0 ? 0 : 2;
  });
  const Userfaultfd u = take(sockets_.first.get());
  EXPECT_EQ(child.join(), 0) << "its missing pages read as zeros, and nobody is asked";
}

TEST_F(ForkFacts, K72_AdviceWaitsUntilItIsReadAndThePageIsMissingAgain) {
  Child child([&] {
    if (!watch(sockets_.second.get())) return 1;
    if (byte(1) != 'x' || ::madvise(memory_ + page_bytes, page_bytes, MADV_DONTNEED) != 0) return 2;
    return byte(1) == 0 ? 0 : 3;
  });
  const Userfaultfd u = take(sockets_.first.get());
  const std::string text(page_bytes, 'x');
  std::uint64_t done = 0;
  EXPECT_EQ(next(u).event, UFFD_EVENT_PAGEFAULT);
  EXPECT_EQ(u.fill(at(1), text.data(), page_bytes, done), Fault::ok);
  const uffd_msg removed = next(u);
  EXPECT_EQ(removed.event, UFFD_EVENT_REMOVE);
  EXPECT_EQ(removed.arg.remove.start, at(1));
  EXPECT_EQ(next(u).event, UFFD_EVENT_PAGEFAULT);
  EXPECT_EQ(u.fill(at(1), nullptr, page_bytes, done), Fault::ok);
  EXPECT_EQ(child.join(), 0);
}

TEST_F(ForkFacts, K74_AChangeIsUnderWayUntilItIsReadWhateverIsRegistered) {
  Child child([&] {
    if (!watch(sockets_.second.get())) return 1;
    return ::madvise(memory_ + page_bytes, page_bytes, MADV_DONTNEED) == 0 ? 0 : 2;
  });
  const Userfaultfd u = take(sockets_.first.get());
  pollfd p{u.fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&p, 1, patience_ms), 1);
  ASSERT_EQ(u.unregister_span(at(0), pages * page_bytes), Fault::ok);
  ASSERT_EQ(u.wake(at(0), pages * page_bytes), Fault::ok);
  std::uint64_t done = 0;
  EXPECT_EQ(u.fill(at(3), nullptr, page_bytes, done), Fault::again);
  EXPECT_EQ(next(u).event, UFFD_EVENT_REMOVE);
  EXPECT_EQ(child.join(), 0);
}

TEST_F(ForkFacts, K73_MemoryThatIsMovedStaysWatchedAndItsOldPlaceIsToldToBeUnmappedAfterwards) {
  void* const to = ::mmap(nullptr, page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  Child child([&] {
    if (!watch(sockets_.second.get())) return 1;
    void* moved = ::mremap(memory_, page_bytes, page_bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    if (moved != to) return 2;
    return *static_cast<volatile char*>(moved) == 'x' ? 0 : 3;
  });
  const Userfaultfd u = take(sockets_.first.get());
  const uffd_msg moved = next(u);
  EXPECT_EQ(moved.event, UFFD_EVENT_REMAP);
  EXPECT_EQ(moved.arg.remap.from, at(0));
  EXPECT_EQ(moved.arg.remap.to, as_address(to));
  const uffd_msg unmapped = next(u);
  EXPECT_EQ(unmapped.event, UFFD_EVENT_UNMAP);
  EXPECT_EQ(unmapped.arg.remove.start, at(0));
  EXPECT_EQ(next(u).arg.pagefault.address & ~(page_bytes - 1), as_address(to));
  const std::string text(page_bytes, 'x');
  std::uint64_t done = 0;
  EXPECT_EQ(u.fill(as_address(to), text.data(), page_bytes, done), Fault::ok);
  EXPECT_EQ(child.join(), 0);
  ::munmap(to, page_bytes);
}

}  // namespace
}  // namespace ferry::linux::test
