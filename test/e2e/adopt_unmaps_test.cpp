// Adopted memory while a thread unmaps other memory that was adopted, and is hardly ever on a processor: the kernel
// refuses what is asked of the descriptor that watches all of it (EAGAIN) until that thread has run again.
#include <fcntl.h>
#include <ferry/svm.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <ferry/ferry.hpp>
#include <ferry/svm.hpp>
#include <thread>

namespace ferry::test {
namespace {

constexpr std::size_t page = 4096;
constexpr int rounds = 4;
constexpr std::size_t unmapped_pages = rounds;

/// One processor is busy with one thread, and another that unmaps page after page has what that leaves of it.
class SlowUnmaps {
 public:
  SlowUnmaps() {
    at_ = static_cast<char*>(
        ::mmap(nullptr, unmapped_pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ferry_error e{};
    ready = at_ != MAP_FAILED && ferry_adopt(at_, unmapped_pages * page, &e) == FERRY_OK;
    if (!ready) return;
    hog_ = std::thread([this] {
      stay_here();
      while (!stop_.load(std::memory_order_relaxed)) {}
    });
    unmapper_ = std::thread([this] {
      stay_here();
      sched_param none{};
      ::sched_setscheduler(0, SCHED_IDLE, &none);
      // By number, as the C library does it: nobody is asked.
      for (std::size_t done = 0;; ++done) {
        for (std::size_t now = wanted_; now == done; now = wanted_) wanted_.wait(now);
        if (stop_) return;
        ::syscall(SYS_munmap, at_ + done * page, page);
      }
    });
  }
  ~SlowUnmaps() {
    stop_ = true;
    ++wanted_;
    wanted_.notify_one();
    if (hog_.joinable()) hog_.join();
    if (unmapper_.joinable()) unmapper_.join();
    ::munmap(at_, unmapped_pages * page);
  }
  SlowUnmaps(const SlowUnmaps&) = delete;
  SlowUnmaps& operator=(const SlowUnmaps&) = delete;

  /// Returns when a page has gone and the call that unmaps it has not returned, unless the thread is quick.
  void begin_one() {
    char* const at = at_ + wanted_ * page;
    ++wanted_;
    wanted_.notify_one();
    unsigned char there = 0;
    while (::mincore(at, page, &there) == 0) std::this_thread::yield();
  }

  bool ready = false;

 private:
  static void stay_here() {
    cpu_set_t allowed;
    ::sched_getaffinity(0, sizeof allowed, &allowed);
    int last = 0;
    for (int c = 0; c < CPU_SETSIZE; ++c) {
      if (CPU_ISSET(c, &allowed)) last = c;
    }
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(last, &one);
    ::sched_setaffinity(0, sizeof one, &one);
  }

  char* at_ = nullptr;
  std::atomic<bool> stop_{false};
  std::atomic<std::size_t> wanted_{0};
  std::thread hog_;
  std::thread unmapper_;
};

TEST(AdoptionWhileOthersUnmap, WritesOfWhatIsReadMostlyGoOn) {
  constexpr std::size_t bytes = 16 * page;
  auto* const p =
      static_cast<std::uint64_t*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(static_cast<void*>(p), MAP_FAILED);
  ferry_error e{};
  ASSERT_EQ(ferry_adopt(p, bytes, &e), FERRY_OK) << e.text;
  ferry::attributes().set(ferry::svm_flag::read_mostly).apply(p, bytes);
  {
    SlowUnmaps unmaps;
    ASSERT_TRUE(unmaps.ready);
    auto* const seen = static_cast<std::uint64_t*>(ferry::alloc(page));
    for (int round = 1; round <= rounds; ++round) {
      const auto value = static_cast<std::uint64_t>(round);
      if (round > 1) unmaps.begin_one();
      for (std::size_t i = 0; i < bytes / 8; i += page / 8) p[i] = value;
      ferry::parallel_for(bytes / page, [p, seen](std::size_t i) { seen[i] = p[i * (page / 8)]; });
      for (std::size_t i = 0; i < bytes / page; ++i) ASSERT_EQ(seen[i], value) << "page " << i;
    }
    ferry::free(seen);
  }
  ::munmap(p, bytes);
}

bool can_poison() {
  const auto fd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
  uffdio_api api{};
  api.api = UFFD_API;
  const bool can = fd >= 0 && ::ioctl(fd, UFFDIO_API, &api) == 0 && (api.features & (1U << 14)) != 0;
  if (fd >= 0) ::close(fd);
  return can;
}

sigjmp_buf at_touch;

TEST(AdoptionWhileOthersUnmap, ATouchOfWhatVramKeepsIsRefused) {
  if (!can_poison()) GTEST_SKIP() << "before Linux 6.6 the whole program ends: UFFDIO_POISON is missing";
  constexpr std::size_t bytes = page;
  auto* const p =
      static_cast<std::uint64_t*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(static_cast<void*>(p), MAP_FAILED);
  ferry_error e{};
  ASSERT_EQ(ferry_adopt(p, bytes, &e), FERRY_OK) << e.text;
  struct sigaction jump {};
  jump.sa_handler = [](int) { ::siglongjmp(at_touch, 1); };
  struct sigaction before {};
  ::sigaction(SIGBUS, &jump, &before);
  {
    SlowUnmaps unmaps;
    ASSERT_TRUE(unmaps.ready);
    for (int round = 1; round <= rounds; ++round) {
      ASSERT_EQ(ferry_pin(p, bytes, 0, &e), FERRY_OK) << e.text;
      volatile bool refused = true;
      unmaps.begin_one();
      if (::sigsetjmp(at_touch, 1) == 0) {
        *static_cast<volatile std::uint64_t*>(p) = 1;
        refused = false;
      }
      EXPECT_TRUE(refused) << "round " << round;
      ASSERT_EQ(ferry_unpin(p, bytes, &e), FERRY_OK) << e.text;
      *static_cast<volatile std::uint64_t*>(p) = static_cast<std::uint64_t>(round);
    }
  }
  ::sigaction(SIGBUS, &before, nullptr);
  ::munmap(p, bytes);
}

}  // namespace
}  // namespace ferry::test
