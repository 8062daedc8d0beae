// Facts about userfaultfd that the manager relies on. The numbers are those of docs/KERNEL.md.
#include <fcntl.h>

#include <thread>

#include "kernel_harness.h"

namespace ferry::linux::test {
namespace {

constexpr unsigned steered = track_missing | track_minor;

class UserfaultFacts : public ::testing::Test {
 protected:
  void SetUp() override {
    file_ = std::move(make_memory_file("ferry-test", 4 * block_bytes).value());
    memory_ = std::move(Mapping::map(file_.get(), 0, 4 * block_bytes).value());
    mirror_ = std::move(Mapping::map(file_.get(), 0, 4 * block_bytes).value());
    board_ = &make_board();
  }
  void TearDown() override { drop_board(*board_); }

  [[nodiscard]] std::uint64_t at(std::uint64_t page = 0) const {
    return as_address(memory_.data()) + page * page_bytes;
  }
  [[nodiscard]] volatile std::uint64_t& word(std::uint64_t page) const {
    return *reinterpret_cast<volatile std::uint64_t*>(memory_.data() + page * page_bytes);
  }
  /// What the manager sees: the same file, mapped elsewhere.
  [[nodiscard]] std::uint64_t& behind(std::uint64_t page) const {
    return *reinterpret_cast<std::uint64_t*>(mirror_.data() + page * page_bytes);
  }
  void zap(std::uint64_t page, std::uint64_t count) const {
    ASSERT_EQ(::madvise(memory_.data() + page * page_bytes, count * page_bytes, MADV_DONTNEED), 0);
  }
  static Userfaultfd open(bool sigbus = false) {
    auto u = Userfaultfd::open({.sigbus = sigbus, .prefer_full_service = false});
    EXPECT_TRUE(u.ok());
    return std::move(u).value();
  }

  Fd file_;
  Mapping memory_;
  Mapping mirror_;
  Board* board_ = nullptr;
};

TEST_F(UserfaultFacts, K20_AnotherProcessServesFaultsByContinue) {
  auto pair = std::move(make_socket_pair().value());
  behind(3) = 42;
  Child child([&] {
    const Userfaultfd u = open();
    if (u.register_span(at(), block_bytes, steered) != Fault::ok) return 1;
    const int fd = u.fd();
    if (!send_bytes(pair.second.get(), wire::MessageType::device_hello, 1, {}, {&fd, 1}).ok()) return 2;
    if (word(3) != 42) return 3;
    word(3) = 43;
    return 0;
  });
  auto in = std::make_unique<Incoming>();
  ASSERT_EQ(receive_message(pair.first.get(), *in, patience_ms), Receive::message);
  ASSERT_EQ(in->fd_count, 1U);
  auto u = Userfaultfd::adopt(std::move(in->fds[0]), Userfaultfd::Tells::touches);
  ASSERT_TRUE(u.ok());
  uffd_msg message;
  ASSERT_TRUE(next_fault(u.value(), message));
  EXPECT_EQ(message.arg.pagefault.address, at(3));
  EXPECT_NE(message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR, 0U);
  std::uint64_t done = 0;
  // Mapped writable by the first access already, whatever it was.
  EXPECT_EQ(u.value().map_present(at(3), page_bytes, true, done), Fault::ok);
  EXPECT_EQ(child.join(), 0);
  EXPECT_EQ(behind(3), 43U);
  // K20: the process is gone.
  EXPECT_EQ(u.value().map_present(at(3), page_bytes, true, done), Fault::process_gone);
}

TEST_F(UserfaultFacts, K21_ZappedPageRaisesMinorMissingPageRaisesMissing) {
  const Userfaultfd u = open();
  word(0) = 7;
  ASSERT_EQ(u.register_span(at(), block_bytes, steered), Fault::ok);
  EXPECT_EQ(word(0), 7U) << "registering leaves entries alone";
  zap(0, 1);
  std::thread reader([&] { board_->value.store(word(0) + word(1)); });
  uffd_msg message;
  ASSERT_TRUE(next_fault(u, message));
  EXPECT_EQ(message.arg.pagefault.address, at(0));
  EXPECT_NE(message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR, 0U);
  std::uint64_t done = 0;
  ASSERT_EQ(u.map_present(at(0), page_bytes, true, done), Fault::ok);
  ASSERT_TRUE(next_fault(u, message));
  EXPECT_EQ(message.arg.pagefault.address, at(1));
  EXPECT_EQ(message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR, 0U);
  EXPECT_EQ(u.map_present(at(1), page_bytes, true, done), Fault::hole);  // K21
  behind(1) = 5;
  ASSERT_EQ(u.map_present(at(1), page_bytes, true, done), Fault::ok);
  reader.join();
  EXPECT_EQ(board_->value.load(), 12U);
}

TEST_F(UserfaultFacts, K22_MappingOverDropsTheRegistrationAndWakeStillWakes) {
  const Userfaultfd u = open();
  behind(0) = 9;
  ASSERT_EQ(u.register_span(at(), block_bytes, steered), Fault::ok);
  std::thread reader([&] { board_->value.store(word(0)); });
  uffd_msg message;
  ASSERT_TRUE(next_fault(u, message));
  ASSERT_NE(::mmap(memory_.data(), block_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE,
                   file_.get(), 0),
            MAP_FAILED);
  EXPECT_EQ(u.wake(at(), block_bytes), Fault::ok);
  reader.join();
  EXPECT_EQ(board_->value.load(), 9U);
  std::uint64_t done = 0;
  EXPECT_EQ(u.map_present(at(0), page_bytes, true, done), Fault::range_gone);
}

TEST_F(UserfaultFacts, K23_ContinueOfAMappedPageSaysExists) {
  const Userfaultfd u = open();
  for (unsigned i = 0; i < 8; ++i) behind(i) = i;
  ASSERT_EQ(u.register_span(at(), block_bytes, steered), Fault::ok);
  std::uint64_t done = 0;
  ASSERT_EQ(u.map_present(at(2), page_bytes, true, done), Fault::ok);
  EXPECT_EQ(u.map_present(at(0), 8 * page_bytes, true, done), Fault::exists);
  EXPECT_EQ(done, 2 * page_bytes) << "pages before it were mapped, and are counted";
  EXPECT_EQ(u.map_present(at(3), 5 * page_bytes, true, done), Fault::ok);
  EXPECT_EQ(word(1) + word(7), 8U);
}

TEST_F(UserfaultFacts, K25_ContinueDoesNotCrossTheEndOfAMapping) {
  const Userfaultfd u = open();
  for (unsigned i = 0; i < 1024; ++i) behind(i) = i;
  ASSERT_EQ(u.register_span(at(), 2 * block_bytes, steered), Fault::ok);
  ASSERT_EQ(::munmap(memory_.data() + block_bytes, page_bytes), 0);
  std::uint64_t done = 0;
  EXPECT_EQ(u.map_present(at(510), 2 * page_bytes, true, done), Fault::ok);
  EXPECT_EQ(u.map_present(at(508), 8 * page_bytes, true, done), Fault::range_gone);
  EXPECT_EQ(u.map_present(at(512), page_bytes, true, done), Fault::range_gone);
}

TEST_F(UserfaultFacts, K26_RegisterPassesOverGapsButNotOverOtherMemory) {
  const Userfaultfd u = open();
  ASSERT_EQ(::munmap(memory_.data() + page_bytes, page_bytes), 0);
  EXPECT_EQ(u.register_span(at(), block_bytes, steered), Fault::ok);
  void* none = ::mmap(memory_.data() + page_bytes, page_bytes, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  ASSERT_NE(none, MAP_FAILED);
  EXPECT_EQ(u.register_span(at(), block_bytes, steered), Fault::range_gone);
}

TEST_F(UserfaultFacts, K28_SigbusModeSignalsAndTheAccessRetries) {
  const Userfaultfd u = open(true);
  behind(5) = 11;
  ASSERT_EQ(u.register_span(at(), block_bytes, steered), Fault::ok);
  EXPECT_EQ(signal_of([&] { board_->value.store(word(5)); }), SIGBUS);
  uffd_msg message;
  EXPECT_EQ(u.read({&message, 1}), 0) << "no message in this mode";
  std::uint64_t done = 0;
  ASSERT_EQ(u.map_present(at(5), page_bytes, true, done), Fault::ok);
  EXPECT_EQ(signal_of([&] { board_->value.store(word(5)); }), 0);
  EXPECT_EQ(board_->value.load(), 11U);
  // A zap brings the next fault: how a device's armed page is taken back.
  zap(5, 1);
  EXPECT_EQ(signal_of([&] { board_->value.store(word(5)); }), SIGBUS);
}

TEST_F(UserfaultFacts, K29_ClosingTheLastDescriptorLetsGoOfEverything) {
  behind(0) = 3;
  {
    const Userfaultfd u = open(true);
    ASSERT_EQ(u.register_span(at(), block_bytes, steered), Fault::ok);
    EXPECT_EQ(signal_of([&] { board_->value.store(word(1)); }), SIGBUS);
  }
  EXPECT_EQ(signal_of([&] { board_->value.store(word(1)); }), 0);
  EXPECT_EQ(board_->value.load(), 0U) << "a missing page reads as zeros, silently";
}

TEST_F(UserfaultFacts, K30_CollapseNeedsAHoleFreeBlockWhereMissingIsWatched) {
  const Userfaultfd u = open(true);
  behind(0) = 3;
  ASSERT_EQ(u.register_span(at(), block_bytes, steered), Fault::ok);
  if (make_huge(mirror_.data(), block_bytes)) GTEST_SKIP() << "a kernel older than Linux 6.4 fills the holes";
  ASSERT_TRUE(populate(mirror_.data(), block_bytes).ok());
  if (!make_huge(mirror_.data(), block_bytes)) GTEST_SKIP() << "MADV_COLLAPSE of shared memory is not to be had here";
  ASSERT_TRUE(populate(mirror_.data(), block_bytes).ok());
  EXPECT_EQ(behind(0), 3U);
  EXPECT_EQ(huge_mapped_at(as_address(mirror_.data())), block_bytes);
}

TEST_F(UserfaultFacts, K31_CollapseTakesEntriesOfWatchedMappingsAway) {
  const Userfaultfd u = open(true);
  ASSERT_TRUE(populate(mirror_.data(), block_bytes).ok());
  ASSERT_EQ(u.register_span(at(), block_bytes, steered), Fault::ok);
  std::uint64_t done = 0;
  ASSERT_EQ(u.map_present(at(), block_bytes, true, done), Fault::ok);
  EXPECT_EQ(signal_of([&] { board_->value.store(word(4)); }), 0);
  if (!make_huge(mirror_.data(), block_bytes)) GTEST_SKIP() << "MADV_COLLAPSE of shared memory is not to be had here";
  EXPECT_EQ(signal_of([&] { board_->value.store(word(4)); }), SIGBUS)
      << "so a fault on a page that was given already is nothing odd: it is given again";
}

TEST_F(UserfaultFacts, K32_ZappingPartOfAHugeEntryZapsItsNeighboursToo) {
  behind(0) = 1;
  if (!make_huge(mirror_.data(), block_bytes)) GTEST_SKIP() << "MADV_COLLAPSE of shared memory is not to be had here";
  ASSERT_TRUE(populate(memory_.data(), block_bytes).ok());
  ASSERT_EQ(huge_mapped_at(at()), block_bytes);
  const Userfaultfd u = open(true);
  ASSERT_EQ(u.register_span(at(), block_bytes, steered), Fault::ok);
  EXPECT_EQ(signal_of([&] { board_->value.store(word(100)); }), 0);
  zap(0, 16);
  EXPECT_EQ(signal_of([&] { board_->value.store(word(100)); }), SIGBUS);
}

TEST_F(UserfaultFacts, K33_ReadCanBeKeptFromBlockingWhateverThePeerDoes) {
  const Userfaultfd u = open();
  ASSERT_EQ(::fcntl(u.fd(), F_SETFL, 0), 0);  // O_NONBLOCK cleared
  uffd_msg message;
  EXPECT_EQ(u.read({&message, 1}), 0);
}

TEST_F(UserfaultFacts, K34_PollOfABlockingDescriptorFails) {
  const Userfaultfd u = open();
  pollfd p{u.fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&p, 1, 0), 0);
  ASSERT_EQ(::fcntl(u.fd(), F_SETFL, 0), 0);
  ASSERT_EQ(::poll(&p, 1, 0), 1);
  EXPECT_NE(p.revents & POLLERR, 0);
}

TEST_F(UserfaultFacts, K35_ProtectionNoneKeepsTheRegistration) {
  const Userfaultfd u = open(true);
  behind(0) = 1;
  ASSERT_EQ(::mmap(memory_.data(), block_bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, file_.get(), 0), memory_.data());
  ASSERT_EQ(u.register_span(at(), block_bytes, steered), Fault::ok);
  EXPECT_EQ(signal_of([&] { board_->value.store(word(0)); }), SIGSEGV);
  ASSERT_EQ(::mprotect(memory_.data(), block_bytes, PROT_READ | PROT_WRITE), 0);
  EXPECT_EQ(signal_of([&] { board_->value.store(word(0)); }), SIGBUS);
}

TEST_F(UserfaultFacts, K36_SystemCallOnAMissingPageFailsInUserModeOnly) {
  const Userfaultfd u = open();
  ASSERT_EQ(u.register_span(at(), block_bytes, steered), Fault::ok);
  auto pair = std::move(make_socket_pair().value());
  EXPECT_EQ(::write(pair.first.get(), memory_.data(), 8), -1);
  EXPECT_EQ(errno, EFAULT);
}

TEST_F(UserfaultFacts, K39_AnotherProcessStopsWritesAndReadsGoOn) {
  auto pair = std::move(make_socket_pair().value());
  Child child([&] {
    auto u = Userfaultfd::open({.sigbus = false, .prefer_full_service = false, .protect = true});
    if (!u.ok()) return 1;
    word(3) = 42;
    if (u.value().register_span(at(), block_bytes, steered | track_writes) != Fault::ok) return 2;
    const int fd = u.value().fd();
    if (!send_bytes(pair.second.get(), wire::MessageType::device_hello, 1, {}, {&fd, 1}).ok()) return 3;
    auto go = std::make_unique<Incoming>();
    if (receive_message(pair.second.get(), *go, patience_ms) != Receive::message) return 4;
    if (word(3) != 42) return 5;
    word(3) = 43;
    return word(3) == 43 ? 0 : 6;
  });
  auto in = std::make_unique<Incoming>();
  ASSERT_EQ(receive_message(pair.first.get(), *in, patience_ms), Receive::message);
  ASSERT_EQ(in->fd_count, 1U);
  auto u = Userfaultfd::adopt(std::move(in->fds[0]), Userfaultfd::Tells::touches);
  ASSERT_TRUE(u.ok());
  ASSERT_EQ(u.value().protect(at(), block_bytes), Fault::ok);
  ASSERT_TRUE(send_text(pair.first.get(), wire::MessageType::stats, 1).ok());
  uffd_msg message;
  ASSERT_TRUE(next_fault(u.value(), message));
  EXPECT_EQ(message.arg.pagefault.address, at(3));
  EXPECT_NE(message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP, 0U);
  EXPECT_EQ(behind(3), 42U);
  EXPECT_EQ(u.value().unregister_span(at(), block_bytes), Fault::ok);
  u.value().wake(at(), block_bytes);
  EXPECT_EQ(child.join(), 0);
  EXPECT_EQ(behind(3), 43U);
}

TEST_F(UserfaultFacts, K37_AnotherProcessPoisonsAPageAndItsWaiterGetsSigbus) {
  auto pair = std::move(make_socket_pair().value());
  behind(3) = 42;
  Child child([&] {
    const Userfaultfd u = open();
    if (u.register_span(at(), block_bytes, steered) != Fault::ok) return 1;
    const int fd = u.fd();
    if (!send_bytes(pair.second.get(), wire::MessageType::device_hello, 1, {}, {&fd, 1}).ok()) return 2;
    if (signal_of([&] { board_->value.store(word(3)); }) != SIGBUS) return 3;
    // And whoever comes later.
    return signal_of([&] { board_->value.store(word(3)); }) == SIGBUS ? 0 : 4;
  });
  auto in = std::make_unique<Incoming>();
  ASSERT_EQ(receive_message(pair.first.get(), *in, patience_ms), Receive::message);
  auto u = Userfaultfd::adopt(std::move(in->fds[0]), Userfaultfd::Tells::touches);
  ASSERT_TRUE(u.ok());
  uffd_msg message;
  ASSERT_TRUE(next_fault(u.value(), message));
  const Fault poisoned = u.value().poison(at(3), page_bytes);
  if (poisoned == Fault::other) GTEST_SKIP() << "UFFDIO_POISON is of Linux 6.6";
  ASSERT_EQ(poisoned, Fault::ok);
  EXPECT_EQ(child.join(), 0);
  EXPECT_EQ(behind(3), 42U) << "the file keeps its page";
}

}  // namespace
}  // namespace ferry::linux::test
