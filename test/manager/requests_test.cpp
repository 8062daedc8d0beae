// What an application may ask, and what it is told when it asks for what cannot be.
#include <sys/mman.h>

#include <limits>

#include "ferryd_harness.h"

namespace ferry::manager::test {
namespace {

using wire::MessageType;
constexpr std::uint64_t window_pages = window_bytes / page_bytes;
constexpr std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();

class Requests : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(app_.hello()); }
  Ferryd ferryd_{{"--vram", "8M", "--devices", "2"}};
  Speaker app_{ferryd_};
};

TEST_F(Requests, WelcomeDescribesTheMachineAndSealsTheFiles) {
  EXPECT_EQ(app_.welcome.device_count, 2U);
  EXPECT_EQ(app_.welcome.vram_bytes, 8U << 20);
  EXPECT_EQ(app_.welcome.manager_pid, static_cast<std::uint32_t>(ferryd_.pid()));
  ASSERT_EQ(app_.files.size(), 3U + 3U * 2U);
  EXPECT_EQ(linux::file_bytes(app_.files[1].get()).value(),
            (Window{window_base, window_bytes}.page_end() * page_bytes));
  for (std::size_t i = 1; i < app_.files.size(); ++i) EXPECT_TRUE(linux::is_sealed(app_.files[i].get())) << i;
}

TEST_F(Requests, SpansThatCannotBeAreRefused) {
  struct Case {
    std::uint64_t first;
    std::uint64_t count;
  };
  for (const Case c : {Case{0, 0}, Case{window_pages + window_base / page_bytes, 1}, Case{window_pages - 1, 2},
                       Case{0, window_pages + 1}, Case{huge, 1}, Case{1, huge}, Case{huge, huge}, Case{huge - 1, 2}}) {
    for (const MessageType type : {MessageType::alloc, MessageType::free, MessageType::prefetch}) {
      EXPECT_EQ(app_.ask(type, c.first, c.count), Code::bad_range) << c.first << '+' << c.count;
    }
  }
  EXPECT_EQ(app_.ask(MessageType::alloc, 0, window_pages), Code::ok);
}

TEST_F(Requests, OverlapAndDoubleFree) {
  EXPECT_EQ(app_.ask(MessageType::alloc, 100, 50), Code::ok);
  EXPECT_EQ(app_.ask(MessageType::alloc, 149, 1), Code::overlap);
  EXPECT_EQ(app_.ask(MessageType::alloc, 99, 2), Code::overlap);
  EXPECT_EQ(app_.ask(MessageType::alloc, 150, 10), Code::ok);
  EXPECT_EQ(app_.ask(MessageType::free, 90, 10), Code::not_allocated);
  EXPECT_EQ(app_.ask(MessageType::free, 110, 10), Code::ok);
  EXPECT_EQ(app_.ask(MessageType::free, 110, 10), Code::not_allocated);
  EXPECT_EQ(app_.ask(MessageType::alloc, 110, 10), Code::ok) << "freed pages can be had again";
  EXPECT_EQ(app_.ask(MessageType::free, 100, 20), Code::ok);
  // The application may have unmapped part of what it frees.
  EXPECT_EQ(app_.ask(MessageType::free, 100, 60), Code::ok);
  EXPECT_EQ(app_.ask(MessageType::free, 100, 60), Code::not_allocated);
}

TEST_F(Requests, PrefetchToADeviceThatIsNotThere) {
  EXPECT_EQ(app_.ask(MessageType::alloc, 0, 512), Code::ok);
  EXPECT_EQ(app_.ask(MessageType::prefetch, 0, 512, 2), Code::bad_range);
  EXPECT_EQ(app_.ask(MessageType::prefetch, 0, 512, huge & 0xffff), Code::bad_range);
  EXPECT_EQ(app_.ask(MessageType::prefetch, 0, 512, 1), Code::ok) << "no process: nothing to do";
  EXPECT_EQ(app_.ask(MessageType::prefetch, 5000, 10, 0), Code::not_allocated);
}

TEST_F(Requests, QueryTellsOnlyOfAllocatedPages) {
  EXPECT_EQ(app_.ask(MessageType::query, 7, 1), Code::not_allocated);
  EXPECT_EQ(app_.ask(MessageType::alloc, 7, 1), Code::ok);
  wire::Span span{};
  span.first_page = 7;
  span.count_pages = 1;
  app_.send(MessageType::query, span);
  ASSERT_TRUE(app_.got(MessageType::residency));
  wire::PageResidency r{};
  ASSERT_TRUE(app_.in().body(r));
  EXPECT_EQ(r.allocated, 1);
  EXPECT_EQ(r.system_current, 1);
  EXPECT_EQ(r.vram_device, no_device);
  EXPECT_EQ(r.last_move_age_ns, huge);
}

TEST_F(Requests, ApplicationsCannotSeeEachOther) {
  Speaker other(ferryd_);
  ASSERT_TRUE(other.hello());
  EXPECT_NE(other.welcome.client, app_.welcome.client);
  EXPECT_EQ(app_.ask(MessageType::alloc, 0, 512), Code::ok);
  EXPECT_EQ(other.ask(MessageType::query, 0, 1), Code::not_allocated);
  EXPECT_EQ(other.ask(MessageType::alloc, 0, 512), Code::ok) << "equal addresses are different memory";
  const auto mine = std::move(linux::Mapping::map(app_.files[1].get(), 0, block_bytes).value());
  const auto theirs = std::move(linux::Mapping::map(other.files[1].get(), 0, block_bytes).value());
  mine.data()[5] = std::byte{1};
  EXPECT_EQ(theirs.data()[5], std::byte{0});
}

TEST_F(Requests, FreedMemoryGoesBackToTheMachine) {
  EXPECT_EQ(app_.ask(MessageType::alloc, 0, 2048), Code::ok);
  {
    const auto m = std::move(linux::Mapping::map(app_.files[1].get(), 0, 4 * block_bytes).value());
    ASSERT_TRUE(linux::populate(m.data(), 4 * block_bytes).ok());
    m.data()[0] = std::byte{9};
  }
  EXPECT_EQ(app_.ask(MessageType::free, 0, 2048), Code::ok);
  EXPECT_EQ(linux::next_data(app_.files[1].get(), 0, 4 * block_bytes), 4 * block_bytes);
}

TEST_F(Requests, EndOfAnApplicationLeavesNoDescriptorsBehind) {
  Speaker admin(ferryd_);
  admin.send_empty(MessageType::stats);
  ASSERT_TRUE(admin.got(MessageType::reply_text));
  const unsigned before = ferryd_.descriptors();
  for (int i = 0; i < 20; ++i) {
    Speaker s(ferryd_);
    ASSERT_TRUE(s.hello());
    EXPECT_EQ(s.ask(MessageType::alloc, 0, 512), Code::ok);
    s.close();
  }
  unsigned after = before + 1;
  for (int i = 0; i < patience_ms / 10 && after > before; ++i) {
    admin.send_empty(MessageType::stats);  // once around its loop
    ASSERT_TRUE(admin.got(MessageType::reply_text));
    after = ferryd_.descriptors();
  }
  EXPECT_LE(after, before);
}

}  // namespace
}  // namespace ferry::manager::test
