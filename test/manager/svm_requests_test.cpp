// Messages about attributes, moves, groups, pins and events from an application that lies: what cannot be is refused, with
// which line and value, nothing has changed, and the manager goes on serving.
#include <sys/mman.h>

#include <cstring>
#include <fstream>
#include <limits>

#include "base/random.h"
#include "core/svm/types.h"
#include "ferryd_harness.h"

namespace ferry::manager::test {
namespace {

using wire::MessageType;
constexpr std::uint64_t window_pages = window_bytes / page_bytes;
constexpr std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();

class SvmRequests : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(app_.hello());
    ASSERT_TRUE(other_.hello());
    ASSERT_EQ(app_.ask(MessageType::alloc, 100, 1000), Code::ok);
  }
  void TearDown() override { EXPECT_TRUE(ferryd_.serves()); }

  /// Whatever the answer is, as an SvmAnswer.
  static wire::SvmAnswer answer(Speaker& to) {
    wire::SvmAnswer a{};
    EXPECT_EQ(to.receive(), linux::Receive::message);
    if (to.in().type() == MessageType::done) {
      wire::Done done{};
      EXPECT_TRUE(to.in().body(done));
      a.code = done.code;
      return a;
    }
    EXPECT_EQ(to.in().type(), MessageType::svm_answer);
    EXPECT_TRUE(to.in().body(a));
    return a;
  }
  template <typename T>
  static wire::SvmAnswer ask(Speaker& to, MessageType type, const T& body) {
    to.send(type, body);
    return answer(to);
  }
  static Code code(const wire::SvmAnswer& a) { return static_cast<Code>(a.code); }
  static wire::SvmList list(std::vector<wire::SvmLine> lines, std::uint64_t first = 100, std::uint64_t count = 10) {
    wire::SvmList l{};
    l.first_page = first;
    l.count_pages = count;
    l.count = static_cast<std::uint32_t>(lines.size());
    std::copy(lines.begin(), lines.end(), l.lines);
    return l;
  }
  static wire::Span span(std::uint64_t first, std::uint64_t count, std::uint32_t device = wire::to_system) {
    wire::Span s{};
    s.first_page = first;
    s.count_pages = count;
    s.device = device;
    return s;
  }

  Ferryd ferryd_{{"--vram", "8M", "--devices", "2"}};
  Speaker app_{ferryd_};
  Speaker other_{ferryd_};
};

constexpr wire::SvmLine fine{static_cast<std::uint32_t>(core::AttributeType::granularity), 0, 4, 0};

constexpr MessageType by_span[] = {MessageType::svm_reset, MessageType::populate,      MessageType::svm_discard,
                                   MessageType::pin,       MessageType::migrate_async, MessageType::unpin};

TEST_F(SvmRequests, SpansThatCannotBe) {
  struct Case {
    std::uint64_t first;
    std::uint64_t count;
  };
  for (const Case c : {Case{0, 0}, Case{100, 0}, Case{window_pages - 1, 2}, Case{0, window_pages + 1}, Case{huge, 1},
                       Case{1, huge}, Case{huge, huge}, Case{huge - 1, 2}}) {
    for (const MessageType type : {MessageType::svm_set, MessageType::svm_get}) {
      const wire::SvmAnswer a = ask(app_, type, list({fine}, c.first, c.count));
      EXPECT_EQ(code(a), Code::bad_range) << c.first << '+' << c.count;
      EXPECT_NE(std::strlen(a.text), 0U);
    }
    for (const MessageType type : by_span) {
      EXPECT_EQ(code(ask(app_, type, span(c.first, c.count))), Code::bad_range) << c.first << '+' << c.count;
    }
    EXPECT_EQ(code(ask(app_, MessageType::group_assign, wire::GroupRef{0, 0, c.first, c.count})), Code::bad_range);
  }
}

TEST_F(SvmRequests, DevicesThatAreNotThere) {
  for (const std::uint32_t device : {2U, 255U, 256U, 0xffff'fffeU}) {
    for (const MessageType type : by_span) {
      const wire::SvmAnswer a = ask(app_, type, span(100, 10, device));
      EXPECT_EQ(code(a), Code::bad_range) << device;
      EXPECT_NE(std::string(a.text).find(std::to_string(device)), std::string::npos) << a.text;
    }
  }
}

TEST_F(SvmRequests, ListsThatCannotBe) {
  for (const std::uint32_t count : {0U, wire::svm_lines_max + 1, ~0U}) {
    wire::SvmList l = list({fine});
    l.count = count;
    for (const MessageType type : {MessageType::svm_set, MessageType::svm_get}) {
      const wire::SvmAnswer a = ask(app_, type, l);
      EXPECT_EQ(code(a), Code::bad_range);
      EXPECT_NE(std::string(a.text).find(std::to_string(count)), std::string::npos) << a.text;
    }
  }
  app_.send(MessageType::svm_set, wire::ObjectRef{1, 2});
  EXPECT_EQ(app_.done(), Code::bad_message);
}

TEST_F(SvmRequests, ModesThatAreNone) {
  for (const std::int32_t mode : {-2, 2, std::numeric_limits<std::int32_t>::min()}) {
    const wire::SvmAnswer a = ask(app_, MessageType::retry_faults, wire::RetryFaults{mode, 0});
    EXPECT_EQ(code(a), Code::bad_range);
    EXPECT_NE(std::string(a.text).find(std::to_string(mode)), std::string::npos);
  }
  const wire::SvmAnswer asked = ask(app_, MessageType::retry_faults, wire::RetryFaults{-1, 0});
  EXPECT_EQ(code(asked), Code::ok);
  EXPECT_EQ(asked.values[0], 1U);
}

TEST_F(SvmRequests, GroupsOfOthersAndOfNobody) {
  app_.send_empty(MessageType::group_create);
  const wire::SvmAnswer made = answer(app_);
  ASSERT_EQ(code(made), Code::ok);
  const std::uint32_t mine = made.values[0];
  for (const MessageType type : {MessageType::group_destroy, MessageType::group_assign, MessageType::group_migration}) {
    EXPECT_EQ(code(ask(other_, type, wire::GroupRef{mine, 1, 100, 1})), Code::not_held);
    EXPECT_EQ(code(ask(app_, type, wire::GroupRef{mine + 1, 1, 100, 1})), Code::not_held);
    EXPECT_EQ(code(ask(app_, type, wire::GroupRef{~0U, 1, 100, 1})), Code::not_held);
  }
  EXPECT_EQ(code(ask(app_, MessageType::group_destroy, wire::GroupRef{0, 0, 0, 0})), Code::not_held);
  EXPECT_EQ(code(ask(app_, MessageType::group_migration, wire::GroupRef{0, 0, 0, 0})), Code::not_held);
  EXPECT_EQ(code(ask(app_, MessageType::group_migration, wire::GroupRef{mine, 2, 0, 0})), Code::bad_range);
}

TEST_F(SvmRequests, GroupsAreLimited) {
  unsigned made = 0;
  for (;; ++made) {
    app_.send_empty(MessageType::group_create);
    const wire::SvmAnswer a = answer(app_);
    if (code(a) == Code::no_memory) break;
    ASSERT_EQ(code(a), Code::ok);
    ASSERT_LT(made, 100'000U) << "no limit";
  }
  EXPECT_GT(made, 1000U);
}

TEST_F(SvmRequests, StreamsOfEvents) {
  for (const std::uint64_t mask : {std::uint64_t{0}, std::uint64_t{1} << 10, huge}) {
    const wire::SvmAnswer a = ask(app_, MessageType::events_open, wire::EventsOpen{mask});
    EXPECT_EQ(code(a), Code::bad_range);
    EXPECT_NE(std::strlen(a.text), 0U);
  }
  const unsigned before = ferryd_.descriptors();
  std::vector<std::uint32_t> streams;
  for (;;) {
    const wire::SvmAnswer a = ask(app_, MessageType::events_open, wire::EventsOpen{1});
    if (code(a) == Code::no_memory) break;
    ASSERT_EQ(code(a), Code::ok);
    ASSERT_EQ(app_.in().fd_count, 3U);
    EXPECT_TRUE(linux::is_sealed(app_.in().fds[0].get())) << "a reader must not be able to shorten it";
    streams.push_back(a.values[0]);
    ASSERT_LE(streams.size(), 1000U);
  }
  EXPECT_EQ(code(ask(other_, MessageType::events_close, wire::EventsRef{streams[0], 0})), Code::not_held);
  EXPECT_EQ(code(ask(app_, MessageType::events_close, wire::EventsRef{~0U, 0})), Code::not_held);
  for (const std::uint32_t stream : streams) {
    EXPECT_EQ(code(ask(app_, MessageType::events_close, wire::EventsRef{stream, 0})), Code::ok);
  }
  EXPECT_LE(ferryd_.descriptors(), before) << "streams that are closed leave nothing behind";
}

TEST_F(SvmRequests, AnApplicationIsToldOfItsOwnPagesOnly) {
  ASSERT_EQ(code(ask(app_, MessageType::events_open, wire::EventsOpen{0xff})), Code::ok);
  auto mine = linux::Mapping::map(app_.in().fds[0].get(), 0, sizeof(wire::EventRing));
  ASSERT_EQ(code(ask(other_, MessageType::events_open, wire::EventsOpen{0xff})), Code::ok);
  auto theirs = linux::Mapping::map(other_.in().fds[0].get(), 0, sizeof(wire::EventRing));
  ASSERT_TRUE(mine.ok() && theirs.ok());
  ASSERT_EQ(app_.ask(MessageType::prefetch, 100, 10, wire::to_system), Code::ok);
  const auto& ring = *reinterpret_cast<const wire::EventRing*>(mine.value().data());
  ASSERT_EQ(ring.written.load(), 1U);
  EXPECT_EQ(ring.records[0].type, static_cast<std::uint32_t>(wire::EventType::prefetch));
  EXPECT_EQ(ring.records[0].address, window_base + 100 * page_bytes);
  EXPECT_EQ(ring.records[0].bytes, 10 * page_bytes);
  EXPECT_EQ(reinterpret_cast<const wire::EventRing*>(theirs.value().data())->written.load(), 0U);
}

std::uint64_t private_bytes(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/status");
  std::string word;
  while (in >> word) {
    std::uint64_t kib = 0;
    if (word == "RssAnon:" && in >> kib) return kib * 1024;
  }
  ADD_FAILURE() << "no size of process " << pid;
  return 0;
}

TEST_F(SvmRequests, ASpanAPageStaysBounded) {
  // Every page of a whole window by itself, four times over with other values: a million calls.
  ASSERT_EQ(other_.ask(MessageType::alloc, 0, window_pages), Code::ok);
  [[maybe_unused]] const std::uint64_t before = private_bytes(ferryd_.pid());
  constexpr unsigned together = 16;
  constexpr Page step = 77'773;  // has no factor in common with the number of pages
  for (std::uint64_t n = 0; n < 4 * window_pages; n += together) {
    for (unsigned i = 0; i < together; ++i) {
      const Page page = (n + i) * step % window_pages;
      const auto value = static_cast<std::uint32_t>((page + (n + i) / window_pages) % 9);
      other_.send(MessageType::svm_set, list({{5, 0, value, 0}}, page, 1));
    }
    for (unsigned i = 0; i < together; ++i) ASSERT_EQ(code(answer(other_)), Code::ok);
  }
  [[maybe_unused]] const std::uint64_t after = private_bytes(ferryd_.pid());
#ifndef __SANITIZE_ADDRESS__  // whose own memory grows along
  EXPECT_LT(after, before + 200 * window_pages);
#endif
  for (Page page = 0; page < window_pages; page += 9973) {
    EXPECT_EQ(ask(other_, MessageType::svm_get, list({{5, 0, 0, 0}}, page, 1)).values[0], (page + 3) % 9);
  }
  EXPECT_EQ(code(ask(other_, MessageType::svm_reset, span(0, window_pages))), Code::ok);
}

TEST_F(SvmRequests, LinesThatCannotBeAreNamedAndChangeNothing) {
  struct Case {
    wire::SvmLine line;
    const char* words;
  };
  for (const Case& c : {Case{{6, 0, 0, 0}, "6 is no attribute"}, Case{{~0U, 0, 0, 0}, "4294967295 is no attribute"},
                        Case{{0, 0, 2, 0}, "2 is no device"}, Case{{0, 0, 0x100, 0}, "256 is no device"},
                        Case{{1, 0, 255, 0}, "255 is no device"}, Case{{2, 2, 0, 0}, "2 is no device"},
                        Case{{2, 0x100, 0, 0}, "256 is no device"}, Case{{2, 0, 3, 0}, "3 is no access"},
                        Case{{3, 0, 0x1ff, 0}, "0x100 is no flag"}, Case{{5, 0, 64, 0}, "64 is more"}}) {
    const wire::SvmAnswer a = ask(app_, MessageType::svm_set, list({{0, 0, 1, 0}, c.line}));
    EXPECT_EQ(code(a), Code::bad_range) << c.words;
    const std::string text = a.text;
    EXPECT_NE(text.find("line 1"), std::string::npos) << text;
    EXPECT_NE(text.find(c.words), std::string::npos) << text;
  }
  const wire::SvmAnswer got = ask(app_, MessageType::svm_get, list({{0, 0, 0, 0}}));
  EXPECT_EQ(code(got), Code::ok);
  EXPECT_EQ(got.values[0], core::loc_undefined);
  EXPECT_EQ(code(ask(app_, MessageType::svm_get, list({fine}, 5000, 1))), Code::not_allocated);
}

TEST_F(SvmRequests, Garbage) {
  Random random(4711);
  for (unsigned i = 0; i < 3000; ++i) {
    wire::SvmList l{};
    auto* bytes = reinterpret_cast<unsigned char*>(&l);
    for (std::size_t b = 0; b < sizeof l; ++b) bytes[b] = static_cast<unsigned char>(random.below(256));
    if (random.below(2) == 0) {
      l.first_page = 100 + random.below(1000);
      l.count_pages = random.below(100);
    }
    if (random.below(2) == 0) l.count = static_cast<std::uint32_t>(random.below(5));
    for (wire::SvmLine& line : l.lines) {
      if (random.below(2) == 0) line.type = static_cast<std::uint32_t>(random.below(7));
      if (random.below(2) == 0) line.device = static_cast<std::uint32_t>(random.below(4));
      if (random.below(2) == 0) line.value = static_cast<std::uint32_t>(random.below(300));
    }
    const wire::SvmAnswer a = ask(app_, random.below(2) == 0 ? MessageType::svm_set : MessageType::svm_get, l);
    EXPECT_LE(a.code, static_cast<std::uint32_t>(Code::unsupported));
    EXPECT_NE(std::memchr(a.text, 0, sizeof a.text), nullptr);
  }
}

}  // namespace
}  // namespace ferry::manager::test
