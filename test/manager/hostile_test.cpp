// Applications that lie about attributes, changes, forks, adoption and checkpoints: with messages of wrong form and of wrong
// meaning, at any time. Each gets an error or is let go, and an honest application beside it notices nothing.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <optional>

#include "base/random.h"
#include "core/svm/types.h"
#include "ferryd_harness.h"

namespace ferry::manager::test {
namespace {

using wire::MessageType;

constexpr std::uint64_t window_pages = window_bytes / page_bytes;
/// Numbers of pages outside of the window begin behind those of the window.
constexpr std::uint64_t outside = window_pages + 512;

class Hostile : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(good_.hello());
    ASSERT_EQ(good_.ask(MessageType::alloc, 0, 512), Code::ok);
    ASSERT_TRUE(bad_.hello());
    ASSERT_EQ(bad_.ask(MessageType::alloc, 0, 512), Code::ok);
  }
  void TearDown() override { honest_is_served("in the end"); }
  /// The honest application asks for everything that the other spoils, and has an answer.
  void honest_is_served(const char* when) {
    ASSERT_TRUE(ferryd_.alive()) << when;
    wire::SvmList list{};
    list.count_pages = 512;
    list.count = 1;
    list.lines[0] = {static_cast<std::uint32_t>(core::AttributeType::granularity), 0, turn_++ % 9, 0};
    good_.send(MessageType::svm_set, list);
    ASSERT_EQ(good_.done(), Code::ok) << when;
    ASSERT_EQ(good_.ask(MessageType::prefetch, 0, 512), Code::ok) << when;
    ASSERT_EQ(good_.ask(MessageType::alloc, 1024, 16), Code::ok) << when;
    ASSERT_EQ(good_.ask(MessageType::free, 1024, 16), Code::ok) << when;
  }
  /// What peers sent is closed a little later: waits for so few.
  [[nodiscard]] unsigned fewest_descriptors(unsigned wanted) {
    unsigned now = ferryd_.descriptors();
    for (int i = 0; i < patience_ms / 10 && now > wanted; ++i) {
      honest_is_served("while descriptors are closed");  // once around its loop
      now = ferryd_.descriptors();
    }
    return now;
  }
  /// The code that a message is answered with, whichever way; nothing if its sender is let go.
  template <typename T>
  std::optional<Code> code_of(MessageType type, const T& body, std::vector<int> fds = {}) {
    bad_.send(type, body, std::move(fds));
    if (bad_.receive() != linux::Receive::message) return std::nullopt;
    wire::Done done{};
    wire::SvmAnswer answer{};
    if (bad_.in().type() == MessageType::done && bad_.in().body(done)) return static_cast<Code>(done.code);
    if (bad_.in().type() == MessageType::svm_answer && bad_.in().body(answer)) return static_cast<Code>(answer.code);
    return std::nullopt;
  }
  static wire::Span span(std::uint64_t first, std::uint64_t count) {
    wire::Span s{};
    s.first_page = first;
    s.count_pages = count;
    s.device = wire::to_system;
    return s;
  }
  Ferryd ferryd_{{"--vram", "8M", "--devices", "2"}};
  Speaker good_{ferryd_};
  Speaker bad_{ferryd_};
  std::uint32_t turn_ = 0;
};

constexpr std::array own_types = {
    MessageType::svm_set,       MessageType::svm_get,      MessageType::svm_reset,       MessageType::retry_faults,
    MessageType::migrate_async, MessageType::populate,     MessageType::svm_discard,     MessageType::group_create,
    MessageType::group_destroy, MessageType::group_assign, MessageType::group_migration, MessageType::pin,
    MessageType::unpin,         MessageType::events_open,  MessageType::events_close,    MessageType::change,
    MessageType::changed,       MessageType::fork_begin,   MessageType::fork_end,        MessageType::fork_child,
    MessageType::adopt_ask,     MessageType::adopt_answer, MessageType::adopt_begin,     MessageType::adopt_faults,
    MessageType::release,       MessageType::released,     MessageType::attributes_run,
};

TEST_F(Hostile, BodiesOfOtherSizes) {
  for (std::uint32_t type = 64; type < 144; ++type) {
    Speaker one(ferryd_);
    ASSERT_TRUE(one.hello());
    const std::array<std::byte, 7> odd{};
    one.send(static_cast<MessageType>(type), odd);
    const auto named = static_cast<MessageType>(type);
    if (named == MessageType::group_create || named == MessageType::fork_goes) continue;  // no body, no answer
    wire::SvmAnswer answer{};
    ASSERT_EQ(one.receive(), linux::Receive::message) << type;
    const bool refused = one.in().type() == MessageType::svm_answer && one.in().body(answer) && answer.code != 0;
    wire::Done done{};
    EXPECT_TRUE(refused || (one.in().body(done) && done.code != 0)) << type;
  }
}

TEST_F(Hostile, BeforeHello) {
  for (const MessageType type : own_types) {
    Speaker one(ferryd_);
    one.send(type, span(0, 1));
    EXPECT_TRUE(one.got(MessageType::refused)) << static_cast<unsigned>(type);
    EXPECT_TRUE(one.closed());
  }
}

TEST_F(Hostile, SpansThatCannotBe) {
  constexpr std::uint64_t most = ~std::uint64_t{0};
  const wire::Span spans[] = {span(0, 0),           span(most, 1),       span(0, most),
                              span(1, most),        span(most - 1, 4),   span(window_pages, most),
                              span(most / 4096, 2), span(1ULL << 52, 1), span(outside, most / 2)};
  for (const MessageType type :
       {MessageType::svm_reset, MessageType::populate, MessageType::svm_discard, MessageType::migrate_async,
        MessageType::pin, MessageType::unpin, MessageType::changed, MessageType::adopt_begin, MessageType::release,
        MessageType::released, MessageType::attributes_run}) {
    for (const wire::Span& s : spans) {
      const auto code = code_of(type, s);
      ASSERT_TRUE(code.has_value()) << static_cast<unsigned>(type);
      EXPECT_NE(*code, Code::ok) << static_cast<unsigned>(type) << ": " << s.first_page << "+" << s.count_pages;
    }
  }
  for (const wire::Span& s : spans) {
    for (std::uint32_t change = 0; change < core::change_count; ++change) {
      EXPECT_NE(code_of(MessageType::change, wire::Change{s.first_page, s.count_pages, 0, change, 1}), Code::ok);
    }
  }
}

TEST_F(Hostile, ChangesThatAreNone) {
  EXPECT_EQ(code_of(MessageType::change, wire::Change{0, 8, 0, core::change_count, 0}), Code::bad_range);
  EXPECT_EQ(code_of(MessageType::change, wire::Change{0, 8, 0, ~0U, 0}), Code::bad_range);
  EXPECT_EQ(code_of(MessageType::change, wire::Change{0, 8, 0, static_cast<std::uint32_t>(core::Change::protect), 8}),
            Code::bad_range);
  EXPECT_NE(code_of(MessageType::change, wire::Change{600, 8, 0, static_cast<std::uint32_t>(core::Change::protect), 1}),
            Code::ok)
      << "memory that is nobody's";
  EXPECT_NE(code_of(MessageType::change,
                    wire::Change{0, 8, ~std::uint64_t{0} - 2, static_cast<std::uint32_t>(core::Change::move), 0}),
            Code::ok);
}

// --- adoption ----------------------------------------------------------------------------------------------------------

TEST_F(Hostile, AnswersThatNobodyAskedFor) {
  for (unsigned i = 0; i < 64; ++i) {
    bad_.send(MessageType::adopt_answer, wire::AdoptAnswer{0x7000'0000 + i * page_bytes, i % 2 == 0 ? 0 : ~0U, 0});
  }
  honest_is_served("meanwhile");
}

TEST_F(Hostile, ReleasesOfWhatWasNeverAdopted) {
  EXPECT_EQ(code_of(MessageType::release, span(outside, 4)), Code::not_allocated);
  EXPECT_EQ(code_of(MessageType::released, span(outside, 4)), Code::not_allocated);
  EXPECT_EQ(code_of(MessageType::release, span(0, 4)), Code::bad_range) << "memory of the window";
  EXPECT_EQ(code_of(MessageType::released, span(0, 4)), Code::bad_range);
  EXPECT_EQ(code_of(MessageType::adopt_begin, span(0, 4)), Code::bad_range);
}

TEST_F(Hostile, BeginsTwiceReleasesTwice) {
  EXPECT_EQ(code_of(MessageType::adopt_begin, span(outside, 4)), Code::ok);
  EXPECT_EQ(code_of(MessageType::adopt_begin, span(outside, 4)), Code::ok) << "nothing is there, as before";
  ASSERT_EQ(bad_.ask(MessageType::alloc, outside, 4), Code::ok);
  EXPECT_EQ(code_of(MessageType::release, span(outside, 4)), Code::ok);
  EXPECT_NE(code_of(MessageType::release, span(outside, 4)), Code::ok);
  EXPECT_NE(code_of(MessageType::released, span(outside, 2)), Code::ok) << "other than what was released";
  EXPECT_EQ(code_of(MessageType::released, span(outside, 4)), Code::ok);
  EXPECT_NE(code_of(MessageType::released, span(outside, 4)), Code::ok);
}

/// A span as large as an address space: it is taken or refused, and nobody waits for it to be walked through.
TEST_F(Hostile, AnUnmapBesideWhatIsPinnedIsNotForgotten) {
  ASSERT_EQ(bad_.ask(MessageType::alloc, outside, 16), Code::ok);
  ASSERT_EQ(code_of(MessageType::pin, span(outside + 1, 1)), Code::ok);
  wire::Span gone = span(outside, 4);
  gone.flags = wire::span_no_wait;
  ASSERT_EQ(code_of(MessageType::adopt_begin, gone), Code::ok) << "stays until the unpin";
  gone = span(outside + 2, 6);
  gone.flags = wire::span_no_wait;
  ASSERT_EQ(code_of(MessageType::adopt_begin, gone), Code::ok);
  // Gone without being asked for once more: devices may not reach what was there.
  gone.flags = wire::span_wait_only;
  ASSERT_EQ(code_of(MessageType::adopt_begin, gone), Code::ok);
  EXPECT_EQ(bad_.ask(MessageType::alloc, outside + 4, 4), Code::ok);
  EXPECT_EQ(code_of(MessageType::adopt_begin, span(outside, 4)), Code::in_use);
  EXPECT_EQ(code_of(MessageType::unpin, span(outside + 1, 1)), Code::ok);
}

TEST_F(Hostile, SpansOfAllAddresses) {
  constexpr std::uint64_t huge = std::uint64_t{1} << 26;
  ASSERT_EQ(bad_.ask(MessageType::alloc, outside, huge), Code::ok);
  for (const MessageType type : {MessageType::release, MessageType::released, MessageType::adopt_begin,
                                 MessageType::changed, MessageType::svm_discard, MessageType::svm_reset,
                                 MessageType::attributes_run, MessageType::unpin, MessageType::populate}) {
    bad_.send(type, span(outside, huge));
    SCOPED_TRACE(static_cast<unsigned>(type));
    honest_is_served("while a huge span is asked for");
    if (HasFatalFailure()) return;
  }
}

/// Nobody waits for an unpin: who frees may be who is to unpin.
TEST_F(Hostile, FreesOfWhatIsPinnedAreAnsweredAtOnceAndChangeNothing) {
  ASSERT_EQ(code_of(MessageType::pin, span(8, 4)), Code::ok);
  EXPECT_EQ(code_of(MessageType::free, span(0, 512)), Code::in_use);
  wire::Change unmap{};
  unmap.first_page = 10;
  unmap.count_pages = 1;
  unmap.change = static_cast<std::uint32_t>(core::Change::unmap);
  EXPECT_EQ(code_of(MessageType::change, unmap), Code::in_use);
  EXPECT_EQ(code_of(MessageType::free, span(100, 10)), Code::ok) << "beside it";
  ASSERT_EQ(code_of(MessageType::unpin, span(8, 4)), Code::ok);
  EXPECT_EQ(code_of(MessageType::change, unmap), Code::ok);
}

/// Under a budget each block of an allocation is looked at: of more than any program has, none is.
TEST(HostileBudget, AllocationsLargerThanAnyProgramsAreRefusedAtOnce) {
  Ferryd ferryd{{"--vram", "8M", "--system", "16M"}};
  Speaker one(ferryd);
  ASSERT_TRUE(one.hello());
  EXPECT_EQ(one.ask(MessageType::alloc, outside, std::uint64_t{1} << 31), Code::no_memory);
  EXPECT_EQ(one.ask(MessageType::alloc, outside, (std::uint64_t{1} << 28) + 1), Code::no_memory);
  EXPECT_EQ(one.ask(MessageType::alloc, 0, 512), Code::ok);
}

// --- descriptors -------------------------------------------------------------------------------------------------------

struct Descriptors {
  Descriptors() {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    all.emplace_back(ends[0]);
    all.emplace_back(ends[1]);
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    all.emplace_back(ends[0]);
    all.emplace_back(ends[1]);
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    all.emplace_back(ends[0]);
    all.emplace_back(ends[1]);
    all.emplace_back(::eventfd(0, EFD_CLOEXEC));
    all.emplace_back(::memfd_create("ferry-test", MFD_CLOEXEC));
    all.emplace_back(::open("/dev/null", O_RDWR | O_CLOEXEC));
    all.emplace_back(::open("/proc/self/mem", O_RDONLY | O_CLOEXEC));
    userfault = std::move(linux::Userfaultfd::open({}).value());
  }
  std::vector<linux::Fd> all;
  linux::Userfaultfd userfault;
};

TEST_F(Hostile, DescriptorsOfTheWrongKindOrMissing) {
  const Descriptors have;
  for (const MessageType type : {MessageType::adopt_faults, MessageType::fork_begin}) {
    for (std::size_t i = 0; i <= have.all.size(); ++i) {
      Speaker one(ferryd_);
      ASSERT_TRUE(one.hello());
      if (i == have.all.size()) {
        one.send(type, wire::AdoptFaults{});
      } else if (type == MessageType::fork_begin && (i == 2 || i == 3)) {
        continue;  // of the right kind
      } else {
        one.send(type, wire::AdoptFaults{}, {have.all[i].get()});
      }
      const Code code = one.done();
      EXPECT_NE(code, Code::ok) << static_cast<unsigned>(type) << ", descriptor " << i;
    }
  }
  // Those that nobody asked for are closed.
  const unsigned before = ferryd_.descriptors();
  EXPECT_EQ(code_of(MessageType::svm_reset, span(0, 1), {have.all[0].get(), have.all[6].get(), have.all[7].get()}),
            Code::ok);
  EXPECT_LE(fewest_descriptors(before), before);
}

/// A fork's event would have the manager open a descriptor for each.
TEST_F(Hostile, AUserfaultfdThatTellsOfForksIsRefused) {
  const linux::Fd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (!fd) GTEST_SKIP() << "userfaultfd: " << std::strerror(errno);
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_EVENT_FORK;
  if (::ioctl(fd.get(), UFFDIO_API, &api) != 0) GTEST_SKIP() << "UFFD_FEATURE_EVENT_FORK: " << std::strerror(errno);
  Speaker one(ferryd_);
  ASSERT_TRUE(one.hello());
  one.send(MessageType::adopt_faults, wire::AdoptFaults{}, {fd.get()});
  EXPECT_EQ(one.done(), Code::bad_message);
}

// --- forks -------------------------------------------------------------------------------------------------------------

class ForkGates : public Hostile {
 protected:
  void SetUp() override {
    Hostile::SetUp();
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    manager_end_.reset(ends[0]);
    child_.emplace(linux::Fd(ends[1]));
  }
  linux::Fd manager_end_;
  std::optional<Speaker> child_;
};

TEST_F(ForkGates, AnythingMayBeAskedWhileOneIsShut) {
  bad_.send(MessageType::fork_begin, wire::ForkBegin{1, 0}, {manager_end_.get()});
  for (unsigned round = 0; round < 4; ++round) {
    for (const MessageType type : own_types) {
      if (type == MessageType::fork_end) continue;
      bad_.send(type, span(round * 7, round + 1));
    }
    honest_is_served("while another forks");
    bad_ = Speaker(ferryd_);
    ASSERT_TRUE(bad_.hello());
    ASSERT_EQ(bad_.ask(MessageType::alloc, 0, 64), Code::ok);
    bad_.send(MessageType::fork_begin, wire::ForkBegin{1, round % 2}, {manager_end_.get()});
  }
}

TEST_F(ForkGates, ChildrenThatSayOtherThings) {
  for (const MessageType type : own_types) {
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    const linux::Fd manager_end(ends[0]);
    Speaker child{linux::Fd(ends[1])};
    Speaker one(ferryd_);
    ASSERT_TRUE(one.hello());
    one.send(MessageType::fork_begin, wire::ForkBegin{1, 0}, {manager_end.get()});
    child.send(type, span(0, 4));
    honest_is_served("beside a child that talks nonsense");
  }
}

// --- at random ---------------------------------------------------------------------------------------------------------

class Fuzz : public Hostile, public ::testing::WithParamInterface<std::uint64_t> {
 protected:
  std::uint64_t page() {
    switch (random_.below(8)) {
      case 0: return random_.next();
      case 1: return window_pages - random_.below(4);
      case 2: return outside + random_.below(2048);
      case 3: return ~std::uint64_t{0} - random_.below(4);
      default: return random_.below(1200);
    }
  }
  std::uint64_t pages() {
    switch (random_.below(8)) {
      case 0: return 0;
      case 1: return random_.next();
      case 2: return std::uint64_t{1} << random_.below(64);
      default: return 1 + random_.below(600);
    }
  }
  std::uint32_t small() { return random_.chance(900) ? static_cast<std::uint32_t>(random_.below(12)) : ~0U; }
  /// A body that is likely to be of the message's form, with values that are likely to mean something.
  std::vector<std::byte> body(MessageType type) {
    std::vector<std::byte> out;
    const auto put = [&](const auto& value) {
      out.resize(sizeof value);
      std::memcpy(out.data(), &value, sizeof value);
    };
    switch (type) {
      case MessageType::svm_set:
      case MessageType::svm_get: {
        wire::SvmList list{};
        list.first_page = page();
        list.count_pages = pages();
        list.count = random_.chance(900) ? static_cast<std::uint32_t>(random_.below(6)) : small();
        for (wire::SvmLine& line : list.lines) line = {small() % 8, small(), small(), small() % 2};
        put(list);
        break;
      }
      case MessageType::retry_faults: put(wire::RetryFaults{static_cast<std::int32_t>(small()) - 2, 0}); break;
      case MessageType::group_destroy:
      case MessageType::group_assign:
      case MessageType::group_migration: put(wire::GroupRef{small(), small() % 3, page(), pages()}); break;
      case MessageType::events_open:
        put(wire::EventsOpen{random_.chance(500) ? random_.next() : random_.below(512)});
        break;
      case MessageType::events_close: put(wire::EventsRef{small(), 0}); break;
      case MessageType::change: put(wire::Change{page(), pages(), page(), small() % 7, small()}); break;
      case MessageType::fork_begin:
      case MessageType::fork_child: put(wire::ForkBegin{small(), small() % 3}); break;
      case MessageType::fork_end: put(wire::Done{small(), 0}); break;
      case MessageType::adopt_answer:
        put(wire::AdoptAnswer{page() * page_bytes, small(), static_cast<std::int32_t>(small())});
        break;
      case MessageType::adopt_faults: put(wire::AdoptFaults{0}); break;
      case MessageType::group_create: break;
      default: {
        wire::Span s = span(page(), pages());
        s.device = random_.chance(500) ? wire::to_system : small();
        s.flags = small() % 8;
        put(s);
        break;
      }
    }
    if (random_.chance(60)) out.resize(random_.below(1200));
    return out;
  }
  void one_connection(const Descriptors& have) {
    Speaker one(ferryd_);
    if (!random_.chance(50)) {
      ASSERT_TRUE(one.hello());
      ASSERT_EQ(one.ask(MessageType::alloc, 0, 512), Code::ok);
    }
    for (unsigned i = 0; i < 60; ++i) {
      MessageType type = own_types[random_.below(own_types.size())];
      if (random_.chance(150)) type = random_.chance(500) ? MessageType::alloc : MessageType::free;
      if (random_.chance(30)) type = static_cast<MessageType>(64 + random_.below(80));
      const std::vector<std::byte> bytes = body(type);
      std::vector<int> fds;
      if (type == MessageType::adopt_faults && random_.chance(500)) {
        fds.push_back(have.userfault.fd());
      } else if ((type == MessageType::fork_begin && random_.chance(700)) || random_.chance(40)) {
        for (std::uint64_t n = 1 + random_.below(3); n > 0; --n)
          fds.push_back(have.all[random_.below(have.all.size())].get());
      }
      wire::MessageHead head{};
      head.magic = wire::control_magic;
      head.version = wire::wire_version;
      head.type = static_cast<std::uint32_t>(type);
      head.request = random_.next();
      std::vector<std::byte> message(sizeof head);
      std::memcpy(message.data(), &head, sizeof head);
      message.insert(message.end(), bytes.begin(), bytes.end());
      iovec part{message.data(), message.size()};
      alignas(cmsghdr) std::array<char, CMSG_SPACE(4 * sizeof(int))> control{};
      msghdr out{};
      out.msg_iov = &part;
      out.msg_iovlen = 1;
      if (!fds.empty()) {
        out.msg_control = control.data();
        out.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
        cmsghdr* const rights = CMSG_FIRSTHDR(&out);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
        std::memcpy(CMSG_DATA(rights), fds.data(), fds.size() * sizeof(int));
      }
      if (::sendmsg(one.fd(), &out, MSG_NOSIGNAL) < 0) break;
      linux::Receive got{};
      while ((got = one.receive(0)) == linux::Receive::message) {}
      if (got == linux::Receive::closed) break;
    }
  }
  Random random_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(From, Fuzz, ::testing::Range(std::uint64_t{1}, std::uint64_t{7}));

TEST_P(Fuzz, NobodyElseNotices) {
  const Descriptors have;
  const unsigned before = ferryd_.descriptors();
  for (unsigned connection = 0; connection < 12 && !HasFatalFailure(); ++connection) {
    one_connection(have);
    honest_is_served("beside random messages");
  }
  // Everything of those that have gone is given back; forks of theirs go with their sockets, which this process holds.
  EXPECT_LE(fewest_descriptors(before + 12 * 4), before + 12 * 4);
}

}  // namespace
}  // namespace ferry::manager::test
