// Facts about descriptors that come from others. The numbers are those of docs/KERNEL.md.
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>

#include "kernel_harness.h"
#include "lingerer.h"
#include "linux/process.h"

namespace ferry::linux::test {
namespace {

constexpr int patience_ms = 60'000;

/// Closes on a thread of its own, and waits until that sleeps in the kernel. False: it has closed.
class Closing {
 public:
  explicit Closing(Fd fd)
      : thread_([this, held = std::make_shared<Fd>(std::move(fd))] {
          number_.store(static_cast<int>(::syscall(SYS_gettid)));
          held->reset();
          closed_.store(true);
        }) {}
  ~Closing() { thread_.join(); }
  Closing(const Closing&) = delete;
  Closing& operator=(const Closing&) = delete;
  [[nodiscard]] bool sleeps() const {
    const auto self = Process::open(::getpid());
    for (;;) {
      for (const Process::Thread& t : self.value().threads()) {
        if (t.number == number_.load() && t.state == 'S') return !closed_.load();
      }
      if (closed_.load()) return false;
    }
  }

 private:
  std::atomic<int> number_{0};
  std::atomic<bool> closed_{false};
  std::thread thread_;
};

TEST(SentFacts, K66_TheLastCloseOfASocketMayWaitForItsReader) {
  Lingerer socket;
  const Closing closing(std::move(socket.closing));
  EXPECT_TRUE(closing.sleeps());
  socket.reader.reset();
}

TEST(SentFacts, K67_SoDoesThatOfASocketThatHoldsOneInItsQueue) {
  Lingerer socket;
  auto pair = std::move(make_socket_pair().value());
  const int fd = socket.closing.get();
  ASSERT_TRUE(send_bytes(pair.first.get(), wire::MessageType::hello, 1, {}, {&fd, 1}).ok());
  socket.closing.reset();
  const Closing closing(std::move(pair.second));
  EXPECT_TRUE(closing.sleeps());
  socket.reader.reset();
}

TEST(SentFacts, K68_WhatAUserfaultfdRaisesIsChosenOnce) {
  const auto open = [] {
    return Fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
  };
  Fd fresh = open();
  ASSERT_TRUE(fresh) << std::strerror(errno);
  EXPECT_EQ(Userfaultfd::adopt(std::move(fresh), Userfaultfd::Tells::changes).status().code, Code::bad_message);
  EXPECT_TRUE(fresh) << "what is refused stays its owner's";
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_EVENT_UNMAP;
  EXPECT_NE(::ioctl(fresh.get(), UFFDIO_API, &api), 0) << "looking at it has ended the choice";
  EXPECT_EQ(errno, EINVAL);

  using Tells = Userfaultfd::Tells;
  const struct {
    std::uint64_t features;
    bool touches;
    bool unmaps;
    bool changes;
  } rows[] = {{0, true, true, true},
              {UFFD_FEATURE_EVENT_UNMAP, false, true, true},
              {UFFD_FEATURE_EVENT_REMAP, false, false, true},
              {UFFD_FEATURE_EVENT_REMOVE, false, false, true}};
  for (const auto& row : rows) {
    const auto takes = [&](Tells tells) {
      Fd fd = open();
      api = {};
      api.api = UFFD_API;
      api.features = row.features;
      EXPECT_EQ(::ioctl(fd.get(), UFFDIO_API, &api), 0);
      return Userfaultfd::adopt(std::move(fd), tells).ok();
    };
    EXPECT_EQ(takes(Tells::touches), row.touches) << row.features;
    EXPECT_EQ(takes(Tells::unmaps), row.unmaps) << row.features;
    EXPECT_EQ(takes(Tells::changes), row.changes) << row.features;
  }
}

TEST(SentFacts, K69_AMessageSaysWhichProcessSentItWhenThatHasEnded) {
  auto pair = std::move(make_socket_pair().value());
  if (!ask_for_sender(pair.second.get())) GTEST_SKIP() << "SO_PASSPIDFD (Linux 6.5): " << std::strerror(errno);
  auto in = std::make_unique<Incoming>();
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(send_bytes(pair.first.get(), wire::MessageType::hello, 1, {}).ok() ? 0 : 1);
  }
  // Ended, and its number still its own: of one that is gone altogether the kernel passes nothing, or a process that ended.
  siginfo_t ended{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOWAIT), 0);
  ASSERT_EQ(receive_message(pair.second.get(), *in, patience_ms), Receive::message);
  EXPECT_EQ(in->sender_pid, child);
  ASSERT_TRUE(in->sender);
  const Process process = Process::adopt(std::move(in->sender), in->sender_pid);
  EXPECT_TRUE(process.ended());
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_TRUE(process.ended());
}

}  // namespace
}  // namespace ferry::linux::test
