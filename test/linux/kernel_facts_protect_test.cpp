// Facts about write-protection of files by userfaultfd, and about calling what lies in them. The numbers are those of
// docs/KERNEL.md.
#include <thread>

#include "kernel_harness.h"

namespace ferry::linux::test {
namespace {

constexpr unsigned steered = track_missing | track_minor;
constexpr unsigned guarded = steered | track_writes;

class ProtectFacts : public ::testing::Test {
 protected:
  void SetUp() override {
    file_ = std::move(make_memory_file("ferry-test", 2 * block_bytes).value());
    memory_ = std::move(Mapping::map(file_.get(), 0, 2 * block_bytes).value());
    mirror_ = std::move(Mapping::map(file_.get(), 0, 2 * block_bytes).value());
    auto u = Userfaultfd::open({.sigbus = false, .prefer_full_service = false, .protect = true});
    ASSERT_TRUE(u.ok());
    u_ = std::move(u).value();
    if (u_.register_span(at(), page_bytes, guarded) != Fault::ok) {
      GTEST_SKIP() << "write-protection of files needs Linux 5.19";
    }
    ASSERT_EQ(u_.unregister_span(at(), page_bytes), Fault::ok);
  }
  [[nodiscard]] std::uint64_t at(std::uint64_t page = 0) const {
    return as_address(memory_.data()) + page * page_bytes;
  }
  [[nodiscard]] std::atomic<std::uint64_t>& word(std::uint64_t page) const {
    return *reinterpret_cast<std::atomic<std::uint64_t>*>(memory_.data() + page * page_bytes);
  }
  [[nodiscard]] std::atomic<std::uint64_t>& behind(std::uint64_t page) const {
    return *reinterpret_cast<std::atomic<std::uint64_t>*>(mirror_.data() + page * page_bytes);
  }
  /// True if nobody is told of anything for a while that is long for a fault.
  [[nodiscard]] bool quiet() const {
    uffd_msg message;
    return !next_fault(u_, message, 50);
  }
  /// A thread writes `value` to the page; the message that it raises.
  std::uint64_t flags_of_write(std::uint64_t page, std::uint64_t value, const std::function<void()>& serve) {
    std::thread writer([&] { word(page).store(value); });
    uffd_msg message{};
    const bool told = next_fault(u_, message);
    EXPECT_TRUE(told);
    if (told) {
      EXPECT_EQ(message.arg.pagefault.address & ~(page_bytes - 1), at(page));
    }
    serve();
    writer.join();
    return message.arg.pagefault.flags;
  }

  Fd file_;
  Mapping memory_;
  Mapping mirror_;
  Userfaultfd u_;
};

TEST_F(ProtectFacts, K40_WritesAreTrackedInASpanThatIsSteeredAlreadyAndEntriesStay) {
  word(0).store(7);
  ASSERT_EQ(u_.register_span(at(), block_bytes, steered), Fault::ok);
  ASSERT_EQ(u_.register_span(at(), block_bytes, guarded), Fault::ok);
  EXPECT_EQ(word(0).load(), 7U);
  word(0).store(8);
  EXPECT_TRUE(quiet());
  ASSERT_EQ(u_.protect(at(), page_bytes), Fault::ok);
  EXPECT_EQ(word(0).load(), 8U);
  EXPECT_TRUE(quiet());
  // Asked for less than it has, it keeps what it has.
  ASSERT_EQ(u_.register_span(at(), block_bytes, steered), Fault::ok);
  const std::uint64_t flags = flags_of_write(0, 9, [&] { EXPECT_EQ(u_.allow_writes(at(), page_bytes), Fault::ok); });
  EXPECT_NE(flags & UFFD_PAGEFAULT_FLAG_WP, 0U);
  EXPECT_NE(flags & UFFD_PAGEFAULT_FLAG_WRITE, 0U);
  EXPECT_EQ(behind(0).load(), 9U);
}

TEST_F(ProtectFacts, K41_ContinueMapsForReadingAlone) {
  if (!can_map_for_reading()) GTEST_SKIP() << "UFFDIO_CONTINUE_MODE_WP needs Linux 6.4";
  for (unsigned i = 0; i < 8; ++i) behind(i).store(i);
  ASSERT_EQ(u_.register_span(at(), block_bytes, guarded), Fault::ok);
  std::uint64_t done = 0;
  ASSERT_EQ(u_.map_present(at(), 8 * page_bytes, true, done, MapRights::read), Fault::ok);
  for (unsigned i = 0; i < 8; ++i) EXPECT_EQ(word(i).load(), i);
  EXPECT_TRUE(quiet());
  const std::uint64_t flags = flags_of_write(3, 42, [&] {
    EXPECT_EQ(behind(3).load(), 3U);
    EXPECT_EQ(u_.allow_writes(at(3), page_bytes), Fault::ok);
  });
  EXPECT_NE(flags & UFFD_PAGEFAULT_FLAG_WP, 0U);
  EXPECT_EQ(behind(3).load(), 42U);
}

TEST_F(ProtectFacts, K42_APageThatIsProtectedBeforeItIsMappedRaisesMinorAndIsGivenForWriting) {
  behind(0).store(5);
  ASSERT_EQ(u_.register_span(at(), block_bytes, guarded), Fault::ok);
  ASSERT_EQ(u_.protect(at(), 2 * page_bytes), Fault::ok);  // page 1 is a hole
  const std::uint64_t flags = flags_of_write(0, 6, [&] {
    std::uint64_t done = 0;
    EXPECT_EQ(u_.map_present(at(), page_bytes, true, done), Fault::ok);
  });
  EXPECT_NE(flags & UFFD_PAGEFAULT_FLAG_MINOR, 0U);
  EXPECT_EQ(behind(0).load(), 6U);
  // Taken from the process, a protected page leaves the same mark behind.
  ASSERT_EQ(u_.protect(at(), page_bytes), Fault::ok);
  ASSERT_EQ(::madvise(memory_.data(), page_bytes, MADV_DONTNEED), 0);
  const std::uint64_t again = flags_of_write(0, 7, [&] {
    std::uint64_t done = 0;
    EXPECT_EQ(u_.map_present(at(), page_bytes, true, done), Fault::ok);
  });
  EXPECT_NE(again & UFFD_PAGEFAULT_FLAG_MINOR, 0U);
  const std::uint64_t missing = flags_of_write(1, 8, [&] {
    behind(1).store(1);
    std::uint64_t done = 0;
    EXPECT_EQ(u_.map_present(at(1), page_bytes, true, done), Fault::ok);
  });
  EXPECT_EQ(missing & (UFFD_PAGEFAULT_FLAG_MINOR | UFFD_PAGEFAULT_FLAG_WP), 0U);
  EXPECT_EQ(behind(1).load(), 8U);
}

TEST_F(ProtectFacts, K43_ProtectingAHugeEntryTakesItAway) {
  std::memset(memory_.data(), 0x5a, block_bytes);
  if (!make_huge(mirror_.data(), block_bytes)) GTEST_SKIP() << "no huge page to be had";
  ASSERT_NE(::mmap(memory_.data(), block_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE,
                   file_.get(), 0),
            MAP_FAILED);
  if (huge_mapped_at(at()) == 0) GTEST_SKIP() << "not mapped by a huge entry";
  ASSERT_EQ(u_.register_span(at(), block_bytes, guarded), Fault::ok);
  ASSERT_EQ(u_.protect(at(), block_bytes), Fault::ok);
  std::atomic<std::uint64_t> seen{0};
  std::thread reader([&] { seen.store(word(9).load()); });
  uffd_msg message{};
  ASSERT_TRUE(next_fault(u_, message));
  EXPECT_NE(message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR, 0U);
  EXPECT_EQ(u_.allow_writes(at(), block_bytes), Fault::ok);
  std::uint64_t done = 0;
  ASSERT_TRUE(next_fault(u_, message)) << "woken, it tries again, and is told of again";
  EXPECT_EQ(u_.map_present(at(), block_bytes, true, done), Fault::ok);
  reader.join();
  EXPECT_EQ(seen.load(), 0x5a5a'5a5a'5a5a'5a5aU);
}

TEST_F(ProtectFacts, K44_NoWriteComesThroughOnceProtectHasReturned) {
  ASSERT_EQ(u_.register_span(at(), block_bytes, guarded), Fault::ok);
  behind(0).store(0);
  std::uint64_t done = 0;
  ASSERT_EQ(u_.map_present(at(), page_bytes, true, done), Fault::ok);
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    while (!stop.load(std::memory_order_relaxed)) word(0).fetch_add(1);
  });
  std::uint64_t last = 0;
  for (unsigned i = 0; i < 200; ++i) {
    while (behind(0).load() == last) std::this_thread::yield();
    ASSERT_EQ(u_.protect(at(), page_bytes), Fault::ok);
    last = behind(0).load();
    uffd_msg message;
    ASSERT_TRUE(next_fault(u_, message));
    ASSERT_EQ(behind(0).load(), last);
    ASSERT_EQ(u_.allow_writes(at(), page_bytes), Fault::ok);
  }
  stop.store(true);
  writer.join();
}

TEST_F(ProtectFacts, K45_UnregisteringTakesProtectionAlong) {
  word(0).store(1);
  ASSERT_EQ(u_.register_span(at(), block_bytes, guarded), Fault::ok);
  ASSERT_EQ(u_.protect(at(), 2 * page_bytes), Fault::ok);
  ASSERT_EQ(u_.unregister_span(at(), block_bytes), Fault::ok);
  word(0).store(2);
  word(1).store(3);
  EXPECT_EQ(behind(0).load() + behind(1).load(), 5U);
}

TEST_F(ProtectFacts, K46_PoisonGoesWhereProtectionWasTakenBack) {
  ASSERT_EQ(u_.register_span(at(), block_bytes, guarded), Fault::ok);
  if (u_.poison(at(5), page_bytes) == Fault::other) GTEST_SKIP() << "UFFDIO_POISON needs Linux 6.6";
  behind(0).store(1);
  ASSERT_EQ(u_.protect(at(), page_bytes), Fault::ok);
  ASSERT_EQ(u_.allow_writes(at(), page_bytes), Fault::ok);
  ASSERT_EQ(u_.poison(at(), page_bytes), Fault::ok);
  EXPECT_EQ(signal_of([&] { word(0).load(); }), SIGBUS);
}

TEST_F(ProtectFacts, K47_CallingIntoAMemoryFileNeedsTheRight) {
#if defined(__x86_64__)
  const unsigned char code[] = {0xb8, 0x2a, 0x00, 0x00, 0x00, 0xc3};  // mov eax, 42; ret
#elif defined(__aarch64__)
  const unsigned char code[] = {0x40, 0x05, 0x80, 0x52, 0xc0, 0x03, 0x5f, 0xd6};  // mov w0, #42; ret
#endif
  std::memcpy(memory_.data(), code, sizeof code);
  __builtin___clear_cache(reinterpret_cast<char*>(memory_.data()), reinterpret_cast<char*>(memory_.data()) + 64);
  const auto call = reinterpret_cast<int (*)()>(memory_.data());
  volatile int got = 0;
  EXPECT_EQ(signal_of([&] { got = call(); }), SIGSEGV);
  EXPECT_EQ(got, 0);
  void* const p = ::mmap(memory_.data(), page_bytes, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, file_.get(), 0);
  if (p == MAP_FAILED) GTEST_SKIP() << "memory files may not be executable here: " << std::strerror(errno);
  EXPECT_EQ(signal_of([&] { got = call(); }), 0);
  EXPECT_EQ(got, 42);
}

}  // namespace
}  // namespace ferry::linux::test
