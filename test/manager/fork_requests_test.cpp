// Forks as an application and a child tell of them that lie about them, or end in between. The test plays both: the
// child's memory is private memory of this process, which the manager fills.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ferryd_harness.h"
#include "linux/event.h"
#include "wire/ring.h"

namespace ferry::manager::test {
namespace {

using wire::MessageType;

constexpr std::uint64_t value_of(std::uint64_t page) { return (page + 1) * 0x9e37'79b9'7f4a'7c15U; }

/// Memory of a child that was just forked: nothing of it is there.
class Child {
 public:
  explicit Child(std::uint64_t pages) : bytes_(pages * page_bytes) {
    linux::Userfaultfd::Options options;
    options.changes = true;
    options.prefer_full_service = false;
    userfault_ = std::move(linux::Userfaultfd::open(options).value());
    EXPECT_EQ(::mmap(reinterpret_cast<void*>(window_base), bytes_, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0),
              reinterpret_cast<void*>(window_base));
    EXPECT_EQ(userfault_.register_span(window_base, bytes_, linux::track_missing), linux::Fault::ok);
    EXPECT_EQ(::pipe2(alarm_, O_CLOEXEC), 0);
  }
  ~Child() {
    userfault_.close();
    ::munmap(reinterpret_cast<void*>(window_base), bytes_);
    for (const int end : alarm_) ::close(end);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  /// From here on the manager alone has its userfaultfd.
  void say_hello(Speaker& socket) {
    socket.send(MessageType::fork_child, wire::ForkBegin{1, 0}, {userfault_.fd(), alarm_[0], alarm_[1]});
    userfault_.close();
  }
  [[nodiscard]] static std::uint64_t word(std::uint64_t page) {
    return *reinterpret_cast<const volatile std::uint64_t*>(window_base + page * page_bytes);
  }

 private:
  std::uint64_t bytes_;
  linux::Userfaultfd userfault_;
  int alarm_[2] = {-1, -1};
};

class ForkRequests : public ::testing::Test {
 protected:
  void SetUp() override {
#ifdef __SANITIZE_THREAD__
    GTEST_SKIP() << "ThreadSanitizer keeps the window's addresses for itself";
#endif
    ASSERT_TRUE(app_.hello());
    control_ = std::move(linux::Mapping::map(app_.files[2].get(), 0, sizeof(wire::AppControl)).value());
    auto& control = *reinterpret_cast<wire::AppControl*>(control_.data());
    agent_ = wire::PeerPort(control.agent, control.head);
  }
  void TearDown() override {
    EXPECT_TRUE(ferryd_.alive());
    EXPECT_TRUE(ferryd_.serves());
  }
  /// `blocks` blocks are allocated, and every `step`th page has its value.
  void write_blocks(std::uint64_t blocks, std::uint64_t step) {
    ASSERT_EQ(app_.ask(MessageType::alloc, 0, blocks * block_pages), Code::ok);
    for (std::uint64_t page = 0; page < blocks * block_pages; page += step) {
      const std::uint64_t value = value_of(page);
      ASSERT_EQ(::pwrite(app_.files[1].get(), &value, sizeof value, static_cast<off_t>(page * page_bytes)), 8);
    }
  }
  /// The application's question before it forks, and the child's end of its socket.
  Speaker begin(bool at_once) {
    auto pair = std::move(linux::make_socket_pair().value());
    app_.send(MessageType::fork_begin, wire::ForkBegin{1, at_once ? 1U : 0U}, {pair.second.get()});
    // Nobody has the pages mapped, so there is nothing to do for what the manager wants of the application's agent.
    while (app_.receive(10) == linux::Receive::nothing) {
      wire::DownRecord command{};
      while (agent_.try_take(command)) {
        wire::UpRecord done{};
        done.kind = static_cast<std::uint32_t>(wire::UpKind::done);
        done.action = command.action;
        EXPECT_TRUE(agent_.post(done, [&] { linux::Bell::ring_fd(app_.files[0].get()); }));
      }
    }
    EXPECT_EQ(app_.in().type(), MessageType::done);
    wire::Done body{};
    EXPECT_TRUE(app_.in().body(body));
    EXPECT_EQ(static_cast<Code>(body.code), Code::ok);
    return Speaker(std::move(pair.first));
  }

  Ferryd ferryd_{{"--vram", "8M", "--cus", "2", "--granularity", "64K"}};
  Speaker app_{ferryd_};
  linux::Mapping control_;
  wire::PeerPort agent_;
};

/// The child has everything in the very moment in which the application says that the fork is over.
TEST_F(ForkRequests, AForkThatIsOverTwiceAtOnce) {
  constexpr std::uint64_t blocks = 4;
  write_blocks(blocks, 100);
  wire::BufferCreate create{};
  create.count_pages = blocks * block_pages;
  create.flags = wire::buffer_userptr;
  create.home = wire::to_system;
  app_.send(MessageType::buffer_create, create);
  ASSERT_TRUE(app_.got(MessageType::work_answer));
  wire::WorkAnswer made{};
  ASSERT_TRUE(app_.in().body(made));
  ASSERT_EQ(static_cast<Code>(made.code), Code::ok) << made.text;

  Child child(blocks * block_pages);
  Speaker socket = begin(true);
  // Both in one turn.
  ferryd_.signal(SIGSTOP);
  int stopped = 0;
  ASSERT_EQ(::waitpid(ferryd_.pid(), &stopped, WUNTRACED), ferryd_.pid());
  child.say_hello(socket);
  app_.send(MessageType::fork_end, wire::Done{});
  ferryd_.signal(SIGCONT);
  EXPECT_TRUE(socket.closed());
  for (std::uint64_t page = 0; page < blocks * block_pages; page += 100) EXPECT_EQ(Child::word(page), value_of(page));
  EXPECT_EQ(Child::word(1), 0U);
}

/// Far more is dropped than is missing, some of it by its new address.
TEST_F(ForkRequests, AChildThatMovesAndDropsBeforeItHasAnything) {
  constexpr std::uint64_t pages = window_bytes / page_bytes;
  constexpr std::uint64_t far = 100'000;
  write_blocks(1, 1);
  ASSERT_EQ(app_.ask(MessageType::alloc, block_pages, pages - block_pages), Code::ok);
  const std::uint64_t value = value_of(far);
  ASSERT_EQ(::pwrite(app_.files[1].get(), &value, sizeof value, static_cast<off_t>(far * page_bytes)), 8);
  Child child(pages);
  Speaker socket = begin(false);
  child.say_hello(socket);
  app_.send(MessageType::fork_end, wire::Done{});
  auto* const base = reinterpret_cast<char*>(window_base);
  // Page 5 comes to lie far behind, and what was there goes.
  void* const moved = ::mremap(base + 5 * page_bytes, page_bytes, page_bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                               base + 200'000 * page_bytes);
  ASSERT_EQ(moved, base + 200'000 * page_bytes);
  ASSERT_EQ(::madvise(base + 10 * page_bytes, (pages - 10 - 1000) * page_bytes, MADV_DONTNEED), 0);
  EXPECT_EQ(Child::word(4), value_of(4));
  EXPECT_EQ(Child::word(9), value_of(9));
  EXPECT_EQ(Child::word(10), 0U);
  EXPECT_EQ(Child::word(511), 0U);
  EXPECT_EQ(Child::word(far), 0U);
  EXPECT_EQ(Child::word(200'000), 0U);  // where page 5 was moved to
}

/// It never ends with that; the manager does not follow for ever.
TEST_F(ForkRequests, AChildThatMovesWithoutEndIsLeftAlone) {
  write_blocks(64, 1);
  Child child(block_pages * 64);
  Speaker socket = begin(false);
  child.say_hello(socket);
  app_.send(MessageType::fork_end, wire::Done{});
  auto* const base = reinterpret_cast<char*>(window_base);
  char* const spare = base + window_bytes;
  bool left = false;
  for (unsigned i = 0; i < 200'000 && !left; ++i) {
    char* const from = i % 2 == 0 ? base : spare;
    char* const to = i % 2 == 0 ? spare : base;
    ASSERT_EQ(::mremap(from, page_bytes, page_bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
    left = i % 64 == 0 && socket.receive(0) == linux::Receive::closed;
  }
  EXPECT_TRUE(left || socket.closed());
  ::munmap(spare, page_bytes);
}

}  // namespace
}  // namespace ferry::manager::test
